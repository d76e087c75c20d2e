"""Executables as hooks (``exec:/path``): the verb in PODRUN_VERB, one JSON object in, one JSON object out."""

from __future__ import annotations

import os
import select
import stat
import time

from podrun import jsontext
from podrun.errors import NOT_ALLOWED, OF_A_STEP, STEP_FAILED, WRONG_FILE, Failure
from podrun.hook import VERSION, Problem

from . import linux

# ``signal`` builds enums (3 ms): the start path takes the numbers from the module below it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    from podrun.hook import Facts, Step
else:
    import _signal

#: An executable declares nothing: any keys are its options, any facts may be read and given.
Options = None
takes: Sequence[str] | None = None
gives: Sequence[str] = ()
resident = False
default_name = ""

#: Seconds that a verb may take unless the step's ``timeout`` says otherwise: systemd's DefaultTimeoutStartSec.
PATIENCE = 90.0
#: Bytes of standard output that are read.
LIMIT = 1 << 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def up(step: Step, facts: Facts) -> Facts:
    """Runs the executable with PODRUN_VERB=up; its standard output is the step's facts."""
    return _ask(step, "up", facts, {})


def down(step: Step, own: Facts) -> None:
    """Runs it with PODRUN_VERB=down, given what ``up`` printed."""
    _ask(step, "down", {}, own)


def check(step: Step) -> list[Problem]:
    """Looks at the file; asks the executable itself only when there is time (``podrun check``, ``podrun plan``)."""
    try:
        _path_of(step)
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint)]
    if not step.pod.thorough:
        return []
    try:
        told = _ask(step, "check", {}, {}).get("problems", [])
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint, fatal=False)]
    return [Problem(str(problem), fatal=False) for problem in told]


def _ask(step: Step, verb: str, facts: Facts, own: Facts) -> Facts:
    """Runs one verb; returns the object it printed. Raises Failure for anything but exit 0 with JSON or nothing."""
    path = _path_of(step)
    question = {
        "version": VERSION,
        # JSON has no infinity: null stands for "as long as it takes".
        "pod": {key: None if value == float("inf") else value for key, value in step.pod._asdict().items()},
        "step": {"hook": step.hook, "name": step.name, "options": step.options},
        "facts": facts,
        "own": own,
    }
    environ = {"PATH": _PATH, "LANG": "C.UTF-8", "PODRUN_VERB": verb, "PODRUN_ROOT": step.pod.root}
    environ["PODRUN_RUN"] = step.pod.run
    patience = step.timeout if step.timeout != float("inf") else PATIENCE
    status, output = _run(path, environ, jsontext.dumps(question).encode(), patience, os.path.basename(path))
    answer = _answer(output)
    if status:
        told = answer if isinstance(answer, dict) else {}
        what = str(told.get("error") or f"{verb} of {path} ended with {status}")
        code = status if status in OF_A_STEP else STEP_FAILED
        raise Failure(what, code=code, hint=str(told.get("hint") or ""))
    if not isinstance(answer, dict):
        raise Failure(
            f"{path} printed what is not one JSON object: {output[:60]!r}", hint="its log goes to standard error"
        )
    return answer


def _answer(output: bytes) -> Any:
    if not output.strip():
        return {}
    try:
        return jsontext.loads(output.decode())
    except ValueError:
        return None


def _run(path: str, environ: Mapping[str, str], question: bytes, patience: float, name: str) -> tuple[int, bytes]:
    """Runs an executable in a process group of its own; returns its exit status (128+n by signal) and its output.

    The group is killed when the time is over, when there is too much output, and when podrun is interrupted. Standard
    error is passed on line by line, with the hook's name in front.
    """
    stdin = os.memfd_create("podrun", os.MFD_CLOEXEC)
    out, out_there = os.pipe2(os.O_CLOEXEC)
    err, err_there = os.pipe2(os.O_CLOEXEC)
    os.write(stdin, question)
    os.lseek(stdin, 0, os.SEEK_SET)
    launcher = os.getpid()
    status = None
    child = linux.fork()
    if not child:
        _become(path, environ, (stdin, out_there, err_there), launcher)
    try:
        for fd in (stdin, out_there, err_there):
            os.close(fd)
        output = _listen(out, err, time.monotonic() + patience, name)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(out)
        os.close(err)
        if status is None:
            _kill_group(child)
            os.waitpid(child, 0)
    return (status if status >= 0 else 128 - status), output


def _become(path: str, environ: Mapping[str, str], streams: Sequence[int], launcher: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        linux.die_with_parent(launcher)
        for number in range(1, _signal.NSIG):
            if _signal.getsignal(number) == _signal.SIG_IGN:
                _signal.signal(number, _signal.SIG_DFL)
        for target, fd in enumerate(streams):
            os.dup2(fd, target)
        os.chdir("/")
        os.execve(path, [path], environ)
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
    finally:
        os._exit(126)


def _listen(out: int, err: int, deadline: float, name: str) -> bytes:
    """Reads both streams until they end; Failure when that takes too long or standard output grows too long."""
    output = bytearray()
    line = bytearray()
    poll = select.poll()
    waiting = {out, err}
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while waiting:
        left = deadline - time.monotonic()
        if left <= 0 or not (ready := poll.poll(left * 1000)):
            raise Failure("no answer in time; it was killed", hint="'timeout' of the step says how long it may take")
        for fd, _ in ready:
            data = os.read(fd, 65536)
            if not data:
                poll.unregister(fd)
                waiting.remove(fd)
            elif fd == out:
                output += data
                if len(output) > LIMIT:
                    raise Failure(f"more than {LIMIT} bytes on standard output; it was killed")
            else:
                line += data
                *whole, rest = line.split(b"\n")
                line = bytearray(rest)
                _log(name, [bytes(piece) for piece in whole])
    _log(name, [bytes(line)] if line else [])
    return bytes(output)


def _log(name: str, lines: Sequence[bytes]) -> None:
    for line in lines:
        try:
            os.write(2, name.encode() + b": " + line + b"\n")
        except OSError:
            return  # nobody reads our standard error any more: no reason to stop a step


def _kill_group(leader: int) -> None:
    for kill, target in ((os.killpg, leader), (os.kill, leader)):
        try:
            kill(target, _signal.SIGKILL)
        except ProcessLookupError:
            continue


def _path_of(step: Step) -> str:
    """The executable with symlinks resolved; as root, only one that nobody but root can have changed."""
    path = step.hook.removeprefix("exec:")
    if not path.startswith("/"):
        raise Failure(f"exec: wants an absolute path, not {path!r}", code=WRONG_FILE)
    real = os.path.realpath(path)
    try:
        found = os.stat(real)
    except FileNotFoundError:
        raise Failure(f"there is no {path}", code=WRONG_FILE) from None
    if not stat.S_ISREG(found.st_mode) or not os.access(real, os.X_OK):
        raise Failure(f"{path} is not an executable file", code=WRONG_FILE, hint=f"chmod +x {path}")
    if os.geteuid() == 0:
        _refuse_writable(real)
    return real


def _refuse_writable(path: str) -> None:
    """Raises Failure (NOT_ALLOWED) when somebody other than root could replace ``path`` or change it."""
    place = path
    while True:
        found = os.stat(place)
        if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Failure(
                f"{place} can be changed by others than root",
                code=NOT_ALLOWED,
                hint=f"chown root:root {place}; chmod go-w {place}",
            )
        if place == "/":
            return
        place = os.path.dirname(place)
