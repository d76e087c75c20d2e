"""What a unit's container has written: systemd's journal has it, journalctl reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from time import monotonic, sleep

from podrun.engine.processes import alive
from podrun.errors import UNAVAILABLE, Failure

#: Seconds without a line after which a journal is taken to have no more of a container that has ended.
_QUIET = 0.5


def show(unit: str, invocation: str, pid: int, start: int, *, follow: bool) -> None:
    """Prints the lines of one invocation of a unit; ``follow``: until the process has ended."""
    wanted = [f"_SYSTEMD_INVOCATION_ID={invocation}", f"_SYSTEMD_UNIT={unit}"]
    argv = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=all", *(["--follow"] if follow else [])]
    try:
        reader = subprocess.Popen([*argv, *wanted], stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise Failure("there is no journalctl", code=UNAVAILABLE) from None
    assert reader.stdout is not None
    os.set_blocking(reader.stdout.fileno(), not follow)
    last = monotonic()
    try:
        while True:
            block = reader.stdout.read(65536)
            if block:
                last = monotonic()
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
            elif not follow:
                return
            elif alive(pid, start):
                last = monotonic()
                sleep(0.05)
            elif monotonic() - last > _QUIET:
                return
            else:
                sleep(0.05)
    finally:
        reader.terminate()
        reader.wait()
