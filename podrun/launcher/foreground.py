"""podrun in the foreground: it waits for the payload, passes signals on, and tells how it ended."""

from __future__ import annotations

import os
import time

from podrun import libc
from podrun.engine.processes import alive
from podrun.errors import Interrupted
from podrun.record import NamedTuple

# ``signal`` builds enums (3 ms): the start path takes the numbers from the module below it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Sequence
    from types import FrameType
else:
    import _signal

_PR_SET_CHILD_SUBREAPER = 36

SIGHUP, SIGINT, SIGQUIT, SIGTERM = _signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM
SIGUSR1, SIGUSR2 = _signal.SIGUSR1, _signal.SIGUSR2
#: Signals that ask for the end of the pod.
ENDING = (SIGINT, SIGTERM)
NAMES: dict[int, str] = {SIGINT: "SIGINT", SIGTERM: "SIGTERM", SIGHUP: "SIGHUP"}
#: Asks a podrun in the foreground to reload its pod: podrun's own, no payload gets it.
RELOAD = _signal.SIGRTMIN + 2
#: What is not the payload's business: SIGKILL and SIGSTOP, which nobody can hold; SIGCHLD and SIGPIPE; the shell's job
#: control (SIGTSTP, SIGTTIN, SIGTTOU: podrun stops, the payload runs on, SIGCONT goes on); what the kernel says of
#: podrun's own faults (4 to 8, SIGSEGV, SIGXFSZ, SIGSYS). 32 and 33 are the C library's.
_OWN = (4, 5, 6, 7, 8, 9, 11, 13, 17, 19, 20, 21, 22, 25, 31, 32, 33, *ENDING, RELOAD)
#: All others are.
PASSED_ON = tuple(number for number in range(1, 65) if number not in _OWN)


class TimeIsUp(Exception):
    """The payload has run as long as it may."""


class Resident(NamedTuple):
    """A process that a step left running. ``n`` is the step's number in the chain."""

    n: int
    label: str
    pid: int
    start: int


def adopt_orphans() -> None:
    """Makes the containers' inits children of podrun once their runtime has exited (prctl(2), CHILD_SUBREAPER)."""
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def interruptible() -> None:
    """From here on SIGINT, SIGTERM and SIGHUP raise Interrupted, once: the undoing follows the first one."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for signal in (*ENDING, SIGHUP):
            _signal.signal(signal, _signal.SIG_IGN)
        raise Interrupted(number)

    for signal in (*ENDING, SIGHUP):
        if _signal.getsignal(signal) != _signal.SIG_IGN:  # nohup(1) means it
            _signal.signal(signal, interrupt)


def hold() -> set[int]:
    """From here on signals wait until :func:`wait` takes them: none finds podrun between the start and the waiting.

    Returns which they are. Threads started from now on leave the signals to the main one.
    """
    # A blocked signal is queued although it is ignored, and nohup(1) means it.
    # Who has a handler can be asked; unlike SIG_IGN it does not outlive exec(2).
    _signal.signal(RELOAD, lambda *_: None)
    held: set[int] = {RELOAD}
    held |= {number for number in (*ENDING, *PASSED_ON) if _signal.getsignal(number) != _signal.SIG_IGN}
    if callable(_signal.getsignal(_signal.SIGWINCH)):
        held.discard(_signal.SIGWINCH)  # the payload has a terminal, which podrun resizes
    _signal.pthread_sigmask(_signal.SIG_BLOCK, held | {_signal.SIGCHLD})
    return held


def _let_go(held: set[int]) -> None:
    """The opposite of :func:`hold`, for a while: SIGINT and SIGTERM interrupt, and nothing that is started has them
    blocked. What would ask for a reload meanwhile asks for what is being done.
    """
    interruptible()
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, held | {_signal.SIGCHLD})


def wait(
    residents: Sequence[Resident], reload: Callable[[], Sequence[Resident]] | None = None, lifetime: float = 0.0
) -> tuple[int, bool]:
    """Waits until every resident has ended, or one of them has failed; returns (exit status, all have ended).

    The status is that of the first resident that failed, 128+n by signal n, else 0. Raises Interrupted on SIGINT and
    SIGTERM; other signals go to the residents, but RELOAD: ``reload`` is called and returns who is waited for from then
    on. Afterwards signals are ignored: what follows is the undoing. Raises TimeIsUp after ``lifetime`` seconds, if any.
    """
    deadline = time.monotonic() + lifetime if lifetime else 0.0
    waiting = {resident.pid: resident for resident in residents}
    held = hold()
    try:
        while waiting:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in waiting:
                del waiting[pid]
                if status:
                    return exit_code(status), not waiting
            elif not pid:
                number = _next(held | {_signal.SIGCHLD}, deadline)
                if number in ENDING:
                    raise Interrupted(number)
                if number == RELOAD:
                    if reload:
                        _let_go(held)
                        waiting = {resident.pid: resident for resident in reload()}
                        hold()
                    continue
                for resident in waiting.values() if number in held else ():
                    send(resident, number)
        return 0, True
    except ChildProcessError:
        # No children of podrun's any more: another process has reaped them.
        return 0, not any(alive(resident.pid, resident.start) for resident in waiting.values())
    finally:
        for number in held:
            _signal.signal(number, _signal.SIG_IGN)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, held | {_signal.SIGCHLD})


def _next(signals: set[int], deadline: float) -> int:
    """The next of these signals. Raises TimeIsUp when there is none until ``deadline`` (0: for ever)."""
    if not deadline:
        return _signal.sigwaitinfo(signals).si_signo
    came = _signal.sigtimedwait(signals, max(0.0, deadline - time.monotonic()))
    if came is None:
        raise TimeIsUp
    return came.si_signo


def await_end(resident: Resident, seconds: float) -> int | None:
    """Waits for one resident, a child of podrun, to end; its exit code, or None when it has not after ``seconds``.

    After a second Ctrl-C it is None at once: the user does not want to wait.
    Other children are reaped meanwhile: a container's init cannot end before the orphans of its namespace have been.
    """
    import select

    deadline = time.monotonic() + seconds
    again: list[int] = []
    try:
        fd = os.pidfd_open(resident.pid)
    except ProcessLookupError:
        return 0
    before = {number: _signal.signal(number, lambda number, _frame: again.append(number)) for number in ENDING}
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not poll.poll(max(0, min(deadline - time.monotonic(), 0.05) * 1000)):
            if again or time.monotonic() > deadline:
                return None
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                continue
            if pid == resident.pid:
                return exit_code(status)
    finally:
        os.close(fd)
        for number, handler in before.items():
            _signal.signal(number, handler)
    return reap(resident)


def reap(resident: Resident) -> int:
    """The exit code of a resident that has ended; 0 when it was not podrun's child or has been reaped."""
    try:
        pid, status = os.waitpid(resident.pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return exit_code(status) if pid else 0


def last_words(seconds: float) -> None:
    """Waits, at most so long, for the children that are left: they copy the payload's last output to the terminal."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.002)
    except ChildProcessError:
        return


def send(resident: Resident, number: int) -> None:
    """Sends a signal to the very process, never to one that got its pid later (pidfd_send_signal(2))."""
    try:
        fd = os.pidfd_open(resident.pid)
    except ProcessLookupError:
        return
    try:
        if alive(resident.pid, resident.start):
            _signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def exit_code(status: int) -> int:
    """A wait status as a shell shows it: the exit status, 128+n for signal n."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
