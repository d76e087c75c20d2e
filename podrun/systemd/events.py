"""What has happened to pods, images, volumes and networks: ``<run>/events``, a line of JSON for each, 0600.

Whoever makes a change appends the line; no process has to run for it. At one MiB a new file begins, and the one
before is kept as ``events.1``.
"""

from __future__ import annotations

import os
import time

from podrun import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST = 1 << 20


def path_of(run: str) -> str:
    """Where the lines are."""
    return f"{run}/events"


def note(run: str, kind: str, event: str, name: str, **details: Any) -> None:
    """Appends a line: ``kind`` is pod, image, volume or network; details that are empty are left out.

    It never fails: a full disk, or another user's run directory, must not stop what the event is about.
    """
    line = {"time": round(time.time(), 6), "type": kind, "event": event, "name": name}
    line |= {key: value for key, value in details.items() if value not in (None, "", {}, [])}
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path_of(run), flags, 0o600)
    except OSError:
        return
    try:
        os.write(fd, (jsontext.dumps(line) + "\n").encode())
        mine = os.fstat(fd)
        if mine.st_size > _MOST and os.path.samestat(mine, os.stat(path_of(run))):
            os.rename(path_of(run), f"{path_of(run)}.1")
    except OSError:
        pass
    finally:
        os.close(fd)
