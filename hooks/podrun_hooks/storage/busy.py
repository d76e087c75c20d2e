"""Finds what keeps a mount busy. Used only after the kernel has answered EBUSY."""

from __future__ import annotations

import os

from podrun_hooks.support import mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def holder(path: str) -> str:
    """What holds the mount at ``path``, for messages: "sleep (pid 17: its working directory)"; "" if not found."""
    return next(_holders(path), "")


def _holders(path: str) -> Iterator[str]:
    for point in mountinfo.points():
        if point.startswith(f"{path}/"):
            yield f"a mount at {point}"
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        what = _use(pid, path)
        if what:
            yield f"{_name(pid)} (pid {pid}: {what})"
    for device in os.listdir("/sys/block"):
        backing = _text(f"/sys/block/{device}/loop/backing_file").strip()
        if _within(backing, path):
            yield f"/dev/{device}, whose file {backing} is in it"
    for line in _text("/proc/swaps").splitlines()[1:]:
        if _within(line.split()[0], path):
            yield f"the swap file {line.split()[0]}"


def _use(pid: str, path: str) -> str:
    for name, what in (("cwd", "its working directory"), ("root", "its root"), ("exe", "its program")):
        if _within(_link(f"/proc/{pid}/{name}"), path):
            return what
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return ""
    for fd in fds:
        found = _link(f"/proc/{pid}/fd/{fd}")
        if _within(found, path):
            return f"it has {found} open"
    mapped = next((line for line in _text(f"/proc/{pid}/maps").splitlines() if f" {path}/" in line), "")
    return f"it has {mapped.split(maxsplit=5)[5]} mapped" if mapped else ""


def _within(found: str, path: str) -> bool:
    return found == path or found.startswith(f"{path}/")


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _name(pid: str) -> str:
    return _text(f"/proc/{pid}/comm").strip() or "a process"


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
