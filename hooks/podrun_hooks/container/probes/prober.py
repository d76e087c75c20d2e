"""One attempt at a port or with a command; run as a program, the live probe: the one process that repeats attempts.

The program is this file alone under ``python3 -IS``: it imports what the interpreter has built in, because what it
imports stays in memory as long as the container runs. Its arguments are those of :func:`main`.
"""

from __future__ import annotations

import errno
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os as posix
    import signal as _signal
    import socket as _socket
    from collections.abc import Sequence
else:
    # What os, signal and socket are made on top of: a megabyte less.
    import _signal
    import _socket
    import posix


#: Between the words of REPORT: in no path and no name.
SEPARATOR = "\x1f"


#: Bytes of a command's output that are kept, and seconds between two looks at how many there are.
_MOST, _GLANCE = 1 << 16, 0.1


class Over(Exception):
    """The process whose life the probe is about has ended."""


def connect(host: str, port: int, path: str = "", seconds: float = 5.0, life: int = -1) -> str:
    """One connection, with ``path`` a GET (RFC 9112) as far as its status line; returns what is wrong, "" for nothing.

    ``life``: a pidfd; raises Over as soon as its process has ended.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    deadline = time.monotonic() + seconds
    try:
        family, kind, protocol, _, address = _socket.getaddrinfo(host.encode(), port, 0, _socket.SOCK_STREAM)[0]
        sock = _socket.socket(family, kind | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC, protocol)
        try:
            code = sock.connect_ex(address)
            if code == errno.EINPROGRESS:
                _await(sock.fileno(), select.POLLOUT, deadline, life)
                code = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
            if code:
                return f"{where}: {posix.strerror(code)}"
            return _get(sock, path, where, deadline, life) if path else ""
        finally:
            sock.close()
    except TimeoutError:
        return f"{where}: no answer within {seconds:.3g} s"
    except OSError as error:
        words = posix.strerror(error.errno) if error.errno and error.errno in errno.errorcode else str(error)
        return f"{where}: {words}"


def _get(sock: _socket.socket, path: str, where: str, deadline: float, life: int) -> str:
    words = f"GET {path} HTTP/1.1\r\nHost: {where}\r\nUser-Agent: podrun\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    # It fits a socket's buffer, which is empty.
    sock.send(words.encode(), _socket.MSG_NOSIGNAL)
    answer = b""
    while b"\n" not in answer and len(answer) < 4096:
        _await(sock.fileno(), select.POLLIN, deadline, life)
        more = sock.recv(4096)
        if not more:
            break
        answer += more
    told = answer.split(b"\n", 1)[0].split()
    if len(told) < 2 or not told[0].startswith(b"HTTP/1.") or not (told[1].isdigit() and len(told[1]) < 20):
        return f"http://{where}{path}: the answer is not HTTP"
    if not 200 <= int(told[1]) < 400:
        return f"http://{where}{path} answers {int(told[1])}"
    if life >= 0:
        _drain(sock, len(answer), min(deadline, time.monotonic() + 0.1), life)
    return ""


def _drain(sock: _socket.socket, size: int, deadline: float, life: int) -> None:
    """Reads on for a moment: a server whose client is gone before it has written everything logs an error each time."""
    try:
        while size < 1 << 16:
            _await(sock.fileno(), select.POLLIN, deadline, life)
            more = sock.recv(1 << 14)
            if not more:
                return
            size += len(more)
    except OSError:
        pass


def _await(fd: int, event: int, deadline: float, life: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if life >= 0:
        poll.register(life, select.POLLIN)
    happened = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
    if life in happened:
        raise Over
    if not happened:
        raise TimeoutError


def run(argv: Sequence[str], seconds: float, life: int) -> str:
    """Runs a runtime's ``exec``; returns what is wrong, "" for status 0. What takes too long is killed."""
    # Not a pipe: what the command leaves behind in the container would keep it open. Written at its end, so that it
    # can be emptied meanwhile.
    memory = posix.memfd_create("output", posix.MFD_CLOEXEC)
    output = posix.open(f"/proc/self/fd/{memory}", posix.O_RDWR | posix.O_APPEND | posix.O_CLOEXEC)
    posix.close(memory)
    # An ignored signal stays ignored across execve(2), and Python ignores these.
    ignored = [_signal.SIGPIPE, _signal.SIGXFSZ]
    actions = [(posix.POSIX_SPAWN_DUP2, output, 1), (posix.POSIX_SPAWN_DUP2, output, 2)]
    child = posix.posix_spawn(
        argv[0], list(argv), posix.environ, file_actions=actions, setsigdef=ignored, setsigmask=()
    )
    pidfd = posix.pidfd_open(child)
    try:
        _await_quiet(pidfd, time.monotonic() + seconds, life, output)
    except (TimeoutError, Over) as reason:
        # The command is the runtime's child and would outlive it, as its own children would outlive the command.
        for pid in reversed(_family(child)):
            try:
                posix.kill(pid, 9)
            except ProcessLookupError:
                pass
        posix.waitpid(child, 0)
        if isinstance(reason, Over):
            raise
        return f"timed out after {seconds:g} s"
    finally:
        posix.close(pidfd)
        start = max(0, posix.fstat(output).st_size - 4096)
        words = posix.pread(output, 4096, start).decode(errors="replace").split("\n")
        posix.close(output)
    status = posix.waitstatus_to_exitcode(posix.waitpid(child, 0)[1])
    last = next((word.strip() for word in reversed(words) if word.strip()), "")
    return f"status {status}{f' ({last})' if last else ''}" if status else ""


