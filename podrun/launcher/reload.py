"""``podrun reload``: what [pod] reload says; "swap" is a hot swap to the pod file and the images as they are now."""

from __future__ import annotations

import os
import time

from podrun import atomic, jsontext
from podrun.engine import hook_loader, swap
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.locks import Lock
from podrun.engine.processes import alive
from podrun.engine.segments import label_of, resolve
from podrun.errors import BUSY, STEP_FAILED, UNAVAILABLE, WRONG_FILE, Failure, of_oserror
from podrun.hook import is_resident
from podrun.hook_extras import RunsCommands, offers
from podrun.identity import Identity
from podrun.launcher import foreground, history, launch, once
from podrun.launcher.foreground import SIGUSR1, SIGUSR2, Resident
from podrun.options import whole
from podrun.record import NamedTuple
from podrun.systemd import notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.engine.journal import Header
    from podrun.engine.world import Callbacks
    from podrun.hook import Pod
    from podrun.host import Host
    from podrun.podfile.loader import PodText


class Request(NamedTuple):
    """Who wants a reload and how: a file between the podrun that asks systemd and the one that systemd starts."""

    how: str = "reload"
    by: str = ""
    #: Seconds that the new generation is watched before it takes over, and after that while the old one is still there.
    soak: float = 0.0
    watch: float = 0.0
    #: The pod as it is to be (history.table_of), instead of its file; empty: the file.
    text: dict[str, Any] = {}


def reload(name: str, host: Host, *, text: PodText | None = None, request: Request | None = None) -> int:
    """Reloads a pod that is up; returns the exit code. One with a unit is reloaded by systemd, which calls this again.

    ``text``: the pod as it is to be, instead of its file as it is now. Raises Failure: UNAVAILABLE when the pod is not
    up, BUSY when another podrun works on it, else what the failing step says; the pod goes on as it was then.
    """
    header = _header(name, host)
    if header.pod.unit and header.pod.invocation != host.environ.get("INVOCATION_ID"):
        return _by_systemd(header, host, request)
    if launcher := _in_another_terminal(header):
        # That podrun would report a wrong file in its own terminal only; a signal can be sent from here.
        asked = None if request and request.text else text or today(header, host)
        if asked and asked.reload != "swap" and (request is None or request.how == "reload"):
            return _ask_payload(asked, name, host)
        return _by_launcher(launcher, name, host, request)
    return _here(name, host, header, text, request)


def in_foreground(name: str, host: Host) -> None:
    """Reloads the pod of a podrun in the foreground, at another one's request; reports a failure and goes on."""
    try:
        _here(name, host, _header(name, host), None, None)
    except (Failure, OSError) as error:
        host.report(f"{of_oserror(error) if isinstance(error, OSError) else error}; the pod goes on as it was")


def _here(name: str, host: Host, header: Header, text: PodText | None, request: Request | None) -> int:
    request = request or _take_request(name, host)
    text = history.of_table(request.text) if request.text else text or today(header, host)
    if text.reload == "swap" or request.how != "reload":
        began = time.monotonic()
        try:
            code = change(text, header, host, request)
        except (Failure, OSError) as error:
            why = (of_oserror(error) if isinstance(error, OSError) else error).what
            history.note(host, text, request.how, request.by, began, result=history.FAILED, why=why)
            raise
        history.note(host, text, request.how, request.by, began)
        return code
    return _ask_payload(text, name, host)


