"""Running a program to its end, without subprocess (9 ms to import): output captured, dying with podrun."""

from __future__ import annotations

import fcntl
import os
import select
import sys

from podrun.errors import UNAVAILABLE, Failure
from podrun.record import NamedTuple
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any


#: Bytes of output that are kept, and milliseconds between two looks at how many there are.
_MOST, _GLANCE = 4 << 20, 100


class Ended(NamedTuple):
    """How a program ended: exit status (128+n for signal n) and what it wrote, as text."""

    status: int
    output: str
    errors: str


def find(program: str, package: str, path: str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin") -> str:
    """The absolute path of a program; Failure (UNAVAILABLE) naming the Debian package to install when it is missing."""
    for directory in path.split(":"):
        candidate = f"{directory}/{program}"
        if os.access(candidate, os.X_OK):
            return candidate
    raise Failure(f"{program} is not installed", code=UNAVAILABLE, hint=f"apt install {package}")


def import_path() -> list[str]:
    """The directories that podrun's packages come from, for an interpreter without site."""
    return [path for path in sys.path if os.path.isdir(f"{path}/podrun_hooks") or os.path.isdir(f"{path}/podrun")]


def program(module: str, call: str = "main(__import__('sys').argv[1:])") -> list[str]:
    """The command line that calls a module's ``main`` with the words after it, in an interpreter without site.

    It is one expression: systemd 252 writes a ";" of a transient unit's command so that it does not read it back. A
    "$" or a "%" has a meaning of its own there, so there is none either, but in paths.
    """
    paths = f"__import__('sys').path.__setitem__(slice(0, 0), {import_path()!r})"
    return [sys.executable, "-IS", "-c", f"{paths} or __import__({module!r}, None, None, ['']).{call}"]


def silent(argv: Sequence[str]) -> int:
    """Runs a program without input or output; its wait status. Raises OSError where it cannot be run."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        pid = os.posix_spawn(argv[0], list(argv), {"PATH": "/usr/bin:/bin"}, file_actions=actions)
    finally:
        os.close(null)
    return os.waitpid(pid, 0)[1]


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
    stdin: bytes | int = b"",
    keep: Sequence[int] = (),
    stdout: int | None = None,
    stderr: int | None = None,
    cgroup: str = "",
) -> Ended:
    """Runs ``argv`` (argv[0] an absolute path) and waits for it.

    ``before`` runs in the child before exec: namespaces, mounts; what it raises ends up in ``errors`` with status 125.
    Output is captured through unnamed files rather than pipes: a container that a runtime leaves behind would keep a
    pipe open, and nobody could tell the end of the output. ``stdout`` and ``stderr`` take a descriptor instead,
    ``stdin`` bytes or a descriptor. ``cgroup``: the directory of one of version 2 that the child begins in.
    The child, and what execve(2) makes of it, is killed when podrun dies.
    """
    captured = [_unnamed() if given is None else given for given in (stdout, stderr)]
    if isinstance(stdin, int):
        source = os.dup(stdin)
    else:
        source = _unnamed(stdin) if stdin else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    # Why the child could not become the program is kept apart from what the program writes: its standard error may
    # belong to somebody else.
    trouble = _unnamed()
    parent = os.getpid()
    try:
        child = syscalls.fork(cgroup)
        if not child:
            _become(argv, env, before, (source, *captured), keep, parent, trouble)
        try:
            _wait(child, [fd for fd, given in zip(captured, (stdout, stderr), strict=True) if given is None])
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except BaseException:
            # podrun is about to undo this program's work.
            syscalls.end(child)
            raise
        output, errors = (
            _content(fd) if given is None else "" for fd, given in zip(captured, (stdout, stderr), strict=True)
        )
        return Ended(status if status >= 0 else 128 - status, output, _content(trouble) or errors)
    finally:
        os.close(source)
        os.close(trouble)
        for fd, given in zip(captured, (stdout, stderr), strict=True):
            if given is None:
                os.close(fd)


def _become(
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    before: Callable[[], None] | None,
    streams: Sequence[int],
    keep: Sequence[int],
    parent: int,
    trouble: int,
) -> None:
    """The child's half of :func:`run`; does not return."""
    try:
        syscalls.die_with_parent(parent)
        syscalls.heed_signals()
        for target, fd in enumerate(streams):
            # A descriptor that is 0, 1 or 2 itself is duplicated in order: none of ours is, they are all above 2.
            os.dup2(fd, target)
        if before:
            before()
        for fd in keep:
            os.set_inheritable(fd, True)
        os.execve(argv[0], list(argv), dict(os.environ if env is None else env))
    except BaseException as error:  # the child of a fork must never return into the parent's code
        try:
            os.write(trouble, f"{error}\n".encode(errors="replace"))
        finally:
            os._exit(125)


def _wait(child: int, outputs: Sequence[int]) -> None:
    """Waits until a program has ended; drops its output whenever that exceeds what is ever shown."""
    pidfd = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll(_GLANCE):
            for fd in outputs:
                if os.fstat(fd).st_size > _MOST:
                    os.ftruncate(fd, 0)
    finally:
        os.close(pidfd)


def _unnamed(content: bytes = b"") -> int:
    fd = os.memfd_create("podrun", os.MFD_CLOEXEC)
    if not content:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)  # it may be emptied while somebody writes
    if content:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _content(fd: int, limit: int = 1 << 20) -> str:
    return os.pread(fd, limit, 0).decode(errors="replace").strip()
