"""Commands for pods that there are, or were: wait, restart, healthcheck."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click

from podrun.cli import completion, views
from podrun.cli.declare import command
from podrun.cli.output import Guarded, say
from podrun.cli.payload import Running
from podrun.cli.seconds import Seconds
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.processes import alive
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.facts import merged
from podrun.hook import Pod
from podrun.hook_extras import ChecksHealth, offers
from podrun.host import Host
from podrun.launcher import detach, foreground, launch, transient
from podrun.launcher.commands import host_of, name_of
from podrun.options import unknown
from podrun.podfile import loader
from podrun.systemd import exit_records, notify


@command(
    click.Option(
        ["-t", "--time", "patience"], type=Seconds(min=0), metavar="SECONDS", help="From the stop signal to SIGKILL."
    ),
    click.Argument(["words"], metavar="FILE|NAME...", nargs=-1, required=True, shell_complete=completion.words),
)
def restart(host: Host, words: Sequence[str], patience: float | None) -> int:
    """Undo pods and start them again, detached, from their files as they are now (or as they were run, without one)."""
    codes = [_restarted(host, word, patience) for word in words]
    return next((code for code in codes if code), 0)


def _restarted(host: Host, word: str, patience: float | None) -> int:
    name = name_of(word, host)
    header = next((journal.header for journal in journals.journals(host.run, name) if journal.header), None)
    if header and header.pod.unit and not notify.is_transient(header.pod.unit):
        found = journals.journals(host.run, name)
        return notify.ask("restart", [journal.header.pod.unit for journal in found if journal.header])
    if header and not header.file:
        text = _as_it_was_run(header.pod, host)
    elif not header and (kept := transient.kept(name, host)):
        text = kept
    else:
        text = loader.load(header.file if header else word, environ=host.environ, load_hook=hook_loader.load)
    launch.down(name, host, patience=patience)
    return detach.start(text, host)


def _as_it_was_run(pod: Pod, host: Host) -> loader.PodText:
    """The pod file that a ``podrun run`` amounted to, from its journals."""
    records = [dict(entry.step) for entry in states.entries(journals.journals(host.run, pod.name))]
    steps = tuple(loader.StepText(**{**record, "for_": tuple(record["for_"])}) for record in records)
    return loader.PodText(pod.name, "", steps, "service", pod.stop_timeout, {})


@command(
    click.Option(["-i", "--ignore"], is_flag=True, help="Take a pod that does not exist for one that ended with 0."),
    click.Option(
        ["--condition", "conditions"],
        multiple=True,
        metavar="STATE",
        help="Until it is in this state instead: running, healthy ...",
    ),
    click.Argument(["words"], metavar="FILE|NAME...", nargs=-1, required=True, shell_complete=completion.words),
)
def wait(host: Host, words: Sequence[str], ignore: bool, conditions: Sequence[str]) -> int:
    """Wait until the pods' last containers have ended; of several print a status each.

    With --condition, until each pod is in one of these states: running, paused, healthy, unhealthy, exited, removed.
    """
    wanted = {_condition(word) for word in conditions}
    if wanted - {"ended"}:
        for word in words:
            _await_state(host, name_of(word, host), wanted)
        return 0
    statuses = [waited(host, name_of(word, host), ignore) for word in words]
    if len(words) > 1:
        for word, status in zip(words, statuses, strict=True):
            say(f"{word} {status}")
        return 0
    return statuses[0]


#: Docker's and podman's words for states.
_STATES = {
    "running": "up", "up": "up", "paused": "paused", "healthy": "healthy", "unhealthy": "unhealthy", "exited": "ended",
    "stopped": "ended", "not-running": "ended", "next-exit": "ended", "removed": "absent", "absent": "absent",
}  # fmt: skip


def _condition(word: str) -> str:
    if word not in _STATES:
        raise Failure(unknown(word, [*_STATES], "condition"), code=WRONG_FILE)
    return _STATES[word]


def _await_state(host: Host, name: str, wanted: Collection[str]) -> None:
    while True:
        row = next((row for row in views.rows(host.run) if row["name"] == name), None)
        if row is None:
            now = {"absent", "ended"}
        else:
            now = {row["state"] if row["state"] != "dead" else "ended", row["health"] or ""}
            now |= {"paused"} if "(paused" in row["status"] else set()
        if now & {*wanted}:
            return
        _pause(0.1)


def waited(host: Host, name: str, ignore: bool) -> int:
    """The status of a pod's last container, once that has ended. Raises Failure (UNAVAILABLE) when it has none."""
    found = states.resident(host.run, name)
    waiting = launch.residents(host.run, name)
    if not waiting or found is None or found[0].header is None:
        if ending := exit_records.last(host.run, name):
            return ending.status or 0
        if ignore:
            return 0
        raise Failure(f"{name}: it has no container to wait for", code=UNAVAILABLE)
    last, header = waiting[-1], found[0].header
    while alive(last.pid, last.start):
        _pause(0.05)
    # systemd tells its ExecStopPost= how the container ended; where there is none, who waits in the foreground knows.
    for _ in range(200 if header.pod.unit else 20 if header.pod.attached else 0):
        for part in ("", found[0].segment):
            ending = exit_records.read(host.run, name, part)
            if ending and ending.invocation == header.pod.invocation and ending.status is not None:
                # Of several containers, with on_failure = "stop", the failure of another one ended this one.
                whole = exit_records.last(host.run, name)
                return (whole or ending).status or 0
        _pause(0.05)
    return foreground.reap(last)


@click.group()
def healthcheck() -> None:
    """Health checks of containers."""


@healthcheck.command("run", cls=Guarded)
@click.option("-c", "--container", default="", metavar="NAME", help="Which container; default: the last.")
@click.argument("word", metavar="FILE|NAME", shell_complete=completion.words)
@click.pass_context
def healthcheck_run(ctx: click.Context, word: str, container: str) -> int:
    """Ask a container once what its live probe asks, the image's HEALTHCHECK or else 'ready'; 1: it is unhealthy."""
    host = host_of(ctx.obj)
    running = Running(host, word, container)
    checking = offers(hook_loader.load(running.entry.step["hook"]), ChecksHealth)
    given = merged([entry.facts for entry in states.entries(journals.journals(host.run, running.name))])
    own = {"process": {"pid": running.resident.pid, "start": running.resident.start}}
    wrong = checking.unhealthy(running.step(), own, given) if checking else None
    if wrong is None:
        hint = "the pod file's live = { ... }, or the image's HEALTHCHECK, does"
        raise Failure(f"{running.name}: nothing says what it has to answer to", code=UNAVAILABLE, hint=hint)
    say(f"unhealthy: {wrong}" if wrong else "healthy")
    return 1 if wrong else 0


def _pause(seconds: float) -> None:
    from time import sleep

    sleep(seconds)
