"""Chooses the directories that overlayfs stacks for an image: its layers, and one to correct attributes if needed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import Any, NamedTuple

from podrun_hooks.image.layer.stream import malformed
from podrun_hooks.image.store import layout, publish

_OPAQUE = "trusted.overlay.opaque"


class Stack(NamedTuple):
    """An image's directories in layers/, lowest first, and its files that open standard output or error by name."""

    layers: list[str]
    stdio: list[str]


def stacked(root: str, scratch: str, diff_ids: list[str]) -> Stack:
    """The stack for an image whose layers are all in the store."""
    names = visible(root, diff_ids)
    about = {name: _about(root, name) for name in names}
    stdio = sorted({path for name in names for path in about[name].get("stdio", [])})
    attributes = _attributes(root, names, {name: set(about[name].get("implied", [])) for name in names})
    if attributes:
        names.append(_attribute_layer(root, scratch, names, attributes))
    return Stack(names, stdio)


def visible(root: str, diff_ids: list[str]) -> list[str]:
    """The layers to stack. Of a repeated layer only the uppermost is kept: overlayfs refuses to stack one directory
    twice. Layers below an opaque root are left out, because nothing of them is visible."""
    names = list(reversed(dict.fromkeys(diff_id.removeprefix("sha256:") for diff_id in reversed(diff_ids))))
    for index in range(len(names) - 1, 0, -1):
        if _about(root, names[index]).get("opaque"):
            return names[index:]
    return names


def attribute_layer_name(names: list[str]) -> str:
    """The name in layers/ of the directory that corrects the attributes of directories in the layers ``names``."""
    return f"attributes-{hashlib.sha256(' '.join(names).encode()).hexdigest()}"


def _about(root: str, name: str) -> dict[str, Any]:
    about = publish.about_layer(root, name)
    if about is None:
        raise malformed(f"layer {name[:12]} has gone from the store")
    return about


class _Attributes(NamedTuple):
    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: dict[str, bytes]


def _attributes(root: str, names: list[str], implied: dict[str, set[str]]) -> dict[str, _Attributes]:
    """Directories created implicitly by an upper layer whose attributes a lower layer defines, and their parents.

    An archive may add tmp/x without an entry for tmp/. Unpacked over the lower layer, tmp would keep its mode. In a
    layer directory of its own tmp has to be created, and overlayfs shows the attributes of the topmost directory.
    """
    wrong: dict[str, _Attributes] = {}
    downward = list(reversed(names))
    known: dict[str, list[str]] = {}
    for path in sorted(set().union(*implied.values())):
        found = _merged(root, downward, path, known)
        if not found or path not in implied[found[0]]:
            continue
        said = [name for name in found if path not in implied[name]]
        if said:
            right = _read(f"{layout.layer(root, said[0])}/{path}")
            shown = _read(f"{layout.layer(root, found[0])}/{path}")
            if (right.mode, right.uid, right.gid, right.xattrs) != (shown.mode, shown.uid, shown.gid, shown.xattrs):
                wrong[path] = right
    for path in list(wrong):
        parts = path.split("/")
        for count in range(1, len(parts)):
            above = "/".join(parts[:count])
            found = _merged(root, downward, above, known)
            said = [name for name in found if above not in implied[name]] or found
            wrong.setdefault(above, _read(f"{layout.layer(root, said[0])}/{above}"))
    return wrong


def _merged(root: str, downward: list[str], path: str, known: dict[str, list[str]]) -> list[str]:
    """The layers, highest first, whose directories overlayfs merges at ``path``; [] if it is not a directory.

    ``known`` caches the results.
    """
    layers = downward
    walked = ""
    for part in path.split("/"):
        walked = f"{walked}/{part}"
        if walked not in known:
            merging = []
            for name in layers:
                here = f"{layout.layer(root, name)}{walked}"
                try:
                    status = os.lstat(here)
                except FileNotFoundError:
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    break
                merging.append(name)
                if _is_opaque(here):
                    break
            known[walked] = merging
        layers = known[walked]
    return layers


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def _read(path: str) -> _Attributes:
    status = os.lstat(path)
    keys = [key for key in os.listxattr(path, follow_symlinks=False) if not key.startswith("trusted.overlay.")]
    xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
    return _Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)


def _attribute_layer(root: str, scratch: str, names: list[str], attributes: dict[str, _Attributes]) -> str:
    name = attribute_layer_name(names)
    if publish.about_layer(root, name) is None:
        written = publish.Written(f"{scratch}/attributes", "", name)
        os.mkdir(written.scratch)
        made = written.unpacked
        os.mkdir(made)
        os.chmod(made, 0o755)
        for path in sorted(attributes):
            os.mkdir(f"{made}/{path}")
        for path in sorted(attributes, reverse=True):
            right = attributes[path]
            os.chown(f"{made}/{path}", right.uid, right.gid)
            os.chmod(f"{made}/{path}", right.mode)
            for key, value in right.xattrs.items():
                os.setxattr(f"{made}/{path}", key, value)
            os.utime(f"{made}/{path}", ns=(right.mtime, right.mtime))
        publish.publish_written(root, scratch, [(written, {})], {})
    return name
