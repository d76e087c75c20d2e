"""Running an executable for its answer: limited in time and output, its progress passed on, nothing left running."""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import time

from podrun.errors import Failure
from podrun_hooks.support import syscalls

# ``signal`` builds enums (3 ms): the start path takes the numbers from the module below it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn
else:
    import _signal

#: Most bytes of standard output.
LIMIT = 1 << 20
#: Bytes of a line of standard error; a longer line is split.
_LINE = 1 << 16


class Patience:
    """The deadline of one verb. ``firm``: the executable's EXTEND_TIMEOUT_USEC= is passed on but does not move it."""

    def __init__(self, seconds: float, *, firm: bool) -> None:
        self.deadline = time.monotonic() + seconds
        self.firm = firm

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def extend(self, seconds: float) -> None:
        """As systemd reads EXTEND_TIMEOUT_USEC= (sd_notify(3)): counted from now, and never shorter than before."""
        if not self.firm:
            self.deadline = max(self.deadline, time.monotonic() + seconds)


class Progress:
    """The socket on which an executable reports progress; only harmless assignments are passed on to ``notify``."""

    def __init__(self, path: str, notify: Callable[[str], None]) -> None:
        self.notify = notify
        self.path = ""
        self.socket: _socket.socket | None = None
        if path:
            self._listen(path)

    def _listen(self, path: str) -> None:
        # The socket is removed when a verb ends. If it still exists, podrun was killed, and the executable with it. But
        # PR_SET_PDEATHSIG is not inherited: a program that a shell script was running lives on.
        if os.path.lexists(path):
            _end_orphans(f"NOTIFY_SOCKET={path}".encode())
            _unlink(path)
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        try:
            sock.bind(path)
        except OSError:
            # The path is longer than 107 bytes, or there is no pod directory. Progress is optional.
            sock.close()
            return
        self.path, self.socket = path, sock

    def pass_on(self, patience: Patience) -> None:
        """Handles all messages that have arrived. recv(2) closes descriptors sent with them (systemd-notify waits for
        that)."""
        while self.socket:
            try:
                message = self.socket.recv(4096)
            except BlockingIOError:
                return
            for line in message.decode(errors="replace").splitlines():
                key, _, value = line.partition("=")
                if key == "EXTEND_TIMEOUT_USEC" and value.isascii() and value.isdecimal() and len(value) < 16:
                    patience.extend(int(value) / 1e6)
                elif key != "STATUS":
                    continue
                self.notify(line)

    def close(self) -> None:
        if self.socket:
            self.socket.close()
            _unlink(self.path)


def run(
    path: str, environ: Mapping[str, str], question: bytes, patience: Patience, progress: Progress, name: str
) -> tuple[int, bytes]:
    """Runs an executable in a process group of its own; returns its exit status (128+n by signal) and its output.

    It kills the group if the executable fails, exceeds its deadline or prints too much, or if podrun is interrupted;
    the kernel kills it if podrun is killed. Processes that a successful executable leaves running stay. Standard error
    is passed on line by line, prefixed with ``name``. Raises Failure.
    """
    stdin = os.memfd_create("podrun", os.MFD_CLOEXEC)
    out, out_there = os.pipe2(os.O_CLOEXEC)
    err, err_there = os.pipe2(os.O_CLOEXEC)
    leash, held = os.pipe2(os.O_CLOEXEC)
    os.write(stdin, question)
    os.lseek(stdin, 0, os.SEEK_SET)
    launcher = os.getpid()
    child = syscalls.fork()
    if not child:
        _become(path, environ, (stdin, out_there, err_there), leash, launcher)
    succeeded = False
    try:
        for fd in (stdin, out_there, err_there):
            os.close(fd)
        output = _listen(child, out, err, patience, progress, name)
        # WNOWAIT: the process stays a zombie, so that its pid (and process group) cannot be reused yet.
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        succeeded = ended is not None and (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0)
    finally:
        if succeeded:
            fcntl.fcntl(leash, fcntl.F_SETFL, 0)
        else:
            _kill_group(child)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for fd in (out, err, held, leash):
            os.close(fd)
    return (status if status >= 0 else 128 - status), output


