"""Copies between descriptors, several at once: none of them keeps another one waiting.

A person pastes more than a pseudo-terminal holds while the payload writes: whoever wrote one way until it is done would
never read the other one, and both sides would wait for ever.
"""

from __future__ import annotations

import os
import select
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SIZE = 1 << 16
#: What a descriptor takes without blocking once poll(2) says that it takes something (PIPE_BUF; a terminal, less).
_PIECE = 512


class Channel:
    """One direction: what is read from ``source`` is written to ``target``; at the end ``finish`` is called once."""

    def __init__(self, source: int, target: int, finish: Callable[[], object] = lambda: None) -> None:
        self.source = source
        self.target = target
        self.finish = finish
        self.waiting = b""
        self.reading = True
        self.writing = True
        # The open file is shared with the shell that podrun was started from: its flags are left as they are.
        self.private = _reopened(target)

    def read(self) -> None:
        """Takes what there is to read."""
        try:
            data = os.read(self.source, _SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # the master of a pseudo-terminal without a slave, a terminal that has gone: EIO
        self.waiting += data
        if not data:
            self.reading = False
            self._finish_if_done()

    def write(self) -> None:
        """Writes what there is room for."""
        fd, size = (self.private, _SIZE) if self.private >= 0 else (self.target, _PIECE)
        try:
            self.waiting = self.waiting[os.write(fd, self.waiting[:size]) :]
        except BlockingIOError:
            return
        except OSError:
            # Nobody takes it any more.
            self.waiting, self.reading, self.writing = b"", False, False
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if not (self.reading or self.waiting):
            self.finish()
            self.close()

    def close(self) -> None:
        """Lets go of what this channel has opened itself."""
        if self.private >= 0 and self.private != self.target:
            os.close(self.private)
        self.private = -1


def _reopened(fd: int) -> int:
    """A descriptor of the same terminal or pipe that does not block, itself if it does not; -1: there can be none."""
    try:
        if not os.get_blocking(fd):
            return fd
        mode = os.fstat(fd).st_mode
        if not (os.isatty(fd) or stat.S_ISFIFO(mode)):
            return -1
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1


def copy(channels: Sequence[Channel], until: Sequence[Channel] = (), ended: int = -1) -> None:
    """Copies until all of ``until`` have come to their ends.

    With ``ended``, a pidfd, also as soon as that process has ended and nothing more can be read at once: what it left
    behind may keep a pipe open for ever.
    """
    while any(channel.reading or channel.waiting for channel in until) or (ended >= 0 and not until):
        poll = select.poll()
        wanted: dict[int, int] = {}
        for channel in channels:
            if channel.reading and len(channel.waiting) < _SIZE:
                wanted[channel.source] = wanted.get(channel.source, 0) | select.POLLIN
            if channel.waiting:
                wanted[channel.target] = wanted.get(channel.target, 0) | select.POLLOUT
        if ended >= 0:
            wanted[ended] = select.POLLIN
        for fd, events in wanted.items():
            poll.register(fd, events)
        happened = dict(poll.poll())
        for channel in channels:
            if channel.reading and happened.get(channel.source, 0) & ~select.POLLOUT:
                channel.read()
            if channel.waiting and happened.get(channel.target, 0) & ~select.POLLIN:
                channel.write()
        if ended in happened and not any(
            channel.waiting or (channel.reading and _readable(channel.source)) for channel in (until or ())
        ):
            return


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool([events for _, events in poll.poll(0) if events & select.POLLIN])
