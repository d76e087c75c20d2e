"""What ``podrun up``, ``down`` and ``run`` do, from the pod's lock to the exit code. This is the start path."""

from __future__ import annotations

import errno
import os
import time

from podrun.engine import chain, hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.locks import Lock
from podrun.engine.segments import label_of, problems, resolve, segments, services
from podrun.engine.world import Callbacks
from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure, Interrupted
from podrun.hook import PROGRESS, Pod, is_resident
from podrun.host import Host
from podrun.identity import Identity
from podrun.launcher import foreground
from podrun.launcher.foreground import Resident
from podrun.systemd import events, notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from podrun.engine.world import Callbacks
    from podrun.launcher.terminal import Terminal
    from podrun.podfile.loader import PodText, StepText

SIGKILL = 9
#: Seconds: a payload that fails within them may not have begun its work.
_SOON = 10.0
#: The status of a pod that was ended by its ``lifetime``.
_TIME_IS_UP = 255
#: Seconds that another pod has to come up.
_OTHERS = 60.0


def up(
    text: PodText,
    host: Host,
    *,
    detach: bool = False,
    interactive: bool = False,
    terminal: Terminal | None = None,
    segment: str = "",
    reload: Callable[[str, Host], None] | None = None,
    lifetime: float = 0.0,
) -> int:
    """Starts a pod; returns the exit code. In the foreground that is after the payload has ended and is undone.

    With ``segment``, only that part of the chain: another podrun has started, or will start, the others.

    ``reload``: what another podrun may ask the one in the foreground to do. ``lifetime``: seconds after which the one
    in the foreground ends the pod, with the status 255 as podman has it; 0: it does not.

    Raises Failure: BUSY when the pod is up or another podrun works on it, else what the failing step says.
    """
    if (text.requires or text.after) and not notify.takes_over(host.environ):
        _await_other_pods(text, host)
    steps = _steps(text, segment)
    residents_wanted = sum(is_resident(hook_loader.load(step.hook), step.options) for step in steps)
    taking_over = notify.takes_over(host.environ)
    handing_off = taking_over and residents_wanted == 1 and text.type != "job"
    staying = bool(residents_wanted) and not handing_off and not detach
    cgroup = notify.delegated_cgroup() if taking_over else ""
    pod = Pod(
        name=text.name,
        root=host.root,
        run=host.run,
        tag=Identity(text.name).tag(host.run),
        stop_timeout=text.stop_timeout,
        invocation=host.environ.get("INVOCATION_ID") or os.urandom(16).hex(),
        attached=not detach,
        interactive=interactive and not detach,
        cgroup=cgroup,
        unit=notify.own_unit() if taking_over else "",
        userns=text.userns,
        services=services(text.steps, hook_loader.load),
    )
    foreground.interruptible()
    lock = patient_lock(pod.name, host) if segment else Lock(host.run, pod.name, wait=False)
    world = callbacks(host, lock, listening=taking_over, handing_off=handing_off)
    with lock:
        _clear(pod, world, segment)
        if pod.unit:
            from podrun.systemd import exit_records

            exit_records.drop(host.run, pod.name, segment)
        refuse_problems(pod, text, steps, world, host)
        if not handing_off:
            foreground.adopt_orphans()
        if cgroup:
            notify.leave_room(cgroup)
        began = time.monotonic()
        try:
            if terminal:
                pod = pod._replace(console=terminal.listen(host.run, pod.name))
            chain.up(pod, text.file, text.steps, world, only=segment)
            foreground.hold()
        except Failure as failure:
            failure.what = located(text, host, *failure.step, failure.key) + failure.what
            raise
        except Interrupted as interrupted:
            # It may have come when the chain was whole, and chain.up past the point where it would have undone it.
            raise interrupted if interrupted.hint else chain.given_up(interrupted, pod, world, segment) from None
        if terminal:
            try:
                terminal.begin()
            except Exception as error:
                raise chain.given_up(error, pod, world, segment) from error
        if text.reload == "swap" or text.update:
            from podrun.launcher import history

            history.note(host, text, "up", history.who(host.environ), began)
        events.note(host.run, "pod", "start", pod.name, segment=segment, id=pod.invocation, **_about(text))
        if taking_over:
            notify.notify(host.environ, f"READY=1\nSTATUS=up, {len(steps)} step{'s' * (len(steps) != 1)}")
            notify.barrier(host.environ)
    return _attend(pod, host, reload, lifetime) if staying else 0


