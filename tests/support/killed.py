"""Runs podrun's command line and kills it (-9) at the N-th event of its chain: python killed.py N up -d web.toml.

Exits by SIGKILL when there was such an event, else as podrun does; with 0 for N it is not killed.

PODRUN_TEST_BOOT_ID: a file that is read in the place of the kernel's boot id. PODRUN_TEST_CLOCK: so many seconds does
the clock on the wall go before the kernel's.
"""

from __future__ import annotations

import builtins
import os
import sys
import time
from typing import Any

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_open, _time = builtins.open, time.time


def _other_boot(path: Any, *arguments: Any, **more: Any) -> Any:
    return _open(os.environ["PODRUN_TEST_BOOT_ID"] if path == _BOOT_ID else path, *arguments, **more)


def main() -> int:
    if "PODRUN_TEST_BOOT_ID" in os.environ:
        builtins.open = _other_boot  # type: ignore[assignment]
    ahead = float(os.environ.get("PODRUN_TEST_CLOCK", "0"))
    time.time = lambda: _time() + ahead
    from podrun.launcher import arguments, commands

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
    if not point and not recognised:
        from podrun.cli import main as cli

        return cli.main(sys.argv[2:])
    assert recognised, "only plain forms"
    command, given = recognised
    return commands.act(command, given, commands.host_of(given)._replace(watch=watch))


if __name__ == "__main__":
    sys.exit(main())
