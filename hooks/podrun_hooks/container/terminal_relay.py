"""A detached container's terminal: the one small process that reads it, writes its log, and lets people attach.

A pseudo-terminal needs a reader: without one the payload would stop at 4 KiB of output. The program is this file alone
under ``python3 -IS``; it ends with the payload. Who attaches connects to a socket (0600, SOCK_SEQPACKET) and gets the
output as it comes; what it sends begins with a byte that says what it is: see below.
"""

from __future__ import annotations

import fcntl
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os as posix
    import socket as _socket
    from collections.abc import Sequence
else:
    import _socket
    import posix

#: The first byte of a packet: input for the terminal, or its size (struct winsize, tty_ioctl(4)).
INPUT, SIZE = b"i", b"s"
#: Bytes of a packet, at most.
MOST = 4096
_TIOCSWINSZ = 0x5414
#: Bytes that wait for a terminal that nobody reads from, or for somebody who does not read: then they are dropped.
_WAITING = 1 << 20


class _Client:
    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.waiting: list[bytes] = []
        self.size = 0


def main(words: Sequence[str]) -> None:
    """MARK MASTER LISTENER LOG LIFE INTERACTIVE: descriptors, LIFE a pidfd of the payload; INTERACTIVE 0: no input."""
    master, listening, log, life, interactive = (int(word) for word in words[1:6])
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, listening)
    for fd in (master, listening):
        posix.set_blocking(fd, False)
    clients: dict[int, _Client] = {}
    to_terminal = b""
    ended = False
    while True:
        poll = select.poll()
        poll.register(master, select.POLLIN | (select.POLLOUT if to_terminal else 0))
        poll.register(listening, select.POLLIN)
        if not ended:
            poll.register(life, select.POLLIN)
        for fd, client in clients.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if client.waiting else 0))
        # Once the payload has ended: what is there, and no more.
        happened = dict(poll.poll(0 if ended else None))
        if ended and not happened.get(master, 0) & select.POLLIN:
            break
        ended = ended or life in happened
        if happened.get(master, 0) & (select.POLLIN | select.POLLHUP):
            data = _read(master)
            if data == b"":
                break
            if data:
                _log(log, data)
                for client in clients.values():
                    _offer(client, data)
        if to_terminal and happened.get(master, 0) & select.POLLOUT:
            to_terminal = to_terminal[_write(master, to_terminal) :]
        if listening in happened:
            try:
                # socket.accept() is made on top of this one: a module less.
                accepted = listener._accept()[0]  # type: ignore[attr-defined]
                sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, accepted)
                sock.setblocking(False)
                clients[sock.fileno()] = _Client(sock)
            except OSError:
                pass
        for fd, client in list(clients.items()):
            events = happened.get(fd, 0)
            packet = _received(client) if events & (select.POLLIN | select.POLLHUP) else None
            if packet == b"" or not _sent(client):
                del clients[fd]
                client.sock.close()
            elif packet and packet[:1] == SIZE and len(packet) == 9:
                try:
                    fcntl.ioctl(master, _TIOCSWINSZ, packet[1:])
                except OSError:
                    pass
            elif packet and packet[:1] == INPUT and interactive and len(to_terminal) < _WAITING:
                to_terminal += packet[1:]
                to_terminal = to_terminal[_write(master, to_terminal) :]


def _read(master: int) -> bytes | None:
    try:
        return posix.read(master, MOST)
    except BlockingIOError:
        return None
    except OSError:
        return b""  # EIO: nobody has the other side open any more


def _write(fd: int, data: bytes) -> int:
    try:
        return posix.write(fd, data[:MOST])
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)


def _log(log: int, data: bytes) -> None:
    try:
        while data:
            data = data[posix.write(log, data) :]
    except OSError:
        pass  # a full disk ends no payload


def _offer(client: _Client, data: bytes) -> None:
    if client.size < _WAITING:
        client.waiting.append(data)
        client.size += len(data)
    _sent(client)


def _sent(client: _Client) -> bool:
    try:
        while client.waiting:
            client.sock.send(client.waiting[0], _socket.MSG_NOSIGNAL)
            client.size -= len(client.waiting.pop(0))
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True


def _received(client: _Client) -> bytes | None:
    try:
        return client.sock.recv(MOST)
    except BlockingIOError:
        return None
    except OSError:
        return b""


if __name__ == "__main__":
    main(sys.argv[1:])
