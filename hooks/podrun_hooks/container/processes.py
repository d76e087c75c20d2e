"""Processes by identity: pid and start time, signalled and awaited through pidfds, found by what they have mounted."""

from __future__ import annotations

import os
import select
import time

from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Sequence

    from podrun.hook import Facts
    from podrun_hooks.container.paths import Place
else:
    import _signal

SIGKILL = 9


class Process(NamedTuple):
    """A process that no later one of the same pid is mistaken for: ``start`` is field 22 of /proc/PID/stat."""

    pid: int
    start: int


def stat_fields(pid: int) -> list[bytes]:
    """Fields 3 and up of /proc/PID/stat (proc(5)); [] when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def identify(pid: int) -> Process | None:
    """The process that has ``pid`` now; None when it has ended, a zombie included."""
    fields = stat_fields(pid)
    return Process(pid, int(fields[19])) if fields and fields[0] not in (b"Z", b"X") else None


def start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when there is none."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def exit_status(process: Process) -> int | None:
    """The exit status of a process that waits to be reaped, 128+n for signal n; None when it has been reaped.

    Field 52 of /proc/PID/stat is what waitpid(2) will tell the parent: looking does not reap.
    """
    fields = stat_fields(process.pid)
    if not fields or int(fields[19]) != process.start or fields[0] != b"Z":
        return None
    code = os.waitstatus_to_exitcode(int(fields[49]))
    return code if code >= 0 else 128 - code


def opened(process: Process) -> int | None:
    """A pidfd of the very process; None when it has ended."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if identify(process.pid) == process:
        return fd
    os.close(fd)
    return None


def ended(pidfd: int, seconds: float) -> bool:
    """Waits up to ``seconds`` (may be infinite) for the process to end."""
    return bool(polled((pidfd,), seconds))


def polled(fds: Sequence[int], seconds: float) -> list[int]:
    """Those of ``fds`` that can be read from, waited for up to ``seconds`` (may be infinite); orphans are reaped."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        happened = poll.poll(max(0, min(left, 0.05) * 1000))
        if happened or left <= 0:
            return [fd for fd, _ in happened]
        _reap_orphans()


def _reap_orphans() -> None:
    """Reaps ended processes of containers that the kernel gave to podrun, the next subreaper, when their parent ended.

    PID 1 of a namespace ends when all others of it have been reaped (zap_pid_ns_processes() in the kernel): to wait for
    it without reaping them, once a runtime's exec was killed, would be to wait for ever.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            children = file.read().split()
    except OSError:
        return
    for child in map(int, children):
        try:
            with open(f"/proc/{child}/status", "rb") as file:
                lines = dict(line.partition(b":")[::2] for line in file.read().splitlines())
            # Its pid in our namespace and in each one further in; 1 in the container's is the one to be waited for.
            inside = lines[b"NSpid"].split()[1:]
            if lines[b"State"].split()[0] == b"Z" and inside and inside[0] != b"1":
                os.waitpid(child, os.WNOHANG)
        except (OSError, KeyError):
            continue


def stop(process: Process, signal: int, timeout: float, status: Callable[[str], None]) -> str:
    """Ends a container's PID 1: ``signal``, up to ``timeout`` seconds of patience, SIGKILL; returns when it is gone.

    Returns a message for people; "" when it ended on the signal.
    """
    pidfd = opened(process)
    if pidfd is None:
        return ""
    try:
        if signal == SIGKILL:
            _send(pidfd, SIGKILL)
            ended(pidfd, float("inf"))
            return ""
        deadline = time.monotonic() + timeout
        # One that ignores the signal may all the same be finishing something: it has its time, as in a plain unit.
        heeds = _handles(process, signal, pidfd, min(1.0, timeout))
        status(f"stopping: {name_of(signal)} sent to process {process.pid}")
        _send(pidfd, signal)
        if ended(pidfd, max(0.0, deadline - time.monotonic())):
            return ""
        hint = ""
        if not heeds and _has(process, signal, b"SigIgn:"):
            hint = "; it ignores the signal: stop_signal can name one that it does not"
        elif not heeds:
            # The kernel drops a signal that PID 1 of a namespace has no handler for (pid_namespaces(7)).
            hint = "; as process 1 it has no handler for it: init = true passes the signal on"
        _send(pidfd, SIGKILL)
        ended(pidfd, float("inf"))
        return f"it did not end within {timeout:g} s of {name_of(signal)}: killed{hint}"
    finally:
        os.close(pidfd)


