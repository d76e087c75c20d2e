"""What a unit's container has written: systemd's journal has it, journalctl reads it, whole lines come out of it."""

from __future__ import annotations

import os
import subprocess
import sys
from time import monotonic, sleep

from podrun.engine.processes import alive
from podrun.errors import UNAVAILABLE, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds without a line after which a journal is taken to have no more of a container that has ended.
_QUIET = 0.5


def show(unit: str, invocation: str, pid: int, start: int, *, follow: bool) -> None:
    """Prints the lines of one invocation of a unit; ``follow``: until the process has ended."""
    reader = _reader(unit, invocation, "--lines=all", *(["--follow"] if follow else []))
    assert reader.stdout is not None
    os.set_blocking(reader.stdout.fileno(), not follow)
    lines = Lines()
    last = monotonic()
    try:
        while True:
            block = reader.stdout.read(65536)
            if block:
                last = monotonic()
                sys.stdout.buffer.writelines(lines.feed(block))
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


def tail(unit: str, invocation: str, count: int) -> bytes:
    """The last lines of one invocation of a unit; b"" where there is no journalctl."""
    try:
        reader = _reader(unit, invocation, f"--lines={count}")
    except Failure:
        return b""
    try:
        text, _ = reader.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        reader.kill()
        reader.wait()
        return b""
    return b"".join(Lines().feed(text))


def _reader(unit: str, invocation: str, *words: str) -> subprocess.Popen[bytes]:
    wanted = [f"_SYSTEMD_INVOCATION_ID={invocation}", f"_SYSTEMD_UNIT={unit}"]
    argv = ["journalctl", "--quiet", "--no-pager", "--output=export", "--output-fields=MESSAGE,_LINE_BREAK", *words]
    try:
        return subprocess.Popen([*argv, *wanted], stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise Failure("there is no journalctl", code=UNAVAILABLE) from None


class Lines:
    """Puts lines together again out of systemd's Journal Export Format, given in blocks of any size.

    journald cuts a line at LineMax= (48 KiB) and says so in _LINE_BREAK=line-max (systemd.journal-fields(7)).
    """

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[bytes, bytes] = {}

    def feed(self, block: bytes) -> Iterator[bytes]:
        """The lines, newlines included, that are whole as far as can be told."""
        data = self._rest + block
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at:end]
            if not line:
                at = end + 1
                if b"MESSAGE" in self._fields:
                    cut = self._fields.get(b"_LINE_BREAK") in (b"line-max", b"eof")
                    yield self._fields[b"MESSAGE"] + (b"" if cut else b"\n")
                self._fields = {}
                continue
            name, equals, value = line.partition(b"=")
            if equals:
                at = end + 1
            else:
                # A value that is not text: its length in 64 bits, little-endian, the bytes, a newline.
                size = int.from_bytes(data[end + 1 : end + 9], "little")
                begin = end + 9
                if len(data) < begin + size + 1:
                    break
                value = data[begin : begin + size]
                at = begin + size + 1
            self._fields[name] = value
        self._rest = data[at:]
