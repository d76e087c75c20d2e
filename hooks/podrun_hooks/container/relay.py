"""A command in a running container as ``podrun exec`` runs it: its streams, its terminal, its signals, its status.

The runtime starts the command and exits (``exec --detach``). podrun, its subreaper, copies, forwards signals and waits.
A terminal or a regular file of the host's never gets into the container: any process there may open another one's
streams (/proc/PID/fd), keep them, and read what is typed into the host's shell, or empty the file.
"""

from __future__ import annotations

import os
import stat

from podrun import relay
from podrun.errors import CANNOT_EXECUTE, Failure
from podrun.relay import Channel
from podrun_hooks.container import processes
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from types import FrameType

    from podrun_hooks.container.paths import Place
    from podrun_hooks.container.processes import Process
else:
    import _signal

#: Signals to podrun that are meant for the command.
_PASSED_ON = tuple(getattr(_signal, f"SIG{name}") for name in "HUP INT QUIT TERM USR1 USR2 CONT".split())


def run(
    place: Place, start: Callable[[list[str], tuple[int, int, int]], int], *, tty: bool, interactive: bool = True
) -> int:
    """Has ``start`` run the command (options of the runtime's exec, streams) and waits for it; returns its exit code.

    ``interactive``: it gets podrun's standard input; else it reads the end of it at once, and nothing from a terminal.
    ``start`` returns the runtime's status; what the runtime had to say is on standard error by then.
    """
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    pid_file = f"{place.written}/exec-{os.getpid()}"
    options = ["--detach", "--pid-file", pid_file]
    try:
        if tty:
            return _with_terminal(place, start, options, pid_file, interactive=interactive)
        return _with_pipes(start, options, pid_file, interactive=interactive)
    finally:
        _unlink(pid_file)


def _with_pipes(
    start: Callable[[list[str], tuple[int, int, int]], int], options: list[str], pid_file: str, *, interactive: bool
) -> int:
    # Both outputs are one pipe where they are one file: what is written in order has to arrive in order.
    leader = {
        fd: 1 if fd == 2 and _same(1, 2) else fd
        for fd in (0, 1, 2)
        if _is_kept_outside(fd) or (fd == 0 and not interactive)
    }
    pipes = {fd: os.pipe2(os.O_CLOEXEC) for fd in {*leader.values()}}
    ours = {fd: pipe[0 if fd else 1] for fd, pipe in pipes.items()}
    theirs = {fd: pipe[1 if fd else 0] for fd, pipe in pipes.items()}
    streams = [theirs[leader[fd]] if fd in leader else fd for fd in (0, 1, 2)]
    process = _started(start, options, (streams[0], streams[1], streams[2]), pid_file)
    for fd in theirs.values():
        os.close(fd)
    channels = []
    if not interactive:
        os.close(ours.pop(0))
    if 0 in ours:
        os.set_blocking(ours[0], False)
        channels.append(Channel(0, ours[0], lambda: os.close(ours[0])))
    outputs = [Channel(ours[fd], fd) for fd in (1, 2) if fd in ours]
    return _attend(process, [*channels, *outputs], outputs, lambda: None)


def _with_terminal(
    place: Place,
    start: Callable[[list[str], tuple[int, int, int]], int],
    options: list[str],
    pid_file: str,
    *,
    interactive: bool,
) -> int:
    import termios

    from podrun_hooks.support import terminal

    listener, path = terminal.listen(place.written, f"console-{os.getpid()}")
    try:
        process = _started(start, [*options, "--console-socket", path], (0, 1, 2), pid_file)
        master = terminal.take(listener)
    finally:
        listener.close()
        _unlink(f"{place.written}/console-{os.getpid()}")
    os.set_blocking(master, False)
    terminal.resize(master)
    before = terminal.raw(0) if interactive else None
    try:
        keyboard = [Channel(0, master, lambda: terminal.end_of_input(master))] if interactive else []
        screen = Channel(master, 1)
        return _attend(process, [*keyboard, screen], [screen], lambda: terminal.resize(master))
    finally:
        if before is not None:
            try:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
            except termios.error:
                pass  # the terminal is gone


def _started(
    start: Callable[[list[str], tuple[int, int, int]], int],
    options: list[str],
    streams: tuple[int, int, int],
    pid_file: str,
) -> Process:
    status = start(options, streams)
    try:
        with open(pid_file, encoding="utf-8") as file:
            pid = int(file.read())
    except (FileNotFoundError, ValueError):
        raise Failure("the runtime cannot run the command", code=CANNOT_EXECUTE, hint=f"status {status}") from None
    return processes.Process(pid, processes.start_of(pid))


def _attend(process: Process, channels: list[Channel], outputs: list[Channel], resized: Callable[[], None]) -> int:
    pidfd = os.pidfd_open(process.pid)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        try:
            _signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            pass

    for number in _PASSED_ON:
        _signal.signal(number, pass_on)
    _signal.signal(_signal.SIGWINCH, lambda *_: resized())
    relay.copy(channels, outputs, pidfd)
    processes.polled((pidfd,), float("inf"))
    code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
    return code if code >= 0 else 128 - code


def _is_kept_outside(fd: int) -> bool:
    """Whether it has a name on the host: a terminal, a file, /dev/null.

    crun 1.8.1 gives the user of the command what it gets (fchown(2)): the host's /dev/null would be that user's.
    """
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))


def _same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
