"""A pod's lock: only one podrun at a time works on a pod."""

from __future__ import annotations

import fcntl
import os
import time

from podrun.errors import BUSY, Failure

#: :func:`is_locked` takes the lock for a moment: seconds between attempts to take it, and how many.
_MOMENT, _ATTEMPTS = 0.005, 20


class Lock:
    """The pod's lock, held while this object is open. Use as a context manager.

    flock(2) on a file that is never unlinked (an unlinked one could be held by two). A forked child shares it with us:
    it must call :meth:`close` first thing, so that the lock dies with the launcher.
    """

    def __init__(self, run: str, pod: str, *, wait: bool) -> None:
        os.makedirs(f"{run}/locks", mode=0o700, exist_ok=True)
        self.fd = os.open(f"{run}/locks/{pod}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if wait:
                fcntl.flock(self.fd, fcntl.LOCK_EX)
            elif not _taken(self.fd):
                hint = f"see 'podrun ps', or wait: 'podrun down {pod}' does"
                raise Failure("another podrun is working on it", code=BUSY, hint=hint)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Releases the lock; may be called again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _taken(fd: int) -> bool:
    """Takes the lock; False when another process holds it for longer than :func:`is_locked` does."""
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt < _ATTEMPTS - 1:
                time.sleep(_MOMENT)
        else:
            return True
    return False


def is_locked(run: str, pod: str) -> bool:
    """True when a podrun is at work on the pod right now."""
    try:
        fd = os.open(f"{run}/locks/{pod}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
