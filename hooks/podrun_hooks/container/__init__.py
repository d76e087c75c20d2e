"""The container hook: assembles the root file system, has the runtime create and start the container, waits for it."""

from __future__ import annotations

import os
import time

from podrun import jsontext
from podrun.errors import BUSY, NOT_ALLOWED, STEP_FAILED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Facts, Problem
from podrun.hook_extras import Finding
from podrun.unit_needs import Span, UnitNeeds
from podrun_hooks.container import limits, processes, streams
from podrun_hooks.container import paths as places
from podrun_hooks.container import runtime as runtimes
from podrun_hooks.container.options import Options as Options
from podrun_hooks.container.options import of_healthcheck
from podrun_hooks.container.processes import SIGKILL, Process
from podrun_hooks.support import subprocesses as programs
from podrun_hooks.support.rooted_tree import Tree, clear

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set
    from typing import IO, Any, NoReturn

    from podrun.hook import Step
    from podrun.hook_extras import Exposure
    from podrun_hooks.container.paths import Place
    from podrun_hooks.container.streams import Streams

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
    limits=(("ulimits",),),
    gains=(("no_new_privileges",),),
    signals=(("stop_signal",),),
)

#: Names that a container would collide with: the launcher's cgroup, the pod segment, the mounts, the terminal's socket.
_TAKEN = ("podrun", "pod", "mnt", "console")
#: podman's annotation; it tells ``down`` what the image wants, also when ``up`` was killed.
_STOP_SIGNAL = "org.opencontainers.image.stopSignal"


