"""The container's standard streams: which are handed on as they are, and which are pipes with cat(1) behind them.

A program may open its output anew by name: /dev/stderr, /proc/self/fd/2. Of a pipe that works; of a socket, which the
journal's stream is, it does not (ENXIO), and of a regular file ``>`` empties it. A terminal or a file that was opened
this way could also be read. So neither terminals nor regular files ever get into a container, and the journal's socket
does only where nothing can be seen to open it by name.
"""

from __future__ import annotations

import os
import stat

from podrun.errors import NOT_ALLOWED, Failure
from podrun.record import NamedTuple
from podrun_hooks.container import processes
from podrun_hooks.container.processes import Process
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from podrun.hook import Facts, Step
    from podrun_hooks.container.paths import Place
    from podrun_hooks.support.rooted_tree import Tree

_CAT = "/bin/cat"
#: Seconds that a copier has for the last output of a payload that has ended: to a terminal, where a person may have
#: stopped it (Ctrl-S), and elsewhere.
_PATIENCE_OF_TERMINALS, _PATIENCE = 60.0, 10.0


class Streams(NamedTuple):
    """Descriptors of stdin, stdout and stderr; those in ``own`` are to be closed after the hand-over."""

    fds: tuple[int, int, int]
    own: list[int]
    #: The fact "log": {"file": path}, or {} when the output goes where podrun's goes.
    log: Facts
    #: Copies the output, and ends with the last writer.
    copiers: list[Process]
    #: Copies podrun's input, and may never end by itself.
    feeders: list[Process]

    def close(self) -> None:
        """Closes podrun's copies."""
        while self.own:
            os.close(self.own.pop())

    def facts(self) -> Facts:
        """The facts about them, for ``down``."""
        return {
            "log": self.log,
            **({"copiers": [copier._asdict() for copier in self.copiers]} if self.copiers else {}),
            **({"feeders": [feeder._asdict() for feeder in self.feeders]} if self.feeders else {}),
        }


