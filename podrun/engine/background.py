"""A step in the background: its ``up`` runs in a forked child, which hands its facts back through a pipe."""

from __future__ import annotations

import os
import select
import time

from podrun import jsontext, libc
from podrun.engine.verbs import late, verb
from podrun.errors import STEP_FAILED, Failure, of_oserror
from podrun.facts import accepted
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from podrun.engine.journal import Writer
    from podrun.hook import Facts, Hook, Step
    from podrun.podfile.loader import StepText

# ``signal`` builds enums (3 ms): the start path takes the numbers from the module below it.
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
#: Seconds past its deadline in which a child can still report that it timed out.
_GRACE = 2.0


class Background(NamedTuple):
    """A step under way. ``began`` is on the monotonic clock."""

    pid: int
    pipe: int
    n: int
    text: StepText
    journal: Writer
    gives: Sequence[str]
    began: float
    #: Seconds that it may take.
    timeout: float

    def join(self) -> Facts:
        """Waits for the child; returns its facts or raises the Failure it had. After a signal it is to be killed."""
        answer = self._answer()
        if answer is None:
            self.kill()
            raise late(self.timeout)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pipe)
        if not answer:
            raise Failure(f"its background process ended with {status} and gave no answer")
        told = jsontext.loads(answer)
        if "failure" in told:
            what, code, hint, key = told["failure"]
            raise Failure(what, code=code, hint=hint, key=key)
        facts: Facts = told["facts"]
        return facts

    def _answer(self) -> str | None:
        """The child's answer, read to its end; None when the child outlives its deadline and the grace."""
        poll = select.poll()
        poll.register(self.pipe, select.POLLIN)
        deadline = self.began + self.timeout + _GRACE
        told = b""
        while True:
            left = deadline - time.monotonic()
            if not poll.poll(max(0, min(left * 1000, 1e9))):
                if left <= 0:
                    return None
                continue
            part = os.read(self.pipe, 65536)
            if not part:
                return told.decode()
            told += part

    def kill(self) -> None:
        """Ends the child without asking what it did: the step's ``down`` finds out."""
        try:
            os.kill(self.pid, _SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pipe)
        except (ProcessLookupError, ChildProcessError):
            pass  # a signal came right after it had been waited for


def begin(
    pending: list[Background],
    hook: Hook,
    step: Step,
    facts: Facts,
    n: int,
    text: StepText,
    journal: Writer,
    forked: Callable[[], None],
) -> None:
    """Starts ``hook.up`` in a child that dies with the launcher, and adds it to ``pending``.

    ``forked`` is what a forked child of the launcher does first.
    """
    began = time.monotonic()
    here, there = os.pipe2(os.O_CLOEXEC)
    launcher = os.getpid()
    # No signal may find podrun with a child that it does not know of yet.
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM))
    try:
        child = os.fork()
        if child:
            os.close(there)
            pending.append(Background(child, here, n, text, journal, hook.gives, began, step.timeout))
            return
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    try:
        forked()
        os.close(here)
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(1)
        try:
            with verb(step):
                told: dict[str, object] = {"facts": accepted(hook.up(step, facts))}
        except Failure as error:
            told = {"failure": [error.what, error.code, error.hint, error.key]}
        except OSError as error:
            failure = of_oserror(error)
            told = {"failure": [failure.what, failure.code, failure.hint, ""]}
        except Exception as error:
            # The traceback stays in this process.
            what, hint = f"the hook failed: {type(error).__name__}: {error}", "without 'background' --debug shows where"
            told = {"failure": [what, STEP_FAILED, hint, ""]}
        with open(there, "w", encoding="utf-8") as pipe:
            pipe.write(jsontext.dumps(told))
    finally:
        os._exit(0)
