"""What root may run, read or write to, with what is wrong as a Failure; podrun.ownership decides."""

from __future__ import annotations

import os

from podrun import ownership
from podrun.errors import NOT_ALLOWED, WRONG_FILE, Failure, code_of


def content(path: str, good: str, limit: int = 1 << 20) -> bytes:
    """The content of a file of at most ``limit`` bytes; ``good`` is a directory for such files, for the hint.

    Raises FileNotFoundError, and Failure: NOT_ALLOWED when others than root could change it, WRONG_FILE.
    """
    try:
        return ownership.read(path, limit)
    except ownership.Untrusted as error:
        raise Failure(error.about(path), code=NOT_ALLOWED, hint=error.hint(good)) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=code_of(error)) from None


def text(path: str, good: str, limit: int = 1 << 20) -> str:
    """The same as text."""
    try:
        return content(path, good, limit).decode()
    except UnicodeDecodeError as error:
        raise Failure(f"{path}: {error}", code=WRONG_FILE) from None


def place(path: str, good: str, *, strict: bool = True) -> str:
    """The path without links of a program or a directory (ownership.resolved). Raises as content() does."""
    try:
        return ownership.resolved(path, strict=strict)
    except ownership.Untrusted as error:
        raise Failure(error.about(path), code=NOT_ALLOWED, hint=error.hint(good)) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=code_of(error)) from None


def directory(path: str, good: str) -> int:
    """A descriptor of a directory that only root can change. Raises Failure (NOT_ALLOWED), OSError."""
    try:
        return ownership.opened(path, os.O_RDONLY | os.O_DIRECTORY)
    except ownership.Untrusted as error:
        raise Failure(error.about(path), code=NOT_ALLOWED, hint=error.hint(good)) from None
