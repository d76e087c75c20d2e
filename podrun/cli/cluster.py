"""``podrun cluster``: pods on several hosts, placed by Pacemaker."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import click

from podrun.cli.output import Guarded, printed, say
from podrun.cli.seconds import Seconds
from podrun.cluster import agent, configuration, files, hosts, pacemaker, pods, rollout
from podrun.cluster.pacemaker import State
from podrun.cluster.programs import run_all
from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun.identity import of_unit
from podrun.launcher import foreground
from podrun.launcher.commands import valid_name
from podrun.messages import tell
from podrun.systemd import install


@click.group(name="cluster")
def group() -> None:
    """Pods on several hosts, placed by Pacemaker."""


_format = click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
_timeout = click.option("--timeout", type=Seconds(min=0), default=120.0, metavar="SECONDS", help="How long to wait.")
#: Seconds: how often a pod that is followed is looked for, and how long an ssh may take until it is connected.
_LOOK, _CONNECTED = 2, 12
_fencing = click.option("--without-fencing", is_flag=True, help="Set stonith-enabled=false: for trials only.")


# --- configuration ----------------------------------------------------------------------------------------------------


@group.command(name="export", cls=Guarded)
@click.argument("words", metavar="FILE|NAME...", nargs=-1, required=True)
@_fencing
def export(words: Sequence[str], without_fencing: bool) -> None:
    """Print crm's configuration for a cluster with these pods and no others."""
    wanted = rollout.read(words)
    statements = rollout.statements(wanted, None, fencing=not without_fencing)
    say(configuration.text(statements), nl=False)
    _notes(wanted, fencing=not without_fencing)


@group.command(name="apply", cls=Guarded)
@click.argument("words", metavar="FILE|NAME...", nargs=-1, required=True)
@_fencing
@click.option("--stopped", is_flag=True, help="New pods are not started: 'podrun cluster start NAME' does.")
def apply(words: Sequence[str], without_fencing: bool, stopped: bool) -> None:
    """Copy pod files to every host, and have the cluster run them beside its other pods."""
    known = files.manifest(pods.ETC)
    wanted = rollout.read(words, known)
    state, before = rollout.changeable(), pacemaker.configured()
    statements = rollout.statements(wanted, before, fencing=not without_fencing, stopped=stopped)
    for machine in state.machines:
        if machine.state not in rollout.REACHABLE:
            tell(f"podrun: warning: {machine.name} is {machine.state}: apply again when it is back")
    program = install.program()
    rollout.ready(known, state, program)
    so_far = "the cluster's configuration is as it was; mend this and apply again"
    received = rollout.deliver(wanted, known, state, program, so_far=so_far)
    pacemaker.load(statements, before)
    for name in sorted(wanted.texts):
        changed = [host for host, done in received.items() if set(done.written) & wanted.texts[name].keys()]
        say(f"{name}: {'on ' + ' '.join(sorted(changed)) if changed else 'unchanged'}")
        if changed and any(unit.pod == name and unit.machine for unit in state.units):
            tell(f"podrun: {name} still runs as its old file said; it takes the new one when it starts again")
    after = pacemaker.configured()
    if after.fencing and not after.fencing_devices:
        tell("podrun: warning: the cluster starts nothing: it has no fencing device (see 'crm ra list stonith')")
    _notes(wanted, fencing=after.fencing and bool(after.fencing_devices))


def _notes(wanted: rollout.Wanted, *, fencing: bool) -> None:
    for note in pods.notes(wanted.pods, fencing=fencing):
        tell(f"podrun: note: {note}")


@group.command(name="install-agent", cls=Guarded)
def install_agent() -> None:
    """Install the resource agent, the generator of units and Pacemaker's order on this host."""
    for path in agent.install():
        say(path)


@group.command(name="receive", cls=Guarded, hidden=True)
def receive() -> None:
    """Take what another host's apply sends on standard input."""
    agent.required()
    sent = sys.stdin.read(files.LIMIT_OF_ALL)
    done = files.receive(sent, pods.ETC)
    if done.written or done.removed:
        subprocess.run(["systemctl", "daemon-reload"], check=False, stdout=subprocess.DEVNULL, timeout=60)
    say(json.dumps(done._asdict()))


@group.command(name="manifest", cls=Guarded, hidden=True)
def manifest() -> None:
    """Print a fingerprint of the cluster's files on this host."""
    say(files.fingerprint(pods.ETC))


