"""The container hook: assembles the root file system, has the runtime create and start the container, waits for it."""

from __future__ import annotations

import os
import time

from podrun import jsontext
from podrun.errors import BUSY, STEP_FAILED, Failure
from podrun.unit_needs import Span, UnitNeeds
from podrun_hooks.container import cgroups, processes, streams
from podrun_hooks.container import paths as places
from podrun_hooks.container import runtime as runtimes
from podrun_hooks.container.options import Options as Options
from podrun_hooks.container.processes import SIGKILL, Process
from podrun_hooks.support.rooted_tree import clear

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set
    from typing import IO, Any, NoReturn

    from podrun.hook import Facts, Problem, Step
    from podrun.hook_extras import Exposure, Finding
    from podrun_hooks.container.paths import Place
    from podrun_hooks.support import subprocesses as programs

takes = None
gives = ("process", "id", "runtime", "log", "copiers", "feeders", "ready", "prober", "registration")
resident = True
default_name = "main"
unit_needs = UnitNeeds(
    start=(Span(("ready", "timeout"), 30.0),),
    stop=(Span(("stop_timeout",), None),),
    watchdog=(Span(("live", "interval"), 10.0), Span(("live", "timeout"), 5.0)),
    answers=((("ready", "notify"), "direct"),),
    capabilities=(("cap_add",), ("capabilities", "add")),
    devices=(("devices",),),
    device_rules=(("device_rules",),),
    limits=(("ulimits",),),
    gains=(("no_new_privileges",),),
    signals=(("stop_signal",),),
)


def up(step: Step, facts: Facts) -> Facts:
    """Creates and starts the container in what the facts say; returns when it is ready."""
    from podrun_hooks.container import creation  # here: `down` does without

    plan = creation.plan(step, facts)
    step, place = plan.step, plan.place
    step.status(f"assembling the root of {step.name}")
    made = creation.create(plan, facts)
    process = processes.identify(made.pid)
    creation.confine(plan, made.pid)
    # Before start: systemd does not take a main process that has ended already.
    step.announce(made.pid)
    runtimes.start(plan.runtime, place, made.config, own_cgroup=bool(plan.isolation.cgroup))
    if process is None:
        raise Failure("the container ended before it was started", code=STEP_FAILED)
    step.status(f"started {step.name}")
    if step.options.ready:
        from podrun_hooks.container.probes import ready

        step.status(f"waiting until {step.name} is ready")
        ready.await_payload(step, facts, place, process, made.output, made.sock)
    _report(step, facts, ready=True)
    return {
        **_watched(step, facts, process, made.output.log),
        "process": {"pid": process.pid, "start": process.start},
        "id": place.id,
        "runtime": plan.runtime.name,
        **made.output.facts(),
        "ready": True,
        **({"registration": facts["registration"]} if facts.get("registration") else {}),
    }


def down(step: Step, own: Facts) -> None:
    """Stops the payload and removes everything that ``up`` made or was about to make."""
    place = places.of(step)
    _report(step, own, ready=False)
    if step.options.live or step.options.health == "image":
        from podrun_hooks.container.probes import live

        live.end(step)
    process = processes.of_container(place, own)
    if process:
        cgroups.freeze(place, False)  # a container that 'podrun pause' has stopped could not end
        # A container that was created but never started has no payload to ask: its init waits at exec.fifo.
        signal = SIGKILL if os.path.exists(f"{place.state}/exec.fifo") else _stop_signal(step, place)
        timeout = step.pod.stop_timeout if step.options.stop_timeout is None else step.options.stop_timeout
        timeout = step.pod.patience if step.pod.patience >= 0 else timeout
        if told := processes.stop(process, signal, timeout, step.status):
            step.report(told)
    step.status(f"removing {step.name}")
    # PID 1 of a namespace takes every process of it along. Who it was is only in doubt when up was killed.
    held = processes.kill_all(lambda: [] if own.get("process") else processes.with_mount(place.mark))
    held += processes.kill_all(lambda: [found for pid in cgroups.members(place) if (found := processes.identify(pid))])
    if held:
        raise Failure(
            f"process {held[0].pid} of the container does not end", code=BUSY, hint="is it stuck in the kernel?"
        )
    if told := streams.finish(own):
        step.report(told)
    words = ""
    if os.path.isdir(place.state):
        runtime = runtimes.of_state(place, step.options.runtime)
        if runtime and not runtimes.is_only_files(runtime, place):
            words = runtimes.delete(runtime, place)
        step.status(f"removing the files of {step.name}")
        clear(place.state)
    _remove_cgroups(place, words)
    places.remove(place, persist=step.options.persist)


def check(step: Step) -> list[Problem]:
    """What makes a container impossible here, found before anything is created."""
    from podrun_hooks.container import checks

    return [*checks.problems(step)]


def check_in_chain(step: Step, before: Sequence[Step]) -> list[Problem]:
    """What is wrong with a container after these steps."""
    from podrun_hooks.container import checks

    return [*checks.of_chain(step, before)]


def local_data(options: dict[str, Any]) -> list[str]:
    """What the container keeps on this machine only: it does not follow a pod that a cluster moves."""
    volumes = options.get("volumes")
    found = [str(text).partition(":")[0] for text in volumes] if isinstance(volumes, list) else []
    return [*found, "its writable layer (persist)"] if options.get("persist") is True else found


def collect(root: str, run: str, pods: Set[str], only_look: bool) -> list[str]:
    """Removes what a power cut has left of containers; returns what it was."""
    from podrun_hooks.container import leftovers

    return leftovers.collect(root, run, pods, only_look=only_look)


