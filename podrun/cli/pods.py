"""Commands about pods that there are, or were: ps, inspect, logs, exec, wait, restart."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

import click

from podrun.cli import views
from podrun.cli.declare import CONTAINER, FORMAT, QUIET, WORD, command
from podrun.cli.output import printed, say
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.processes import alive
from podrun.engine.segments import resolve
from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Pod
from podrun.hook_extras import RunsCommands, offers
from podrun.host import Host
from podrun.launcher import detach, foreground, launch, run
from podrun.launcher.commands import name_of
from podrun.podfile import loader
from podrun.systemd import exit_records, notify


@command(WORD)
def restart(host: Host, word: str) -> int:
    """Undo a pod and start it again, detached, from its file as it is now (or as it was run, without a file)."""
    name = name_of(word, host)
    header = next((journal.header for journal in journals.journals(host.run, name) if journal.header), None)
    if header and header.pod.unit and not notify.is_transient(header.pod.unit):
        found = journals.journals(host.run, name)
        return notify.ask("restart", [journal.header.pod.unit for journal in found if journal.header])
    if header and not header.file:
        text = _as_it_was_run(header.pod, host)
    else:
        text = loader.load(header.file if header else word, environ=host.environ, load_hook=hook_loader.load)
    launch.down(name, host)
    return detach.start(text, host)


def _as_it_was_run(pod: Pod, host: Host) -> loader.PodText:
    """The pod file that a ``podrun run`` amounted to, from its journals."""
    records = [dict(entry.step) for entry in states.entries(journals.journals(host.run, pod.name))]
    steps = tuple(loader.StepText(**{**record, "for_": tuple(record["for_"])}) for record in records)
    return loader.PodText(pod.name, "", steps, "service", pod.stop_timeout, {})


@command(
    FORMAT,
    QUIET,
    click.Option(["-a", "--all", "also_ended"], is_flag=True, help="Those too that have ended, with their status."),
    click.Option(["--filter", "filters"], multiple=True, metavar="KEY=VALUE", help="Only these."),
)
def ps(host: Host, form: str, quiet: bool, also_ended: bool, filters: Sequence[str]) -> None:
    """List the pods that are not absent; -a: and those that have ended in their units."""
    rows = views.rows(host.run)
    if also_ended:
        rows = [{**row, "status": None} for row in rows] + views.ended_rows(host.run)
    for condition in filters:
        key, equals, value = condition.partition("=")
        if not equals or key not in ("name", "state", "image", "unit", "file"):
            raise Failure(f"--filter {condition!r}: expected name=, state=, image=, unit= or file=", code=WRONG_FILE)
        rows = [row for row in rows if str(row[key]) == value]
    if quiet:
        for row in rows:
            say(row["name"])
    else:
        printed(rows, form)


@command(WORD)
def inspect(host: Host, word: str) -> None:
    """Print everything that is known of a pod as JSON."""
    name = name_of(word, host)
    whole = views.inspect(host.run, name) or views.ended(host.run, name)
    if whole is None:
        raise Failure("there is no such pod", code=UNAVAILABLE, hint="'podrun ps -a' lists those that there are")
    say(json.dumps(whole, indent=2))


@command(WORD, CONTAINER, click.Option(["-f", "--follow"], is_flag=True, help="Go on until the container has ended."))
def logs(host: Host, word: str, container: str, follow: bool) -> None:
    """Print what a container has written."""
    name = name_of(word, host)
    found = views.resident(host.run, name, container)
    if found is None:
        _logs_of_ended(host, name, container)
        return
    process = found[1].facts.get("process") or found[1].process or {"pid": 0, "start": 0}
    path = found[1].facts.get("log", {}).get("file")
    header = found[0].header
    if not path and header and header.pod.unit:
        from podrun.systemd.journalctl import show as show_entries

        show_entries(header.pod.unit, header.pod.invocation, process["pid"], process["start"], follow=follow)
        return
    if not path:
        raise Failure("its output was not captured: it went to podrun's own standard output", code=UNAVAILABLE)
    options = found[1].step["options"]
    for older in _older_logs(path, options.get("log_files", 3)) if options.get("log_size") else ():
        with _plain(older) as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
    file = _plain(path)
    try:
        while True:
            running = alive(process["pid"], process["start"])
            rotated = _is_another(path, file)
            while block := file.read(65536):
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
            if rotated:
                file.close()
                file = _plain(path)
                continue
            if not follow or not running:
                return
            _pause(0.1)
    finally:
        file.close()


def _older_logs(path: str, most: int) -> list[str]:
    """The files that a log has outgrown (``log_size``), the oldest first."""
    found = [f"{path}.{number}" for number in range(most, 0, -1)]
    return [older for older in found if os.path.lexists(older)]


def _is_another(path: str, file: BinaryIO) -> bool:
    """Whether the log has been begun anew since ``file`` was opened."""
    try:
        return os.stat(path, follow_symlinks=False).st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _logs_of_ended(host: Host, name: str, container: str) -> None:
    """What a container has written whose unit systemd has undone: the last thing that is known of it."""
    for ending in reversed(exit_records.all_of(host.run, name)):
        for ended in reversed(ending.containers):
            if container in ("", ended["name"]):
                if ended["log"]:
                    with _plain(ended["log"]) as file:
                        shutil.copyfileobj(file, sys.stdout.buffer)
                    return
                from podrun.systemd.journalctl import show as show_entries

                show_entries(ending.unit, ending.invocation, 0, 0, follow=False)
                return
    hint = f"see 'podrun inspect {name}'" if journals.journals(host.run, name) else "'podrun ps -a' lists the pods"
    raise Failure("there is no such container", code=UNAVAILABLE, hint=hint)


@command(
    click.Option(["-i", "--interactive"], is_flag=True, help="Accepted: standard input is always passed on."),
    click.Option(["-t", "--tty"], is_flag=True, help="Give the command a terminal."),
    click.Option(["-e", "--env"], multiple=True, metavar="KEY=VALUE", help="An environment variable."),
    click.Option(["-u", "--user"], default="", metavar="UID[:GID]", help="As whom."),
    click.Option(["-w", "--workdir"], default="", metavar="DIR", help="The working directory."),
    CONTAINER,
    WORD,
    click.Argument(["command"], nargs=-1, required=True, type=click.UNPROCESSED),
)
def exec_(host: Host, word: str, command: Sequence[str], container: str, **given: Any) -> int:
    """Run a command in a container."""
    name = name_of(word, host)
    found = views.resident(host.run, name, container)
    if found is None or found[0].header is None:
        raise Failure("there is no such container", code=UNAVAILABLE, hint=f"see 'podrun inspect {name}'")
    _, entry = found
    process = entry.facts.get("process") or entry.process
    if not process or not alive(process["pid"], process["start"]):
        raise Failure("the container has ended", code=BUSY, hint=f"'podrun restart {name}' starts it again")
    hook = hook_loader.load(entry.step["hook"])
    step = resolve(found[0].header.pod, hook, entry.step)
    running = offers(hook, RunsCommands)
    if running is None:
        raise Failure(f"{step.label}: its hook cannot run commands in it")
    wanted = {"tty": given["tty"], "user": given["user"], "workdir": given["workdir"]}
    running.exec_into(step, entry.facts, command, env=run.environment(list(given["env"]), host), **wanted)


@command(WORD)
def wait(host: Host, word: str) -> int:
    """Wait until the pod's last container has ended."""
    name = name_of(word, host)
    found = views.resident(host.run, name)
    waiting = launch.residents(host.run, name)
    if not waiting or found is None or found[0].header is None:
        if ending := exit_records.last(host.run, name):
            return ending.status or 0
        raise Failure("it has no container to wait for", code=UNAVAILABLE)
    last, header = waiting[-1], found[0].header
    while alive(last.pid, last.start):
        _pause(0.05)
    if header.pod.unit:
        # systemd tells its ExecStopPost= how the container ended.
        for _ in range(200):
            for part in ("", found[0].segment):
                ending = exit_records.read(host.run, name, part)
                if ending and ending.invocation == header.pod.invocation and ending.status is not None:
                    # Of several containers, with on_failure = "stop", the failure of another one ended this one.
                    whole = exit_records.last(host.run, name)
                    return (whole or ending).status or 0
            _pause(0.05)
    return foreground.reap(last)


def _plain(path: str) -> BinaryIO:
    """A log file to read. It may lie where the payload can write: a link or a device in its place is refused."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Failure(f"{path} is not a plain file", code=UNAVAILABLE)
    return open(fd, "rb")


def _pause(seconds: float) -> None:
    from time import sleep

    sleep(seconds)
