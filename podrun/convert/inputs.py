"""Reads foreign files: at most so large, plain files only, and only where the caller allows."""

from __future__ import annotations

import os
import stat

from podrun.errors import WRONG_FILE, Failure

from .draft import CLOSE, INSTANCE, OPEN

#: The largest file, in bytes: as of a pod file.
LIMIT = 1 << 20


def read(path: str, *, inside: str = "") -> str:
    """The text of a file. ``inside``: the directory that the file has to be in, symbolic links followed; "": anywhere.

    Raises Failure (WRONG_FILE).
    """
    try:
        # O_NONBLOCK: a FIFO would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise Failure(f"{path}: {os.strerror(error.errno or 0)}", code=WRONG_FILE) from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Failure(f"{path} is not a plain file", code=WRONG_FILE)
        # Of the file that is open, not of a path that may have changed since.
        if inside and not is_inside(os.readlink(f"/proc/self/fd/{fd}"), os.path.realpath(inside)):
            raise Failure(
                f"{path} is outside of {inside}", code=WRONG_FILE, hint="say --allow-outside if it may be read"
            )
        raw = file.read(LIMIT + 1)
    if len(raw) > LIMIT:
        raise Failure(f"{path} has more than {LIMIT >> 20} MiB", code=WRONG_FILE)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is not UTF-8 (byte {error.start})", code=WRONG_FILE) from None
    return plain(text, path)


def plain(text: str, name: str) -> str:
    """The same text; raises Failure for characters that no text has and that drafts use themselves."""
    if any(mark in text for mark in (OPEN, CLOSE, INSTANCE, "\0")):
        raise Failure(f"{name} holds NUL or Unicode noncharacters", code=WRONG_FILE)
    return text


def is_inside(path: str, directory: str) -> bool:
    """Whether a path without symbolic links is the directory or below it."""
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")