def _await_quiet(pidfd: int, deadline: float, life: int, output: int) -> None:
    """Waits for the command, and drops its output whenever that exceeds what is ever shown."""
    while True:
        try:
            _await(pidfd, select.POLLIN, min(deadline, time.monotonic() + _GLANCE), life)
            return
        except TimeoutError:
            if time.monotonic() >= deadline:
                raise
        if posix.fstat(output).st_size > _MOST:
            posix.ftruncate(output, 0)


def _family(pid: int) -> list[int]:
    """A process and its descendants, each stopped before its children are listed, so that none is missed."""
    found = [pid]
    for one in found:
        try:
            posix.kill(one, _signal.SIGSTOP)
        except ProcessLookupError:
            continue
        found += _children(one)
    return found


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def main(words: Sequence[str]) -> None:
    """Probes until the container ends. Its words are these.

    MARK LABEL LIFE SYSTEMD ANSWERS INTERVAL TIMEOUT RETRIES START KILLS REPORT KIND WORD...

    MARK: who it is for, by which ``down`` finds it. LIFE: a pidfd of the container's init. SYSTEMD: a descriptor
    connected to systemd's socket, or -1. ANSWERS: 1, it answers the unit's watchdog; 0, not before SIGUSR1, which finds
    both signals blocked. START: seconds in which failures do not count, until a first success. KILLS: 1; 0, a
    container that fails lives on. REPORT: see report(). The WORDs are the command line of ``exec``, or port, path and
    hosts.

    The watchdog is about the unit's main process. In a hot swap that is another generation's at first: SIGUSR1 says
    that it is this one's from now on, SIGUSR2 that it is not any more. Meanwhile a container that fails is killed here.
    """
    _, label, life_text, systemd_text, answers_text, *numbers, kills_text, reporting, kind = words[:12]
    rest = words[12:]
    life, socket, answers = int(life_text), int(systemd_text), answers_text == "1"
    interval_text, timeout_text, retries_text, start_text = numbers
    interval, timeout, retries = float(interval_text), float(timeout_text), int(retries_text)
    counting_from = time.monotonic() + float(start_text)
    failures, failing = 0, False
    name("starting")
    ended = select.poll()
    ended.register(life, select.POLLIN)
    following = time.monotonic() + interval
    while not ended.poll(max(0.0, following - time.monotonic()) * 1000):
        following = time.monotonic() + interval
        try:
            wrong = run(rest, timeout, life) if kind == "exec" else anywhere(rest, timeout, life)
        except Over:
            return
        if not wrong:
            if failing:
                _tell(f"{label}: the live probe succeeds{' again' if failures else ''}")
                report(reporting, "1")
            failures, failing = 0, False
            counting_from = 0.0
            name("healthy")
        else:
            if counted := time.monotonic() >= counting_from:
                failures += 1
            if counted and failures <= retries:
                _tell(f"{label}: the live probe failed, {failures} of {retries}: {wrong}")
            elif not failing:
                _tell(f"{label}: the live probe failed, which does not count in its start_period: {wrong}")
            if not failing:
                report(reporting, "0")
            failing = True
            if counted and failures == retries:
                name("unhealthy")
        answers = _answers(answers)
        systemd = socket if answers else -1
        if failures < retries or kills_text == "0":
            _send(systemd, "WATCHDOG=1")
        elif systemd >= 0:
            # systemd does the rest: WatchdogSignal=, Result=watchdog, Restart= (sd_notify(3)).
            _send(systemd, f"STATUS=the live probe failed: {wrong}\nWATCHDOG=trigger")
        else:
            _tell(f"{label}: killed, because it failed the live probe {retries} times in a row")
            _kill(life)


