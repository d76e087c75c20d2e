"""A terminal for the payload (``run -t``): the pseudo-terminal that the runtime hands over, and ours in raw mode.

The runtime makes the pseudo-terminal inside the container and sends its master through a socket (runc's and crun's
--console-socket, SCM_RIGHTS). Two directions are copied by a thread while the main thread waits for the payload.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import termios
import tty

from podrun.engine import journal as journals
from podrun.errors import Failure
from podrun.relay import Channel, copy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

_SIGWINCH = 28


class Terminal:
    """Our terminal, lent to a payload. Use as a context manager around start and wait."""

    def __init__(self) -> None:
        self.master = -1
        self.before: list[Any] | None = None
        self.ended = _thread.allocate_lock()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.place = -1

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.master >= 0:
            # What the payload wrote last is still to be copied; the copying ends when the last writer has closed.
            self.ended.acquire(timeout=2)
            os.close(self.master)
        if self.before is not None:
            try:
                termios.tcsetattr(0, termios.TCSADRAIN, self.before)
            except termios.error:
                pass  # the terminal is gone
        self.listener.close()
        if self.place >= 0:
            os.close(self.place)

    def listen(self, run: str, pod: str) -> str:
        """Waits for the runtime at the path that it returns, in the pod's directory. The caller holds the pod's lock.

        The path is short, however long the run directory's is (sun_path holds 108 bytes). Who undoes the pod removes
        the socket.
        """
        directory = journals.directory(run, pod)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        path = f"/proc/{os.getpid()}/fd/{self.place}/{journals.CONSOLE}"
        try:
            if os.path.lexists(path):  # left by a podrun that was killed
                os.unlink(path)
            self.listener.bind(path)
            self.listener.listen(1)
        except OSError:
            journals.remove_directory(run, pod)
            raise
        return path

    def begin(self) -> None:
        """Takes the master that the runtime has sent, and starts copying."""
        self.listener.settimeout(5)
        try:
            with self.listener.accept()[0] as peer:
                _, fds, _, _ = socket.recv_fds(peer, 256, 1)
        except OSError as error:
            raise Failure("the runtime sent no terminal") from error
        if not fds:
            raise Failure("the runtime sent no terminal")
        [self.master] = fds
        os.set_inheritable(self.master, False)
        self.resize()
        signal.signal(signal.SIGWINCH, self.resize)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGWINCH})
        if os.isatty(0):
            try:
                self.before = termios.tcgetattr(0)
                tty.setraw(0)
            except termios.error as error:
                raise Failure(f"the terminal: {error.args[1]}") from error
        self.ended.acquire()
        _thread.start_new_thread(self._copy, ())

    def resize(self, _number: int = _SIGWINCH, _frame: FrameType | None = None) -> None:
        """Gives the pseudo-terminal the size of ours; the kernel tells the payload (SIGWINCH)."""
        import fcntl

        try:
            if os.isatty(0):
                size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)
        except OSError:
            pass  # one of the two is gone

    def _copy(self) -> None:
        def end_of_input() -> None:
            os.write(self.master, b"\x04")  # what Ctrl-D is to a terminal

        try:
            os.set_blocking(self.master, False)
            screen = Channel(self.master, 1)
            copy([Channel(0, self.master, end_of_input), screen], [screen])
        except OSError:
            pass
        finally:
            self.ended.release()
