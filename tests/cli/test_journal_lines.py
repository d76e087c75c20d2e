"""Lines out of systemd's Journal Export Format: put together again, with their times, in blocks of any size."""

from __future__ import annotations

import pytest

from podrun.systemd.journalctl import Lines


def entry(message: bytes, when: int, line_break: bytes = b"") -> bytes:
    cut = b"_LINE_BREAK=" + line_break + b"\n" if line_break else b""
    size = len(message).to_bytes(8, "little")
    text = b"MESSAGE=" + message if message.isascii() else b"MESSAGE\n" + size + message
    return b"__CURSOR=c%d\n__REALTIME_TIMESTAMP=%d000000\n%s\n%s\n" % (when, when, text, cut)


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_lines_come_whole_with_the_times_of_their_beginnings(size: int) -> None:
    whole = b"".join([
        entry(b"plain", 1),
        entry(b"cut ", 2, b"line-max"),
        entry(b"in two", 3),
        entry(b"\xff\n=", 4),
        entry(b"without a newline", 5, b"eof"),
    ])  # fmt: skip
    lines = Lines()
    found = [line for at in range(0, len(whole), size) for line in lines.timed(whole[at : at + size])]
    assert found == [(1, b"plain\n"), (2, b"cut in two\n"), (4, b"\xff\n=\n"), (5, b"without a newline")]
    assert lines.cursor == "c5"
