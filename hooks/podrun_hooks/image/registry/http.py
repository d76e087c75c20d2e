"""HTTP/1.1 requests over http.client, with reused connections, TLS, proxies and a deadline for every wait.

http.client, because it is imported 40 ms faster than urllib3: pulling one small layer takes hardly longer than that.
"""

from __future__ import annotations

import base64
import http.client
import io
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from podrun_hooks.image.layer.stream import CHUNK
from podrun_hooks.image.registry.config import is_loopback

_Connection = http.client.HTTPConnection

#: Time-outs in seconds: to connect, and to receive the head of an answer or the next piece of its body.
CONNECT, SILENCE = 10.0, 30.0
#: Longest time in seconds to read the rest of a body so that its connection can be reused.
_WORTH = 1.0
#: Most bytes of the rest of a body to read so that its connection can be reused.
_LITTLE = 1 << 16
#: Characters that a request's target may hold unencoded (RFC 3986, 2.2); others are percent-encoded.
_TARGET = "/?#[]@!$&'()*+,;=:%~-._"


class Broken(Exception):
    """The request failed or the connection broke; str() says why."""


class ConnectFailed(Broken):
    """The connection was refused, or there is no such host."""


class NotRetryable(Broken):
    """Retrying is useless: the certificate is not trusted, TLS failed, or connecting timed out."""


class ProtocolError(Broken):
    """The server closed the connection early, or does not speak HTTP."""


class _Way(NamedTuple):
    """The route to an origin; idle connections are kept by it."""

    scheme: str
    host: str
    port: int
    #: The proxy's URL; "" for a direct connection.
    proxy: str
    #: host[:port] as the URL spells it: the TLS context may depend on that.
    netloc: str


class Connections:
    """Connections to any origin, for use by one thread. ``tls`` returns the TLS context for a host[:port]."""

    def __init__(self, tls: Callable[[str], ssl.SSLContext]) -> None:
        self._tls = tls
        self._idle: dict[_Way, list[_Connection]] = {}

    def close(self) -> None:
        """Closes the idle connections. The next request opens a new one."""
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, form: Mapping[str, str] | None = None
    ) -> Response:
        """Sends one request, with ``form`` as its body or none. Leaves redirects and statuses to the caller. Raises
        Broken."""
        try:
            parts = urlsplit(url)
            default = 443 if parts.scheme == "https" else 80
            way = _Way(parts.scheme, parts.hostname or "", parts.port or default, _proxy(parts), parts.netloc)
            own = {"User-Agent": "podrun", **(headers or {})}
            if form is not None:
                own["Content-Type"] = "application/x-www-form-urlencoded"
            if not way.host:
                raise ValueError("no host")
            target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe=_TARGET)
            if way.proxy and way.scheme == "http":
                target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
                own |= _proxy_credentials(urlsplit(way.proxy))
            connection = self._connection(way)
        except (ValueError, http.client.HTTPException) as error:
            raise ProtocolError(f"{url[:200]}: {error}") from None
        try:
            connection.sock.settimeout(SILENCE)
            connection.request(method, target, None if form is None else urlencode(form), own)
            answer = connection.getresponse()
        except BaseException as error:
            connection.close()
            raise _broken(error) from None
        if answer.status < 200:
            connection.close()
            raise ProtocolError(f"it answers {answer.status}, and nothing after that")
        return Response(answer, connection, self._idle.setdefault(way, []), url)

    def _connection(self, way: _Way) -> _Connection:
        idle = self._idle.get(way, [])
        while idle:
            connection = idle.pop()
            if _is_quiet(connection):
                return connection
            connection.close()
        made = self._made(way)
        made.response_class = _Answer
        try:
            made.connect()
        except BaseException as error:
            made.close()
            raise _not_connected(error) from None
        return made

    def _made(self, way: _Way) -> _Connection:
        if not way.proxy:
            if way.scheme == "http":
                return http.client.HTTPConnection(way.host, way.port, timeout=CONNECT)
            return http.client.HTTPSConnection(way.host, way.port, timeout=CONNECT, context=self._tls(way.netloc))
        proxy = urlsplit(way.proxy)
        host, port = proxy.hostname or "", proxy.port or (443 if proxy.scheme == "https" else 80)
        if way.scheme == "https":
            outer = self._tls(proxy.netloc) if proxy.scheme == "https" else None
            return _Tunnel(host, port, way, _proxy_credentials(proxy), self._tls(way.netloc), outer)
        if proxy.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=CONNECT, context=self._tls(proxy.netloc))
        return http.client.HTTPConnection(host, port, timeout=CONNECT)


