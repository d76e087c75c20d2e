"""What root may run or believe: a file that nobody else can have changed."""

from __future__ import annotations

import os
import stat

from podrun.errors import NOT_ALLOWED, Failure


def refuse_writable(path: str) -> None:
    """Raises Failure (NOT_ALLOWED) when somebody other than root could replace or change what ``path`` leads to."""
    place = os.path.realpath(path)
    while True:
        found = os.stat(place)
        if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Failure(
                f"{place} can be changed by others than root",
                code=NOT_ALLOWED,
                hint=f"chown root:root {place}; chmod go-w {place}",
            )
        if place == "/":
            return
        place = os.path.dirname(place)