def _answers(before: bool) -> bool:
    """Whether it answers the watchdog, after what has been said since it did, or did not, ``before``."""
    while told := _signal.sigtimedwait((_signal.SIGUSR1, _signal.SIGUSR2), 0):
        before = told.si_signo == _signal.SIGUSR1
    return before


def name(state: str) -> None:
    """Shows the container's health as this process' name (proc(5), comm): whoever may see it may ask for it."""
    try:
        fd = posix.open("/proc/self/comm", posix.O_WRONLY | posix.O_CLOEXEC)
        posix.write(fd, f"probe {state}"[:15].encode())
        posix.close(fd)
    except OSError:
        pass  # no /proc


def report(words: str, ready: str) -> None:
    """Has the pod's records say whether it is ready, when it has any: DIRECTORY PREFIX NAMESPACE COMMAND...

    The COMMAND gets ``ready`` and NAMESPACE as its last words. It is waited for: the next one is not to overtake it.
    """
    directory, prefix, namespace, *argv = words.split(SEPARATOR)
    try:
        if not any(name.startswith(prefix) for name in posix.listdir(directory)):
            return
        posix.set_inheritable(int(namespace), True)
        child = posix.posix_spawn(argv[0], [*argv, ready, namespace], posix.environ, setsigmask=())
        posix.waitpid(child, 0)
    except OSError:
        pass


def anywhere(words: Sequence[str], seconds: float, life: int) -> str:
    """An attempt at each host until one succeeds or the time is over; returns the first one's trouble."""
    port, path, *hosts = words
    deadline = time.monotonic() + seconds
    first = ""
    for host in hosts:
        # A refused connection takes no time: the first host that takes one has it all.
        left = deadline - time.monotonic()
        if left <= 0:
            break
        wrong = connect(host, int(port), path, left, life)
        if not wrong:
            return ""
        first = first or wrong
    return first


def _send(sock: int, assignments: str) -> None:
    if sock >= 0:
        try:
            posix.write(sock, assignments.encode())
        except OSError:
            pass  # the supervisor is gone


def _kill(pidfd: int) -> None:
    try:
        _signal.pidfd_send_signal(pidfd, 9)
    except ProcessLookupError:
        pass


def _tell(line: str) -> None:
    plain = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    try:
        posix.write(2, f"podrun: {plain}\n".encode(errors="replace"))
    except OSError:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
