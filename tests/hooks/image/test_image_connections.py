"""HTTP as podrun speaks it, with servers that say what no library would."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from podrun_hooks.image.registry import http
from podrun_hooks.image.registry.http import Broken, ConnectFailed, Connections, ProtocolError

OK = b"HTTP/1.1 200 OK\r\n"


class Server:
    """Answers the requests of each connection with the bytes of ``answers``, in turn; closes after the last of them."""

    def __init__(self, answers: list[list[bytes]], address: str = "127.0.0.1") -> None:
        self.answers = answers
        self.listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{self.port}/"
        self.heard: list[list[str]] = []
        #: Set when a connection has been closed here.
        self.closed = threading.Event()

    def serve(self) -> None:
        with suppress(OSError):
            for answers in self.answers:
                connection, _ = self.listener.accept()
                with connection:
                    for answer in answers:
                        head = b""
                        while b"\r\n\r\n" not in head and (piece := connection.recv(4096)):
                            head += piece
                        if not head:
                            break
                        self.heard.append(head.decode().split("\r\n"))
                        connection.sendall(answer)
                self.closed.set()
            self.listener.accept()


@contextmanager
def serving(*answers: list[bytes], address: str = "127.0.0.1") -> Iterator[Server]:
    server = Server(list(answers), address)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        thread.join(10)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with closing(Connections(lambda _: ssl.create_default_context())) as made:
        yield made


def body(ours: Connections, url: str) -> bytes:
    response = ours.request("GET", url)
    content = b""
    while piece := response.some():
        content += piece
    response.done()
    response.done()
    return content


# --- bodies


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (OK + b"Content-Length: 0\r\n\r\n", b""),
        (OK + b"\r\nto the end", b"to the end"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: a\r\n\r\n", b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        (OK + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000, b"x" * 300_000),
    ],
)
def test_a_body_is_read_to_its_end(ours: Connections, answer: bytes, content: bytes) -> None:
    with serving([answer]) as server:
        assert body(ours, server.url) == content


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 what\r\n\r\n",
        OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
        OK + b"X: y\r\n" * 200 + b"\r\n",
        OK + b"Content-Length: 10\r\n\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + b"x" * 1_000_000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_http_or_breaks_off_is_garbled(ours: Connections, answer: bytes) -> None:
    with serving([answer]) as server, pytest.raises(ProtocolError) as caught:
        body(ours, server.url)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("answer", [b"", OK + b"Content-Length: 10\r\n\r\nhalf"])
def test_a_server_that_says_nothing_is_not_waited_for(
    ours: Connections, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(http, "SILENCE", 0.2)
    # What is never asked for keeps the connection open.
    with serving([answer, b"never"]) as server, pytest.raises(Broken, match="no answer for"):
        body(ours, server.url)


@pytest.mark.parametrize(
    "drip",
    [
        [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 50],
        [b"HTTP/1.1 100 Continue\r\n\r\n"] * 50,
        [OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1"] * 50],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", *[b"X: y\r\n"] * 50],
    ],
)
def test_a_server_that_says_little_again_and_again_is_not_waited_for(
    ours: Connections, monkeypatch: pytest.MonkeyPatch, drip: list[bytes]
) -> None:
    monkeypatch.setattr(http, "SILENCE", 0.4)
    with dripping(drip) as url:
        began = time.monotonic()
        with pytest.raises(Broken):
            body(ours, url)
        assert time.monotonic() - began < 3


def test_what_is_left_of_an_answer_is_not_waited_for(ours: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_WORTH", 0.3)
    with dripping([OK + b"Content-Length: 50\r\n\r\n", *[b"x"] * 50]) as url:
        response = ours.request("GET", url)
        began = time.monotonic()
        response.done()
        assert time.monotonic() - began < 3


@contextmanager
def dripping(pieces: list[bytes]) -> Iterator[str]:
    """A server that answers with a piece every 100 ms."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(4096)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(0.1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join()


# --- connections


def test_one_connection_serves_many_requests(ours: Connections) -> None:
    answer = OK + b"Content-Length: 2\r\n\r\nhi"
    with serving([answer, OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", answer]) as server:
        assert [body(ours, server.url) for _ in range(3)] == [b"hi", b"", b"hi"]


def test_a_connection_that_was_closed_meanwhile_is_opened_again(ours: Connections) -> None:
    answer = OK + b"Content-Length: 2\r\n\r\nhi"
    with serving([answer], [answer]) as server:
        assert body(ours, server.url) == b"hi"
        assert server.closed.wait(10)
        assert body(ours, server.url) == b"hi"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 1000000\r\n\r\n" + b"x" * 100_000,
        OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nhi",
    ],
)
def test_a_connection_with_much_left_on_it_or_that_is_to_be_closed_is_not_used_again(
    ours: Connections, answer: bytes
) -> None:
    with serving([answer], [OK + b"Content-Length: 2\r\n\r\nhi"]) as server:
        ours.request("GET", server.url).done()
        assert body(ours, server.url) == b"hi"