def _about(text: PodText) -> dict[str, Any]:
    """What events tell of a pod: the image of its last container, and the labels."""
    refs = [step.options.get("ref") for step in text.steps if "ref" in step.options]
    labels = [step.options.get("labels") for step in text.steps if step.options.get("labels")]
    return {"image": refs[-1] if refs else "", "labels": labels[-1] if labels else {}}


def _await_other_pods(text: PodText, host: Host) -> None:
    """Waits for pods that are starting, as systemd does for units. Raises Failure for one that is not up."""
    for name in dict.fromkeys([*text.requires, *text.after]):
        deadline = time.monotonic() + _OTHERS
        while states.state(host.run, name) == "starting" and time.monotonic() < deadline:
            time.sleep(0.05)
        if name in text.requires and (state := states.state(host.run, name)) != "up":
            what = f"it requires the pod {name}, which is {'not there' if state == 'absent' else state}"
            raise Failure(what, code=UNAVAILABLE, hint=f"podrun up -d {name}; nothing was started")


def _steps(text: PodText, segment: str) -> Sequence[StepText]:
    """The steps of one segment; of a pod that begins with a container, the pod segment has none."""
    if not segment:
        return text.steps
    parts = {journals.POD_SEGMENT: [], **dict(segments(text.steps, hook_loader.load))}
    if segment not in parts:
        raise Failure(f"there is no segment {segment!r}", code=WRONG_FILE, hint=f"there are: {', '.join(parts)}")
    return parts[segment]


def down(
    name: str,
    host: Host,
    *,
    invocation: str = "",
    force: bool = False,
    segment: str = "",
    patience: float | None = None,
    keep: bool = False,
) -> int:
    """Undoes a pod, or one segment; 0 also when there is nothing to undo.

    With ``invocation``, only what this one started: a start that lost, 75, must not undo the winner's pod.
    ``patience``: seconds that each container has to end, instead of what the pod file says. ``keep``: so that ``podrun
    start`` can start it again, what a pod without a file was started from stays.
    """
    foreground.interruptible()
    try:
        if patience is not None:
            _hurry(name, host, segment, patience)
        if not invocation:
            _stop_units(name, host, segment)
        with patient_lock(name, host) as lock:
            found = journals.journals(host.run, name, segment)
            own = [journal for journal in found if journal.segment == segment] if segment else found
            if invocation and any(journal.header and journal.header.pod.invocation != invocation for journal in own):
                return 0
            if host.environ.get("SERVICE_RESULT") == "timeout" and own and all(journal.ready for journal in own):
                # Once the container is the main process, systemd hears podrun's READY=1 only with NotifyAccess=all.
                host.report("it was ready, and systemd did not hear of it: its unit lacks NotifyAccess=all")
            if invocation:
                from podrun.systemd import exit_records

                # Before the journals are gone: whoever asks then is told of this end, not of an earlier one.
                exit_records.note(host.run, name, segment, invocation, host.environ, own)
                _explain_streams(own, host)
            chain.undo(host.run, name, callbacks(host, lock), force=force, only=segment)
            if own and own[0].header:
                events.note(host.run, "pod", "stop", name, segment=segment, id=own[0].header.pod.invocation)
            if not (invocation or segment or keep) and os.path.isdir(f"{host.run}/units"):
                from podrun.systemd import exit_records

                exit_records.forget_start(host.run, name)
    except Interrupted as interrupted:
        interrupted.hint = f"'podrun down {name}' goes on from here"
        raise
    return 0


def _hurry(name: str, host: Host, segment: str, patience: float) -> None:
    """Leaves a note for whoever undoes the pod, which in a unit is another podrun."""
    with patient_lock(name, host):
        for journal in journals.journals(host.run, name, segment):
            with journals.Writer(journal.path) as writer:
                writer.patience(patience)


def is_known(name: str, host: Host) -> bool:
    """Whether there is a pod of that name, the end of one, or a unit or a file that could be one."""
    if os.path.lexists(journals.directory(host.run, name)):
        return True
    from podrun.systemd import exit_records

    return bool(
        exit_records.all_of(host.run, name)
        or notify.made_of(name)
        or notify.is_transient(f"{Identity(name).tag(host.run)}.service")
        or os.path.exists(f"{host.run}/units/{Identity(name).text}.json")
        or exit_records.is_created(host.root, name)
        or os.path.exists(f"/etc/podrun/{name}.toml")
    )


