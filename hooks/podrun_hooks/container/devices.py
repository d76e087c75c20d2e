"""Devices: docker's spelling (HOST[:CONTAINER][:rwm]), CDI's device nodes, and both in the OCI configuration."""

from __future__ import annotations

import os
import stat

from podrun.errors import WRONG_FILE, Failure
from podrun.hook import Facts
from podrun.options import Wrong, whole
from podrun_hooks.support.rooted_tree import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

#: What every container gets in a /dev of its own: left out when a directory of devices is handed in.
_OWN = frozenset([
    "console", "core", "fd", "full", "init", "mqueue", "null", "podrun", "ptmx", "pts", "random", "shm", "stderr",
    "stdin", "stdout", "tty", "urandom", "zero",
])  # fmt: skip
#: The largest number of devices that a directory may hold.
_MOST = 4096


def spelled(text: str) -> str:
    """Checks "/dev/fuse", "/dev/fuse:/dev/x" or "/dev/fuse:/dev/x:rw", or a name of CDI's; raises Wrong."""
    if not text.startswith("/"):
        from podrun_hooks.container import cdi

        if not cdi.is_name(text):
            raise Wrong(f"expected a device below /dev, or a name such as nvidia.com/gpu=all, not {text!r}")
        return text
    source, target, access = _parts(text)
    for path in (source, target):
        if not path.startswith("/dev/") and path != "/dev":
            raise Wrong(f"expected a device below /dev, not {path!r} in {text!r}")
        if ".." in path.split("/"):
            raise Wrong(f"'..' is not allowed in {text!r}")
    if not access or set(access) - set("rwm"):
        raise Wrong(f"expected the letters r, w and m after the device, not {access!r} in {text!r}")
    return text


def rule_spelled(text: str) -> str:
    """Checks a rule such as "c 189:* rwm" or "a *:* r", as docker spells it; raises Wrong."""
    parse_rule(text)
    return text


def parse_rule(text: str) -> dict[str, Any]:
    """The OCI form of a rule; a number that is "*" is left out: all. Raises Wrong."""
    words = text.split()
    numbers = words[1].split(":") if len(words) == 3 else []
    if (
        len(words) != 3
        or words[0] not in ("a", "b", "c")
        or len(numbers) not in (1, 2)
        or not all(word == "*" or (len(word) < 8 and whole(word) is not None) for word in numbers)
        or not words[2]
        or set(words[2]) - set("rwm")
    ):
        raise Wrong(f"expected a device rule such as 'c 189:* rwm': a, b or c, MAJOR:MINOR, r, w and m; not {text!r}")
    known = zip(("major", "minor"), numbers, strict=False)
    return {
        "allow": True,
        "type": words[0],
        **{key: int(word) for key, word in known if word != "*"},
        "access": words[2],
    }


def _parts(text: str) -> tuple[str, str, str]:
    source, _, rest = text.partition(":")
    target, _, access = rest.partition(":")
    if target and not target.startswith("/") and not access:
        target, access = "", target
    return source, target or source, access or "rwm"


def asked_for(texts: Sequence[str]) -> list[Facts]:
    """The device nodes (CDI) of a container's ``devices``; a directory means the devices in it. Raises Failure."""
    nodes: list[Facts] = []
    for text in texts:
        if not text.startswith("/"):
            continue  # cdi.py's
        source, target, access = _parts(text)
        found = [(source, target)]
        if os.path.isdir(source):
            found = [(path, target + path[len(source) :]) for path in _devices_below(source)]
        for path, inside in found:
            nodes.append({"hostPath": path, "path": inside, "permissions": access})
    return nodes


def _devices_below(directory: str) -> Iterator[str]:
    count = 0
    for top, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if name not in _OWN)
        for name in sorted(names):
            path = f"{top}/{name}"
            if name in _OWN or not _is_device(path):
                continue
            count += 1
            if count > _MOST:
                raise Failure(f"{directory} holds more than {_MOST} devices", code=WRONG_FILE)
            yield path


def _is_device(path: str) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def oci(node: Facts) -> dict[str, Any]:
    """The OCI device for a CDI deviceNode; what the node does not say is taken from the host's device.

    Nodes are made in /dev only, which the runtime fills itself: elsewhere it would walk through the image or a volume.
    """
    if not node["path"].startswith("/dev/") or plain(node["path"]) != node["path"] or ".." in node["path"].split("/"):
        raise Failure(f"a device cannot be made at {node['path']}", code=WRONG_FILE, hint="it belongs in /dev")
    source = node.get("hostPath") or node["path"]
    try:
        found = os.stat(source)
    except OSError as error:
        raise Failure(f"device {source}: {error.strerror}") from error
    if not node.get("type") and not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise Failure(f"{source} is not a device", code=WRONG_FILE, hint="a storage step mounts files and directories")
    return {
        "path": node["path"],
        "type": node.get("type") or ("b" if stat.S_ISBLK(found.st_mode) else "c"),
        "major": node.get("major") or os.major(found.st_rdev),
        "minor": node.get("minor") or os.minor(found.st_rdev),
        "fileMode": node.get("fileMode") or stat.S_IMODE(found.st_mode),
        "uid": node.get("uid") or 0,
        "gid": node.get("gid") or 0,
    }


def rules(nodes: Sequence[Facts], more: Sequence[str] = ()) -> list[dict[str, Any]]:
    """``linux.resources.devices``: everything is denied but the devices that are named; ``more``: ``device_rules``.

    The runtimes add the harmless ones (null, zero, full, random, urandom, tty, pts).
    """
    allowed = []
    for node in nodes:
        device = oci(node)
        rule = {"allow": True, **{key: device[key] for key in ("type", "major", "minor")}}
        allowed.append({**rule, "access": node.get("permissions") or "rwm"})
    return [{"allow": False, "access": "rwm"}, *allowed, *map(parse_rule, more)]
