"""The variables that a pod's unit would have: Environment= and EnvironmentFile= of the file's [service]."""

from __future__ import annotations

import glob
from collections import ChainMap

from podrun import ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any


def of(files: Sequence[dict[str, Any]], environ: Mapping[str, str], instance: str = "") -> Mapping[str, str]:
    """``environ`` with what the [service] tables of a pod file and its drop-ins add (systemd.exec(5), "Environment").

    Of what systemd expands only "%i" and "%%" mean something here. Files that cannot be read add nothing: the start of
    the unit says so.
    """
    service: dict[str, Any] = {}
    for tables in files:
        if isinstance(tables.get("service"), dict):
            service.update(tables["service"])
    found: dict[str, str] = {}
    for text in _texts(service.get("Environment")):
        for word in _split(text.replace("%i", instance).replace("%%", "%")):
            name, equals, value = word.partition("=")
            if equals:
                found[name] = value
    for text in _texts(service.get("EnvironmentFile")):
        for path in sorted(glob.glob(text.removeprefix("-").replace("%i", instance))):
            found.update(_file(path))
    return ChainMap(found, environ) if found else environ  # type: ignore[arg-type]  # nobody writes into it


def unescaped(text: str) -> str:
    """The content of SetCredential= as systemd reads it: C escapes, "%%" for a percent sign."""
    found, at = "", 0
    while at < len(text):
        if text[at] == "\\" and at + 1 < len(text):
            at += 1
            found += {"n": "\n", "t": "\t", "s": " "}.get(text[at], text[at])
        elif text.startswith("%%", at):
            at += 1
            found += "%"
        else:
            found += text[at]
        at += 1
    return found


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _split(text: str) -> Iterator[str]:
    """Words in systemd's quoting (systemd.syntax(7), "Quoting")."""
    word, quote, started, at = "", "", False, 0
    while at < len(text):
        letter = text[at]
        if letter == "\\" and at + 1 < len(text):
            at += 1
            word, started = word + {"n": "\n", "t": "\t", "s": " "}.get(text[at], text[at]), True
        elif quote:
            quote = "" if letter == quote else quote
            word += letter if quote else ""
        elif letter in "\"'":
            quote, started = letter, True
        elif letter.isspace():
            if started:
                yield word
            word, started = "", False
        else:
            word, started = word + letter, True
        at += 1
    if started:
        yield word


def _file(path: str) -> dict[str, str]:
    """The assignments of an environment file: one a line, # and ; begin comments, values may be quoted."""
    try:
        text = ownership.read_any(path).decode(errors="replace")
    except OSError:
        return {}
    found = {}
    for line in text.replace("\\\n", "").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and name and name[0] not in "#;":
            quoted = value.strip()[:1] in ("'", '"')
            found[name.strip()] = "".join(_split(value.strip())) if quoted else value.strip()
    return found
