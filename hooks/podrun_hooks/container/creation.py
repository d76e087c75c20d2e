"""Creates a container: puts root, configuration and output together, and has the runtime make and confine its init."""

from __future__ import annotations

import os

from podrun import jsontext
from podrun.errors import STEP_FAILED, WRONG_FILE, Failure
from podrun.facts import accepted, merged
from podrun.record import NamedTuple
from podrun_hooks.container import cgroups, limits, mounts, rootfs, spec, streams
from podrun_hooks.container import paths as places
from podrun_hooks.container import runtime as runtimes
from podrun_hooks.container.options import of_healthcheck
from podrun_hooks.container.seccomp import filter
from podrun_hooks.support import userns
from podrun_hooks.support.rooted_tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from podrun.hook import Facts, Step
    from podrun_hooks.container.cgroups import Isolation
    from podrun_hooks.container.paths import Place
    from podrun_hooks.container.runtime import Runtime
    from podrun_hooks.container.streams import Streams


class Plan(NamedTuple):
    """What is known of a container before anything of it is made."""

    #: The step; its option ``live`` is the image's HEALTHCHECK where the step asks for that.
    step: Step
    place: Place
    #: An entry of the fact "images".
    image: Facts
    runtime: Runtime
    isolation: Isolation
    #: The fact "syn_timer": what connections to ambassadors need.
    timers: Facts
    #: How many sockets systemd has passed to podrun, and the variables that tell the payload.
    listening: int
    listen: list[str]
    #: Seconds after which the unit's watchdog acts; 0.0 without one.
    watchdog: float


class Created(NamedTuple):
    """A container whose init waits to be started."""

    pid: int
    config: dict[str, Any]
    output: Streams
    #: The socket for sd_notify(3), or None.
    sock: Any


def plan(step: Step, facts: Facts) -> Plan:
    """Decides how the container is made. Raises Failure for facts that are missing."""
    if step.pod.userns == "auto" and not facts.get("userns"):
        what = "the pod is to have a user namespace, and no step has made one"
        raise Failure(what, code=STEP_FAILED, hint="start the pod segment first: it creates the namespace")
    place = places.of(step)
    image = image_of(step, facts)
    if step.options.health == "image" and not step.options.live:
        step = step._replace(options=step.options._replace(live=of_healthcheck(image.get("config") or {})))
        if not step.options.live:
            step.report('health = "image" has no effect: the image has no HEALTHCHECK that could be run')
    runtime = runtimes.choose(step.options.runtime)
    timers = facts.get("syn_timer", {})
    isolation = cgroups.isolation(step, place, runtime.name, timers=bool(timers))
    listening, listen = _listening(os.environ)
    return Plan(step, place, image, runtime, isolation, timers, listening, listen, _watchdog(step))


def image_of(step: Step, facts: Facts) -> Facts:
    """The entry of the fact "images" that the step means. Raises Failure (WRONG_FILE)."""
    name = step.options.image or facts.get("image", "")
    images: Mapping[str, Facts] = facts.get("images", {})
    if name not in images:
        what = f"there is no image step {name!r}" if name else "there is no image step above"
        raise Failure(what, code=WRONG_FILE, hint=f"there are: {', '.join(images)}" if images else "add one")
    return images[name]


