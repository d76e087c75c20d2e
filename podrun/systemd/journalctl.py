"""A unit's output: journalctl reads it from systemd's journal, and whole lines are put together from it."""

from __future__ import annotations

import os
import subprocess

from podrun.errors import UNAVAILABLE, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Fields that say how a line came about; journalctl adds the cursor and the times.
_FIELDS = "MESSAGE,_LINE_BREAK"


class Reader:
    """The lines of one invocation of a unit, or with "" of all, as they come; ``words``: options for journalctl(1)."""

    def __init__(self, unit: str, invocation: str, *words: str) -> None:
        self._wanted = [f"_SYSTEMD_UNIT={unit}", *([f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else [])]
        self._process = _started([*words, *self._wanted])
        self._lines = Lines()

    def lines(self) -> Iterator[tuple[float, bytes]]:
        """All lines that there are: (seconds since 1970, the line with its newline)."""
        assert self._process.stdout is not None
        while block := self._process.stdout.read(65536):
            yield from self._lines.timed(block)

    def waiting(self) -> list[tuple[float, bytes]] | None:
        """With --follow: the lines that have come since; None when nothing has."""
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        block = self._process.stdout.read(65536)
        return list(self._lines.timed(block)) if block else None

    @property
    def cursor(self) -> str:
        """The place of the last line, for --after-cursor; "" before the first one."""
        return self._lines.cursor

    def close(self) -> None:
        """Ends journalctl."""
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def tail(unit: str, invocation: str, count: int) -> bytes:
    """The last lines of one invocation of a unit; b"" where there is no journalctl."""
    try:
        reader = _started([f"--lines={count}", f"_SYSTEMD_INVOCATION_ID={invocation}", f"_SYSTEMD_UNIT={unit}"])
    except Failure:
        return b""
    try:
        text, _ = reader.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        reader.kill()
        reader.wait()
        return b""
    return b"".join(Lines().feed(text))


def entries(words: Iterable[str], *, follow: bool = False) -> subprocess.Popen[bytes]:
    """Journalctl with these options and matches; a JSON object a line on its standard output. Raises Failure."""
    options = ["--output=json", "--all", *(["--follow"] if follow else [])]
    return _spawned(["journalctl", "--quiet", "--no-pager", *options, *words])


def _started(words: Iterable[str]) -> subprocess.Popen[bytes]:
    options = ["--quiet", "--no-pager", "--output=export", f"--output-fields={_FIELDS}"]
    return _spawned(["journalctl", *options, *words])


def _spawned(argv: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(argv, stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise Failure("there is no journalctl", code=UNAVAILABLE) from None


class Lines:
    """Puts lines together again out of systemd's Journal Export Format, given in blocks of any size.

    journald cuts a line at LineMax= (48 KiB) and says so in _LINE_BREAK=line-max (systemd.journal-fields(7)).
    """

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[bytes, bytes] = {}
        #: What a line that was cut begins with, and when.
        self._begun = b""
        self._when = 0.0
        self.cursor = ""

    def feed(self, block: bytes) -> Iterator[bytes]:
        """The pieces of lines, newlines included where they end, that are whole as far as can be told."""
        return (piece for _, piece, _ in self._pieces(block))

    def timed(self, block: bytes) -> Iterator[tuple[float, bytes]]:
        """Whole lines with their times, in seconds since 1970; one that was cut is put together again."""
        for when, piece, goes_on in self._pieces(block):
            self._when = self._when if self._begun else when
            self._begun += piece
            if not goes_on:
                yield self._when, self._begun
                self._begun = b""

    def _pieces(self, block: bytes) -> Iterator[tuple[float, bytes, bool]]:
        """(when, a piece, whether its line goes on in the next entry); the last line may end without a newline."""
        data = self._rest + block
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at:end]
            if not line:
                at = end + 1
                if b"MESSAGE" in self._fields:
                    how = self._fields.get(b"_LINE_BREAK")
                    when = int(self._fields.get(b"__REALTIME_TIMESTAMP", b"0")) / 1e6
                    newline = b"" if how in (b"line-max", b"eof") else b"\n"
                    yield when, self._fields[b"MESSAGE"] + newline, how == b"line-max"
                self.cursor = self._fields.get(b"__CURSOR", b"").decode() or self.cursor
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
