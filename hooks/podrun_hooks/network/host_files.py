"""Keeps what pods have taken over from the host's resolv.conf and hosts as the host has it now.

A bind mount of the host's file would not do: whoever changes it (resolved, NetworkManager, dhclient) renames a new one
over it, and a mount stays with the old. Nor would a mount of its directory: there are sockets in resolved's, and all
else in /etc. So pods have a file of podrun's, which is written again in place; host_watch has systemd notice when.
"""

from __future__ import annotations

import os

from podrun import jsontext
from podrun_hooks.network import files
from podrun_hooks.support.rooted_tree import names

_SUFFIX = f".{files.OF_HOST}"


def refresh(run: str) -> list[str]:
    """Writes the files of all pods again whose content would be another today; returns their paths."""
    written = []
    for directory in names(f"{run}/pods"):
        for name in names(f"{run}/pods/{directory}"):
            if name.endswith(_SUFFIX):
                written += _refresh(f"{run}/pods/{directory}/{name.removesuffix(_SUFFIX)}")
    return written


def _refresh(stem: str) -> list[str]:
    try:
        with open(f"{stem}{_SUFFIX}", encoding="utf-8") as file:
            told = jsontext.loads(file.read())
    except (FileNotFoundError, ValueError):  # the pod is just being undone, or made
        return []
    given = (told["dns"], told["search"], told.get("options", []))
    wanted = {"resolv.conf": files.resolv(*given, reachable_loopback=told["reachable_loopback"])}
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
