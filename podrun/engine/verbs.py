"""How a hook's verb is called: within the step's time; its output and failures are reported in the step's name."""

from __future__ import annotations

import sys

from podrun.errors import OF_A_STEP, STEP_FAILED, Failure, of_oserror

# ``signal`` builds enums (3 ms): the start path takes the numbers from the module below it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from types import FrameType
    from typing import BinaryIO

    from podrun.hook import Step
else:
    import _signal


def late(seconds: float) -> Failure:
    """The Failure of what took longer than ``seconds``."""
    return Failure(f"timed out after {seconds:g} s", hint="'timeout' of the step says how long it may take")


def failed(label: str, error: BaseException) -> Failure:
    """The Failure of a step: its label in front, and an exit code that a step may have."""
    if isinstance(error, Failure):
        code = error.code if error.code in OF_A_STEP else STEP_FAILED
        return Failure(f"{label}: {error.what}", code=code, hint=error.hint, key=error.key)
    if isinstance(error, OSError):
        failure = of_oserror(error)
        return Failure(f"{label}: {failure.what}", code=failure.code)
    return Failure(f"{label}: the hook failed: {type(error).__name__}: {error}", hint="--debug shows where")


class verb:  # noqa: N801  # reads as a word: with verb(step)
    """Runs a verb of a step's hook: interrupts it with a Failure after the step's ``timeout``; infinity: never.

    Standard output is podrun's own: a line that the hook print()s goes to the step's ``report``. sys.exit() in a hook
    ends the hook, and not podrun: Failure.
    """

    def __init__(self, step: Step) -> None:
        self.step = step

    def __enter__(self) -> None:
        self.stdout = sys.stdout
        sys.stdout = self.printed = _Printed(self.step.report)
        seconds = self.step.timeout
        if seconds != float("inf"):

            def interrupt(_number: int, frame: FrameType | None) -> None:
                code = frame.f_code if frame else None
                if code is verb.__enter__.__code__:  # it has not begun: __exit__ would not be called
                    _signal.setitimer(_signal.ITIMER_REAL, 0.001)
                elif code is not verb.__exit__.__code__:  # there it is over, and what is put back must be put back
                    raise late(seconds)

            self.before = _signal.signal(_signal.SIGALRM, interrupt)
            _signal.setitimer(_signal.ITIMER_REAL, seconds)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.step.timeout != float("inf"):
            _signal.setitimer(_signal.ITIMER_REAL, 0)
            _signal.signal(_signal.SIGALRM, self.before)
        sys.stdout = self.stdout
        self.printed.end()
        if isinstance(error, SystemExit):
            raise Failure(f"the hook called sys.exit({error.code!r})", hint="it has to raise, or to return") from error


class _Printed:
    """The standard output of a hook: a text stream whose lines go to ``report``."""

    encoding, errors = "utf-8", "replace"

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = f"{self.rest}{text}".split("\n")
        for line in lines:
            self.report(line)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def end(self) -> None:
        if self.rest:
            self.write("\n")

    def flush(self) -> None:
        """Nothing: a line goes out when it is whole."""

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        """Of standard error: what the hook's own children print is for people, too."""
        return 2

    @property
    def buffer(self) -> BinaryIO:
        return sys.stderr.buffer