# --- views ------------------------------------------------------------------------------------------------------------


@group.command(name="machines", cls=Guarded)
@_format
def machines(form: str) -> None:
    """List the hosts: their state, how many pods they run, whether their pod files equal this host's."""
    state = pacemaker.state()
    standings = rollout.standings(state, install.program())
    own = files.fingerprint(pods.ETC)
    rows = []
    for machine in state.machines:
        digest, complaint = standings.get(machine.name, rollout.Standing(""))
        if complaint:
            tell(f"podrun: warning: {machine.name}: {complaint}")
        same = "-" if not digest else "same" if digest == own else _older(digest, own)
        row = {"machine": machine.name, "state": machine.state, "pods": machine.pods, "files": same}
        metadata: Any = machine.metadata
        rows.append({**row, "metadata": metadata if form == "json" else [f"{k}={v}" for k, v in metadata.items()]})
    printed(rows, form)
    if not state.quorum:
        tell("podrun: warning: this host has no quorum: it runs nothing, and what it shows of others is out of date")


def _older(digest: str, own: str) -> str:
    theirs, mine = rollout.generation_of(digest), rollout.generation_of(own)
    return "older" if theirs < mine else "newer" if theirs > mine else "changed"


@group.command(name="units", cls=Guarded)
@_format
def units(form: str) -> None:
    """List the pods: where they run, what is wanted, what the cluster and systemd say of them."""
    state = pacemaker.state()
    standing = _standing(state)
    rows = []
    for unit in state.units:
        active, status = standing.get((unit.machine, unit.pod), ("-", _printable(state.failures.get(unit.pod, ""))))
        row = {"unit": unit.pod, "machine": unit.machine or "-", "desired": unit.desired, "state": unit.state}
        rows.append({**row, "systemd": active, "status": status})
    printed(rows, form)
    if not state.quorum:
        tell("podrun: warning: this host has no quorum: it runs nothing, and what it shows of others is out of date")


def _standing(state: State) -> dict[tuple[str, str], tuple[str, str]]:
    """What systemd says of each pod: its state, and its status line or that of the container that is not up yet."""
    wanted: dict[str, list[str]] = {}
    for unit in state.units:
        if unit.machine:
            wanted.setdefault(unit.machine, []).append(unit.pod)
    reachable = {machine.name for machine in state.machines if machine.state in rollout.REACHABLE}
    words = ["systemctl", "show", "--all", "--property=Id,ActiveState,StatusText", "--"]
    asking = {
        machine: hosts.command(machine, [*words, *(name for pod in wanted[machine] for name in _unit_names(pod))])
        for machine in wanted.keys() & reachable
    }
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for machine, done in run_all(asking, 5.0).items():
        if done.code:
            found |= {(machine, pod): ("-", _printable(f"{machine}: {done.last_words}")) for pod in wanted[machine]}
            continue
        shown = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in done.out.split("\n\n")]
        for pod in wanted[machine]:
            found[machine, pod] = _summary(pod, [block for block in shown if _is_of(pod, block.get("Id", ""))])
    return found


def _unit_names(pod: str) -> tuple[str, str]:
    """The pod's unit, and a pattern for those of its segments."""
    stem, at, instance = pod.partition("@")
    return f"{pod}.service", f"{stem}.*{at}{instance}.service"


def _is_of(pod: str, unit: str) -> bool:
    return unit.endswith(".service") and of_unit(unit).pod == pod


def _summary(pod: str, blocks: Sequence[dict[str, str]]) -> tuple[str, str]:
    states = [block.get("ActiveState", "") for block in blocks]
    own = next((block for block in blocks if block.get("Id") == f"{pod}.service"), {})
    for word in ("failed", "deactivating", "activating"):
        if word in states:
            texts = [block.get("StatusText", "") for block in blocks if block.get("ActiveState") == word]
            return word, _printable(next(filter(None, texts), ""))
    return own.get("ActiveState", "-"), _printable(own.get("StatusText", ""))


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())[:100]


@group.command(name="status", cls=Guarded)
@click.argument("name")
def status(name: str) -> int:
    """Show what systemctl status says of a pod, on the hosts where it runs."""
    state = _with(name)
    words = ["systemctl", "status", "--no-pager", "--full", "--", *_unit_names(name)]
    return _shown(_machines_of(name, state), words, 60, heads=True)


