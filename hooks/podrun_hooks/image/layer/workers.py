"""Child processes that work for a pull: each handles one request after another, and none outlives the pull.

Threads would wait for the interpreter lock: a small file costs Python as much time as the kernel. A child dies with its
parent, however the parent ends (PR_SET_PDEATHSIG), and leaves signals from the terminal and systemd to it.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from podrun.errors import Failure
from podrun_hooks.support import syscalls

#: Signals that ask a pull to end. Children ignore them: the parent handles them and ends its children.
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_PIPE = 1 << 16
#: Seconds.
_PATIENCE = 10

#: Called in a child to send its parent any JSON value.
Tell = Callable[[Any], None]


class Worker(NamedTuple):
    """A child as its parent sees it."""

    pid: int
    requests: int
    answers: int
    #: The part of an answer that has been read so far.
    part: bytearray

    def ask(self, request: Any) -> None:
        """Sends a request to an idle worker. If it was killed, :func:`answers` reports that."""
        with suppress(BrokenPipeError):
            _write(self.requests, request)


def start(workers: list[Worker], work: Callable[[Any, Tell], Any]) -> None:
    """Forks a worker that calls ``work`` for each request (any JSON value), and adds it to ``workers``.

    :func:`answers` yields what ``work`` sends and returns. Raises OSError if the fork fails.
    """
    parent = os.getpid()
    asked, requests = os.pipe2(os.O_CLOEXEC)
    answers, answer = os.pipe2(os.O_CLOEXEC)
    # No signal may arrive while the child is not in ``workers`` yet, or while it still has the parent's handlers.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    child = -1
    try:
        child = os.fork()
        if child:
            workers.append(Worker(child, requests, answers, bytearray()))
    finally:
        if child:
            os.close(asked)
            os.close(answer)
            if child < 0:
                os.close(requests)
                os.close(answers)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if child:
        return
    try:
        syscalls.die_with_parent(parent)
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _serve(work, asked, answer)
    finally:
        os._exit(0)


def _serve(work: Callable[[Any, Tell], Any], asked: int, answer: int) -> None:
    with open(asked, "rb") as requests:
        for line in requests:
            try:
                reply = {"done": work(json.loads(line), lambda value: _write(answer, {"told": value}))}
            except Failure as failure:
                reply = {"failure": [failure.what, failure.code, failure.hint]}
            except OSError as error:
                reply = {"error": [error.errno, error.strerror or str(error), error.filename]}
            except Exception as error:
                import traceback

                at = traceback.extract_tb(error.__traceback__)[-1]
                reply = {"bug": f"{type(error).__name__}: {error} ({os.path.basename(at.filename)}:{at.lineno})"}
            _write(answer, reply)


def _write(pipe: int, value: Any) -> None:
    text = memoryview(json.dumps(value).encode() + b"\n")
    while text:
        text = text[os.write(pipe, text) :]


def answers(workers: list[Worker], seconds: float) -> list[tuple[Worker, str, Any]]:
    """Messages that have arrived from workers, after waiting at most ``seconds`` for one: (worker, kind, value).

    Kinds: "told" (a value sent during the work, which goes on), "done" with the work's result, "failed" with the
    exception; after the latter two the worker is idle. A killed worker yields "failed" on every call: end it.
    """
    poll = select.poll()
    by_pipe = {worker.answers: worker for worker in workers}
    found: list[tuple[Worker, str, Any]] = []
    for pipe in by_pipe:
        poll.register(pipe, select.POLLIN)
    for pipe, _ in poll.poll(seconds * 1000):
        worker = by_pipe[pipe]
        content = os.read(pipe, _PIPE)
        if not content:
            found.append((worker, "failed", killed()))
            continue
        worker.part.extend(content)
        *lines, rest = worker.part.split(b"\n")
        worker.part[:] = rest
        for line in lines:
            ((kind, value),) = json.loads(line).items()
            good = kind in ("told", "done")
            found.append((worker, kind, value) if good else (worker, "failed", _exception(kind, value)))
    return found


def killed() -> Failure:
    """The Failure for a process that was killed: by a person, or by the kernel when memory is short."""
    return Failure("a process that unpacks layers was killed", hint="is there enough memory? try again")


def _exception(kind: str, value: Any) -> Exception:
    if kind == "failure":
        what, code, hint = value
        return Failure(what, code=code, hint=hint)
    return OSError(*value) if kind == "error" else RuntimeError(value)


def end(workers: list[Worker]) -> None:
    """Kills workers and waits for them."""
    for worker in workers:
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    while workers:
        worker = workers[-1]
        syscalls.end(worker.pid)
        # The worker's own child dies with it but holds this pipe until then: wait, so that it creates nothing after the
        # caller has begun to remove the files.
        poll = select.poll()
        poll.register(worker.answers)
        while poll.poll(_PATIENCE * 1000) and os.read(worker.answers, _PIPE):
            continue
        os.close(worker.requests)
        os.close(worker.answers)
        workers.pop()
