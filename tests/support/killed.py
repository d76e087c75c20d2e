"""Runs podrun's command line and kills it (-9) at the N-th event of its chain: python killed.py N up -d web.toml.

Exits by SIGKILL when there was such an event, else as podrun does.
"""

from __future__ import annotations

import os
import sys

from podrun.launcher import arguments, commands


def main() -> int:
    point, launcher = int(sys.argv[1]), os.getpid()
    count = 0

    def watch(event: str, label: str) -> None:
        nonlocal count
        count += 1
        if count == point:
            print(f"killed at {event} {label}", file=sys.stderr, flush=True)
            os.kill(launcher, 9)
            os.kill(os.getpid(), 9)

    os.umask(0o022)
    recognised = arguments.plain(sys.argv[2:])
    assert recognised, "only plain forms"
    command, given = recognised
    return commands.act(command, given, commands.host_of(given)._replace(watch=watch))


sys.exit(main())
