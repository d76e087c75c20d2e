"""Work in progress: a locked directory below tmp/, removed by whoever finds it unlocked."""

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
    """A locked directory in tmp/, removed afterwards whatever happens."""
    parent = f"{layout.base(root)}/tmp"
    while True:
        path = f"{parent}/{os.getpid()}-{os.urandom(6).hex()}"
        os.mkdir(path, 0o700)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        # A sweep may have found it between mkdir and flock.
        if is_same(fd, path):
            break
        os.close(fd)
    try:
        yield path
    finally:
        try:
            remove(path)
        except OSError as error:
            # A thread that is still being stopped has written once more: the next sweep takes it.
            if error.errno != errno.ENOTEMPTY:
                raise
        finally:
            os.close(fd)


def reclaim(root: str) -> None:
    """Removes the work and the locks of processes that are gone."""
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
    """The names in a directory; none when it is gone."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def remove(path: str) -> None:
    """Removes a directory tree of any depth; what is gone already is fine.

    Deeper directories are moved up to the top before they are emptied: an image may nest them deeper than a path can
    name, a stack recurse or descriptors be held.
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
    """Calls ``call(*paths)``; that the first is no longer there is no failure."""
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
