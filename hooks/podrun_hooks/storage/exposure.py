"""The exposures of a mount, for ``podrun check --security``."""

from __future__ import annotations

import os

from podrun.hook_extras import Exposure
from podrun_hooks.storage.options import OVERLAY, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from podrun.hook import Step

#: Whoever can connect to one of these can run anything as root on the host.
_SOCKETS = (
    "docker.sock", "podman.sock", "containerd.sock", "crio.sock", "/run/systemd/private", "system_bus_socket",
    "/run/dbus", "/run/docker", "/run/podman", "/run/containerd", "/run/crio",
)  # fmt: skip
#: What the host is made of: written to, it is the host.
_HOST = ("/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/boot", "/root", "/proc", "/sys", "/dev", "/var", "/run")
#: Parts of them that are there to be handed out.
_HARMLESS = ("/dev/shm", "/dev/dri", "/dev/snd", "/usr/share", "/var/www", "/var/log", "/etc/localtime", "/etc/ssl")


def of(step: Step) -> Iterator[Exposure]:
    """The exposures of a storage step."""
    options = step.options
    if options.content:
        yield Exposure("what is in the file stands in the pod file", 0.4, "credential instead of content")
    if kind_of(options.source, options.type, options.options) in ("bind", "overlay"):
        yield from of_path(options.source, read_only=bool({"ro", "rro", OVERLAY} & {*options.options}))


def of_path(source: str, *, read_only: bool) -> Iterator[Exposure]:
    """The exposures of a source: a path of the host, or any other, which gives away nothing of it."""
    if not source.startswith("/"):
        return
    path = os.path.realpath(source)
    under = [top for top in _HOST if f"{path}/".startswith(f"{top}/")]
    if path == "/":
        yield Exposure("the whole host, by /", 4.0 if read_only else 10.0, "mount what it needs")
    elif any(path.endswith(word) or f"{path}/".startswith(f"{word}/") for word in _SOCKETS):
        yield Exposure(f"{source}: who speaks to it is root on the host", 8.0, "leave it out")
    elif any(f"{path}/".startswith(f"{top}/") for top in _HARMLESS):
        pass
    elif path in _HOST:
        yield Exposure(f"the host's {path}", 1.5 if read_only else 6.0, "mount what it needs")
    elif under and not read_only:
        yield Exposure(f"the host's {path}, to be written to", 1.0, 'options = ["ro"]')
    if changer := _changer(source):
        what = f"{source} is where user {changer} of the host may put something else, before each start"
        yield Exposure(what, 0.5, "a directory that only root can change")


def _changer(source: str) -> int:
    """The first user but root who owns a directory on the way to ``source``; 0: nobody."""
    path = "/"
    for part in source.strip("/").split("/")[:-1]:
        path = os.path.join(path, part)
        try:
            owner = os.lstat(path).st_uid
        except OSError:
            return 0
        if owner:
            return owner
    return 0
