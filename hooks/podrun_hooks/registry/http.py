"""HTTP/1.1 as far as a registry's JSON API needs it: one kept connection, a deadline a call, answers of limited size.

The standard library's http.client brings email and 9 MB of memory into a process that is to have 12, and its time-out
holds for each system call: a server that sends a byte a second keeps it waiting for ever.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import time

from podrun import jsontext
from podrun.options import whole
from podrun.record import NamedTuple
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from podrun_hooks.registry.source import Source

#: The most bytes of an answer, and of its headers.
LARGEST, _HEAD = 4 << 20, 16384
_LARGE = f"the answer has more than {LARGEST >> 20} MiB"


class Away(Exception):
    """The registry does not answer, or with nonsense: another endpoint, or another attempt, may do better."""


class TooLarge(Away):
    """The answer is larger than any that is read: who asks for less at once may get one."""


class Refused(Exception):
    """The registry answers that it does not do this: credentials, permissions, a full disk."""


class Answer(NamedTuple):
    """What came back."""

    status: int
    #: Names in lower case.
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's value. Raises Away for what is not JSON."""
        try:
            return jsontext.loads(self.body.decode())
        except (ValueError, RecursionError):
            raise Away(f"the answer is not JSON: {self.body[:60]!r}") from None


class Client:
    """A kept connection to the first endpoint that takes one."""

    def __init__(self, source: Source) -> None:
        self.source = source
        #: On the monotonic clock: no call goes on after it, however many there are.
        self.until = float("inf")
        #: Called before each request: whoever makes many tells a watchdog that it goes on.
        self.alive: Callable[[], None] = lambda: None
        self._at = 0
        self._connection: Any = None
        self._tls: Any = None

    def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        seconds: float,
        headers: Mapping[str, str] = {},
        trouble: Callable[[Answer], str] = lambda _: "",
    ) -> Answer:
        """One request at the endpoints in turn until one answers, ``seconds`` in all. Raises Away.

        With several endpoints none may take more than its share: the first one may be the dead one. ``trouble`` says
        why an answer does not count ("no leader"): the next endpoint may do better.
        """
        self.alive()
        seconds = min(seconds, max(0.0, self.until - time.monotonic()))
        deadline = time.monotonic() + seconds
        ends = self.source.endpoints
        troubles = []
        for n in range(len(ends)):
            host, port = ends[self._at]
            share = deadline if n == len(ends) - 1 else min(deadline, time.monotonic() + max(seconds / len(ends), 0.2))
            try:
                answer = self._one(method, path, body, headers, share)
                if not (words := trouble(answer)):
                    return answer
                raise Away(words)
            except TooLarge:
                self.close()
                raise  # another endpoint has the same data
            except (OSError, Away, ValueError) as error:
                self.close()
                troubles.append(f"{f'[{host}]' if ':' in host else host}:{port}: {_words(error)}")
                self._at = (self._at + 1) % len(ends)
            if time.monotonic() >= deadline:
                break
        raise Away("; ".join(troubles))

    def close(self) -> None:
        """Closes the connection: after a time-out its answer would be taken for the next one's."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def begin(self, method: str, path: str, body: bytes, headers: Mapping[str, str], *, seconds: float) -> Any:
        """Sends a request on a connection of its own, which the caller reads from and closes; it does not block.

        Sent to the endpoint that has answered last. Raises Away, OSError.
        """
        deadline = time.monotonic() + seconds
        connection = self._connect(*self.source.endpoints[self._at], deadline)
        try:
            self._send(connection, self._request(method, path, body, headers), deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    def _request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        host, port = self.source.endpoints[self._at]
        lines = [f"{method} {path} HTTP/1.1", f"Host: {f'[{host}]' if ':' in host else host}:{port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body

    def _one(self, method: str, path: str, body: bytes, headers: Mapping[str, str], deadline: float) -> Answer:
        host, port = self.source.endpoints[self._at]
        request = self._request(method, path, body, headers)
        kept = self._connection is not None
        if not kept:
            self._connection = self._connect(host, port, deadline)
        try:
            return self._exchange(request, deadline)
        except (ConnectionError, _Closed):
            if not kept:
                raise
            # A server may close a connection that has been idle, and nobody heard of it until now.
            self.close()
            self._connection = self._connect(host, port, deadline)
            return self._exchange(request, deadline)

    def _connect(self, host: str, port: int, deadline: float) -> Any:
        family, address = _resolved(host, port, deadline)
        sock = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        try:
            code = sock.connect_ex(address)
            if code == errno.EINPROGRESS:
                _wait(sock.fileno(), select.POLLOUT, deadline)
                code = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            return self._secured(sock, host, deadline) if self.source.tls else sock
        except BaseException:
            sock.close()
            raise

    def _secured(self, sock: Any, host: str, deadline: float) -> Any:
        import socket
        import ssl

        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self.source.ca or None)
            if self.source.cert:
                self._tls.load_cert_chain(self.source.cert, self.source.key)
        plain = socket.socket(fileno=sock.detach())
        plain.settimeout(max(0.01, deadline - time.monotonic()))
        secured = self._tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        try:
            secured.do_handshake()
        except ssl.SSLError as error:
            secured.close()
            raise Away(f"TLS: {error.reason or error}") from None
        except BaseException:
            secured.close()
            raise
        secured.setblocking(False)
        return secured

    # --- one request and its answer ---

    def _exchange(self, request: bytes, deadline: float) -> Answer:
        self._send(self._connection, request, deadline)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(deadline)
            if len(data) > _HEAD and b"\r\n\r\n" not in data[:_HEAD]:
                raise Away("the answer's headers are too long")
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(None, 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or (status := whole(words[1])) is None:
            raise Away("the answer is not HTTP")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        body = self._body(headers, rest, deadline)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(status, headers, body)

    def _body(self, headers: dict[str, str], rest: bytes, deadline: float) -> bytes:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return self._chunks(rest, deadline)
        wanted = whole(headers.get("content-length", ""))
        if wanted is None:
            raise Away("the answer does not say how long it is")
        parts, size = [rest], len(rest)
        if wanted > LARGEST:
            raise TooLarge(_LARGE)
        while size < wanted:
            parts.append(self._more(deadline))
            size += len(parts[-1])
        return b"".join(parts)[:wanted]

    def _chunks(self, rest: bytes, deadline: float) -> bytes:
        """RFC 9112, 7.1; trailers are not used here, and end the connection's life."""
        parts: list[bytes] = []
        size = 0
        while True:
            while b"\r\n" not in rest:
                rest += self._more(deadline)
                if len(rest) > _HEAD and b"\r\n" not in rest[:_HEAD]:
                    raise Away("a chunk's header is too long")
            line, _, rest = rest.partition(b"\r\n")
            try:
                length = int(line.split(b";")[0], 16)
            except ValueError:
                raise Away("a chunk's length is not a number") from None
            size += length
            if size > LARGEST or length < 0:
                raise TooLarge(_LARGE)
            pieces, have = [rest], len(rest)
            while have < length + 2:
                pieces.append(self._more(deadline))
                have += len(pieces[-1])
            rest = b"".join(pieces)
            if not length:
                if rest != b"\r\n":
                    self.close()
                return b"".join(parts)
            parts.append(rest[:length])
            rest = rest[length + 2 :]

    def _send(self, connection: Any, data: bytes, deadline: float) -> None:
        while data:
            data = data[
                self._try(connection, lambda part: int(connection.send(part)), data, select.POLLOUT, deadline) :
            ]

    def _more(self, deadline: float) -> bytes:
        if self._connection is None:
            raise _Closed
        data: bytes = self._try(self._connection, self._connection.recv, 65536, select.POLLIN, deadline)
        if not data:
            raise _Closed
        return data

    def _try(self, connection: Any, action: Any, argument: Any, event: int, deadline: float) -> Any:
        """Does it once the connection is ready; TLS may have to read in order to write and the other way round."""
        while True:
            if time.monotonic() >= deadline:
                raise TimeoutError
            try:
                return action(argument)
            except BlockingIOError:
                _wait(connection.fileno(), event, deadline)
            except OSError as error:
                # ssl.SSLWantReadError and SSLWantWriteError, without importing ssl.
                if error.errno not in (2, 3) or not self.source.tls:
                    raise
                _wait(connection.fileno(), select.POLLIN if error.errno == 2 else select.POLLOUT, deadline)


