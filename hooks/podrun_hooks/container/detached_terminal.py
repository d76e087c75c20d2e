"""The terminal of a container that nobody is at (``tty = true``): made by the runtime, read by terminal_relay.py."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import termios

from podrun_hooks.container import processes, terminal_relay
from podrun_hooks.support import terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Step
    from podrun_hooks.container.paths import Place
    from podrun_hooks.container.processes import Process

#: The sockets' names in the container's own directory, which only root enters.
_CONSOLE, _ATTACH = "console", "attach"


class Waiting:
    """A socket that waits for the terminal; ``path`` is for the runtime. ``begin`` once the container is created."""

    def __init__(self, place: Place) -> None:
        self.directory = place.written
        self.listener, self.path = terminal.listen(place.written, _CONSOLE)

    def begin(self, step: Step, place: Place, pid: int, log: int) -> Process:
        """Takes the terminal and starts its reader, which writes to the descriptor ``log``. Raises Failure."""
        master = terminal.take(self.listener)
        # Until somebody attaches whose terminal has a size: programs do not expect one of no lines.
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        life = os.pidfd_open(pid)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        kept = os.dup(log)
        handed = [master, sock.fileno(), kept, life]
        try:
            sock.bind(f"/proc/self/fd/{directory}/{_ATTACH}")
            os.chmod(f"/proc/self/fd/{directory}/{_ATTACH}", 0o600)
            sock.listen(8)
            for fd in handed:
                os.set_inheritable(fd, True)
            numbers = [str(fd) for fd in handed]
            interactive = str(int(step.options.interactive or step.pod.interactive))
            argv = [sys.executable, "-IS", terminal_relay.__file__, place.mark, *numbers, interactive]
            null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
            child = os.posix_spawn(argv[0], argv, {}, file_actions=null, setsid=True)
            return processes.Process(child, processes.start_of(child))
        finally:
            sock.close()
            for fd in (master, kept, life, directory):
                os.close(fd)

    def close(self) -> None:
        """Nobody waits any more."""
        self.listener.close()
        try:
            os.unlink(f"{self.directory}/{_CONSOLE}")
        except FileNotFoundError:
            pass


def connect(place: Place) -> socket.socket | None:
    """A connection to a container's terminal; None when it has none. What is sent: see terminal_relay.py."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        directory = os.open(place.written, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{_ATTACH}")
        finally:
            os.close(directory)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    return sock
