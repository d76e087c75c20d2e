"""``--format``: a table, JSON Lines, columns by name, ``{fields}`` in a line, a Go template; and ``--filter``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from podrun.cli import templates
from podrun.cli.output import printed, say
from podrun.errors import WRONG_FILE, Failure
from podrun.options import unknown

_PART = re.compile(r'\.?([^.\[\]"]+)|\[(-?\d+)\]|\["([^"]*)"\]|\[\]')
_ESCAPES = {"t": "\t", "n": "\n", "\\": "\\"}


def value(record: Any, path: str) -> Any:
    """What is at a path of a record: ``containers[0].pid``, ``labels["a.b"]``, ``containers[].name`` for a list of all.

    None where an index or a key of a table that may have any is not there. Raises Failure (WRONG_FILE) for a key that
    the record never has.
    """
    at, found = 0, [record]
    many = False
    path = path.strip().removeprefix(".")
    while at < len(path):
        part = _PART.match(path, at)
        if part is None:
            raise Failure(f"--format: {path!r} is not a path", code=WRONG_FILE, hint="such as containers[0].pid")
        name, index, quoted = part.groups()
        at = part.end()
        if name is None and index is None and quoted is None:
            many = True
            found = [inner for one in found if isinstance(one, list) for inner in one]
        elif index is not None:
            found = [_item(one, int(index)) for one in found]
        else:
            found = [_member(one, quoted if name is None else name, top=one is record) for one in found]
    return found if many else found[0]


def _item(one: Any, index: int) -> Any:
    return one[index] if isinstance(one, list) and -len(one) <= index < len(one) else None


def _member(one: Any, name: str, *, top: bool) -> Any:
    if not isinstance(one, Mapping):
        return None
    if top and name not in one:
        raise Failure(unknown(name, [*one], "field"), code=WRONG_FILE)
    return one.get(name)


def shown(found: Any) -> str:
    """A value in a line: text as it is, nothing for none, the rest as JSON."""
    if found is None:
        return ""
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def line(template: str, record: Any) -> str:
    """``template`` with each {path} replaced; \\t and \\n mean what they mean elsewhere."""
    template = re.sub(r"\\([tn\\])", lambda match: _ESCAPES[match[1]], template)
    return re.sub(r"\{([^{}]*)\}", lambda match: shown(value(record, match[1])), template)


#: What --help says of it.
FORMATS = "table, json, FIELD,FIELD, '{FIELD} ...' or a Go template."
#: Gives a record the names that docker and podman have for its fields: podrun.cli.docker_names.
Naming = Callable[[Mapping[str, Any]], templates.Struct]


def write(
    rows: Sequence[dict[str, Any]],
    form: str,
    columns: Sequence[str],
    naming: Naming,
    *,
    heading: bool = True,
    kind: str = "",
) -> None:
    """Prints rows as ``form`` says: "table" (of ``columns``), "json", "name,state", "{name} is {state}" or a template.

    ``kind`` is the word before ID in a heading of docker's.
    """
    if form == "json":
        printed(rows, "json")
    elif templates.is_template(form) or form.startswith("table "):
        for text in templates.lines(form, [*map(naming, rows)], heading=heading, kind=kind):
            say(text)
    elif "{" in form:
        for row in rows:
            say(line(form, row))
    else:
        names = list(columns) if form == "table" else [name.strip() for name in form.split(",")]
        table = [{name: value(row, name) for name in names} for row in rows]
        if heading and form == "table":
            printed(table, "table")
        else:
            _plain(table)


def write_one(record: Mapping[str, Any], form: str, naming: Naming) -> None:
    """Prints a record as ``form`` says: "json", a path, "{paths} in a line" or a template. Raises Failure."""
    if form == "json":
        say(json.dumps(record, indent=2))
    elif templates.is_template(form):
        for text in templates.lines(form, [naming(record)]):
            say(text)
    else:
        say(line(form if "{" in form else f"{{{form}}}", record))


def _plain(table: Sequence[Mapping[str, Any]]) -> None:
    """Columns without a heading: what was asked for by name is known by name."""
    lines = [[shown(found) or "-" for found in row.values()] for row in table]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(lines[0]))] if lines else []
    for cells in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def conditions(filters: Sequence[str], known: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """--filter KEY=VALUE, by key: one of the values has to be met. Raises Failure (WRONG_FILE)."""
    found: dict[str, list[str]] = {}
    for condition in filters:
        key, equals, text = condition.partition("=")
        if not equals or key not in known:
            what = f"--filter {condition!r}: {unknown(key, known, 'filter') if equals else 'expected KEY=VALUE'}"
            raise Failure(what, code=WRONG_FILE)
        found.setdefault(key, []).append(text)
    yield from found.items()


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether all of these labels are there: KEY, or KEY=VALUE."""
    for text in wanted:
        key, equals, content = text.partition("=")
        if key not in labels or (equals and labels[key] != content):
            return False
    return True


def matches(pattern: str, text: str) -> bool:
    """Whether a regular expression, or a part of a name, is in ``text``. Raises Failure (WRONG_FILE)."""
    try:
        return bool(re.search(pattern, text))
    except re.error as error:
        raise Failure(f"{pattern!r} is not a pattern: {error}", code=WRONG_FILE) from None