@group.command(name="journal", cls=Guarded)
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Follow the output, also when the pod moves.")
@click.option("-n", "--lines", type=click.IntRange(0, 1000000), default=None, help="Only the last lines.")
def journal(name: str, follow: bool, lines: int | None) -> int:
    """Print what a pod's containers have written, from whichever host it runs on."""
    state = _with(name)
    single, several = _unit_names(name)
    words = ["journalctl", "--no-pager", "--quiet", "-u", single, "-u", several]
    if follow:
        _follow(name, [*words, "--follow"], 10 if lines is None else lines)
    return _shown(_machines_of(name, state), [*words, *([f"--lines={lines}"] if lines is not None else [])])


def _shown(machines: Sequence[str], words: Sequence[str], seconds: float | None = None, *, heads: bool = False) -> int:
    """Has each host print something of its own; the first exit status that is not 0.

    Raises Failure, when all have had their turn, where one of them does not answer (within ``seconds``).
    """
    code, silent = 0, []
    for machine in machines:
        if heads:
            say(f"--- {machine}")
        try:
            argv = hosts.command(machine, words)
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            done = hosts.UNREACHABLE
        if done == hosts.UNREACHABLE:
            silent.append(machine)
        code = code or done
    if silent:
        hint = "'podrun cluster machines' lists the hosts"
        raise Failure(f"{' '.join(silent)}: no answer by ssh", code=UNAVAILABLE, hint=hint)
    return code


class _Reader(NamedTuple):
    """A journalctl on a host, since a moment (time.monotonic())."""

    process: subprocess.Popen[bytes]
    since: float


def _follow(name: str, words: Sequence[str], lines: int) -> NoReturn:
    """A journalctl on each host that runs the pod; one more when it comes to another host, or when one was lost.

    Those that come later begin where the pod, or the connection, was last seen. Ends with whoever reads this.
    """
    readers: dict[str, _Reader] = {}
    #: Until when a host's journal was surely read.
    read: dict[str, float] = {}
    first = True
    # The other end of a pipe is gone: only this tells, since podrun itself writes nothing.
    ours = select.poll()
    ours.register(sys.stdout.fileno(), 0)
    looked = time.monotonic()
    foreground.interruptible()
    try:
        while True:
            before, looked = looked, time.monotonic()
            for machine in _machines_of(name, pacemaker.state()):
                reader = readers.get(machine)
                if reader and reader.process.poll() is None:
                    if looked - reader.since > _CONNECTED:
                        read[machine] = looked
                    continue
                if reader and looked - reader.since > _CONNECTED:
                    tell(f"podrun: {machine}: its journal is lost; trying again")
                unread = looked - read.setdefault(machine, before) + 1
                last = [f"--lines={lines}"] if first else ["--no-tail", f"--since=-{unread:.0f}s"]
                # What ssh says of a host that stays away is told once.
                quiet = subprocess.DEVNULL if reader else None
                argv = hosts.command(machine, [*words, *last])
                process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=quiet)
                readers[machine] = _Reader(process, looked)
            first = False
            if ours.poll(_LOOK * 1000):
                raise BrokenPipeError
    finally:
        for reader in readers.values():
            reader.process.terminate()
        for reader in readers.values():
            reader.process.wait()


def _with(name: str, *, change: bool = False) -> State:
    """The cluster, which has this pod. Raises Failure for any other word, and where it could not be changed."""
    valid_name(name)
    state = rollout.changeable() if change else pacemaker.state()
    if all(unit.pod != name for unit in state.units):
        raise Failure(f"the cluster has no pod {name}", code=UNAVAILABLE, hint="'podrun cluster units' lists its pods")
    return state


def _machines_of(name: str, state: State) -> list[str]:
    """The hosts that run a pod; where none does, those that may have run it."""
    running = sorted({unit.machine for unit in state.units if unit.pod == name and unit.machine})
    return running or [machine.name for machine in state.machines if machine.state in rollout.REACHABLE]


# --- changes ----------------------------------------------------------------------------------------------------------