def _explain_streams(found: Sequence[journals.Journal], host: Host) -> None:
    """Says what to do where a payload may have failed because it could not open its output by name.

    open(2) of a socket, which the journal's stream is, is ENXIO.
    """
    header = next((journal.header for journal in found if journal.header), None)
    status = host.environ.get("EXIT_STATUS", "0")
    if (
        not header
        or not header.pod.unit
        or status == "0"
        or any("copiers" in entry.facts for entry in states.entries(found))
    ):
        return
    began = [entry.began for entry in states.entries(found) if "process" in entry.facts or entry.process]
    if not began or time.monotonic() - began[-1] / 1000 > _SOON:
        return
    from podrun.systemd import journalctl

    words = journalctl.tail(header.pod.unit, header.pod.invocation, 50)
    if os.strerror(errno.ENXIO).encode() in words or b"ENXIO" in words:
        what = "it could not open its standard output by name, because that is the journal's socket"
        host.report(f'{what}; log = "pipe" in the container\'s step gives it a pipe')


def _stop_units(name: str, host: Host, segment: str) -> None:
    """Has systemd stop the units that the pod was started by: it would take a container's end for a failure."""
    if not notify.booted():
        return
    headers = [journal.header for journal in journals.journals(host.run, name, segment)]
    inside = host.environ.get("INVOCATION_ID")
    wanted = [header.pod.unit for header in headers if header and header.pod.unit and header.pod.invocation != inside]
    if not (headers or segment):
        # Between two starts of Restart= nothing but the unit is there.
        transient = f"{Identity(name).tag(host.run)}.service"
        wanted += [transient] if notify.is_transient(transient) else []
        wanted += [f"{name}.service"] if notify.made_of(name) and notify.own_unit() != f"{name}.service" else []
    if not wanted:
        return
    began = time.time()
    notify.ask("stop", wanted)
    from podrun.systemd import exit_records

    for ending in exit_records.all_of(host.run, name):
        # What the unit's podrun said of it is in systemd's journal.
        if ending.at >= began and ending.status == 128 + SIGKILL:
            host.report("it did not end in time after its stop signal: it was killed (SIGKILL)")
            break


def sweep(name: str, host: Host) -> bool:
    """Undoes a pod that is dead or failed; False when it is neither, or another podrun is at work on it."""
    try:
        lock = Lock(host.run, name, wait=False)
    except Failure:
        return False
    with lock:
        # Asked under the lock: since somebody looked, another start may have made the pod whole again.
        found = journals.journals(host.run, name)
        if found and states.standing(found) == "up":
            return False
        chain.undo(host.run, name, callbacks(host, lock))
    return True


def residents(run: str, name: str, fact: str = "process") -> list[Resident]:
    """The processes that the pod's steps left running, in start order; ``fact`` "prober": what watches those."""
    return of_entries(states.entries(journals.journals(run, name)), fact)


def of_entries(entries: Sequence[journals.Entry], fact: str) -> list[Resident]:
    """The same of these steps."""
    return [
        Resident(entry.n, label_of(entry.step), entry.facts[fact]["pid"], entry.facts[fact]["start"])
        for entry in entries
        if fact in entry.facts
    ]


def callbacks(host: Host, lock: Lock, *, listening: bool = False, handing_off: bool = False) -> Callbacks:
    """What a chain calls back for. ``listening``: systemd is told of progress; ``handing_off``: of the main process."""

    pulling: list[Callable[[str], None]] = []
    here = os.getpid()

    def tell_systemd(assignments: str) -> None:
        if listening:
            if not assignments.startswith(PROGRESS):
                notify.notify(host.environ, assignments)
        elif pulling or assignments.startswith("STATUS=Pulling "):
            # By hand, who waits for an image sees how far it is, as with 'image pull'. A step in the background, a
            # process of its own, has lines: its bars and what the other steps say would overwrite each other.
            if not pulling:
                from podrun.launcher import pull

                pulling.append(pull.of_start(bars=os.getpid() == here))
            pulling[0](assignments)

    def hand_over(pid: int) -> None:
        # While podrun stays, podrun is the unit's main process.
        if handing_off:
            notify.notify(host.environ, f"MAINPID={pid}")

    return Callbacks(hook_loader.load, host.report, tell_systemd, hand_over, host.watch, lock.close)


