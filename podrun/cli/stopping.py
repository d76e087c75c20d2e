"""``podrun down`` of several pods, and docker's words for it: stop and rm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from podrun.cli import completion
from podrun.cli.output import Guarded, say
from podrun.cli.seconds import Seconds
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.segments import resolve
from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Pod
from podrun.host import Host
from podrun.identity import Identity
from podrun.launcher import launch, transient
from podrun.launcher.arguments import COMMANDS
from podrun.launcher.commands import act, guarded, host_of, name_of
from podrun.podfile.loader import PodText
from podrun.systemd import events, exit_records

_words = click.argument("words", metavar="[FILE|NAME]...", nargs=-1, shell_complete=completion.words)
_every = click.option("-a", "--all", "every", is_flag=True, help="All pods.")
_patience = click.option(
    "-t", "--time", "patience", type=Seconds(min=0), metavar="SECONDS",
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


def _undone(ctx: click.Context, words: Sequence[str], undo: Callable[[str, Host], object]) -> int:
    """Undoes one after the other and names those that are undone; goes on after a failure, and returns its code.

    ``undo`` is called with a host whose messages begin with the pod's name.
    """

    def one(name: str) -> None:
        host = host_of({**ctx.obj, "name": name})
        if not launch.is_known(name, host):
            raise Failure("there is no such pod", code=UNAVAILABLE, hint="'podrun ps -a' lists the pods")
        undo(name, host)
        say(name)

    codes = [guarded(lambda name=name: one(name), {**ctx.obj, "word": name}) for name in words]  # type: ignore[misc]
    return next((code for code in codes if code), 0)


def _chosen(host: Host, words: Sequence[str], files: Sequence[str], every: Sequence[str] | None) -> list[str]:
    """The pods that are named, by --cidfile too, or ``every``: all that there are. Raises Failure (WRONG_FILE)."""
    words = [*words, *map(_first_line, files)]
    named_or_all(words, every is not None)
    return [name_of(word, host) for word in words] if every is None else [*every]


_files = click.option("--cidfile", "files", multiple=True, metavar="FILE", help="The name in it: from 'run --cidfile'.")
_ignore = click.option("-i", "--ignore", is_flag=True, help="A pod that is not there is no failure.")


@click.command("stop", cls=Guarded)
@_every
@_patience
@_files
@_ignore
@_words
@click.pass_context
def stop(
    ctx: click.Context,
    words: Sequence[str],
    every: bool,
    patience: float | None,
    files: Sequence[str],
    ignore: bool,
) -> int:
    """Undo pods, as 'down' does, and print their names; 'start' starts what 'create' or 'run -d' made once more."""
    host = host_of(ctx.obj)
    names = _chosen(host, words, files, journals.pods(host.run) if every else None)
    names = [name for name in names if not ignore or launch.is_known(name, host)]
    return _undone(ctx, names, lambda name, host: launch.down(name, host, patience=patience, keep=True))


@click.command("rm", cls=Guarded)
@click.option("-a", "--all", "every", is_flag=True, help="All pods, those too that have ended.")
@click.option("-f", "--force", is_flag=True, help="Those too that are up; one that is not there is no failure.")
@_patience
@_files
@_ignore
@click.option("-v", "--volumes", is_flag=True, help="Accepted: anonymous volumes go with their pod.")
@_words
@click.pass_context
def rm(
    ctx: click.Context,
    words: Sequence[str],
    every: bool,
    force: bool,
    patience: float | None,
    files: Sequence[str],
    ignore: bool,
    volumes: bool,
) -> int:
    """Remove pods that have ended or were created, and all that is kept of them; with -f those that are up, too."""
    host = host_of(ctx.obj)

    def remove(name: str, host: Host) -> None:
        if not force and (state := states.state(host.run, name)) in ("up", "starting"):
            hint = f"'podrun stop {name}' first, or 'podrun rm -f {name}'"
            raise Failure(f"it is {state}", code=BUSY, hint=hint)
        removed(name, host, patience)
        events.note(host.run, "pod", "remove", name)

    everyone = {*journals.pods(host.run), *exit_records.names(host.run), *transient.created(host)} if every else None
    names = _chosen(host, words, files, None if everyone is None else sorted(everyone))
    names = [name for name in names if not (ignore or force) or launch.is_known(name, host)]
    return _undone(ctx, names, remove)


def removed(name: str, host: Host, patience: float | None = None) -> None:
    """Undoes a pod, and forgets what is kept of it: how it ended, what it was created as, what it has written."""
    launch.down(name, host, patience=patience)
    if exit_records.is_created(host.root, name):
        if text := transient.kept(name, host):
            _remove_layers(text, host)
        transient.forget_created(name, host)
    exit_records.drop(host.run, name)
    transient.forget_failure(name, host)


def _remove_layers(text: PodText, host: Host) -> None:
    """Removes what a pod that was created has written, and that was kept from start to start."""
    pod = Pod(text.name, host.root, host.run, tag=Identity(text.name).tag(host.run), userns=text.userns)
    for step in text.steps:
        if step.options.get("persist"):
            hook = hook_loader.load(step.hook)
            whole = {**step._asdict(), "options": {**step.options, "persist": False}}
            hook.down(resolve(pod, hook, whole), {})


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(4096).strip()
    except OSError as error:
        raise Failure(f"--cidfile {path}: {error.strerror}", code=WRONG_FILE) from None