def _resolved(host: str, port: int, deadline: float) -> tuple[int, Any]:
    """Address family and address of an endpoint. Raises Away, TimeoutError.

    getaddrinfo(3) has no deadline of its own, and a name server that is silent keeps it for half a minute
    (resolv.conf(5)): names are looked up in a child, addresses here.
    """
    # As bytes: a str would be encoded by encodings.idna, which brings 0.7 MB of Unicode's tables.
    name = host.encode()
    try:
        found = _socket.getaddrinfo(name, port, 0, _socket.SOCK_STREAM, 0, _socket.AI_NUMERICHOST)[0]
        return found[0], found[4]
    except _socket.gaierror:
        pass
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = syscalls.fork()
    if not child:
        try:
            os.write(writing, _looked_up(name))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        _wait(reading, select.POLLIN, deadline)
        said = os.read(reading, 4096).decode(errors="replace")
    except TimeoutError:
        raise Away("its name is not resolved in time") from None
    finally:
        os.close(reading)
        syscalls.end(child)
    family, _, address = said.partition(" ")
    if not family.isdecimal():
        raise Away(address or "its name cannot be resolved")
    return int(family), (address, port)


def _looked_up(name: bytes) -> bytes:
    """Address family and address of a name, or "-" and why there is none."""
    try:
        family, _, _, _, address = _socket.getaddrinfo(name, 0, 0, _socket.SOCK_STREAM)[0]
    except (_socket.gaierror, UnicodeError) as error:
        return f"- {error.args[-1]}".encode()
    return f"{int(family)} {address[0]}".encode()


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return os.strerror(error.errno or 0)
    return str(error)


class _Closed(Away):
    def __init__(self) -> None:
        super().__init__("the connection was closed")


def _wait(fd: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def password(source: Source) -> str:
    """The content of the password's file, without its final newline. Raises Refused when it cannot be read."""
    if not source.password:
        return ""
    try:
        with open(source.password, encoding="utf-8") as file:
            return file.read(4096).rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise Refused(f"{source.password}: {getattr(error, 'strerror', None) or 'not a password'}") from None
