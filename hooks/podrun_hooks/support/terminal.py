"""A pseudo-terminal that a runtime makes in the container, and the one that podrun was started from.

The runtime sends the master through a socket (runc's and crun's --console-socket, SCM_RIGHTS).
"""

from __future__ import annotations

import fcntl
import os
import socket
import termios
import tty

from podrun.errors import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def listen(directory: str, name: str) -> tuple[socket.socket, str]:
    """A socket in a directory, and a short path to it: sun_path holds 108 bytes (unix(7))."""
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = f"/proc/{os.getpid()}/fd/{place}/{name}"
    listener.bind(path)
    listener.listen(1)
    return listener, path


def take(listener: socket.socket) -> int:
    """The master that the runtime has sent. Raises Failure."""
    listener.settimeout(5)
    try:
        with listener.accept()[0] as peer:
            _, fds, _, _ = socket.recv_fds(peer, 256, 1)
    except OSError as error:
        raise Failure("the runtime sent no terminal") from error
    if not fds:
        raise Failure("the runtime sent no terminal")
    os.set_inheritable(fds[0], False)
    return fds[0]


def resize(master: int) -> None:
    """Gives a pseudo-terminal the size of ours; the kernel tells the payload (SIGWINCH)."""
    try:
        if os.isatty(0):
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(master, termios.TIOCSWINSZ, size)
    except OSError:
        pass  # one of the two is gone


def raw(fd: int) -> list[Any] | None:
    """Puts a terminal into raw mode; returns its former settings, None when it is no terminal."""
    if not os.isatty(fd):
        return None
    try:
        before = termios.tcgetattr(fd)
        tty.setraw(fd)
    except termios.error:
        return None
    return before


def end_of_input(master: int) -> None:
    """What Ctrl-D is to a terminal."""
    try:
        os.write(master, b"\x04")
    except OSError:
        pass