def test_the_answer_to_head_has_no_body(ours: Connections) -> None:
    answer = OK + b"Content-Length: 5000\r\nDocker-Content-Digest: sha256:1\r\n\r\n"
    with serving([answer, answer]) as server:
        for _ in range(2):
            response = ours.request("HEAD", server.url)
            assert (response.headers["docker-content-digest"], response.some()) == ("sha256:1", b"")
            response.done()


def test_a_server_at_an_ipv6_address_is_reached(ours: Connections) -> None:
    with serving([OK + b"Content-Length: 2\r\n\r\nhi"], address="::1") as server:
        assert body(ours, server.url) == b"hi"
        assert f"Host: [::1]:{server.port}" in server.heard[0]


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://127.0.0.1:1/", ConnectFailed),
        ("http://no-such-host.invalid/", ConnectFailed),
        ("http://", ProtocolError),
        ("http:///path", ProtocolError),
        ("http://[::1/", ProtocolError),
        ("http://host:99999/", ProtocolError),
        ("http://" + "x" * 300 + "/", ProtocolError),
        ("http://a b/", ProtocolError),
        ("https://a\0b/", ProtocolError),
    ],
)
def test_who_cannot_be_reached_is_told_as_that(ours: Connections, url: str, kind: type[Broken]) -> None:
    with pytest.raises(kind) as caught:
        ours.request("GET", url)
    assert str(caught.value)


# --- requests


def test_a_form_is_sent_as_one(ours: Connections) -> None:
    with serving([OK + b"Content-Length: 0\r\n\r\n"]) as server:
        ours.request("POST", server.url, form={"a": "b c", "d": "&"}).done()
    assert server.heard[0][0] == "POST / HTTP/1.1"
    assert "Content-Type: application/x-www-form-urlencoded" in server.heard[0]
    assert "Content-Length: 11" in server.heard[0]


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("", "/"),
        ("a b?c=d e#f", "/a%20b?c=d%20e"),
        ("a%20b?sig=x%2By&z=/?:@", "/a%20b?sig=x%2By&z=/?:@"),
        ("//a//b/", "///a//b/"),
        ("\N{SNOWMAN}", "/%E2%98%83"),
        ("a\r\nX: y", "/aX:%20y"),
    ],
)
def test_what_a_redirect_may_name_is_asked_for_as_a_url_has_to_be(ours: Connections, path: str, sent: str) -> None:
    with serving([OK + b"Content-Length: 0\r\n\r\n"]) as server:
        ours.request("GET", server.url + path).done()
    assert server.heard[0][0] == f"GET {sent} HTTP/1.1"
    assert not [line for line in server.heard[0] if line.startswith("X:")]


def test_a_header_with_a_line_break_is_not_sent(ours: Connections) -> None:
    with serving([OK]) as server, pytest.raises(ProtocolError):
        ours.request("GET", server.url, {"Authorization": "Bearer x\r\nX: y"})
    assert server.heard == []


# --- proxies


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch, ours: Connections) -> Callable[[str], Connections]:
    def set_to(url: str) -> Connections:
        for scheme in ("http", "https"):
            monkeypatch.setenv(f"{scheme}_proxy", url)
        monkeypatch.setenv("no_proxy", "direct.example")
        return ours

    return set_to


def test_plain_http_goes_to_the_proxy_with_the_whole_url(proxied: Callable[[str], Connections]) -> None:
    with serving([OK + b"Content-Length: 2\r\n\r\nhi"] * 1) as server:
        ours = proxied(f"me:p%40ss@127.0.0.1:{server.port}")
        assert body(ours, "http://registry.example:5000/v2/?a=b") == b"hi"
    assert server.heard[0][0] == "GET http://registry.example:5000/v2/?a=b HTTP/1.1"
    assert "Host: registry.example:5000" in server.heard[0]
    # me:p@ss
    assert "Proxy-Authorization: Basic bWU6cEBzcw==" in server.heard[0]


def test_https_is_asked_of_the_proxy_as_a_tunnel(proxied: Callable[[str], Connections]) -> None:
    with serving([b"HTTP/1.1 403 Forbidden by policy\r\n\r\n"]) as server, pytest.raises(ConnectFailed) as caught:
        proxied(f"http://127.0.0.1:{server.port}").request("GET", "https://registry.example/v2/")
    assert "403" in str(caught.value)
    assert server.heard[0][0].startswith("CONNECT registry.example:443 ")
    assert "Host: registry.example:443" in server.heard[0]


def test_no_proxy_is_respected_and_this_machine_is_asked_directly(proxied: Callable[[str], Connections]) -> None:
    with serving([OK + b"Content-Length: 2\r\n\r\nhi"]) as server:
        assert body(proxied("http://127.0.0.1:1"), server.url) == b"hi"
    with pytest.raises(ConnectFailed, match=r"not known|resolution|associated"):
        proxied("http://127.0.0.1:1").request("GET", "http://direct.example/")


def test_what_is_believed_of_one_spelling_of_a_host_is_not_of_another(ours: Connections) -> None:
    answer = OK + b"Content-Length: 2\r\n\r\nhi"
    with serving([answer], [answer]) as server:
        body(ours, server.url)
        assert body(ours, server.url.replace("//", "//user@")) == b"hi"
    assert len(server.heard) == 2
