"""Docker's two steps in place of ``run -d``: ``create`` keeps what a command line means, ``start`` starts it.

Kept are a file such as a transient unit's podrun reads (podrun.launcher.transient), and what the container writes. Both
are there until ``rm``: ``start`` starts the same pod again after ``stop``, ``down`` and a reboot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import attach, completion
from podrun.cli.output import Guarded, say
from podrun.cli.stopping import named_or_all
from podrun.engine import state as states
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.host import Host
from podrun.launcher import detach, launch, transient
from podrun.launcher.commands import act, guarded, host_of, name_of
from podrun.podfile.loader import PodText, StepText
from podrun.systemd import exit_records


@click.command("start", cls=Guarded)
@click.option("-a", "--attach", "staying", is_flag=True, help="Stay in the foreground, and return the pod's status.")
@click.option("-i", "--interactive", is_flag=True, help="The same, and give the payload podrun's standard input.")
@click.option("--all", "every", is_flag=True, help="All pods that were created, or have ended in their units.")
@click.argument("words", metavar="[FILE|NAME]...", nargs=-1, shell_complete=completion.words)
@click.pass_context
def start(ctx: click.Context, words: Sequence[str], staying: bool, interactive: bool, every: bool) -> int:
    """Start pods and return when they are ready: by file or name as 'up -d' does, or what 'create' or 'run -d' kept.

    One that is up already is left alone.
    """
    host = host_of(ctx.obj)
    named_or_all(words, every)
    staying = staying or interactive
    if staying and (every or len(words) > 1):
        raise Failure("--attach and --interactive are for one pod", code=WRONG_FILE)
    codes = [
        guarded(lambda word=word: _started(ctx, host, word, staying, interactive), {**ctx.obj, "word": word})  # type: ignore[misc]
        for word in (startable(host) if every else words)
    ]
    return next((code for code in codes if code), 0)


def startable(host: Host) -> list[str]:
    """The pods of which what they were started from is kept, and which are not there."""
    kept = {*exit_records.names(host.run), *transient.created(host)}
    return sorted(name for name in kept if states.state(host.run, name) == "absent" and transient.kept(name, host))


def _started(ctx: click.Context, host: Host, word: str, staying: bool, interactive: bool) -> int:
    name = name_of(word, host)
    if states.state(host.run, name) == "up" and not staying:
        say(word)
        return 0
    text = transient.kept(name, host) if word == name else None
    if staying:
        return _in_foreground(text, word, host, interactive)
    if text is None:
        code = act("up", {**ctx.obj, "word": word, "detach": True, "segment": "", "resolved": False})
    else:
        code = detach.start(text, host)
    if not code:
        say(word)
    return code


def _in_foreground(text: PodText | None, word: str, host: Host, interactive: bool) -> int:
    """Starts a pod that was created, and stays. Without input, where systemd runs, it is a unit whose journal is shown.

    Raises Failure for a pod that was not created.
    """
    if text is None:
        hint = f"'podrun up {word}' stays in the foreground"
        raise Failure(f"{word}: only what 'podrun create' made can be started so", code=UNAVAILABLE, hint=hint)
    with_terminal = any(step.options.get("tty") for step in text.steps)
    kept = all(step.options.get("log") != "none" for step in text.steps)
    if kept and not (interactive or with_terminal) and detach.is_by_systemd(host):
        return detach.start(text, host) or attach.follow(host, text.name)
    plain = text._replace(steps=tuple(_without_relay(step) for step in text.steps))
    if not with_terminal:
        return launch.up(plain, host, interactive=interactive)
    from podrun.launcher.terminal import Terminal

    with Terminal() as terminal:
        return launch.up(plain, host, interactive=True, terminal=terminal)


def _without_relay(step: StepText) -> StepText:
    """The step without its own terminal and input: it has the caller's."""
    options: dict[str, Any] = {key: value for key, value in step.options.items() if key not in ("tty", "interactive")}
    return step._replace(options=options)
