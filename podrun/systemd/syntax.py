"""Unit files as systemd reads them: sections, settings of one line, words of a command line, links of [Install]."""

from __future__ import annotations

import re

from podrun.options import Wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeAlias

    #: Settings of a section: keys and values.
    Lines: TypeAlias = list[tuple[str, str]]

#: Bytes of a line, LONG_LINE_MAX of systemd, with some for the key.
_LONGEST = (1 << 20) - 256


def text(file: str, sections: Sequence[tuple[str, Lines]]) -> str:
    """A unit file of these sections, made of the pod file ``file``. Raises Wrong for a value that is no line."""
    blocks = [
        "\n".join([f"[{head}]", *(_line(key, value) for key, value in settings)])
        for head, settings in sections
        if settings
    ]
    return f"# Made by podrun of {file}; 'podrun unit' shows it.\n" + "\n\n".join(blocks) + "\n"


def with_given(settings: Lines, given: Mapping[str, Any], *, add: bool = False) -> Lines:
    """The settings, those of the pod file in the place of the same ones; ``add``: dependencies are both's."""
    replaced = {key for key in given if not (add and key in ("Wants", "After"))}
    lines = [pair for pair in settings if pair[0] not in replaced]
    for key, value in given.items():
        for item in value if type(value) is list else [value]:
            word = ("yes" if item else "no") if type(item) is bool else str(item)
            if not (key.isascii() and key.isalnum()):
                raise Wrong(f"{key!r} is not a setting")
            lines.append((key, word))
    return lines


def quoted(word: str, specifiers: str = "") -> str:
    """A word for an Exec setting (systemd.service(5), "Command lines"); ``specifiers`` are added as they are.

    Raises Wrong for what no command line can hold.
    """
    if "\0" in word or not _is_utf8(word):
        raise Wrong(f"{word!r} cannot be a word in a command line")
    text = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    text = "".join(f"\\x{ord(c):02x}" if ord(c) < 32 or ord(c) == 127 else c for c in text) + specifiers
    plain = text and all(c.isalnum() or c in "/@._-+:=,%" for c in text)
    return text if plain else f'"{text}"'


def _line(key: str, value: str) -> str:
    """A setting as one line of a unit file (systemd.syntax(7)). Raises Wrong for a value that would not stay one line.

    For systemd's read_line() a carriage return and a NUL end a line, and a backslash at its end joins the next one.
    """
    backslashes = len(value) - len(value.rstrip("\\"))
    if set(value) & set("\n\r\0") or backslashes % 2 or len(value) > _LONGEST or not _is_utf8(value):
        raise Wrong(f"{key}= is not a setting of one line: {value[:200]!r}")
    return f"{key}={value}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def links(name: str, text: str) -> list[str]:
    """The links that [Install] asks for, as systemctl(1) enable makes them: "multi-user.target.wants/web.service"."""
    install = text.partition("[Install]\n")[2].splitlines()
    given = [line.partition("=")[::2] for line in install if "=" in line]
    stem, at, kind = name.partition("@.")
    if at:
        if not (default := next((value for key, value in given if key == "DefaultInstance"), "")):
            return []
        name = f"{stem}@{default}.{kind}"
    kinds = {"WantedBy": "wants", "RequiredBy": "requires"}
    targets = [(target, kinds[key]) for key, value in given if key in kinds for target in value.split()]
    return [f"{target}.{kind}/{name}" for target, kind in targets if re.fullmatch(r"[A-Za-z0-9:_.@\\-]+", target)]
