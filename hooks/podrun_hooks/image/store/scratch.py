"""Work in progress: a locked directory below tmp/, which any process that finds it unlocked may remove."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from podrun_hooks.image.store import layout
from podrun_hooks.image.store.locks import is_same


@contextmanager
def work(root: str) -> Iterator[str]:
    """A locked directory in tmp/, removed at the end in any case."""
    parent = f"{layout.base(root)}/tmp"
    while True:
        path = f"{parent}/{os.getpid()}-{os.urandom(6).hex()}"
        os.mkdir(path, 0o700)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        # A sweep may have removed it between mkdir and flock.
        if is_same(fd, path):
            break
        os.close(fd)
    try:
        yield path
    finally:
        try:
            remove(path)
        except OSError as error:
            # A thread that has not stopped yet has written another file: leave the directory to the next sweep.
            if error.errno != errno.ENOTEMPTY:
                raise
        finally:
            os.close(fd)


def reclaim(root: str) -> None:
    """Removes the work and the locks of processes that have ended."""
    base = layout.base(root)
    for directory, how in ((f"{base}/tmp", remove), (f"{base}/locks", os.unlink)):
        for name in names_in(directory):
            path = f"{directory}/{name}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_same(fd, path):
                    how(path)
            except (BlockingIOError, FileNotFoundError):
                continue
            finally:
                os.close(fd)


def names_in(directory: str) -> list[str]:
    """The names in a directory; none if it does not exist."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def remove(path: str) -> None:
    """Removes a directory tree of any depth; files that are gone already are no failure.

    It moves nested directories to the top before it empties them: an image may nest them deeper than PATH_MAX, the
    recursion limit or the limit of open files allow.
    """
    token = os.urandom(6).hex()
    moved = 0
    deeper = True
    while deeper:
        deeper = False
        for directory in [item.path for item in _items(path) if _is_kept_directory(item)]:
            deeper = True
            for item in _items(directory):
                if _is_kept_directory(item):
                    moved += 1
                    unless_gone(os.rename, item.path, f"{path}/{token}-{moved}")
            unless_gone(os.rmdir, directory)
    unless_gone(os.rmdir, path)


def unless_gone(call: Callable[..., None], *paths: str) -> None:
    """Calls ``call(*paths)`` and ignores FileNotFoundError."""
    try:
        call(*paths)
    except FileNotFoundError:
        pass


def _items(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as items:
            return list(items)
    except FileNotFoundError:
        return []


def _is_kept_directory(item: os.DirEntry[str]) -> bool:
    """Removes a file or an empty directory; True for a directory with something in it."""
    try:
        if item.is_dir(follow_symlinks=False):
            os.rmdir(item.path)
        else:
            os.unlink(item.path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return True
    return False
