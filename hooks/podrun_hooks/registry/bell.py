"""Requests that a registry answers when something changes, so that the follower polls then and not at the next tick.

Nothing relies on them: what counts is what a poll reads. Without such a request, or when one fails, a move is noticed
by the next poll.
"""

from __future__ import annotations

import select

from podrun.record import NamedTuple
from podrun_hooks.registry.http import Away

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from podrun_hooks.registry.http import Client

#: Seconds until a bell that was refused is tried again, and that opening one may take.
_AGAIN, _OPENING = 5.0, 0.5


class Request(NamedTuple):
    """What makes a registry tell of changes."""

    #: Tells requests apart: one that is open stays open as long as it is wanted.
    name: str
    method: str
    path: str
    body: bytes = b""
    #: Authorization.
    headers: dict[str, str] = {}
    #: The first change answers it; else it goes on telling.
    once: bool = False


class Bell:
    """The open requests of one registry."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Request, Any]] = {}
        self._not_before = 0.0
        #: Whether every change would be heard, as far as we know.
        self.listens = False

    def listen(self, client: Client, requests: Iterable[Request], now: float) -> None:
        """Opens the requests that are missing and closes those that are no longer wanted."""
        wanted = {request.name: request for request in requests}
        for name in set(self._open) - set(wanted):
            self._close(name)
        if now >= self._not_before:
            for name, request in wanted.items():
                if name not in self._open:
                    try:
                        connection = client.begin(
                            request.method, request.path, request.body, request.headers, seconds=_OPENING
                        )
                    except (OSError, Away, ValueError):
                        self._not_before = now + _AGAIN
                        break
                    self._open[name] = (request, connection)
        self.listens = set(self._open) == set(wanted)

    def descriptors(self) -> list[int]:
        """What to wait for."""
        return [connection.fileno() for _, connection in self._open.values()]

    def rings(self, now: float) -> bool:
        """Reads what has arrived; True when something may have changed."""
        rung = False
        for name, (request, connection) in list(self._open.items()):
            data, ended = _read(connection)
            if data or ended:
                rung = True
            if (data.startswith(b"HTTP/") and data[8:13] != b" 200 ") or b'"canceled":true' in data:
                # Refused, or etcd ends a watch whose revision it has compacted: without a pause it would ring for ever.
                self._not_before = now + _AGAIN
                ended = True
            if ended or (data and request.once):
                self._close(name)
        return rung

    def close(self) -> None:
        """Closes all of them."""
        for name in list(self._open):
            self._close(name)

    def _close(self, name: str) -> None:
        self._open.pop(name)[1].close()
        self.listens = False


def wait(descriptors: list[int], seconds: float) -> None:
    """Returns when one of them has something to read, or the time is over."""
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    poll.poll(seconds * 1000)


def _read(connection: Any) -> tuple[bytes, bool]:
    """What has arrived on a non-blocking connection, and whether that was the end."""
    data = b""
    for _ in range(16):  # what a busy registry sends beyond that is read the next time
        try:
            part = connection.recv(65536)
        except BlockingIOError:
            return data, False
        except OSError as error:
            # ssl.SSLWantReadError, without importing ssl.
            return data, error.errno != 2
        if not part:
            return data, True
        data += part
    return data, False
