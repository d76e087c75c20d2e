"""Runs podrun's command line on a disk that fails: python failing.py ENOSPC|EIO N DIRECTORY reload web.

From the N-th event of the chain on, what is written to files below DIRECTORY fails. Exits as podrun does; the first
line on standard error names the event, when there was such a one.
"""

from __future__ import annotations

import errno
import os
import sys

from podrun.launcher import arguments, commands


def main() -> int:
    code, point, directory = getattr(errno, sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    count, write = 0, os.write

    def failing(fd: int, data: bytes) -> int:
        if count >= point and os.readlink(f"/proc/self/fd/{fd}").startswith(f"{directory}/"):
            raise OSError(code, os.strerror(code))
        return write(fd, data)

    def watch(event: str, label: str) -> None:
        nonlocal count
        count += 1
        if count == point:
            print(f"the disk fails at {event} {label}", file=sys.stderr, flush=True)

    os.umask(0o022)
    os.write = failing  # type: ignore[assignment]
    recognised = arguments.plain(sys.argv[4:])
    assert recognised, "only plain forms"
    command, given = recognised
    return commands.act(command, given, commands.host_of(given)._replace(watch=watch))


sys.exit(main())
