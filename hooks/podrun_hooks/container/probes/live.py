"""The live probe as the launcher sees it: one small process beside the container, begun, found again and ended.

It ends with the container, of which it holds a pidfd. A container that fails the probe is killed: by systemd where the
unit has a watchdog (which also notices when the probe itself has gone), else by the probe.
"""

from __future__ import annotations

import _frozen_importlib_external
import os
import sys

from podrun.errors import STEP_FAILED, WRONG_FILE, Failure
from podrun_hooks.container import paths as places
from podrun_hooks.container import processes, runtime
from podrun_hooks.container.probes import prober
from podrun_hooks.registry import wishes
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Mapping, Sequence
    from typing import Any

    from podrun.hook import Facts, Step
    from podrun_hooks.container.processes import Process
else:
    import _signal


def watchdog(environ: Mapping[str, str]) -> float:
    """Seconds after which systemd misses podrun's WATCHDOG=1 (sd_watchdog_enabled(3)); 0.0: it expects none."""
    usec = environ.get("WATCHDOG_USEC", "")
    ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(usec) / 1e6 if ours and usec.isdecimal() and environ.get("NOTIFY_SOCKET") else 0.0


def refuse_impatience(step: Step, seconds: float) -> None:
    """Raises Failure when a watchdog of so many seconds (0.0: none) would not wait for the probe."""
    wanted = step.options.live
    slowest = wanted.interval + wanted.timeout
    if seconds and seconds <= slowest:
        what = f"the unit's WatchdogSec={seconds:g}s is shorter than a round of the live probe, {slowest:g} s at most"
        raise Failure(what, code=WRONG_FILE, hint=f"WatchdogSec={2 * slowest:g}s in its [Service] section")


def begin(step: Step, facts: Facts, process: Process, log: Facts) -> Process:
    """Starts the probe of a running container; returns its process."""
    wanted = step.options.live
    life = processes.opened(process)
    if life is None:
        raise Failure("the payload ended before it was watched", code=STEP_FAILED)
    # Who is told that the probe fails, or succeeds again, is in the host's network namespace.
    host = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    kept = [life, host]
    ours, program = os.pipe2(os.O_CLOEXEC)
    try:
        systemd = _connected(os.environ) if watchdog(os.environ) else -1
        kept += [systemd] if systemd >= 0 else []
        if wanted.exec:
            from podrun_hooks.container import exec

            argv, fd, chosen = exec.command(step, process, wanted.exec)
            kept.append(fd)
            words, before = ["exec", *argv], runtime.entering(chosen, places.of(step))
        else:
            words, before = _connecting(wanted, facts.get("addresses", ())), None
        netns = "" if wanted.exec else facts.get("netns") or f"/proc/{process.pid}/ns/net"
        label = f"{step.pod.name}: {step.label}"
        # The unit's watchdog is about its main process: another generation's as long as this one starts beside it.
        numbers = [life, systemd, int(not step.pod.beside), wanted.interval, wanted.timeout, wanted.retries]
        numbers += [wanted.start_period, int(wanted.on_failure == "kill")]
        report = prober.SEPARATOR.join([wishes.directory(step.pod.run), f"{step.pod.name}.", str(host), *_report(step)])
        argv = [sys.executable, "-IS", _program(), places.of(step).mark, label, *map(str, numbers), report, *words]
        child = syscalls.fork()
        if not child:
            try:
                _become(step, argv, before, "" if netns == "host" else netns, kept, log)
            except BaseException as error:  # the child of a fork must never return into the parent's code
                os.write(program, str(error).encode(errors="replace"))
            finally:
                os._exit(125)
        os.close(program)
        program = -1
        # Closed by execve(2): from then on the process can be found by its command line.
        if trouble := os.read(ours, 4096):
            os.waitpid(child, 0)
            raise Failure(f"the live probe cannot be started: {trouble.decode(errors='replace')}", code=STEP_FAILED)
    finally:
        for fd in (*kept, ours, program):
            if fd >= 0:
                os.close(fd)
    return processes.Process(child, processes.start_of(child))


def _report(step: Step) -> list[str]:
    from podrun_hooks.registry import readiness

    return readiness.command(step.pod.run, step.pod.name)


def _connecting(wanted: Any, addresses: Sequence[str]) -> list[str]:
    from podrun_hooks.container.probes.targets import target

    found = target(wanted.http or wanted.tcp)
    path = found.path if wanted.http else ""
    return ["http" if wanted.http else "tcp", str(found.port), path, *found.hosts(addresses)]


def _connected(environ: Mapping[str, str]) -> int:
    """A descriptor connected to systemd's socket: an abstract one cannot be reached from another network namespace."""
    import _socket

    address = environ["NOTIFY_SOCKET"]
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    sock.connect("\0" + address[1:] if address.startswith("@") else address)
    return sock.detach()


def _become(step: Step, argv: Sequence[str], before: Any, netns: str, kept: Sequence[int], log: Facts) -> None:
    """The child's half of :func:`begin`; does not return."""
    # Ctrl-C in the terminal is for the payload, which ends in its own time.
    os.setsid()
    syscalls.heed_signals()
    # The prober reads them when it is ready to; until it runs they must not end it.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGUSR1, _signal.SIGUSR2))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1):
        os.dup2(null, fd)
    if "file" in log and not step.pod.attached:
        os.dup2(os.open(log["file"], os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC), 2)
    if netns:
        syscalls.setns(os.open(netns, os.O_RDONLY | os.O_CLOEXEC), syscalls.CLONE_NEWNET)
    if before:
        before()
    syscalls.close_on_exec_from(3)
    for fd in kept:
        os.set_inheritable(fd, True)
    os.execve(argv[0], list(argv), runtime.environment(places.of(step)))


def _program() -> str:
    """The prober as a program: its bytecode, which spares the process the compiler's memory, where it is the source's.

    Python asks that of what it imports, not of what it is told to run: size and mtime of the source are in the header
    of bytecode (PEP 552). __cached__ says nothing: the module may have come from the file with all modules.
    """
    source, cached = _programs()
    try:
        with open(cached, "rb") as file:
            header = file.read(16)
    except OSError:
        return source
    found = os.stat(source)
    times = (int(found.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little") + (found.st_size & 0xFFFFFFFF).to_bytes(
        4, "little"
    )
    return cached if header == _frozen_importlib_external.MAGIC_NUMBER + bytes(4) + times else source


def _programs() -> tuple[str, str]:
    return prober.__file__, _frozen_importlib_external.cache_from_source(prober.__file__)


def found(step: Step) -> list[Process]:
    """The running probes of a container, found by their command lines."""
    programs, mark = {*_programs()}, places.of(step).mark
    probes = []
    for name in os.listdir("/proc"):
        try:
            if not name.isdecimal() or os.stat(f"/proc/{name}").st_uid != os.geteuid():
                continue
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = os.fsdecode(file.read()).split("\0")
        except OSError:
            continue
        if len(words) > 3 and words[2] in programs and words[3] == mark and (process := processes.identify(int(name))):
            probes.append(process)
    return probes


def end(step: Step) -> None:
    """Ends a container's probes. This comes before the container is stopped: a payload that ends may stop answering."""
    processes.kill_all(lambda: found(step))
