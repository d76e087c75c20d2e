"""Where in a TOML text a key stands: a second look at a text that tomllib has read, only when there is an error."""

from __future__ import annotations

import re
import tomllib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Where

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_PART = re.compile(r"""[ \t]*("(?:\\.|[^"\\])*"|'[^']*'|[A-Za-z0-9_-]+)[ \t]*""")
# A multi-line string may end in up to two quotes of its own before the three that close it.
_STRING = re.compile(r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}|"(?:\\.|[^"\\])*"|'[^']*\'''', re.DOTALL)
_PLAIN = re.compile(r"[^,\]}#\n]*")


def locate(text: str, where: Where) -> tuple[int, int]:
    """Line and column (from 1) of what ``where`` leads to: ("chain", 2, "publish", 1), or of its nearest ancestor.

    A key stands where it is first mentioned, an element of an array where it begins, one of an array of tables at its
    ``[[``. ``text`` is TOML that tomllib accepts; (1, 1) where not even the first key is there.
    """
    places = _Places(text, where)
    places.scan()
    offset = next((places.found[n] for n in range(len(where), 0, -1) if n in places.found), 0)
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


class _Places:
    """The scanner: walks the text once and keeps the offset of every prefix of ``where`` (by its length)."""

    def __init__(self, text: str, where: Where) -> None:
        self.text = text
        self.where = where
        self.found: dict[int, int] = {}
        self.elements: dict[Where, int] = {}

    def scan(self) -> None:
        table: Where = ()
        at = self.blank(0)
        while at < len(self.text):
            if self.text[at] == "[":
                table, at = self.header(at)
            else:
                at = self.pair(table, at)
            at = self.blank(at)

    def blank(self, at: int) -> int:
        match = _BLANK.match(self.text, at)
        return match.end() if match else at

    def note(self, path: Where, offset: int) -> None:
        if path == self.where[: len(path)]:
            self.found.setdefault(len(path), offset)

    def key(self, at: int) -> tuple[list[tuple[str, int]], int]:
        """The parts of a dotted key with their offsets, and where it ends."""
        parts = []
        while match := _PART.match(self.text, at):
            word = match[1]
            name = tomllib.loads(f"word = {word}")["word"] if word[0] in "\"'" else word
            parts.append((name, match.start(1)))
            at = match.end()
            if not self.text.startswith(".", at):
                break
            at += 1
        return parts, at

    def header(self, at: int) -> tuple[Where, int]:
        """Reads ``[a.b]`` or ``[[a.b]]``: the path of the table that it opens, and where the header ends."""
        start, brackets = at, 2 if self.text.startswith("[[", at) else 1
        parts, at = self.key(at + brackets)
        path: Where = ()
        for index, (name, offset) in enumerate(parts):
            path = (*path, name)
            self.note(path, offset)
            if brackets == 2 and index == len(parts) - 1:
                self.elements[path] = self.elements.get(path, 0) + 1
                self.note((*path, self.elements[path] - 1), start)
            if path in self.elements:
                path = (*path, self.elements[path] - 1)
        return path, at + brackets

    def pair(self, table: Where, at: int) -> int:
        """Reads ``a.b = value`` inside a table; returns where the value ends."""
        parts, end = self.key(at)
        path = table
        for name, offset in parts:
            path = (*path, name)
            self.note(path, offset)
        return self.value(path, end + 1)

    def value(self, path: Where, at: int) -> int:
        at = self.blank(at)
        opening = self.text[at : at + 1]
        if opening == "[":
            return self.array(path, at + 1)
        if opening == "{":
            at = self.blank(at + 1)
            while self.text[at : at + 1] not in ("}", ""):
                at = self.blank(self.pair(path, at))
                at = self.blank(at + 1) if self.text.startswith(",", at) else at
            return at + 1
        match = (_STRING if opening in ('"', "'") else _PLAIN).match(self.text, at)
        return match.end() if match else len(self.text)

    def array(self, path: Where, at: int) -> int:
        index, at = 0, self.blank(at)
        while self.text[at : at + 1] not in ("]", ""):
            self.note((*path, index), at)
            at = self.blank(self.value((*path, index), at))
            at = self.blank(at + 1) if self.text.startswith(",", at) else at
            index += 1
        return at + 1