def change(text: PodText, header: Header, host: Host, request: Request) -> int:
    """Turns a pod that is up into what ``text`` describes: by a hot swap, or by stopping and starting it."""
    foreground.interruptible()
    inside = bool(header.pod.unit)
    with Lock(host.run, text.name, wait=False) as lock:
        main: list[int] = []
        world = launch.callbacks(host, lock, listening=notify.takes_over(host.environ))
        world = world._replace(main_process=main.append)
        if inside and len(journals.generations(host.run, text.name)) > 1:
            # The one before may still be the unit's main process, which systemd must not see end.
            _supervise(text.name, [resident.pid for resident in launch.residents(host.run, text.name)], host)
        left = swap.recover(host.run, text.name, world)
        if left:
            host.report(f"a reload that was killed had left something behind; undone: {', '.join(left)}")
        pod = next_of(header.pod, text)
        reasons = obstacles(text, pod, host)
        if not reasons:
            launch.refuse_problems(pod, text, text.steps, world, host)
            if not inside:
                foreground.adopt_orphans()
            elif pod.cgroup:
                # systemd has put us into a cgroup of its own for the time of ExecReload=.
                notify.leave_room(pod.cgroup)

            def moved() -> None:
                if inside:
                    _supervise(text.name, main, host)
                world.notify(f"STATUS=generation {pod.generation} serves, the one before it is being undone")

            def proven() -> None:
                _watch(pod.key, request.soak, "it was ready", world, host)

            def well() -> None:
                _watch(pod.key, request.watch, "it had taken over", world, host)

            if inside:
                notify.learn_watchdog(header.pod.unit)
            try:
                swap.swap(pod, text.file, text.steps, world, drain=text.drain, proven=proven, moved=moved, well=well)
            except Failure as failure:
                failure.what = launch.located(text, host, *failure.step, failure.key) + failure.what
                raise
            finally:
                if inside:
                    _settle_unit(text.name, host)
            return 0
    return _replaced(text, header, host, reasons, request.text)


def _supervise(name: str, pids: Sequence[int], host: Host) -> None:
    """Makes systemd supervise the last of the processes from now on: the unit is never without a main process.

    systemd's watchdog is about that process, so from now on the live probe of its generation answers it. The WATCHDOG=1
    bridges the time until that probe's next attempt.
    """
    if not pids:
        return
    notify.notify(host.environ, f"MAINPID={pids[-1]}\nWATCHDOG=1")
    notify.barrier(host.environ)
    serving = journals.serving(host.run, name)
    for key in journals.generations(host.run, name):
        for prober in launch.of_entries(states.entries(journals.of_generation(host.run, key)), "prober"):
            if key != serving:
                foreground.send(prober, SIGUSR2)
            elif key != name:  # the first generation's has answered from its start
                foreground.send(prober, SIGUSR1)


def _settle_unit(name: str, host: Host) -> None:
    """Tells systemd that the pod is up, because a replaced payload may have told it otherwise.

    systemd remembers a STOPPING=1 until ExecReload= has ended, and stops the unit then.
    """
    serving = journals.serving(host.run, name).partition("/+")[2] or "1"
    notify.notify(host.environ, f"READY=1\nSTATUS=up, generation {serving}")
    notify.barrier(host.environ)


def _watch(key: str, seconds: float, since: str, world: Callbacks, host: Host) -> None:
    """Watches a generation, by its key, for so long. Raises Failure when one of its processes has ended."""
    deadline = time.monotonic() + seconds
    entries = states.entries(journals.of_generation(host.run, key))
    watched = [*launch.of_entries(entries, "process"), *launch.of_entries(entries, "prober")]
    told = 0.0
    while (now := time.monotonic()) < deadline:
        if now - told > 5:
            told = now
            world.notify(f"STATUS=watching the new generation for {deadline - now:.0f} s\nEXTEND_TIMEOUT_USEC=15000000")
        for resident in watched:
            if not alive(resident.pid, resident.start):
                after = seconds - (deadline - time.monotonic())
                raise Failure(f"{resident.label}: it ended {after:.1f} s after {since}", code=STEP_FAILED)
        time.sleep(0.02)


def _request_path(name: str, host: Host) -> str:
    return f"{host.run}/requests/{Identity(name).text}.json"


def _take_request(name: str, host: Host) -> Request:
    """Takes the request that another podrun has left; without one, a plain reload is wanted."""
    try:
        with open(_request_path(name, host), encoding="utf-8") as file:
            found = Request(**jsontext.loads(file.read()))
        os.unlink(_request_path(name, host))
    except (FileNotFoundError, ValueError, TypeError):
        return Request(by=history.who(host.environ))
    return found


