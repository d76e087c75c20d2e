"""The deadline of a verb: a step's ``timeout`` interrupts the hook that is at work."""

from __future__ import annotations

from podrun.errors import Failure

# ``signal`` builds enums (3 ms): the start path takes the numbers from the module below it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal


def late(seconds: float) -> Failure:
    """The Failure of what took longer than ``seconds``."""
    return Failure(f"timed out after {seconds:g} s", hint="'timeout' of the step says how long it may take")


class limit:  # noqa: N801  # reads as a word: with limit(5.0)
    """Interrupts what runs inside it with a Failure after ``seconds``; infinity: never."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        if self.seconds != float("inf"):

            def interrupt(*_: object) -> None:
                raise late(self.seconds)

            self.before = _signal.signal(_signal.SIGALRM, interrupt)
            _signal.setitimer(_signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        if self.seconds != float("inf"):
            _signal.setitimer(_signal.ITIMER_REAL, 0)
            _signal.signal(_signal.SIGALRM, self.before)
