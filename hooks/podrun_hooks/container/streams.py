"""The container's standard streams: podrun's own, a file, or a pipe with cat(1) behind it."""

from __future__ import annotations

import os
import stat

from podrun.record import NamedTuple
from podrun_hooks.support.rooted_tree import Elsewhere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Facts, Step
    from podrun_hooks.container.paths import Place
    from podrun_hooks.support.rooted_tree import Tree

_CAT = "/bin/cat"
#: Where links of images such as nginx's lead, and what they are called there.
_OUTPUTS = ("/dev/stdout", "/dev/stderr", "/proc/self/fd/1", "/proc/self/fd/2")


class Streams(NamedTuple):
    """Descriptors of stdin, stdout and stderr; those in ``own`` are to be closed after the hand-over."""

    fds: tuple[int, int, int]
    own: list[int]
    #: The fact "log": {"file": path}, or {} when the output goes where podrun's goes.
    log: Facts

    def close(self) -> None:
        """Closes podrun's copies."""
        while self.own:
            os.close(self.own.pop())


def open_streams(step: Step, place: Place, tree: Tree) -> Streams:
    """The streams that the option ``log`` and the pod's circumstances ask for. Raises OSError for a log file."""
    options = step.options
    own: list[int] = []
    if options.interactive or step.pod.interactive:
        stdin = 0
    else:
        stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        own.append(stdin)
    file = options.log.removeprefix("file:") if options.log.startswith("file:") else ""
    if not (file or step.pod.attached or options.log == "direct"):
        file = place.log
    if file:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        own.append(os.open(file, flags, 0o600))
        return Streams((stdin, own[-1], own[-1]), own, {"file": file})
    if options.log == "pipe" or (options.log == "auto" and _is_socket(1) and _logs_by_link(tree)):
        outputs = [_copied_to(1), _copied_to(2)]
    elif options.log == "auto" and not (step.pod.unit or step.pod.console):
        # Whoever has a terminal for output can open it for input, and read what is typed into the host's shell.
        outputs = [_copied_to(fd) if os.isatty(fd) else fd for fd in (1, 2)]
    else:
        outputs = [1, 2]
    own += [fd for fd in outputs if fd > 2]
    return Streams((stdin, outputs[0], outputs[1]), own, {})


def _copied_to(target: int) -> int:
    """The writing end of a pipe that cat(1) copies to ``target``; cat ends when the last writer has closed it."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_DUP2, target, 1)]
    # A process group of its own: Ctrl-C in the terminal is for the payload, whose last words are still to be copied.
    os.posix_spawn(_CAT, ["cat"], {}, file_actions=actions, setpgroup=0)
    os.close(reading)
    return writing


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def _logs_by_link(tree: Tree) -> bool:
    """Whether the image logs to /dev/stdout by a link in /var/log, one directory down included.

    open(2) of a socket is ENXIO, and under systemd standard output is the journal's socket: nginx would not start.
    """
    try:
        top, _ = tree.find("/var/log")
    except (OSError, Elsewhere):
        return False
    waiting, deeper = [top], []
    try:
        for level in range(2):
            for directory in waiting:
                for name in os.listdir(f"/proc/self/fd/{directory}")[:256]:
                    mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
                    if stat.S_ISLNK(mode) and os.readlink(name, dir_fd=directory) in _OUTPUTS:
                        return True
                    if stat.S_ISDIR(mode) and not level:
                        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                        deeper.append(os.open(name, flags, dir_fd=directory))
            waiting = deeper
    finally:
        for fd in {top, *deeper}:
            os.close(fd)
    return False


def last_words(log: Facts, lines: int = 3) -> str:
    """The end of a log file, for messages; "" when the output went elsewhere."""
    if "file" not in log:
        return ""
    try:
        with open(log["file"], "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    words = " / ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())
    return f"its last words: {words}" if words else ""
