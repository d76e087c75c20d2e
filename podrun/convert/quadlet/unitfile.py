"""Reads unit files as systemd.syntax(7) says: sections, continued lines, quotes and escapes, specifiers, drop-ins."""

from __future__ import annotations

import os
from typing import NamedTuple

from podrun.errors import WRONG_FILE, Failure

from .. import inputs
from ..draft import INSTANCE, Origin, variable

#: Units with more files beside them than this are not what anybody wrote by hand.
_DROP_INS = 200


class Assignment(NamedTuple):
    """One "Key=value" line, continued lines joined."""

    section: str
    key: str
    value: str
    where: str


class Unit(NamedTuple):
    """A unit with its drop-ins."""

    #: "web.container"; of an instance "web@blue.container".
    name: str
    directory: str
    assignments: tuple[Assignment, ...]

    @property
    def stem(self) -> str:
        """Its name without what follows the last dot."""
        return self.name.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """container, pod, volume, ..."""
        return self.name.rpartition(".")[2]

    @property
    def is_template(self) -> bool:
        """Whether %i waits for an instance."""
        return self.stem.endswith("@")

    @property
    def instance(self) -> str:
        """What %i is."""
        return INSTANCE if self.is_template else self.stem.partition("@")[2]

    def all(self, section: str, key: str) -> list[tuple[str, Origin]]:
        """The values of a key, after the last empty one: an empty value takes back those before it."""
        found: list[tuple[str, Origin]] = []
        for entry in self.assignments:
            if (entry.section, entry.key) == (section, key):
                if entry.value:
                    found.append((self.resolved(entry.value), Origin(entry.where, key)))
                else:
                    found = []
        return found

    def last(self, section: str, key: str) -> str:
        """The last value of a key; "" without one."""
        values = self.all(section, key)
        return values[-1][0] if values else ""

    def sections(self) -> list[str]:
        """The sections that it has, in order."""
        return list(dict.fromkeys(entry.section for entry in self.assignments))

    def keys(self, section: str) -> list[str]:
        """The keys of a section, in order."""
        return list(dict.fromkeys(entry.key for entry in self.assignments if entry.section == section))

    def resolved(self, text: str) -> str:
        """The value as systemd hands it on: specifiers of the system's manager replaced (systemd.unit(5)).

        ``${NAME}`` is left to the start of the pod, as systemd leaves it to the start of the unit; ``$$`` is a dollar.
        """
        if "%" not in text:
            return _with_variables(text)
        prefix = self.stem.partition("@")[0]
        known = {
            "%": "%", "i": self.instance, "I": self.instance, "n": f"{self.stem}.service", "N": self.stem,
            "p": prefix, "P": prefix, "j": prefix.rpartition("-")[2], "J": prefix.rpartition("-")[2],
            "t": "/run", "S": "/var/lib", "C": "/var/cache", "L": "/var/log", "E": "/etc", "T": "/tmp", "V": "/var/tmp",
            "h": "/root", "u": "root", "U": "0", "g": "root", "G": "0", "s": "/bin/sh", "d": "/run/credentials",
        }  # fmt: skip
        done, at = "", 0
        while at < len(text):
            if text[at] == "%" and text[at + 1 : at + 2] in known:
                done += known[text[at + 1]]
                at += 2
            else:
                done += text[at]
                at += 1
        return _with_variables(done)


def _with_variables(text: str) -> str:
    done, at = "", 0
    while (dollar := text.find("$", at)) >= 0:
        done += text[at:dollar]
        end = text.find("}", dollar)
        name = text[dollar + 2 : end] if text.startswith("{", dollar + 1) else ""
        if text.startswith("$", dollar + 1):
            done, at = f"{done}$", dollar + 2
        elif end > 0 and name.isidentifier() and name.isascii():
            done, at = done + variable(name), end + 1
        else:
            done, at = f"{done}$", dollar + 1
    return done + text[at:]


def read(path: str) -> Unit:
    """A unit and its drop-ins. Raises Failure (WRONG_FILE)."""
    directory, name = os.path.split(os.path.abspath(path))
    assignments = parse(inputs.read(path), name)
    for drop_in in _drop_ins(directory, name):
        assignments += parse(inputs.read(drop_in), os.path.relpath(drop_in, directory))
    return Unit(name, directory, tuple(assignments))