def up(step: Step, facts: Facts) -> Facts:
    """Creates and starts the container in what the facts say; returns when it is ready."""
    from podrun_hooks.container import rootfs, spec  # here: `down` needs none of them
    from podrun_hooks.container.seccomp import filter
    from podrun_hooks.support import userns

    options = step.options
    if step.pod.userns == "auto" and not facts.get("userns"):
        what = "the pod is to have a user namespace, and no step has made one"
        raise Failure(what, code=STEP_FAILED, hint="its pod segment makes it: start that first")
    place = places.of(step)
    image = _image(step, facts)
    if step.options.health == "image" and not step.options.live:
        step = step._replace(options=step.options._replace(live=of_healthcheck(image.get("config") or {})))
    options = step.options
    runtime = runtimes.choose(options.runtime)
    timers = facts.get("syn_timer", {})
    isolation = runtimes.isolation(step, place, runtime, timers=bool(timers))
    listening, listen = _listening()
    watchdog = _watchdog(step)
    step.status(f"assembling the root of {step.name}")
    places.prepare(place, persist=options.persist)
    rootfs.own_top(place, image["layers"])
    sock = _notify_socket(step, place) if options.ready and options.ready.notify else None
    mapping = userns.of_facts(facts)
    root, placed = -1, None
    try:
        root = rootfs.stack(place, image["layers"], volatile=not options.persist, mapping=mapping)
        tree = Tree(root)
        placed = spec.mounts_of(step, facts, image, tree, place, mapping)
        config = spec.build(step, facts, image, tree, placed, isolation, listen, watchdog)
        config["annotations"].setdefault(_STOP_SIGNAL, str(spec.stop_signal(image.get("config") or {}, options)))
        given = spec.capabilities(options, isolation)
        filter.apply(config, options.seccomp, step.pod.root, given, runtime.name, nested=options.nested_userns)
        _write(place.config, jsontext.dumps(config))
        held = sock.fileno() if sock is not None and options.ready.notify != "direct" else -1
        output = streams.open_streams(step, place, tree, image, config, held)
        step.status(f"creating {step.name}")
        try:
            own_cgroup = bool(isolation.cgroup)
            pid = runtimes.create(
                runtime,
                place,
                lambda: placed.attach(root),
                output.fds,
                own_cgroup=own_cgroup,
                listening=listening,
                console=step.pod.console,
            )
        finally:
            output.close()
    finally:
        for fd in (root, mapping.namespace if mapping else -1):
            if fd >= 0:
                os.close(fd)
        if placed is not None:
            placed.close()
    started = processes.identify(pid)
    runtimes.confirm_directory(pid)
    if own_cgroup and step.pod.unit and not isolation.unified:
        runtimes.remain_in_unit(pid)
    if options.pids >= 0 and not (own_cgroup or (step.pod.unit and isolation.unified)):
        # In a unit systemd counts (TasksMax=), and takes its processes for the unit's by their cgroup.
        runtimes.limit_processes(place, pid, limits.processes(options))
    # Before start: systemd does not take a main process that has ended already.
    step.announce(pid)
    if not isolation.devices_ruled:
        runtimes.forbid_devices(pid)
    if timers and (why := runtimes.shorten_timers(step, place, isolation, pid, timers)):
        step.status(f"connections to ambassadors are tried again after a second, as usual: {why}")
    runtimes.start(runtime, place, config, own_cgroup=own_cgroup)
    if started is None:
        raise Failure("the container ended before it was started", code=STEP_FAILED)
    step.status(f"started {step.name}")
    if options.ready:
        step.status(f"waiting until {step.name} is ready")
        _await_ready(step, facts, place, started, output, sock)
    _report(step, facts, ready=True)
    return {
        **_watched(step, facts, started, output.log),
        "process": {"pid": started.pid, "start": started.start},
        "id": place.id,
        "runtime": runtime.name,
        **output.facts(),
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
    found = _process(place, own)
    if found:
        runtimes.thaw(place)
        # A container that was created but never started has no payload to ask: its init waits at exec.fifo.
        signal = SIGKILL if os.path.exists(f"{place.state}/exec.fifo") else _stop_signal(step, place)
        timeout = step.pod.stop_timeout if step.options.stop_timeout is None else step.options.stop_timeout
        if told := processes.stop(found, signal, timeout, step.status):
            step.report(told)
    step.status(f"removing {step.name}")
    # PID 1 of a namespace takes every process of it along. Who it was is only in doubt when up was killed.
    held = processes.kill_all(lambda: [] if own.get("process") else processes.with_mount(place.mark))
    held += processes.kill_all(lambda: [found for pid in runtimes.members(place) if (found := processes.identify(pid))])
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
    problems = []
    name = step.name
    plain = name.replace("-", "").replace("_", "")
    if name in _TAKEN or len(name) > 63 or not (plain.isalnum() and plain.isascii() and name[0].isalnum()):
        problems.append(
            Problem(f"a container cannot be called {name!r}", WRONG_FILE, "letters, digits, - and _", key="name")
        )
    if os.geteuid():
        problems.append(Problem("containers need root", NOT_ALLOWED))
    wanted = {"memory": step.options.memory, "cpu": step.options.cpus, "pids": step.options.pids}
    for name in limits.missing_controllers([name for name, limit in wanted.items() if limit]):
        what = f"the kernel has no cgroup controller {name} (or it is turned off): the limit cannot hold"
        problems.append(Problem(what, UNAVAILABLE, fatal=False, key={"cpu": "cpus"}.get(name, name)))
    for program in (lambda: runtimes.choose(step.options.runtime), *_programs(step)):
        try:
            program()
        except Failure as failure:
            problems.append(Problem(failure.what, UNAVAILABLE, failure.hint))
    problems += _labels(step)
    if step.options.live and step.options.ready and step.options.ready.notify == "direct":
        what = "live and notify = 'direct' would both answer the unit's watchdog, and hide each other's silence"
        problems.append(Problem(what, WRONG_FILE, "leave out one"))
    problems += [Problem(what, WRONG_FILE, hint, key=key) for key, what, hint in limits.problems(step.options)]
    problems += _missing_files(step.options)
    if step.pod.userns == "auto":
        # The kernel mounts /proc, and message queues, for whoever owns the namespace that they show.
        problems += [
            Problem(f'{kind} = "host" is not for a pod with userns = "auto"', WRONG_FILE, 'userns = "host"', key=kind)
            for kind in ("pid", "ipc")
            if getattr(step.options, kind) == "host"
        ]
    if step.options.volumes:
        from podrun_hooks.storage.docker_spelling import docker_source, missing

        sources = [docker_source(text) for text in step.options.volumes]
        problems += [found._replace(key="volumes") for source in sources for found in missing(source)]
        if step.pod.userns == "auto":
            from podrun_hooks.support import userns

            for text, source in zip(step.options.volumes, sources, strict=True):
                read_only = "ro" in text.rpartition(":")[2].split(",")
                if source.startswith("/") and (what := userns.refusal(source, read_only=read_only)):
                    problems.append(Problem(what, UNAVAILABLE, 'userns = "host" in [pod]', key="volumes"))
    return problems


def _missing_files(options: Any) -> Iterator[Problem]:
    """What the host has to have for the container's options."""
    for path in options.env_files:
        if not os.path.isfile(path):
            yield Problem(f"{path}: there is no such file", WRONG_FILE, key="env_files")
    for text in options.devices:
        if not os.path.exists(source := text.partition(":")[0]):
            yield Problem(f"the host has no {source}", UNAVAILABLE, key="devices")
    if options.tz:
        from podrun_hooks.container import spec

        try:
            spec.zone_file(options.tz)
        except Failure as failure:
            yield Problem(failure.what, failure.code, failure.hint, key="tz")


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
    if step.options.live and (step.pod.unit or step.pod.thorough):
        # systemd 252 gives WATCHDOG_USEC to ExecStart= only: without answers it would kill the payload.
        return "live, in a unit: the next generation's probe could not answer the unit's watchdog"
    return "sockets that systemd has passed to it" if os.environ.get("LISTEN_FDS") else ""


def _labels(step: Step) -> list[Problem]:
    """Profiles and labels that this host does not know."""
    options = step.options
    problems = []
    if options.apparmor and options.apparmor != "unconfined":
        try:
            with open("/sys/kernel/security/apparmor/profiles", encoding="utf-8") as file:
                known = options.apparmor in {line.rpartition(" (")[0] for line in file}
            what, hint = f"AppArmor has no profile {options.apparmor}", "apparmor_parser -r FILE"
        except OSError:
            known, what, hint = False, "AppArmor is not active on this host", "leave out apparmor"
        if not known:
            problems.append(Problem(what, UNAVAILABLE, hint, key="apparmor"))
    for key in ("selinux", "selinux_mount"):
        if getattr(options, key) and not os.path.exists("/sys/fs/selinux/enforce"):
            what = "SELinux is not active on this host"
            problems.append(Problem(what, UNAVAILABLE, f"leave out {key}", key=key))
    return problems


def exposes(step: Step) -> Iterator[Exposure]:
    """What the container is given that an attacker in it would like."""
    from podrun_hooks.container.exposure import of

    return of(step)


def check_in_chain(step: Step, before: Sequence[Step]) -> list[Problem]:
    """A container that may change the pod's network may also change where its ambassadors lead."""
    options = step.options
    added = {*options.capabilities.add, *options.cap_add}
    maps = [other for other in before if other.hook == "ambassador" and getattr(other.options, "via", "") == "nft"]
    if not maps or not added & {"NET_ADMIN", "ALL"}:
        return []
    what = f"with NET_ADMIN it can change where {maps[0].label} leads: that is advice for it then, not policy"
    return [Problem(what, NOT_ALLOWED, fatal=False, key="cap_add")]


def explain(step: Step) -> list[str]:
    """The commands of mount, nsenter and the runtime that do the same."""
    from podrun_hooks.container.by_hand import commands

    return commands(step)


def diagnose(root: str, run: str) -> Iterator[Finding]:
    """Which runtime there is, whether it runs, and whether its writable layers have a place."""
    from podrun_hooks.container import rootfs

    where = root
    while not os.path.exists(where):
        where = os.path.dirname(where)
    if rootfs.type_of(where) == "overlay":
        yield Finding(
            "fail",
            f"{root} is on an overlay: no writable layer can be there",
            "--root on a disk, a volume or a tmpfs",
            73,
        )
    missing = limits.missing_controllers(("memory", "cpu", "pids"))
    if missing:
        yield Finding("warn", f"the kernel has no cgroup controller {', '.join(missing)}: such limits are refused")
    try:
        chosen = runtimes.choose("auto")
    except Failure as lacking:
        yield Finding("fail", lacking.what, lacking.hint, lacking.code)
        return
    ended = programs.run([chosen.path, "--version"])
    if ended.status:
        yield Finding("fail", f"{chosen.path} does not run: {ended.errors.strip()}", "", UNAVAILABLE)
    else:
        yield Finding("ok", f"{ended.output.splitlines()[0]} at {chosen.path}")


def volumes_of(options: Mapping[str, Any]) -> list[str]:
    """The named volumes among ``volumes``: what stands before the first colon, without a slash."""
    sources = [str(text).partition(":")[0] for text in options.get("volumes", ())]
    return [source for source in sources if source and "/" not in source]


def exec_into(step: Step, own: Facts, argv: Sequence[str], **wanted: Any) -> NoReturn:
    """Becomes the runtime's ``exec`` of ``argv`` in the running container: replaces this process.

    ``wanted`` as for :func:`podrun_hooks.container.inside.process_of`: tty, env, user, workdir. Raises Failure when the
    container has ended.
    """
    from podrun_hooks.container import exec

    exec.become(step, _running(step, own), argv, **wanted)


def exec_and_wait(step: Step, own: Facts, argv: Sequence[str], **wanted: Any) -> programs.Ended:
    """Runs ``argv`` in the running container and waits for it, its output captured; otherwise as exec_into."""
    from podrun_hooks.container import exec

    return exec.run(step, _running(step, own), argv, **wanted)


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
    from podrun_hooks.container import control

    return control.changes(places.of(step), _image(step, facts)["layers"])


# --- parts of up ---------------------------------------------------------------------------------------------------


def _image(step: Step, facts: Facts) -> Facts:
    name = step.options.image or facts.get("image", "")
    images: Mapping[str, Facts] = facts.get("images", {})
    if name not in images:
        what = f"there is no image step {name!r}" if name else "there is no image step above"
        raise Failure(what, code=WRONG_FILE, hint=f"there are: {', '.join(images)}" if images else "add one")
    return images[name]


def _listening() -> tuple[int, list[str]]:
    """The number of sockets that systemd passed to podrun, and their variables for the container (sd_listen_fds(3))."""
    environ = os.environ
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
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


def _watched(step: Step, facts: Facts, process: Process, log: Facts) -> Facts:
    """Begins the live probe, if one is asked for."""
    if not step.options.live:
        return {}
    from podrun_hooks.container.probes import live

    step.status(f"watching {step.name}")
    prober = live.begin(step, facts, process, log)
    return {"prober": {"pid": prober.pid, "start": prober.start}}


def _notify_socket(step: Step, place: Place) -> Any:
    """A socket for sd_notify(3) that any user of the container may write to. Raises Failure."""
    import _socket

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    path = f"{place.notify}/socket"
    for left in (path, place.direct):
        try:
            os.unlink(left)
        except FileNotFoundError:
            pass
    try:
        os.mkdir(place.notify, 0o755)
    except FileExistsError:
        pass
    os.chmod(place.notify, 0o755)
    directory = os.open(place.notify, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # sun_path holds 108 bytes; names of pods and containers may be longer together.
        sock.bind(f"/proc/self/fd/{directory}/socket")
    finally:
        os.close(directory)
    os.chmod(path, 0o666)
    systemd = os.environ.get("NOTIFY_SOCKET", "")
    if step.options.ready.notify == "direct" and step.pod.unit and systemd:
        try:
            os.link(systemd, place.direct)
        except OSError as error:
            what = f"notify = 'direct': {systemd} cannot have a name in {place.bundle}: {error.strerror}"
            raise Failure(what, code=UNAVAILABLE, hint="both have to be on one file system, /run") from None
    return sock


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


def _await_ready(step: Step, facts: Facts, place: Place, process: Process, output: Streams, sock: Any) -> None:
    from podrun_hooks.container.probes import ready

    def tail() -> str:
        return streams.last_words(output)

    if sock is not None:
        ready.wait_for_notification(step.options.ready, process, sock, step.notify, tail)
        if os.path.lexists(place.direct):
            # From here on it is systemd that hears the payload.
            os.rename(place.direct, f"{place.notify}/socket")
        else:
            ready.deafen(sock)
        return

    def command(argv: Sequence[str]) -> tuple[int, str]:
        from podrun_hooks.container import exec

        ended = exec.run(step, process, argv)
        return ended.status, ended.errors or ended.output

    netns = facts.get("netns") or f"/proc/{process.pid}/ns/net"
    ready.wait(step.options.ready, process, netns, facts.get("addresses", ()), command, tail)


def _report(step: Step, facts: Facts, *, ready: bool) -> None:
    """Tells the records of the steps before this one whether the container is ready; those after it look for it."""
    if facts.get("registration"):
        from podrun_hooks.registry import readiness

        readiness.report(step.pod.run, step.pod.name, ready=ready)


# --- parts of down -------------------------------------------------------------------------------------------------


def _process(place: Place, own: Facts) -> Process | None:
    """The container's PID 1, from the facts; when up was killed, from the runtime's pid file if it is still ours."""
    if own.get("process"):
        return Process(own["process"]["pid"], own["process"]["start"])
    try:
        with open(place.pid_file, encoding="utf-8") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
            ours = f" {place.mark} " in file.read()
    except (OSError, ValueError):
        return None
    return processes.identify(pid) if ours else None


def _stop_signal(step: Step, place: Place) -> int:
    if step.options.stop_signal:
        return int(step.options.stop_signal)
    try:
        with open(place.config, encoding="utf-8") as file:
            return int(jsontext.loads(file.read())["annotations"][_STOP_SIGNAL])
    except (OSError, ValueError, KeyError, TypeError):
        return 15


def _remove_cgroups(place: Place, words: str) -> None:
    """The kernel lets go of a cgroup a moment after its last process has ended."""
    deadline = time.monotonic() + 5
    while True:
        try:
            runtimes.remove_cgroups(place)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                hint = words or str(error.strerror)
                raise Failure(f"cgroup {place.cgroup} cannot be removed", code=BUSY, hint=hint) from error
            time.sleep(0.005)


# --- others --------------------------------------------------------------------------------------------------------


def _programs(step: Step) -> list[Any]:
    return [lambda: programs.find("catatonit", "catatonit")] if step.options.init else []


def _running(step: Step, own: Facts) -> Process:
    process = _process(places.of(step), own)
    if process is None or processes.identify(process.pid) != process:
        raise Failure(f"{step.name} is not running", code=STEP_FAILED)
    return process