def exclusive(step: Step) -> str:
    """What two generations of a container cannot have at once."""
    if step.options.persist:
        return "a writable layer that persists"
    return "sockets that systemd has passed to it" if os.environ.get("LISTEN_FDS") else ""


def exposes(step: Step) -> Iterator[Exposure]:
    """What the container is given that an attacker in it would like."""
    from podrun_hooks.container.exposure import of

    return of(step)


def explain(step: Step) -> list[str]:
    """The commands of mount, nsenter and the runtime that do the same."""
    from podrun_hooks.container.by_hand import commands

    return commands(step)


def diagnose(root: str, run: str) -> Iterator[Finding]:
    """Which runtime there is, whether it runs, and whether its writable layers have a place."""
    from podrun_hooks.container import health

    return health.findings(root, run)


def volumes_of(options: Mapping[str, Any]) -> list[str]:
    """The named volumes among ``volumes``: what stands before the first colon, without a slash."""
    sources = [str(text).partition(":")[0] for text in options.get("volumes", ())]
    return [source for source in sources if source and "/" not in source]


def exec_into(step: Step, own: Facts, argv: Sequence[str], **wanted: Any) -> NoReturn:
    """Becomes the runtime's ``exec`` of ``argv`` in the running container: replaces this process.

    ``wanted`` as for :func:`podrun_hooks.container.exec.process_of`: tty, env, user, workdir. Raises Failure when the
    container has ended.
    """
    from podrun_hooks.container import exec

    exec.become(step, _running(step, own), argv, **wanted)


def exec_and_wait(step: Step, own: Facts, argv: Sequence[str], **wanted: Any) -> programs.Ended:
    """Runs ``argv`` in the running container and waits for it, its output captured; otherwise as exec_into."""
    from podrun_hooks.container import exec

    return exec.run(step, _running(step, own), argv, **wanted)


def unhealthy(step: Step, own: Facts, facts: Facts) -> str | None:
    """What ``live``, the image's HEALTHCHECK or else ``ready`` says of the running container now."""
    from podrun_hooks.container import creation
    from podrun_hooks.container.options import of_healthcheck
    from podrun_hooks.container.probes import once

    process = _running(step, own)
    options = step.options
    probe = options.live or of_healthcheck(creation.image_of(step, facts).get("config") or {})
    if probe is None and options.ready and not options.ready.notify:
        probe = options.ready
    return once.attempt(step, process, facts, probe) if probe else None


def terminal_of(step: Step) -> Any:
    """A connection to the terminal of a running container, or None."""
    from podrun_hooks.container import detached_terminal

    return detached_terminal.connect(places.of(step))


def pack(step: Step, own: Facts, path: str, out: IO[bytes]) -> None:
    """Writes what is at ``path`` in the running container as a tar stream."""
    from podrun_hooks.container import copying

    with copying.Root(_running(step, own).pid) as root:
        copying.pack(root, path, out)


def unpack(step: Step, own: Facts, path: str, stream: IO[bytes], rename: str) -> None:
    """Makes the entries of a tar stream in the running container."""
    from podrun_hooks.container import copying

    with copying.Root(_running(step, own).pid) as root:
        copying.unpack(root, path, stream, rename)


def freeze(step: Step, on: bool) -> None:
    """Stops all processes of the container's cgroup, or lets them run again."""
    from podrun_hooks.container import control

    control.freeze(places.of(step), on)


def limit(step: Step, wanted: Mapping[str, float]) -> None:
    """Changes limits of the running container."""
    from podrun_hooks.container import control

    control.limit(places.of(step), wanted)


def changes(step: Step, facts: Facts) -> Iterator[tuple[str, str]]:
    """What the container has written over its image."""
    from podrun_hooks.container import control, creation

    return control.changes(places.of(step), creation.image_of(step, facts)["layers"])


# --- parts of up ---------------------------------------------------------------------------------------------------


def _watched(step: Step, facts: Facts, process: Process, log: Facts) -> Facts:
    """Begins the live probe, if one is asked for."""
    if not step.options.live:
        return {}
    from podrun_hooks.container.probes import live

    step.status(f"watching {step.name}")
    prober = live.begin(step, facts, process, log)
    return {"prober": {"pid": prober.pid, "start": prober.start}}


def _report(step: Step, facts: Facts, *, ready: bool) -> None:
    """Tells the records of the steps before this one whether the container is ready; those after it look for it."""
    if facts.get("registration"):
        from podrun_hooks.registry import readiness

        readiness.report(step.pod.run, step.pod.name, ready=ready)


# --- parts of down -------------------------------------------------------------------------------------------------


def _stop_signal(step: Step, place: Place) -> int:
    if step.options.stop_signal:
        return int(step.options.stop_signal)
    try:
        with open(place.config, encoding="utf-8") as file:
            return int(jsontext.loads(file.read())["annotations"][places.STOP_SIGNAL])
    except (OSError, ValueError, KeyError, TypeError):
        return 15


def _remove_cgroups(place: Place, words: str) -> None:
    """The kernel lets go of a cgroup a moment after its last process has ended."""
    deadline = time.monotonic() + 5
    while True:
        try:
            cgroups.remove(place)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                hint = words or str(error.strerror)
                raise Failure(f"cgroup {place.cgroup} cannot be removed", code=BUSY, hint=hint) from error
            time.sleep(0.005)


def _running(step: Step, own: Facts) -> Process:
    process = processes.of_container(places.of(step), own)
    if process is None or processes.identify(process.pid) != process:
        raise Failure(f"{step.name} is not running", code=STEP_FAILED)
    return process