def heeds(process: Process, signal: int) -> bool:
    """Whether a signal reaches the payload now: it has a handler for it, or waits for it."""
    return _has(process, signal, b"SigCgt:", b"SigBlk:")


def name_of(signal: int) -> str:
    """ "SIGTERM" for 15, "SIGRTMIN+3" for 37; "signal 32" for what has no name of its own."""
    names = {number: name for name, number in vars(_signal).items() if name.startswith("SIG") and name[3] != "_"}
    first = int(_signal.SIGRTMIN)
    real_time = f"SIGRTMIN+{signal - first}" if signal > first else f"signal {signal}"
    return names.get(signal, real_time)


def end(process: Process, seconds: float = 10.0) -> None:
    """Kills a process and waits until it is gone, for so long at most."""
    pidfd = opened(process)
    if pidfd is None:
        return
    try:
        _send(pidfd, SIGKILL)
        ended(pidfd, seconds)
    finally:
        os.close(pidfd)


def _send(pidfd: int, signal: int) -> None:
    try:
        _signal.pidfd_send_signal(pidfd, signal)
    except ProcessLookupError:
        pass


def _handles(process: Process, signal: int, pidfd: int, patience: float) -> bool:
    """Whether a signal will reach the payload. In its first second it is given time to install a handler.

    The kernel drops a signal that PID 1 of a namespace neither handles nor blocks (pid_namespaces(7)): one sent before
    the handler is there is lost, and stopping would take the whole timeout.
    """
    while True:
        if heeds(process, signal):
            return True
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - process.start / os.sysconf("SC_CLK_TCK")
        if age > patience or ended(pidfd, 0.01):
            return False


def _has(process: Process, signal: int, *masks: bytes) -> bool:
    """Whether a signal is in one of a process' masks of proc(5); a blocked one is taken by sigwait(3) or signalfd(2).

    What runc's own init catches does not count: Go has handlers for all signals, and execve(2) drops them.
    """
    mask = 0
    try:
        with open(f"/proc/{process.pid}/status", "rb", buffering=0) as file:
            for line in file.read().splitlines():
                if line.startswith(b"Name:\trunc:["):
                    return False
                if line.startswith(masks):
                    mask |= int(line[7:], 16)
    except (FileNotFoundError, ProcessLookupError):
        pass
    return bool(mask >> (signal - 1) & 1)


def of_container(place: Place, own: Facts) -> Process | None:
    """A container's PID 1: from the step's facts, or, when ``up`` was killed, from the runtime's pid file.

    That file may be of another boot: it counts when the process still has the container's root mounted.
    """
    if own.get("process"):
        return Process(own["process"]["pid"], own["process"]["start"])
    try:
        with open(place.pid_file, encoding="utf-8") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
            ours = f" {place.mark} " in file.read()
    except (OSError, ValueError):
        return None
    return identify(pid) if ours else None


def with_mount(mark: str) -> list[Process]:
    """The processes in a mount namespace that has a mount whose source is ``mark``."""
    needle = f" {mark} ".encode()
    own = os.readlink("/proc/self/ns/mnt")
    seen: dict[str, bool] = {own: False}
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            if not seen.get(namespace, True):
                continue
            with open(f"/proc/{name}/mountinfo", "rb") as file:
                has = needle in file.read()
        except OSError:
            continue
        # The namespace of a process that is about to pivot its root shows the mount as well: no answer changes.
        seen[namespace] = has
        process = identify(int(name)) if has else None
        if process:
            found.append(process)
    return found


def kill_all(find: Callable[[], list[Process]], seconds: float = 10.0) -> list[Process]:
    """Kills what ``find`` finds until it finds nothing; returns who is still there after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        found = find()
        if not found or time.monotonic() > deadline:
            return found
        for process in found:
            end(process, 0.2)