def _become(path: str, environ: Mapping[str, str], streams: Sequence[int], leash: int, launcher: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        _tie(leash)
        syscalls.die_with_parent(launcher)
        syscalls.heed_signals()
        for target, fd in enumerate(streams):
            os.dup2(fd, target)
        os.chdir("/")
        os.execve(path, [path], environ)
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
    finally:
        os._exit(126)


def _tie(leash: int) -> None:
    """Has the kernel kill this process's group when podrun ends in whatever way.

    ``leash`` is the reading end of a pipe. Only podrun holds the writing end, and writes nothing. When that is closed,
    the kernel signals readers with O_ASYNC (fcntl(2), F_SETSIG, F_SETOWN). PR_SET_PDEATHSIG is not inherited and would
    kill the leader alone. The descriptor's number is high because shell scripts use 3 to 9.
    """
    fd = fcntl.fcntl(leash, fcntl.F_DUPFD, 100)
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, _signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC)


def _listen(child: int, out: int, err: int, patience: Patience, progress: Progress, name: str) -> bytes:
    """Collects the executable's output until it ends. It waits for the process, not for the end of the pipes, which a
    process that it leaves running may have inherited."""
    output, log = bytearray(), _Log(name)
    reading = {out: output.extend, err: log.extend}
    pidfd = os.pidfd_open(child)
    poll = select.poll()
    for fd in (pidfd, *reading):
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    if progress.socket:
        poll.register(progress.socket.fileno(), select.POLLIN)
    ended = False
    try:
        while not ended:
            left = patience.left()
            ready = poll.poll(min(left * 1000, 1e9)) if left > 0 else []
            if not ready:
                raise Failure(
                    "no answer in time; it was killed", hint="'timeout' of the step says how long it may take"
                )
            # Checked before reading: all that the executable wrote before its end is then in the pipes.
            ended = any(fd == pidfd for fd, _ in ready)
            progress.pass_on(patience)
            for fd, keep in list(reading.items()):
                if not _drain(fd, keep, lambda: len(output) > LIMIT):
                    poll.unregister(fd)
                    del reading[fd]
            if len(output) > LIMIT:
                raise Failure(f"more than {LIMIT} bytes on standard output; it was killed")
    finally:
        os.close(pidfd)
        log.close()
    return bytes(output)


def _drain(fd: int, keep: Callable[[bytes], None], enough: Callable[[], bool]) -> bool:
    """Reads what is available; returns False at the end of the stream."""
    while not enough():
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        keep(data)
    return True


class _Log:
    """Passes on an executable's standard error line by line, prefixed with its name."""

    def __init__(self, name: str) -> None:
        self.prefix = f"{name}: ".encode()
        self.rest = bytearray()

    def extend(self, data: bytes) -> None:
        self.rest += data
        *whole, rest = self.rest.split(b"\n")
        if len(rest) > _LINE:
            whole, rest = [*whole, rest], bytearray()
        self.rest = rest
        for line in whole:
            self._pass_on(line)

    def close(self) -> None:
        if self.rest:
            self._pass_on(self.rest)

    def _pass_on(self, line: bytes | bytearray) -> None:
        text = line.decode(errors="replace")
        if not text.isprintable():  # an executable must not send control sequences to the terminal
            text = "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
        try:
            os.write(2, self.prefix + text.encode() + b"\n")
        except OSError:
            pass  # our standard error has no reader any more, which is no reason to stop a step


def _kill_group(leader: int) -> None:
    """Kills the rest of the group, or the child alone if it has not called setpgid(2) yet."""
    for kill, target in ((os.killpg, leader), (os.kill, leader)):
        try:
            kill(target, _signal.SIGKILL)
        except ProcessLookupError:
            continue


def _end_orphans(mark: bytes) -> None:
    """Kills the processes whose initial environment contains ``mark``, and waits until they are gone."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        found = [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and mark in _environ_of(pid)]
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, _signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.002)


def _environ_of(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