@group.command(name="move", cls=Guarded)
@click.argument("name")
@click.argument("machine")
@_timeout
def move(name: str, machine: str, timeout: float) -> None:
    """Move a pod to another host; it stays there."""
    began = time.monotonic()
    hosts.checked(machine)
    state = _with(name, change=True)
    identifier = _single(name)
    found = next((row for row in state.machines if row.name == machine), None)
    if found is None or found.state != "online":
        what = f"{machine} is {found.state}" if found else f"there is no host {machine}"
        raise Failure(what, code=UNAVAILABLE, hint="'podrun cluster machines' lists the hosts")
    where = [unit.machine for unit in state.units if unit.pod == name and unit.machine]
    desired = next(unit.desired for unit in state.units if unit.pod == name)
    if desired != "started":
        hint = f"'podrun cluster start {name}' first" if desired == "stopped" else f"'crm resource manage {name}' first"
        raise Failure(f"{name} is {desired}: the cluster does not move it", code=BUSY, hint=hint)
    if where == [machine]:
        say(f"{name}: is on {machine}")
        return
    pacemaker.move(identifier, machine)
    try:
        rollout.waited(lambda now: _is_on(name, machine, now), timeout, f"{name} is not on {machine}")
    finally:
        pacemaker.let_go(identifier)
    say(f"{name}: {where[0] if where else '-'} -> {machine}, {time.monotonic() - began:.1f} s")


def _single(name: str) -> str:
    """The resource of a pod that is on one host at a time. Raises Failure for a global one."""
    identifier = configuration.resource(name)
    if f"{identifier}-Global" in pacemaker.configured().own:
        raise Failure(f"{name} is global: it runs on every host", code=WRONG_FILE)
    return identifier


def _is_on(name: str, machine: str, state: State) -> bool:
    units = [unit for unit in state.units if unit.pod == name and unit.machine]
    return [(unit.machine, unit.state) for unit in units] == [(machine, "started")]


def _placed(name: str) -> str:
    """What a pod's target-role is set on: its clone, where it has one."""
    clone = f"{configuration.resource(name)}-Global"
    return clone if clone in pacemaker.configured().own else configuration.resource(name)


@group.command(name="start", cls=Guarded)
@click.argument("name")
@_timeout
def start(name: str, timeout: float) -> None:
    """Have the cluster run a pod that was stopped, and forget where it has failed."""
    _with(name, change=True)
    pacemaker.forget_failures(configuration.resource(name))
    pacemaker.set_role(_placed(name), started=True)
    now = rollout.waited(lambda state: _runs(name, state), timeout, f"{name} is not started")
    say(f"{name}: on {' '.join(_machines_of(name, now))}")


def _runs(name: str, state: State) -> bool:
    return any(unit.pod == name and unit.machine and unit.state == "started" for unit in state.units)


@group.command(name="stop", cls=Guarded)
@click.argument("name")
@_timeout
def stop(name: str, timeout: float) -> None:
    """Have the cluster stop a pod, and keep it stopped until it is started again."""
    _with(name, change=True)
    _stop(name, timeout)
    say(f"{name}: stopped")


def _stop(name: str, timeout: float) -> None:
    pacemaker.set_role(_placed(name), started=False)
    rollout.waited(lambda state: not _is_anywhere(name, state), timeout, f"{name} is not stopped")


def _is_anywhere(name: str, state: State) -> bool:
    return any(unit.pod == name and unit.machine for unit in state.units)


@group.command(name="rm", cls=Guarded)
@click.argument("name")
@_timeout
def rm(name: str, timeout: float) -> None:
    """Stop a pod, remove it from the cluster and its file from the hosts."""
    valid_name(name)
    known = files.manifest(pods.ETC)
    state = rollout.changeable() if name in known.pods else _with(name, change=True)
    in_cluster = any(unit.pod == name for unit in state.units)
    left = rollout.read([], known, without=name)
    if needing := [pod.name for pod in left.pods if name in (pod.placement.machine_of, *pod.requires)]:
        raise Failure(f"{', '.join(needing)} cannot run without it", code=BUSY, hint="remove these first")
    program = install.program()
    rollout.ready(known, state, program)
    if in_cluster:
        _stop(name, timeout)
        pacemaker.remove([*dict.fromkeys((_placed(name), configuration.resource(name)))])
    so_far = f"the cluster has no {name} any more; the next 'podrun cluster apply' or 'rm' removes the file there"
    received = rollout.deliver(left, known, state, program, so_far=so_far)
    removed = sorted(host for host, done in received.items() if done.removed)
    say(f"{name}: removed from {' '.join(removed) or 'the cluster'}")
