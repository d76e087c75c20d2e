"""How commands print: rows as a table or as JSON Lines, sizes for people, failures in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from typing import Any

import click

from podrun.cli import pod_table
from podrun.launcher.commands import guarded

_YES, _NO = ("true", "1"), ("false", "0")


class Switches(click.Command):
    """A command whose switches may be given a value, as docker's may: ``--all=true``, ``--follow=false``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        switches = {name for param in self.params if getattr(param, "is_flag", False) for name in param.opts}
        end = args.index("--") if "--" in args else len(args)
        if not ctx.allow_interspersed_args:  # what follows the first word is the payload's
            end = next((at for at, word in enumerate(args[:end]) if not word.startswith("-")), end)
        return super().parse_args(ctx, [*_without_values(args[:end], switches), *args[end:]])


def _without_values(args: Sequence[str], switches: Set[str]) -> Iterator[str]:
    for word in args:
        name, _, value = word.partition("=")
        if name not in switches or value.lower() not in (*_YES, *_NO):
            yield word
        elif value.lower() in _YES:
            yield name


class Group(click.Group):
    """A group of commands with docker's and podman's other words for them."""

    _OTHER = {"list": "ls", "remove": "rm", "umount": "unmount", "delete": "rm"}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, self._OTHER.get(cmd_name, ""))


class Guarded(Switches):
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
