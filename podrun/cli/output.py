"""How commands print: rows as a table or as JSON Lines, sizes for people, failures in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from podrun.launcher.commands import guarded
from podrun.messages import printable


class Guarded(click.Command):
    """A command whose failures are told as every command's are."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.exit(guarded(lambda: super(Guarded, self).invoke(ctx), ctx.obj))


def say(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Prints a command's line, with the control characters of names, labels and other foreign text escaped.

    Newlines and tabs stay. A payload's output does not go through here (logs, exec, attach, cp).
    """
    lines = str(text).split("\n")
    click.echo("\n".join("\t".join(map(printable, line.split("\t"))) for line in lines), nl=nl, err=err)


def printed(rows: Sequence[dict[str, Any]], form: str) -> None:
    """Prints rows: a table for people, or JSON Lines."""
    if form == "json":
        for row in rows:
            say(json.dumps(row))
        return
    if not rows:
        return
    table = [[head.upper() for head in rows[0]], *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for cells in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value) or "-"
    return "-" if value is None else str(value)


def human(size: float) -> str:
    """A size for people: "12.3M", to the base 1024."""
    units = iter("BKMGT")
    unit = next(units)
    while size >= 1024 and unit != "T":
        size, unit = size / 1024, next(units)
    return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"
