"""``podrun down`` of several pods, and docker's words for it: stop and rm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import completion
from podrun.cli.output import Guarded, say
from podrun.engine import journal as journals
from podrun.errors import WRONG_FILE, Failure
from podrun.host import Host
from podrun.launcher import launch
from podrun.launcher.arguments import COMMANDS
from podrun.launcher.commands import act, guarded, host_of, name_of

_words = click.argument("words", metavar="[FILE|NAME]...", nargs=-1, shell_complete=completion.words)
_every = click.option("-a", "--all", "every", is_flag=True, help="All pods.")
_patience = click.option(
    "-t", "--time", "patience", type=click.FloatRange(min=0), metavar="SECONDS",
    help="From the stop signal to SIGKILL, whatever the pod file says; a unit's own time-out stays.",
)  # fmt: skip


@click.command("down")
@_words
@_every
@_patience
@click.pass_context
def down(ctx: click.Context, /, words: Sequence[str], every: bool, patience: float | None, **given: Any) -> None:
    """Undo pods, in reverse. One that is not there is no failure."""
    whole = {**ctx.obj, **given, **({} if patience is None else {"time": patience})}
    if not every and len(words) == 1:
        ctx.exit(act("down", {**whole, "word": words[0]}))
    codes = [act("down", {**whole, "word": word}) for word in _meant(ctx, words, every)]
    ctx.exit(next((code for code in codes if code), 0))


down.params = [
    *(
        click.Option([*flag.names, flag.key], is_flag=True, help=flag.doc)
        if not flag.value
        else click.Option([*flag.names, flag.key], metavar=flag.value, default=flag.default, help=flag.doc)
        for flag in COMMANDS["down"].flags
    ),
    *down.params,
]


def named_or_all(words: Sequence[str], every: bool) -> None:
    """Raises Failure (WRONG_FILE) unless pods are named, or all are meant."""
    if bool(words) == every:
        raise Failure("name the pods, or use --all", code=WRONG_FILE)


def _meant(ctx: click.Context, words: Sequence[str], every: bool) -> list[str]:
    def found() -> None:
        named_or_all(words, every)
        names.extend(journals.pods(host_of(ctx.obj).run) if every else words)

    names: list[str] = []
    if code := guarded(found, ctx.obj):
        ctx.exit(code)
    return names


def _undone(ctx: click.Context, host: Host, words: Sequence[str], **more: Any) -> int:
    """Undoes one after the other and names those that are undone; goes on after a failure, and returns its code."""

    def one(name: str) -> None:
        launch.down(name, host, **more)
        say(name)

    codes = [guarded(lambda name=name: one(name), {**ctx.obj, "word": name}) for name in words]  # type: ignore[misc]
    return next((code for code in codes if code), 0)


@click.command("stop", cls=Guarded)
@_every
@_patience
@click.option("--cidfile", "files", multiple=True, metavar="FILE", help="The name in it: what 'run --cidfile' wrote.")
@click.option("-i", "--ignore", is_flag=True, help="Accepted: a pod that is not there is no failure anyway.")
@click.option("-v", "--volumes", is_flag=True, help="Accepted: anonymous volumes go with their pod.")
@click.option("-f", "--force", is_flag=True, help="Go on when a step cannot be undone.")
@_words
@click.pass_context
def stop(
    ctx: click.Context,
    words: Sequence[str],
    every: bool,
    patience: float | None,
    files: Sequence[str],
    ignore: bool,
    volumes: bool,
    force: bool,
) -> int:
    """Undo pods, as 'down' does, and print their names."""
    host = host_of(ctx.obj)
    words = [*words, *map(_first_line, files)]
    named_or_all(words, every)
    names = journals.pods(host.run) if every else [name_of(word, host) for word in words]
    return _undone(ctx, host, names, force=force, patience=patience)


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(4096).strip()
    except OSError as error:
        raise Failure(f"--cidfile {path}: {error.strerror}", code=WRONG_FILE) from None
