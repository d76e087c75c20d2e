"""The store's locks. They make several pods that need one digest share a single download."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from podrun.errors import BUSY, Failure, of_oserror
from podrun_hooks.image.store import layout

#: Seconds between two attempts to take a lock that another process holds.
_POLL = 0.02


@contextmanager
def locked(
    root: str, name: str, *, shared: bool = False, wait: bool = True, idle: Callable[[], None] | None = None
) -> Iterator[None]:
    """Holds the lock ``name``. If ``wait`` is False, raises Failure (BUSY) instead of waiting.

    While it waits it calls ``idle``, which may raise to give up. The holder removes the file when it releases the lock,
    so a process that has waited checks that the path still leads to the file it has locked.
    """
    path = f"{layout.base(root)}/locks/{name.removeprefix('sha256:')}"
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait and not idle else fcntl.LOCK_NB)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise of_oserror(error, "the image store") from None
        try:
            fcntl.flock(fd, how)
            if is_same(fd, path):
                break
        except BlockingIOError:
            os.close(fd)
            if idle:
                idle()
                time.sleep(_POLL)
                continue
            raise Failure("the image store is in use by another podrun", code=BUSY, hint="try again") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    try:
        yield
    finally:
        try:
            if shared:
                # Only the last of the shared holders may remove the file.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_same(fd, path):
                os.unlink(path)
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            os.close(fd)


def is_same(fd: int, path: str) -> bool:
    """Whether ``path`` still leads to the file that ``fd`` has open."""
    try:
        there, ours = os.stat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