def _leave_request(name: str, host: Host, request: Request) -> None:
    atomic.replace(_request_path(name, host), jsontext.dumps(request._asdict()), parents=0o700)


def _withdraw_request(name: str, host: Host) -> None:
    """Removes a request that nobody has taken, or the next reload would take it."""
    atomic.remove(_request_path(name, host))


def obstacles(text: PodText, pod: Pod, host: Host) -> list[str]:
    """Why a pod has to be stopped and started: lines for people; none if it can be swapped."""
    residents = [step for step in text.steps if is_resident(hook_loader.load(step.hook), step.options)]
    reasons = [f"{label_of(step._asdict())}: {why}" for step, why in swap.obstacles(pod, text.steps, hook_loader.load)]
    if text.type == "job":
        reasons.append("a job does its work once")
    if text.sections.get("socket"):
        reasons.append("its sockets are systemd's, which passes them to a start only")
    if len(residents) != 1:
        reasons.append("it has several containers" if residents else "it has no container")
    now = journals.journals(pod.run, pod.name)
    steps = [entry.step for journal in now for entry in journal.entries]
    if any(journal.header and (journal.header.pod.console or journal.header.pod.interactive) for journal in now):
        reasons.append("it has a terminal")
    if now and swap.takers(steps, hook_loader.load) != swap.takers(
        [step._asdict() for step in text.steps], hook_loader.load
    ):
        reasons.append("its network or its registration has been added, taken away or renamed")
    return reasons


def today(header: Header, host: Host) -> PodText:
    """The pod file as it is now of a pod that is up. Raises Failure for a pod without one."""
    from podrun.podfile import loader

    if not header.file:
        what = "it was started without a pod file"
        raise Failure(what, code=WRONG_FILE, hint="'podrun run --save FILE' writes one")
    directory, _, file = header.file.rpartition("/")
    stem = file.removesuffix(".toml")
    word = f"{directory}/{stem}{header.pod.name.partition('@')[2]}.toml" if stem.endswith("@") else header.file
    inside = notify.takes_over(host.environ)
    return loader.load(word, environ=host.environ, load_hook=hook_loader.load, in_unit=inside)


def _header(name: str, host: Host) -> Header:
    state = states.state(host.run, name)
    header = next((journal.header for journal in journals.journals(host.run, name) if journal.header), None)
    if state in ("starting", "stopping"):
        raise Failure("another podrun is working on it", code=BUSY, hint="see 'podrun ps'")
    if header is None or state != "up":
        raise Failure(f"it is {state}, not up", code=UNAVAILABLE, hint=f"'podrun up {name}' starts it")
    return header


def next_of(before: Pod, text: PodText) -> Pod:
    """The generation that would be started beside one that is up."""
    serving = before.generation
    number = swap.next_generation(before.run, before.name)
    pod = before._replace(
        generation=number, beside=serving, stop_timeout=text.stop_timeout, interactive=False, console=""
    )
    return pod._replace(tag=Identity(pod.name).tag(pod.run, pod.generation))


def _by_systemd(header: Header, host: Host, request: Request | None) -> int:
    """Has systemd reload the pod's unit. Where the pod has several, each restarts: they have no ExecReload=."""
    wanted = request.text if request else {}
    text = history.of_table(wanted) if wanted else today(header, host) if header.file else None
    found = [journal.header for journal in journals.journals(host.run, header.pod.name)]
    units = [each.pod.unit for each in found if each]
    if text and notify.is_transient(header.pod.unit):
        from podrun.launcher import transient

        # The variables of this terminal count, as they did for 'up -d'.
        transient.write(text, host)
    reasons = obstacles(text, next_of(header.pod, text), host) if text and text.reload == "swap" else []
    reasons += ["it has several units"] if reasons and len({*units}) > 1 else []
    if reasons:
        _report_obstacles(reasons, host)
        return once.restart(units, wanted, host)
    before = len(history.read(host.root, header.pod.name))
    _leave_request(header.pod.name, host, request or Request(by=history.who(host.environ)))
    code = notify.ask("reload", units)
    _withdraw_request(header.pod.name, host)
    if code:
        past = history.read(host.root, header.pod.name)[before:]
        why = past[-1].why if past else f"see 'journalctl -u {units[0]}'"
        hint = "" if past else f"if its unit is older than its file: podrun unit --install {header.pod.name}"
        raise Failure(f"{units[0]} was not reloaded: {why}", code=STEP_FAILED, hint=hint)
    return code


