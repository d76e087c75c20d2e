"""Marks of blobs and layers that no image has claimed yet: a failed pull leaves them for the next one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from podrun_hooks.image.store import layout
from podrun_hooks.image.store.scratch import names_in, unless_gone

#: Seconds for which the layers of a failed pull are kept for the next attempt.
KEPT = 24 * 3600


def note_marks(root: str, written: Iterable[str]) -> None:
    """Marks blobs and layers, named by :func:`blob_mark` and :func:`layer_mark`, of an image that is not stored yet.

    Call before they are published, so that a kill leaves none unmarked; and only for new ones, which no image uses.
    """
    for name in written:
        os.close(os.open(f"{layout.base(root)}/unclaimed/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def blob_mark(digest: str) -> str:
    """The name of the file that marks a blob as unclaimed."""
    return f"blob-{digest.removeprefix('sha256:')}"


def layer_mark(diff_id: str) -> str:
    """The name of the file that marks an unpacked layer as unclaimed."""
    return f"layer-{diff_id.removeprefix('sha256:')}"


def claim(root: str, layers: Iterable[tuple[str, str]]) -> None:
    """Removes the marks of ``layers``, pairs of digest and diffID, which now belong to an image.

    Call before the image's record is written, so that a used layer is never seen as unclaimed.
    """
    for digest, diff_id in layers:
        for mark in (blob_mark(digest), layer_mark(diff_id)):
            unless_gone(os.unlink, f"{layout.base(root)}/unclaimed/{mark}")


def expired(root: str) -> list[str]:
    """Marks older than KEPT: complete blobs and layers that failed pulls left behind ("layer-HEX", "blob-HEX")."""
    found = []
    for name in sorted(names_in(f"{layout.base(root)}/unclaimed")):
        try:
            age = time.time() - os.lstat(f"{layout.base(root)}/unclaimed/{name}").st_mtime
        except FileNotFoundError:
            continue
        if age > KEPT:
            found.append(name)
    return found


def forget_marks(root: str) -> None:
    """Removes all marks; for a caller that has removed everything unused from the store."""
    for name in names_in(f"{layout.base(root)}/unclaimed"):
        unless_gone(os.unlink, f"{layout.base(root)}/unclaimed/{name}")
