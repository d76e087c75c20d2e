"""A forked child of the launcher, which enters namespaces and dies with podrun.

Where only threads have to be kept apart, a thread does it for less: see podrun_hooks.support.aside.
"""

from __future__ import annotations

import os
import time
from errno import EXFULL

from podrun import jsontext
from podrun.errors import BUSY, CANNOT_CREATE, INTERNAL, Failure, of_oserror
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Child:
    """Runs ``work`` in a forked child. :meth:`join` returns its text, or raises its exception as a Failure.

    A ``lingering`` child lives for ``lingering`` more seconds, with only the descriptors that it opened itself. Nobody
    waits for its end: podrun, which is about to end as well, leaves it to init.
    """

    def __init__(self, work: Callable[[], str | None], *, lingering: float = 0.0) -> None:
        parent = os.getpid()
        self._lingering = lingering
        self._reading, writing = os.pipe2(os.O_CLOEXEC)
        self._pid = syscalls.fork()
        if self._pid == 0:
            _work(work, writing, parent, lingering)
        os.close(writing)

    def join(self) -> str:
        """Waits for what the child has to say, and for its end unless it is a lingering one. Raises Failure."""
        try:
            # One write of less than PIPE_BUF: all of it, or nothing from a child that was killed.
            said = os.read(self._reading, 1 << 16)
        except BaseException:
            self.kill()
            raise
        self._reap()
        if not said:
            raise Failure("the child that sets up the network was killed", code=INTERNAL)
        text, what, code, hint = jsontext.loads(said.decode())
        if what:
            raise Failure(what, code=code, hint=hint)
        return str(text)

    def kill(self) -> None:
        """Ends the child at once; nothing when it has been joined."""
        if self._pid:
            os.kill(self._pid, 9)
            self._reap()

    def _reap(self) -> None:
        os.close(self._reading)
        if not self._lingering:
            os.waitpid(self._pid, 0)
        self._pid = 0


def _work(work: Callable[[], str | None], writing: int, parent: int, lingering: float) -> None:
    """Runs in the child; does not return."""
    status = 1
    try:
        if lingering:
            os.closerange(0, writing)
            os.closerange(writing + 1, 1 << 20)
        syscalls.die_with_parent(parent)
        try:
            answer = (work() or "", "", 0, "")
        except (Failure, OSError) as error:
            failure = error if isinstance(error, Failure) else failure_of(error)
            answer = ("", failure.what[:2000], failure.code, failure.hint)
        os.write(writing, jsontext.dumps(answer).encode())
        status = 0
        if lingering:
            time.sleep(lingering)
    except BaseException as error:
        os.write(writing, jsontext.dumps(("", f"{type(error).__name__}: {error}"[:2000], INTERNAL, "")).encode())
    finally:
        # Do not return into the parent's code: its exception handlers would undo the pod a second time.
        os._exit(status)


def failure_of(error: OSError) -> Failure:
    """What a refusal of the kernel's means for a pod's network."""
    if error.errno == EXFULL:
        return Failure("the bridge has no port left (it can have 1023)", code=BUSY, hint="use a second bridge")
    failure = of_oserror(error)
    return Failure(failure.what, code=CANNOT_CREATE) if isinstance(error, FileExistsError) else failure