def _report_obstacles(reasons: Sequence[str], host: Host) -> None:
    for reason in reasons:
        host.report(f"it is stopped and started, because two generations cannot run at once: {reason}")


def _replaced(text: PodText, header: Header, host: Host, reasons: Sequence[str], wanted: dict[str, Any]) -> int:
    _report_obstacles(reasons, host)
    if header.pod.unit:
        # From within the unit's own ExecReload=, which its stop would wait for.
        return once.restart([header.pod.unit], wanted, host, wait=False)
    if header.pod.attached:
        what = "it cannot be swapped, and a pod in the foreground is not stopped and started"
        raise Failure(what, code=BUSY, hint="end it and start it again")
    launch.down(text.name, host)
    return launch.up(text, host, detach=True)


def _in_another_terminal(header: Header) -> Resident | None:
    """The podrun that waits for the pod in the foreground, when that is not this one."""
    if header.pod.attached and not header.pod.unit and header.pid != os.getpid() and alive(header.pid, header.start):
        return Resident(-1, "podrun", header.pid, header.start)
    return None


def _by_launcher(launcher: Resident, name: str, host: Host, request: Request | None) -> int:
    """Has the podrun in the foreground reload the pod: the containers are its children, their output is its own."""
    with open(f"/proc/{launcher.pid}/status", encoding="ascii", errors="replace") as file:
        caught = next((line.split()[1] for line in file if line.startswith("SigCgt:")), "0")
    if not int(caught, 16) >> (foreground.RELOAD - 1) & 1:
        what = "it runs in the foreground of a podrun that is busy, or too old to be asked"
        raise Failure(what, code=BUSY, hint="try again, or end it there and start it again")
    before = len(history.read(host.root, name))
    _leave_request(name, host, request or Request(by=history.who(host.environ)))
    foreground.send(launcher, foreground.RELOAD)
    while alive(launcher.pid, launcher.start):
        past = history.read(host.root, name)
        if len(past) > before:
            if past[-1].result == history.FAILED:
                raise Failure(f"it was not reloaded: {past[-1].why}", code=STEP_FAILED)
            return 0
        time.sleep(0.05)
    _withdraw_request(name, host)
    raise Failure("it has ended", code=UNAVAILABLE)


def _ask_payload(text: PodText, name: str, host: Host) -> int:
    """Reloads a pod without a unit by a signal or a command, as [pod] reload says."""
    residents = launch.residents(host.run, name)
    if not text.reload or not residents:
        hint = 'set reload = "swap" in [pod], the name of a signal, or a command'
        raise Failure("the pod file does not say how it is reloaded", code=WRONG_FILE, hint=hint)
    if isinstance(text.reload, str):
        import signal

        word = text.reload.upper().removeprefix("SIG")
        number = whole(word, 64) or getattr(signal, f"SIG{word}", None)
        if number is None:
            raise Failure(f"{text.reload!r} is not a signal", code=WRONG_FILE)
        foreground.send(residents[-1], number)
        return 0
    return _inside(name, text.reload, host)


def _inside(name: str, argv: Sequence[str], host: Host) -> int:
    """Becomes the command in the pod's last container."""
    for journal in reversed(journals.journals(host.run, name)):
        for entry in reversed(journal.entries):
            hook = hook_loader.load(entry.step["hook"])
            running = offers(hook, RunsCommands)
            if running and journal.header and "process" in entry.facts:
                running.exec_into(resolve(journal.header.pod, hook, entry.step), entry.facts, argv, interactive=False)
    raise Failure("it has no container that runs commands", code=UNAVAILABLE)
