"""A command in a container whose streams are a terminal of the host's: it gets pipes, and the terminal stays outside.

Any process of the container may open another one's streams (/proc/PID/fd) and keep them: with the terminal itself it
would read what is typed into the host's shell long after the command has ended.
"""

from __future__ import annotations

import os
import select

from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
else:
    import _signal

_SIZE = 1 << 16


def terminals() -> list[int]:
    """Those of the standard streams that are a terminal."""
    return [fd for fd in (0, 1, 2) if os.isatty(fd)]


def run(become: Callable[[], object], terminals: list[int]) -> int:
    """Runs ``become``, which does not return, in a child with pipes for ``terminals``; returns its exit code."""
    parent = os.getpid()
    pipes = {fd: os.pipe2(os.O_CLOEXEC) for fd in terminals}
    child = syscalls.fork()
    if not child:
        try:
            syscalls.die_with_parent(parent)
            for fd, (reading, writing) in pipes.items():
                os.dup2(writing if fd else reading, fd)
            become()
        except BaseException as error:  # the child of a fork must never return into the parent's code
            os.write(2, f"{error}\n".encode(errors="replace"))
        finally:
            os._exit(125)
    for number in (_signal.SIGINT, _signal.SIGQUIT):
        # Ctrl-C is for the runtime, in the same process group; what was written before it is still to be copied.
        _signal.signal(number, _signal.SIG_IGN)
    for fd, (reading, writing) in pipes.items():
        os.close(writing if fd else reading)
    _copy(child, {0 if not fd else reading: fd if fd else writing for fd, (reading, writing) in pipes.items()})
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def _copy(child: int, targets: dict[int, int]) -> None:
    """Copies from each key to its value until the child has ended and nothing is left to copy.

    What the command leaves behind in the container may keep a pipe open: its end is not waited for.
    """
    if 0 in targets:
        # What nobody in the container reads must not keep the output waiting.
        os.set_blocking(targets[0], False)
    ended = os.pidfd_open(child)
    poll = select.poll()
    for fd in (*targets, ended):
        poll.register(fd, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if not [fd for fd in ready if fd not in (0, ended)] and ended in ready:
            return
        for source in ready:
            if source != ended and not _copied(source, targets[source]):
                poll.unregister(source)


def _copied(source: int, target: int) -> bool:
    """Copies what there is; False at the end of either side."""
    try:
        data = os.read(source, _SIZE)
        rest = data
        while rest:
            rest = rest[os.write(target, rest) :]
    except BlockingIOError:
        return True
    except OSError:
        data = b""
    if not data:
        os.close(source if source else target)
    return bool(data)
