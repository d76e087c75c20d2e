"""What podrun says when it fails: the exit codes of the command line, and the one exception that carries them."""

from __future__ import annotations

import errno

# The numbers are those of sysexits.h where it has one for the case; 125-127 are the shell's and docker's.
MALFORMED = 65  # the image is malformed or fails verification
UNAVAILABLE = 69  # something needed is unavailable
CANNOT_CREATE = 73  # disk full, read-only, a foreign object in the way
BUSY = 75  # try again
STEP_FAILED = 76  # a step failed, up or down
NOT_ALLOWED = 77  # credentials, hook ownership
WRONG_FILE = 78  # the pod file or the options are wrong
INTERNAL = 125  # podrun itself failed
CANNOT_EXECUTE = 126
NOT_FOUND = 127

#: Codes that keep their meaning when a step fails with them; any other failure of a step is STEP_FAILED.
OF_A_STEP = frozenset({MALFORMED, UNAVAILABLE, CANNOT_CREATE, BUSY, NOT_ALLOWED, WRONG_FILE, CANNOT_EXECUTE, NOT_FOUND})

_CODE_OF_ERRNO = {
    errno.ENOSPC: CANNOT_CREATE,
    errno.EDQUOT: CANNOT_CREATE,
    errno.EROFS: CANNOT_CREATE,
    errno.EACCES: NOT_ALLOWED,
    errno.EPERM: NOT_ALLOWED,
}

#: What the machine lacks for the moment, or what is broken of it: nothing that the user has written can help.
_OF_THE_MACHINE = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EIO, errno.ENOSPC,
        errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT,
    }
)  # fmt: skip


def code_of(error: OSError, otherwise: int = WRONG_FILE) -> int:
    """The exit code for an OSError about something that the user has named: ``otherwise``, unless it is the machine's.

    WRONG_FILE would keep systemd from starting a unit again (RestartPreventExitStatus=).
    """
    number = error.errno or 0
    return _CODE_OF_ERRNO.get(number, STEP_FAILED) if number in _OF_THE_MACHINE else otherwise


class Failure(Exception):
    """Something that a person has to be told: what failed, what to do next, and the exit code.

    ``what`` is one line without a trailing period and ``hint`` (may be empty) says what to do next; ``code`` is one of
    the constants above. ``key``: the option of the step that it is about.
    """

    def __init__(self, what: str, *, code: int = STEP_FAILED, hint: str = "", key: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.code = code
        self.hint = hint
        self.key = key
        #: The hook and the name of the step that failed.
        self.step = ("", "")
        #: What else is wrong, each to be told in a line of its own.
        self.others: list[Failure] = []

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


def of_oserror(error: OSError, doing: str = "") -> Failure:
    """The Failure that tells of an OSError: the file, the kernel's words and the code that fits its errno."""
    subject = f"{error.filename}: " if error.filename else ""
    what = f"{doing}: " if doing else ""
    code = _CODE_OF_ERRNO.get(error.errno or 0, STEP_FAILED)
    return Failure(f"{what}{subject}{error.strerror or error}", code=code)


class Interrupted(BaseException):
    """A signal asked podrun to stop while it was at work. Not an Exception: no step may swallow it."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal
        #: What became of the chain, once it has been undone.
        self.hint = ""