def _clear(pod: Pod, world: Callbacks, segment: str) -> None:
    """Undoes what an earlier start left behind; refuses when the pod is up."""
    found = journals.journals(pod.run, pod.name, segment)
    if not found:
        return
    if states.standing(found) == "up":
        raise Failure("it is already up", code=BUSY, hint=f"'podrun down {pod.name}' stops it")
    undone = chain.undo(pod.run, pod.name, world, only=segment)
    world.report(f"an earlier start had left something behind; undone: {', '.join(undone) or 'its journal'}")


def refuse_problems(pod: Pod, text: PodText, steps: Sequence[StepText], world: Callbacks, host: Host) -> None:
    """Raises the first fatal problem that the hooks' checks found: nothing has been created yet."""
    for step, problem in problems(pod, steps, world):
        if problem.fatal:
            hint = f"{problem.hint}; nothing was started" if problem.hint else "nothing was started"
            at = located(text, host, step.hook, step.name, problem.key)
            raise Failure(f"{at}{label_of(step._asdict())}: {problem.what}", code=problem.code, hint=hint)


def located(text: PodText, host: Host, hook: str, name: str, key: str) -> str:
    """Where an option of a step stands, in front of a message: "/etc/podrun/web.toml:12: "; "" for no option."""
    if not key or not text.file:
        return ""
    from podrun.podfile import loader

    at = loader.place(text, hook, name, key, environ=host.environ, load_hook=hook_loader.load)
    return f"{at}: " if at else ""


def _attend(pod: Pod, host: Host, reload: Callable[[str, Host], None] | None, lifetime: float) -> int:
    """Waits in the foreground for the payload, then undoes the pod; returns the payload's status."""
    started = residents(pod.run, pod.name)

    def reloaded() -> Sequence[Resident]:
        if reload:
            reload(pod.name, host)
        return residents(pod.run, pod.name)

    try:
        status, _ = foreground.wait(started, reloaded, lifetime)
    except foreground.TimeIsUp:
        _stop(pod, host, residents(pod.run, pod.name) or started, foreground.SIGTERM)
        status = _TIME_IS_UP
    except Interrupted as interrupted:
        # Another podrun may have undone the pod meanwhile: then its journals name nobody any more.
        status = _stop(pod, host, residents(pod.run, pod.name) or started, interrupted.signal)
    events.note(host.run, "pod", "died", pod.name, id=pod.invocation, exit=status)
    down(pod.name, host, invocation=pod.invocation)
    foreground.last_words(1.0)
    return status


def _stop(pod: Pod, host: Host, waiting: Sequence[Resident], signal: int) -> int:
    """The pod was asked to end: undo what follows the last resident, pass the signal to it, and return its status.

    What is left of the chain, that resident included if it does not end in time, is undone by the caller.
    """
    last = waiting[-1]
    with patient_lock(pod.name, host) as lock:
        found = journals.journals(pod.run, pod.name)
        if not found or not found[0].header or found[0].header.pod.invocation != pod.invocation:
            return foreground.reap(last)
        chain.down(pod.run, journals.serving(pod.run, pod.name), callbacks(host, lock), after=last.n)
    for prober in residents(pod.run, pod.name, "prober"):
        # A payload that is ending may well stop answering first.
        foreground.send(prober, SIGKILL)
    patience = _patience(pod, last)
    foreground.send(last, signal)
    status = foreground.await_end(last, patience)
    if status is None:
        host.report(f"{last.label}: it did not end within {patience:g} s of {foreground.NAMES[signal]}: killed")
        foreground.send(last, SIGKILL)
        status = foreground.await_end(last, 10.0)
    return foreground.reap(last) if status is None else status


def _patience(pod: Pod, resident: Resident) -> float:
    """Seconds from the stop signal to SIGKILL: the step's own, else the pod's."""
    entries = [entry for entry in states.entries(journals.journals(pod.run, pod.name)) if entry.n == resident.n]
    own = [resolve(pod, hook_loader.load(entry.step["hook"]), entry.step).options for entry in entries]
    wanted = getattr(own[0], "stop_timeout", None) if own else None
    return pod.stop_timeout if wanted is None else float(wanted)


def patient_lock(name: str, host: Host) -> Lock:
    """The pod's lock; says so when it has to wait for another podrun."""
    try:
        return Lock(host.run, name, wait=False)
    except Failure:
        host.report("waiting for another podrun that is at work on it")
        return Lock(host.run, name, wait=True)