def create(plan: Plan, facts: Facts) -> Created:
    """Makes the container's files and its init; what is open for that is closed again, also when it fails."""
    step, place, image = plan.step, plan.place, plan.image
    options = step.options
    if named := [text for text in options.devices if not text.startswith("/")]:
        from podrun_hooks.container import cdi

        facts = merged([facts, accepted(cdi.edits(named))])
    places.prepare(place, persist=options.persist)
    rootfs.own_top(place, image["layers"])
    mapping = userns.of_facts(facts)
    root, placed, waiting, sock = -1, None, None, None
    try:
        if options.ready and options.ready.notify:
            from podrun_hooks.container.probes import notify

            sock = notify.opened(step, place)
        if options.tty and not step.pod.console:
            from podrun_hooks.container import detached_terminal

            waiting = detached_terminal.Waiting(place)
            step = step._replace(pod=step.pod._replace(console=waiting.path))
        root = rootfs.stack(place, image["layers"], volatile=not options.persist, mapping=mapping)
        tree = Tree(root)
        placed = mounts.wanted(step, facts, image, tree, place, mapping)
        config = spec.build(step, facts, image, tree, placed, plan.isolation, plan.listen, plan.watchdog)
        asked = spec.stop_signal(image.get("config") or {}, options, step.report)
        config["annotations"].setdefault(places.STOP_SIGNAL, str(asked))
        given = spec.capabilities(options, plan.isolation)
        filter.apply(config, options.seccomp, step.pod.root, given, plan.runtime.name, nested=options.nested_userns)
        _write(place.config, jsontext.dumps(config))
        held = sock.fileno() if sock is not None and options.ready.notify != "direct" else -1
        output = streams.open_streams(step, place, tree, image, config, held)
        step.status(f"creating {step.name}")
        try:
            pid = runtimes.create(
                plan.runtime,
                place,
                lambda: placed.attach(root),
                output.fds,
                own_cgroup=bool(plan.isolation.cgroup),
                counted=_counted(plan),
                listening=plan.listening,
                console=step.pod.console,
            )
            if waiting:
                output.copiers.append(waiting.begin(step, place, pid, output.fds[1]))
        finally:
            output.close()
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    finally:
        for fd in (root, mapping.namespace if mapping else -1):
            if fd >= 0:
                os.close(fd)
        if placed is not None:
            placed.close()
        if waiting:
            waiting.close()
    return Created(pid, config, output, sock)


def confine(plan: Plan, pid: int) -> None:
    """What the runtime does not do for a created container: its working directory, its unit, device nodes, timers."""
    step, place, isolation = plan.step, plan.place, plan.isolation
    own_cgroup = bool(isolation.cgroup)
    runtimes.confirm_directory(pid)
    if own_cgroup and step.pod.unit and not isolation.unified:
        cgroups.remain_in_unit(pid)
    if not isolation.devices_ruled:
        runtimes.forbid_devices(pid)
    if plan.timers and (why := cgroups.shorten_timers(step, place, isolation, pid, plan.timers)):
        step.status(f"connections to ambassadors are tried again after a second, as usual: {why}")


def _counted(plan: Plan) -> str:
    """The cgroup that only counts the container's processes; "" where another one does, or nobody wants it."""
    # In a unit systemd counts (TasksMax=), and takes its processes for the unit's by their cgroup.
    elsewhere = plan.isolation.cgroup or (plan.step.pod.unit and plan.isolation.unified)
    if plan.step.options.pids < 0 or elsewhere:
        return ""
    return cgroups.counting(plan.place, limits.processes(plan.step.options))


def _listening(environ: Mapping[str, str]) -> tuple[int, list[str]]:
    """The number of sockets that systemd passed to podrun, and their variables for the container (sd_listen_fds(3))."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return 0, []
    names = [f"LISTEN_FDNAMES={environ['LISTEN_FDNAMES']}"] if "LISTEN_FDNAMES" in environ else []
    return int(count), [f"LISTEN_FDS={count}", "LISTEN_PID=1", *names]


def _watchdog(step: Step) -> float:
    """Seconds after which the unit's watchdog acts, 0.0 without one; Failure when it would not wait for the probe."""
    if "WATCHDOG_USEC" not in os.environ:
        return 0.0
    from podrun_hooks.container.probes import live

    seconds = live.watchdog(os.environ)
    if step.options.live:
        live.refuse_impatience(step, seconds)
    return seconds


def _write(path: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    data = text.encode()
    try:
        # A disk that is almost full takes a part; the next write(2) says so.
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)