def open_streams(
    step: Step, place: Place, tree: Tree, image: Facts, config: Mapping[str, Any], notify: int = -1
) -> Streams:
    """The streams that the option ``log`` and the pod's circumstances ask for. Raises OSError for a log file.

    ``notify``: a socket that has to stay open as long as the payload runs, or -1; a copier holds it.
    """
    log = step.options.log
    file = log.removeprefix("file:") if log.startswith("file:") else ""
    if not (file or step.pod.attached or log == "direct"):
        file = place.log
    streams = Streams((0, 1, 2), [], {"file": file} if file else {}, [], [])
    stdin = _input(step, streams)
    if log == "none" and (step.pod.unit or not step.pod.attached):
        file = ""
        streams = streams._replace(log={"none": True})
        streams.own.append(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
        targets = [streams.own[-1]] * 2
    elif file:
        streams.own.append(_opened(file))
        targets = [streams.own[-1]] * 2
    else:
        targets = [1, 2]
    foreign = step.pod.userns == "auto"
    if step.pod.console or (log == "direct" and not foreign):
        return streams._replace(fds=(stdin, targets[0], targets[1]))
    if log == "pipe" or notify >= 0:
        piped = [True, True]
    else:
        piped = [(foreign and _has_name(fd)) or _needs_pipe(fd, step, tree, image, config) for fd in targets]
    writing: dict[tuple[int, int], int] = {}
    outputs = []
    for target, needed in zip(targets, piped, strict=True):
        if needed:
            # One pipe for one file: lines stay in the order in which they were written.
            found = os.fstat(target)
            key = (found.st_dev, found.st_ino)
            if key not in writing:
                argv = _rotating(file, step.options) if file and step.options.log_size else (_CAT,)
                writing[key] = _copied_to(target, streams, notify, argv)
            target = writing[key]
        outputs.append(target)
    return streams._replace(fds=(stdin, outputs[0], outputs[1]))


def _opened(file: str) -> int:
    """A log file, to append to: in a directory that only root can change, or root would write where others say.

    Raises Failure (NOT_ALLOWED), OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    directory = trusted.directory(os.path.dirname(file), "/var/log")
    try:
        fd = os.open(os.path.basename(file), flags, 0o600, dir_fd=directory)
    finally:
        os.close(directory)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        os.set_blocking(fd, True)
        return fd
    os.close(fd)
    what = f"{file} is not a plain file" if not stat.S_ISREG(found.st_mode) else f"{file} has another name, too"
    raise Failure(what, code=NOT_ALLOWED, hint="remove it, or log to another file")


def _input(step: Step, streams: Streams) -> int:
    foreign = step.pod.userns == "auto"
    if not (step.options.interactive or step.pod.interactive):
        if foreign:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            os.close(writing)
            streams.own.append(reading)
            return reading
        streams.own.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        return streams.own[-1]
    if step.pod.console or not (_can_be_opened_for_more(0) or (foreign and _has_name(0))):
        return 0
    reading, writing = os.pipe2(os.O_CLOEXEC)
    # In podrun's process group: only that one may read from the terminal (SIGTTIN, termios(3)). Ctrl-C there is for the
    # payload, which may well want to read on.
    streams.feeders.append(_spawned(0, writing, argv=("/bin/sh", "-c", f"trap '' INT QUIT; exec {_CAT}")))
    os.close(writing)
    streams.own.append(reading)
    return reading


#: Writes its input to a file of at most so many bytes, and keeps so many before it as FILE.1, FILE.2, ... head(1) reads
#: no more than it writes; a full disk loses lines and ends no payload.
_ROTATE = """
PATH=/usr/bin:/bin
umask 077
while :; do
  have=$(stat -c %s -- "$1" 2>/dev/null || echo 0)
  if [ "$have" -lt "$2" ]; then
    stdbuf -o0 head -c "$(($2 - have))" >>"$1" 2>/dev/null ||
      exec cat >/dev/null
    have=$(stat -c %s -- "$1" 2>/dev/null || echo 0)
    [ "$have" -ge "$2" ] || exit 0
  fi
  n=$3
  while [ "$n" -gt 1 ]; do
    mv -f -- "$1.$((n - 1))" "$1.$n" 2>/dev/null
    n=$((n - 1))
  done
  if [ "$3" -gt 0 ]; then mv -f -- "$1" "$1.1"; else : >"$1"; fi
done
"""


def _rotating(file: str, options: Any) -> tuple[str, ...]:
    """The command that keeps a log file small."""
    return ("/bin/sh", "-c", _ROTATE, "podrun-log", file, str(options.log_size), str(options.log_files))


def _copied_to(target: int, streams: Streams, notify: int, argv: Sequence[str] = (_CAT,)) -> int:
    """The writing end of a pipe that cat(1) copies to ``target``; cat ends when the last writer has closed it."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    # A process group of its own: Ctrl-C in the terminal is for the payload, whose last words are still to be copied.
    streams.copiers.append(_spawned(reading, target, notify, argv, setpgroup=0))
    os.close(reading)
    streams.own.append(writing)
    return writing


def _spawned(source: int, target: int, held: int = -1, argv: Sequence[str] = (_CAT,), **more: Any) -> Process:
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, target, 1)]
    # Whoever reads podrun's own standard error, of a detached start too, waits for the last one that has it.
    actions += [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    actions += [(os.POSIX_SPAWN_DUP2, held, 3)] if held >= 0 else []
    pid = os.posix_spawn(argv[0], list(argv), {}, file_actions=actions, **more)
    return Process(pid, processes.start_of(pid))


def _needs_pipe(fd: int, step: Step, tree: Tree, image: Facts, config: Mapping[str, Any]) -> bool:
    if _can_be_opened_for_more(fd):
        return True
    try:
        socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
    # In the foreground podrun stays anyway; as a unit nothing does, unless it has to.
    return socket and (not step.pod.unit or _opens_by_name(image, config, tree))


def _opens_by_name(image: Facts, config: Mapping[str, Any], tree: Tree) -> bool:
    if image.get("stdio"):
        return True
    from podrun_hooks.container import stream_search

    return stream_search.opens_by_name(image, config, tree)


def _has_name(fd: int) -> bool:
    """Whether it has a name on the host: a terminal, a file, /dev/null.

    The runtimes give a container's root what it gets (fchown(2)): with an id of the pod's own it could then close the
    host's /dev/null for everybody.
    """
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))


def _can_be_opened_for_more(fd: int) -> bool:
    """Terminals and regular files: who has one for writing can read it too, or empty it, through /proc/self/fd."""
    try:
        return os.isatty(fd) or stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


def finish(own: Facts) -> str:
    """Waits until the output of a payload that has ended is copied to the last byte; returns what could not be."""
    for feeder in _of(own, "feeders"):
        processes.end(feeder)
        _reap(feeder)
    stuck = ""
    for copier in _of(own, "copiers"):
        patience = _PATIENCE_OF_TERMINALS if _writes_to_terminal(copier) else _PATIENCE
        pidfd = processes.opened(copier)
        if pidfd is not None:
            try:
                if not processes.ended(pidfd, patience):
                    stuck = f"its last output could not be written within {patience:g} s"
            finally:
                os.close(pidfd)
            processes.end(copier)
        _reap(copier)
    return stuck


def _reap(process: Process) -> None:
    try:
        os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        pass  # another podrun process started it


def _of(own: Facts, kind: str) -> Sequence[Process]:
    return [Process(told["pid"], told["start"]) for told in own.get(kind, ())]


def _writes_to_terminal(copier: Process) -> bool:
    try:
        target = os.readlink(f"/proc/{copier.pid}/fd/1")
    except OSError:
        return False
    return target.startswith(("/dev/pts/", "/dev/tty", "/dev/console"))


def last_words(streams: Streams, lines: int = 3) -> str:
    """The end of a log file, for messages; "" when the output went elsewhere."""
    if "file" not in streams.log:
        return ""
    for copier in streams.copiers:
        pidfd = processes.opened(copier)
        if pidfd is not None:
            processes.ended(pidfd, 0.2)
            os.close(pidfd)
    try:
        with open(streams.log["file"], "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    words = " / ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())
    return f"its last words: {words}" if words else ""
