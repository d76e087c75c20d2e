"""Commands about what runs in a pod: signals, processes, ports, freezing, limits, and what it has written."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import completion
from podrun.cli.output import Guarded, printed, say
from podrun.cli.stopping import named_or_all
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.processes import alive
from podrun.engine.segments import resolve
from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun.facts import merged
from podrun.hook import Step
from podrun.hook_extras import Controls, offers
from podrun.host import Host
from podrun.launcher import foreground
from podrun.launcher.commands import host_of, name_of
from podrun.options import whole
from podrun.systemd import events

_words = click.argument("words", metavar="FILE|NAME...", nargs=-1, required=True, shell_complete=completion.words)
_word = click.argument("word", metavar="FILE|NAME", shell_complete=completion.words)
_container = click.option("-c", "--container", default="", metavar="NAME", help="Which container; default: the last.")
_format = click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")


def number_of(text: str) -> int:
    """The number of SIGTERM, term, RTMIN+3 or 15. Raises Failure (WRONG_FILE)."""
    name = text.upper().removeprefix("SIG")
    for base, first in (("RTMIN", int(signal.SIGRTMIN)), ("RTMAX", int(signal.SIGRTMAX))):
        offset = name.removeprefix(base)
        away = whole(offset[1:] if offset[:1] in ("+", "-") else offset, 64) if offset else 0
        if name.startswith(base) and away is not None:
            name = str(first + (-away if offset[:1] == "-" else away))
    number = whole(name, 64) or signal.Signals.__members__.get(f"SIG{name}", 0)
    if not number:
        raise Failure(f"{text!r} is not a signal", code=WRONG_FILE, hint="such as TERM, HUP, USR1 or 15")
    return int(number)


class Running:
    """A container that runs: its pod, its journal's entry, its process."""

    def __init__(self, host: Host, word: str, container: str = "") -> None:
        self.name = name_of(word, host)
        found = states.resident(host.run, self.name, container)
        if found is None or found[0].header is None:
            what = f"{self.name}: there is no such container" if container else f"{self.name}: no container is there"
            raise Failure(what, code=UNAVAILABLE, hint="'podrun ps -a' lists the pods")
        self.journal, self.entry = found
        process = self.entry.facts.get("process") or self.entry.process
        if not process or not alive(process["pid"], process["start"]):
            hint = f"'podrun restart {self.name}' starts it again"
            raise Failure(f"{self.name}: the container has ended", code=BUSY, hint=hint)
        self.resident = foreground.Resident(self.entry.n, self.entry.step["name"], process["pid"], process["start"])

    def step(self) -> Step:
        """The step as it was resolved at up."""
        assert self.journal.header is not None
        return resolve(self.journal.header.pod, hook_loader.load(self.entry.step["hook"]), self.entry.step)

    def controls(self) -> Controls:
        """The hook, asked to act on the running container. Raises Failure when it cannot."""
        found = offers(hook_loader.load(self.entry.step["hook"]), Controls)
        if found is None:
            raise Failure(f"{self.name}: its hook cannot do that")
        return found


@click.command(cls=Guarded)
@click.option("-s", "--signal", "wanted", default="KILL", metavar="SIGNAL", help="Which signal; default: KILL.")
@click.option("-a", "--all", "every", is_flag=True, help="All pods that are up.")
@_container
@click.argument("words", metavar="[FILE|NAME]...", nargs=-1, shell_complete=completion.words)
@click.pass_context
def kill(ctx: click.Context, words: Sequence[str], wanted: str, every: bool, container: str) -> None:
    """Send a signal to the first process of a pod's container."""
    number = number_of(wanted)
    host = host_of(ctx.obj)
    named_or_all(words, every)
    if every:
        words = [name for name in journals.pods(host.run) if states.state(host.run, name) == "up"]
    for running in [Running(host, word, container) for word in words]:
        foreground.send(running.resident, number)
        events.note(host.run, "pod", "kill", running.name, signal=number)
        say(running.name)


@click.command(cls=Guarded)
@_format
@_container
@_word
@click.pass_context
def top(ctx: click.Context, word: str, container: str, form: str) -> None:
    """List the processes in a pod's container."""
    running = Running(host_of(ctx.obj), word, container)
    printed([row for pid in _pids(running.resident.pid) if (row := _process(pid))], form)


def _pids(init: int) -> list[int]:
    """The processes of the init's PID namespace; of one that has the host's, those that descend from it."""
    import psutil  # what is compiled is not everywhere, and other commands of this file do without

    namespace = os.stat(f"/proc/{init}/ns/pid")
    if namespace.st_ino == os.stat("/proc/self/ns/pid").st_ino:
        return [init, *(process.pid for process in psutil.Process(init).children(recursive=True))]
    found = []
    for pid in psutil.pids():
        try:
            if os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace.st_ino:
                found.append(pid)
        except OSError:
            continue
    return sorted(found, key=lambda pid: (pid != init, pid))


