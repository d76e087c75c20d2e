"""Marks of blobs and layers that no image has claimed yet: a pull that fails leaves them for the next one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from podrun_hooks.image.store import layout
from podrun_hooks.image.store.scratch import names_in, unless_gone

#: Seconds that layers of a failed pull are kept for the next try.
KEPT = 24 * 3600


def note_marks(root: str, written: Iterable[str]) -> None:
    """Notes blobs and layers, by :func:`blob_mark` and :func:`layer_mark`, of an image that is not in the store yet:
    before they are, so that none is forgotten, and only what is new, so that nobody uses it."""
    for name in written:
        os.close(os.open(f"{layout.base(root)}/unclaimed/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def blob_mark(digest: str) -> str:
    """The name of a blob's note."""
    return f"blob-{digest.removeprefix('sha256:')}"


def layer_mark(diff_id: str) -> str:
    """The name of the file that marks an unpacked layer as unclaimed."""
    return f"layer-{diff_id.removeprefix('sha256:')}"


def claim(root: str, layers: Iterable[tuple[str, str]]) -> None:
    """Pairs of digest and diffID belong to an image from here on: called before it is one, lest what is used should
    ever look as if it were not."""
    for digest, diff_id in layers:
        for mark in (blob_mark(digest), layer_mark(diff_id)):
            unless_gone(os.unlink, f"{layout.base(root)}/unclaimed/{mark}")


def expired(root: str) -> list[str]:
    """What came whole with pulls that failed, and has not been tried again for a while: "layer-HEX", "blob-HEX"."""
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
    """Removes all marks: nothing is left in the store that is not used."""
    for name in names_in(f"{layout.base(root)}/unclaimed"):
        unless_gone(os.unlink, f"{layout.base(root)}/unclaimed/{name}")
