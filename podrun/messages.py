"""What podrun says to people: one line on standard error, nothing unprintable in it."""

from __future__ import annotations

import sys

from podrun.errors import STEP_FAILED, Failure, Interrupted


def printable(line: str) -> str:
    """Shows unprintable characters as escapes, so that no text can forge a line or control the terminal."""
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def tell(line: str) -> None:
    """Prints a line on standard error. A reader that has gone away is no reason to stop.

    The line may quote images, runtimes and payloads.
    """
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:
        pass


def report(error: BaseException, subject: str, debug: bool) -> int:
    """Prints what went wrong in one line on standard error, ``subject`` ("web: ") in front; returns the exit code."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Interrupted):
        names = {1: "SIGHUP", 2: "SIGINT", 15: "SIGTERM"}
        told = f"; {error.hint}" if error.hint else ""
        tell(f"podrun: {subject}stopped by {names.get(error.signal, error.signal)}{told}")
        return 128 + error.signal
    if isinstance(error, Failure):
        for one in (error, *error.others):
            tell(f"podrun: {subject}{one}")
        return error.code or STEP_FAILED
    raise error


def quiet(*_: object) -> None:
    """Does nothing: the callback of a caller that wants no reports."""