def _process(pid: int) -> dict[str, Any] | None:
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot(), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            inner = next((line.split()[-1] for line in file if line.startswith("NSpid:")), str(pid))
            times = process.cpu_times()
            return {
                "pid": int(inner),
                "host_pid": pid,
                "uid": process.uids().effective,
                "elapsed": _age(time.time() - process.create_time()),
                "cpu": f"{times.user + times.system:.2f}s",
                "memory": process.memory_info().rss,
                "command": " ".join(process.cmdline()) or f"[{process.name()}]",
            }
    except (psutil.Error, OSError):
        return None


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


@click.command(cls=Guarded)
@_word
@click.argument("wanted", metavar="[PORT[/PROTOCOL]]", required=False, default="")
@click.pass_context
def port(ctx: click.Context, word: str, wanted: str) -> None:
    """List the published ports of a pod, or say where one of them is published."""
    host = host_of(ctx.obj)
    name = name_of(word, host)
    found = journals.journals(host.run, name)
    if not found:
        raise Failure(f"{name}: there is no such pod", code=UNAVAILABLE, hint="'podrun ps -a' lists the pods")
    published = merged([entry.facts for entry in states.entries(found)]).get("published", [])
    number, _, protocol = wanted.partition("/")
    shown = 0
    for row in published:
        outside = f"[{row['ip']}]:{row['host']}" if ":" in row["ip"] else f"{row['ip']}:{row['host']}"
        if not wanted:
            say(f"{row['port']}/{row['proto']} -> {outside}")
        elif str(row["port"]) == number and row["proto"] == (protocol or "tcp"):
            say(outside)
            shown += 1
    if wanted and not shown:
        raise Failure(f"{name}: port {wanted} is not published", code=UNAVAILABLE, hint=f"'podrun port {name}' lists")


def _freezing(name: str, on: bool, doc: str) -> click.Command:
    @click.command(name, cls=Guarded, help=doc)
    @_words
    @click.pass_context
    def command(ctx: click.Context, words: Sequence[str]) -> None:
        host = host_of(ctx.obj)
        for running in [Running(host, word) for word in words]:
            # Every container of the pod: they were meant to run together.
            for journal in journals.journals(host.run, running.name):
                for entry in journal.entries:
                    hook = offers(hook_loader.load(entry.step["hook"]), Controls)
                    if hook and journal.header and "process" in entry.facts:
                        hook.freeze(resolve(journal.header.pod, hook_loader.load(entry.step["hook"]), entry.step), on)
            events.note(host.run, "pod", name, running.name)
            say(running.name)

    return command


pause = _freezing("pause", True, "Stop every process of a pod until 'unpause'; nothing is lost, nothing answers.")
unpause = _freezing("unpause", False, "Let the processes of a paused pod run again.")


@click.command("set", cls=Guarded)
@click.option("-m", "--memory", metavar="SIZE", help="Memory limit.")
@click.option("--cpus", type=float, metavar="NUMBER", help="Limit of processor time, 1.5 is one and a half.")
@click.option("--pids", type=int, metavar="NUMBER", help="Limit of processes and threads.")
@_container
@_word
@click.pass_context
def limits(
    ctx: click.Context, word: str, container: str, memory: str | None, cpus: float | None, pids: int | None
) -> None:
    """Change limits of a running container; the next start takes those of the pod file again."""
    from podrun.options import SIZE, Wrong

    wanted: dict[str, float] = {}
    try:
        if memory is not None:
            wanted["memory"] = SIZE.parse(memory)
    except Wrong as wrong:
        raise Failure(f"--memory: {wrong.what}", code=WRONG_FILE) from None
    wanted |= {key: value for key, value in (("cpus", cpus), ("pids", pids)) if value is not None}
    if not wanted or any(value <= 0 for value in wanted.values()):
        raise Failure("name a limit greater than zero", code=WRONG_FILE, hint="--memory, --cpus, --pids")
    running = Running(host_of(ctx.obj), word, container)
    running.controls().limit(running.step(), wanted)
    say(running.name)


@click.command(cls=Guarded)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
@_container
@_word
@click.pass_context
def diff(ctx: click.Context, word: str, container: str, form: str) -> None:
    """List what a container has added to (A), changed in (C) and removed from (D) its image."""
    running = Running(host_of(ctx.obj), word, container)
    given = merged([entry.facts for entry in states.entries(journals.journals(host_of(ctx.obj).run, running.name))])
    for kind, path in running.controls().changes(running.step(), given):
        say(json.dumps({"change": kind, "path": path}) if form == "json" else f"{kind} {click.unstyle(path)!s}")


COMMANDS = (kill, top, port, pause, unpause, limits, diff)
