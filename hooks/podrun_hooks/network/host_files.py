"""Keeps what pods have taken over from the host's resolv.conf and hosts as the host has it now.

A bind mount of the host's file would not do: whoever changes it (resolved, NetworkManager, dhclient) renames a new one
over it, and a mount stays with the old. Nor would a mount of its directory: there are sockets in resolved's, and all
else in /etc. So pods have a file of podrun's, which is written again in place. systemd watches the host's files
(systemd.path(5)): no process stays.
"""

from __future__ import annotations

import os
import sys

from podrun import jsontext
from podrun_hooks.network import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RUN = "/run/podrun"
#: The unit of the usual run directory, without ".path" and ".service".
UNIT = "podrun-host-files"
#: What tests and people without systemd say: "no".
_VARIABLE = "PODRUN_SYSTEMD"
_WATCHED = ("/etc/resolv.conf", files.UPSTREAM, "/etc/hosts")
_SUFFIX = f".{files.OF_HOST}"


def refresh(run: str) -> list[str]:
    """Writes the files of all pods again whose content would be another today; returns their paths."""
    written = []
    for directory in _listed(f"{run}/pods"):
        for name in _listed(f"{run}/pods/{directory}"):
            if name.endswith(_SUFFIX):
                written += _refresh(f"{run}/pods/{directory}/{name.removesuffix(_SUFFIX)}")
    return written


def _refresh(stem: str) -> list[str]:
    try:
        with open(f"{stem}{_SUFFIX}", encoding="utf-8") as file:
            told = jsontext.loads(file.read())
    except (FileNotFoundError, ValueError):  # the pod is just being undone, or made
        return []
    wanted = {"resolv.conf": files.resolv(told["dns"], told["search"], reachable_loopback=told["reachable_loopback"])}
    if told["hosts"] is not None:
        wanted["hosts"] = files.host_hosts(told["hosts"])
    return [f"{stem}.{name}" for name, text in wanted.items() if _rewrite(f"{stem}.{name}", text.encode())]


def _rewrite(path: str, content: bytes) -> bool:
    """Gives the file at ``path`` this content in place: containers have its inode. True if it had another.

    A reader sees the old content or the new, never half of it: it is one write, filled up with empty lines.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        size = os.fstat(fd).st_size
        if os.pread(fd, size + 1, 0) == content:
            return False
        os.pwrite(fd, content.ljust(size, b"\n"), 0)
        os.ftruncate(fd, len(content))
    finally:
        os.close(fd)
    return True


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


# --- who notices ---------------------------------------------------------------------------------------------------


def unit_of(run: str) -> str:
    """The unit's name without its kind; other run directories have units of their own."""
    if run == RUN:
        return UNIT
    from _blake2 import blake2s

    return f"{UNIT}-{blake2s(run.encode(), digest_size=2).hexdigest()}"


def watch(run: str) -> None:
    """Has systemd watch the host's files for the pods of a run directory, unless it does already."""
    name = unit_of(run)
    if os.environ.get(_VARIABLE) == "no" or os.geteuid():
        return
    if any(os.path.exists(f"{place}/{name}.path") for place in ("/run/systemd/transient", "/etc/systemd/system")):
        return
    places = [path for path in sys.path if os.path.isdir(f"{path}/podrun_hooks") or os.path.isdir(f"{path}/podrun")]
    # One expression: systemd 252 writes a ";" of a transient unit so that it does not read it back.
    code = f"__import__('sys').path.extend({places!r}) or __import__({__name__!r}, None, None, ['']).refresh({run!r})"
    argv = ["/usr/bin/systemd-run", "--quiet", "--no-block", f"--unit={name}"]
    argv += ["--description=podrun: pods see changes of the host's resolv.conf and hosts"]
    argv += [f"--path-property=PathChanged={path}" for path in _WATCHED]
    argv += ["--property=StartLimitIntervalSec=0", "--property=CapabilityBoundingSet=CAP_DAC_OVERRIDE"]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        command = [*argv, "--", sys.executable, "-IS", "-c", code]
        os.waitpid(os.posix_spawn(argv[0], command, {"PATH": "/usr/bin:/bin"}, file_actions=actions), 0)
    except OSError:
        pass  # without systemd-run nobody watches; 'podrun network refresh' does it by hand
    finally:
        os.close(null)
