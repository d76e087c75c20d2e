"""``podrun stats``: what containers use, once or again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import completion, docker_names, fields
from podrun.cli.output import Guarded, human
from podrun.cli.seconds import Seconds
from podrun.engine import journal as journals
from podrun.errors import UNAVAILABLE, Failure
from podrun.host import Host
from podrun.launcher.commands import host_of, name_of

_COLUMNS = ("pod", "name", "pid", "cpu", "memory", "limit", "used", "processes", "network", "block")
#: Moves to the upper left corner and clears the screen below it (ECMA-48: CUP, ED).
_HOME = "\x1b[H\x1b[J"


@click.command(cls=Guarded)
@click.option("--no-stream", "once", is_flag=True, help="Print once, also at a terminal.")
@click.option("-f", "--follow", is_flag=True, help="Print again and again, as at a terminal.")
@click.option("-i", "--interval", type=Seconds(min=0.1), default=2.0, metavar="SECONDS", help="How often.")
@click.option("--format", "form", default="table", metavar="FORMAT", help=fields.FORMATS)
@click.argument("words", metavar="[FILE|NAME]...", nargs=-1, shell_complete=completion.words)
@click.pass_context
def stats(ctx: click.Context, words: Sequence[str], form: str, once: bool, follow: bool, interval: float) -> None:
    """Show what containers use: processor, memory and its limit, processes, bytes from and to network and disks."""
    host = host_of(ctx.obj)
    chosen = [name_of(word, host) for word in words]
    for name in chosen:
        if not journals.journals(host.run, name):
            raise Failure(f"there is no pod {name}", code=UNAVAILABLE, hint="'podrun ps' lists the pods")
    screen = sys.stdout.isatty() and not once
    while True:
        rows = _rows(host, chosen, form)
        if screen:
            sys.stdout.write(_HOME)
        fields.write(rows, form, _COLUMNS, docker_names.used)
        sys.stdout.flush()
        if once or not (screen or follow):
            return
        time.sleep(interval)


def _rows(host: Host, chosen: Sequence[str], form: str) -> list[dict[str, Any]]:
    from podrun.cli import stats as usage

    rows = usage.rows(host.run, list(chosen) or journals.pods(host.run))
    return rows if form == "json" else [_readable(row) for row in rows]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """Sizes for people; "in / out" where there are two."""
    pairs = {key: f"{human(row[key][0])} / {human(row[key][1])}" if row[key] else None for key in ("network", "block")}
    limit = human(row["limit"]) if row["limit"] else None
    return {**row, "memory": human(row["memory"]), "limit": limit, **pairs}
