"""Gives a tree of files to a user: no link is followed, and no other file system entered."""

from __future__ import annotations

import os
import stat


def give(tree: int, uid: int, gid: int) -> None:
    """Gives everything at a descriptor, which may be one of O_PATH, to a user and a group. Raises OSError."""
    top = f"/proc/self/fd/{tree}"
    about = os.stat(top)
    if not stat.S_ISDIR(about.st_mode):
        os.chown(top, uid, gid)
        return
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _give_below(fd, about.st_dev, uid, gid)
    finally:
        os.close(fd)


def _give_below(top: int, device: int, uid: int, gid: int) -> None:
    for _, directories, files, fd in os.fwalk(".", dir_fd=top, follow_symlinks=False):
        _give_one(".", fd, device, uid, gid)
        for name in files:
            _give_one(name, fd, device, uid, gid)
        # A link to a directory is among the directories; it is given, and not followed.
        directories[:] = [name for name in directories if _give_one(name, fd, device, uid, gid)]


def _give_one(name: str, fd: int, device: int, uid: int, gid: int) -> bool:
    """Gives a file of a directory; False for one of another file system, which stays as it is, or that has gone."""
    try:
        about = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if about.st_dev != device:
            return False
        if (about.st_uid, about.st_gid) != (uid, gid):
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