class _Tunnel(http.client.HTTPConnection):
    """TLS to an origin through a proxy's CONNECT. ``outer`` is the context for a proxy that speaks TLS itself."""

    def __init__(
        self,
        host: str,
        port: int,
        way: _Way,
        credentials: Mapping[str, str],
        inner: ssl.SSLContext,
        outer: ssl.SSLContext | None,
    ) -> None:
        super().__init__(host, port, timeout=CONNECT)
        self._origin = way.host
        self._inner = inner
        self._outer = outer
        # Brackets as in a URL (RFC 9110, 9.3.6). Python before 3.12 neither adds them nor sends a Host of its own.
        name = f"[{way.host}]" if ":" in way.host else way.host
        self.set_tunnel(name, way.port, {"Host": f"{name}:{way.port}", **credentials})

    def connect(self) -> None:
        self.sock = socket.create_connection((self.host, self.port), self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._outer:
            self.sock = self._outer.wrap_socket(self.sock, server_hostname=self.host)
        self._tunnel()  # type: ignore[attr-defined]  # as HTTPSConnection.connect() calls it
        if self._outer:
            # A TLS socket cannot be wrapped again (ssl.SSLContext.wrap_socket); urllib3 does it over buffers.
            from urllib3.util.ssltransport import SSLTransport

            self.sock = SSLTransport(self.sock, self._inner, server_hostname=self._origin)
        else:
            self.sock = self._inner.wrap_socket(self.sock, server_hostname=self._origin)


class _Waiting(io.RawIOBase):
    """Reads from a connection with a deadline for the whole: a socket's timeout starts anew with each call."""

    def __init__(self, raw: io.RawIOBase, sock: Any) -> None:
        self._raw = raw
        self._sock = sock
        self.until = time.monotonic() + SILENCE

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int | None:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(room)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An HTTP response whose reads have a deadline."""

    def __init__(self, sock: Any, *arguments: Any, **more: Any) -> None:
        super().__init__(sock, *arguments, **more)
        self.waiting = _Waiting(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self.waiting)

    def piece(self, most: int, until: float) -> bytes:
        self.waiting.until = until
        piece = b"" if self.status in (204, 304) else self.read1(most)
        # http.client accepts a negative chunk length.
        if len(piece) > most:
            raise http.client.HTTPException
        return piece


class Response:
    """A response with its body still to be read."""

    def __init__(
        self,
        answer: Any,
        connection: _Connection,
        idle: list[_Connection],
        url: str,
    ) -> None:
        #: The URL that answered, after redirects.
        self.url = url
        self._answer = answer
        self._connection = connection
        self._idle = idle
        self._ended = False
        self.status: int = answer.status
        #: Look-ups ignore case.
        self.headers: http.client.HTTPMessage = answer.headers

    def some(self, most: int = CHUNK) -> bytes:
        """The next piece of the body, at least one byte; b"" at the end. Raises Broken."""
        return self._piece(most, time.monotonic() + SILENCE)

    def _piece(self, most: int, until: float) -> bytes:
        try:
            piece: bytes = self._answer.piece(most, until)
        except BaseException as error:
            self.close()
            raise _broken(error) from None
        if not piece and self._answer.length:
            self.close()
            raise ProtocolError("the answer breaks off")
        return piece

    def done(self) -> None:
        """Ends reading. Keeps the connection for another request if only little of the body is left."""
        rest = _LITTLE if not self._ended else 0
        until = time.monotonic() + _WORTH
        try:
            while rest > 0 and (piece := self._piece(rest, until)):
                rest -= len(piece)
        except Broken:
            return
        if rest and not self._answer.will_close:
            self._ended = True
            self._answer.close()
            self._idle.append(self._connection)
        else:
            self.close()

    def close(self) -> None:
        """Closes the connection, unless :meth:`done` has kept it."""
        if not self._ended:
            self._ended = True
            self._answer.close()
            self._connection.close()


def _is_quiet(connection: _Connection) -> bool:
    """Whether an idle connection is still open: on a closed one there is something to read, end of file."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return not poll.poll(0)


def _broken(error: BaseException) -> BaseException:
    if isinstance(error, TimeoutError):
        return Broken(f"no answer for {SILENCE:.0f} s")
    if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
        return ProtocolError("the connection was closed")
    if isinstance(error, http.client.HTTPException | ValueError):
        return ProtocolError(f"it does not speak HTTP ({type(error).__name__})")
    if isinstance(error, OSError):
        return ProtocolError(error.strerror or str(error))
    return error


def _not_connected(error: BaseException) -> BaseException:
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotRetryable(f"its certificate is not trusted: {error.verify_message or error.reason}")
    if isinstance(error, ssl.SSLError):
        return NotRetryable(f"TLS: {error.reason or error}")
    if isinstance(error, TimeoutError):
        return NotRetryable(f"no connection in {CONNECT:.0f} s")
    if isinstance(error, http.client.HTTPException | ValueError):
        return ProtocolError(f"it does not speak HTTP ({type(error).__name__})")
    if isinstance(error, OSError):
        return ConnectFailed(error.strerror or str(error))
    return error


# --- proxies


def _proxy(parts: SplitResult) -> str:
    """The proxy that the environment names for a URL, or ""."""
    # As in Go's net/http, requests to this machine use no proxy.
    if not any(key.lower() == f"{parts.scheme}_proxy" for key in os.environ) or is_loopback(parts.netloc):
        return ""
    from urllib.request import getproxies_environment, proxy_bypass

    named = "" if proxy_bypass(parts.netloc) else getproxies_environment().get(parts.scheme, "")
    return named if not named or "://" in named else f"http://{named}"


def _proxy_credentials(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    return {"Proxy-Authorization": basic(unquote(proxy.username), unquote(proxy.password or ""))}


def basic(user: str, password: str) -> str:
    """An Authorization header's value (RFC 7617)."""
    return f"Basic {base64.b64encode(os.fsencode(f'{user}:{password}')).decode()}"
