"""How commands print: rows as a table or as JSON Lines, sizes for people, failures in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import pod_table
from podrun.launcher.commands import guarded


class Guarded(click.Command):
    """A command whose failures are told as every command's are."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.exit(guarded(lambda: super(Guarded, self).invoke(ctx), ctx.obj))


def say(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Prints a command's line, with the control characters of names, labels and other foreign text escaped.

    Newlines and tabs stay. A payload's output does not go through here (logs, exec, attach, cp).
    """
    click.echo("\n".join(map(pod_table.escaped, str(text).split("\n"))), nl=nl, err=err)


def printed(rows: Sequence[dict[str, Any]], form: str) -> None:
    """Prints rows: a table for people, or JSON Lines."""
    if form == "json":
        for row in rows:
            say(json.dumps(row))
        return
    for line in pod_table.lines(rows):
        say(line)


def human(size: float) -> str:
    """A size for people: "12.3M", to the base 1024."""
    units = iter("BKMGT")
    unit = next(units)
    while size >= 1024 and unit != "T":
        size, unit = size / 1024, next(units)
    return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"