def _drop_ins(directory: str, name: str) -> list[str]:
    """The drop-ins of a unit in the order of their names; of two with one name the more particular one."""
    stem, _, kind = name.rpartition(".")
    prefix, at, instance = stem.partition("@")
    folders = [f"{kind}.d"]
    words = prefix.split("-")
    folders += [f"{'-'.join(words[:count])}-.{kind}.d" for count in range(1, len(words))]
    if at and instance:
        folders.append(f"{prefix}@.{kind}.d")
    folders.append(f"{name}.d")
    chosen: dict[str, str] = {}
    for folder in folders:
        try:
            names = os.listdir(f"{directory}/{folder}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        chosen.update({file: f"{directory}/{folder}/{file}" for file in names if file.endswith(".conf")})
    if len(chosen) > _DROP_INS:
        raise Failure(f"{directory}/{name} has more than {_DROP_INS} drop-ins", code=WRONG_FILE)
    return [chosen[file] for file in sorted(chosen)]


def parse(text: str, name: str) -> list[Assignment]:
    """The assignments of a unit file. Raises Failure (WRONG_FILE) with "name:line"."""
    found: list[Assignment] = []
    section = ""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        where = f"{name}:{at + 1}"
        line = lines[at].strip()
        at += 1
        if not line or line[0] in "#;":
            continue
        # A backslash at the end continues the line; comments in between are left out.
        while line.endswith("\\") and at < len(lines):
            following = lines[at].strip()
            at += 1
            if following[:1] not in ("#", ";"):
                line = f"{line[:-1].rstrip()} {following}"
        line = line.removesuffix("\\").rstrip()
        if line.startswith("["):
            if not line.endswith("]") or len(line) < 3:
                raise Failure(f"{where}: {line!r} is not a section", code=WRONG_FILE)
            section = line[1:-1]
            continue
        key, equals, value = line.partition("=")
        if not equals or not section:
            what = "is not of the form Key=value" if section else "stands before the first section"
            raise Failure(f"{where}: {line[:60]!r} {what}", code=WRONG_FILE)
        found.append(Assignment(section, key.strip(), value.strip(), where))
    return found


_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'",
    "s": " ",
}  # fmt: skip


def words(text: str) -> list[str]:
    """Splits a value into words: quotes hold one together, and C's escapes are read (systemd.service(5)).

    Raises ValueError for a quote that is not closed or an escape that is none.
    """
    found: list[str] = []
    word: str | None = None
    quote, at = "", 0
    while at < len(text):
        letter = text[at]
        if letter == "\\":
            meant, at = _escaped(text, at + 1)
            word = (word or "") + meant
            continue
        at += 1
        if quote:
            if letter == quote:
                quote = ""
            else:
                word = (word or "") + letter
        elif letter in "\"'" and word is None:
            quote, word = letter, ""
        elif letter.isspace():
            if word is not None:
                found.append(word)
            word = None
        else:
            word = (word or "") + letter
    if quote:
        raise ValueError(f"a quote is not closed in {text!r}")
    return [*found, word] if word is not None else found


def _escaped(text: str, at: int) -> tuple[str, int]:
    letter = text[at : at + 1]
    if letter in _ESCAPES and letter:
        return _ESCAPES[letter], at + 1
    for kind, length, base in (("x", 2, 16), ("u", 4, 16), ("U", 8, 16)):
        if letter == kind:
            return _character(text[at + 1 : at + 1 + length], length, base, text), at + 1 + length
    return _character(text[at : at + 3], 3, 8, text), at + 3


def _character(digits: str, length: int, base: int, text: str) -> str:
    try:
        if len(digits) == length and digits.isalnum() and (number := int(digits, base)):
            return chr(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"an escape in {text!r} is not known to systemd")


def unquoted(text: str) -> str:
    """A value without the quotes around the whole of it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def boolean(text: str) -> bool:
    """What systemd takes for a boolean. Raises ValueError."""
    word = text.lower()
    if word in ("1", "yes", "y", "true", "t", "on"):
        return True
    if word in ("0", "no", "n", "false", "f", "off"):
        return False
    raise ValueError(f"expected yes or no, not {text!r}")
