"""A thread beside the launcher's own that enters namespaces: which ones it is in is each thread's own (setns(2)).

A forked child would do as well, but the kernel copies the page tables of the interpreter for it and afterwards every
page that either of the two writes to: 1.3 ms of processor time for each child. Like such a child the thread leaves the
launcher where it is, and dies with it.
"""

from __future__ import annotations

import _thread
import os
from errno import EAGAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Thread:
    """Runs ``work`` in a thread. It cannot be killed: before anything is undone, wait for its end.

    Raises OSError (EAGAIN) when the kernel refuses another thread.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._running = _thread.allocate_lock()
        self._running.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            raise OSError(EAGAIN, os.strerror(EAGAIN)) from None

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._running.release()

    def join(self) -> None:
        """Waits for the end of the work and raises what it raised; a signal's exception comes after that end, too."""
        try:
            self.end()
        except BaseException:
            self.end()
            raise
        if self._error:
            raise self._error

    def end(self) -> None:
        """Waits for the end of the work, whatever came of it."""
        with self._running:
            pass
