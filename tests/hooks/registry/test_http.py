"""The registries' HTTP client: whatever a server does, the answer is an answer or Away, and in time."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks.registry import connect
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.bell import Bell, Request, wait
from podrun_hooks.registry.http import LARGEST, Away, Client, Refused
from podrun_hooks.registry.source import Source

OK = b"HTTP/1.1 200 OK\r\n"


class Serving:
    """A server whose every connection is given to ``act``."""

    def __init__(self, act: Callable[[socket.socket], None]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.act, self.connections = act, 0
        self.url = f"etcd://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        try:
            self.act(connection)
        except OSError:
            pass
        finally:
            connection.close()

    def source(self) -> Source:
        return sources.parse(self.url)

    def close(self) -> None:
        self.listener.close()


def answering(*parts: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        while connection.recv(65536):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)

    return act


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ([OK + b"Content-Length: 2\r\n\r\n{}"], b"{}"),
        ([OK, b"content-length: 2\r\n", b"\r\n{", b"}"], b"{}"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n"], b"{}"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n1\r", b"\n{\r\n", b"1\r\n}", b"\r\n0\r\n", b"\r\n"], b"{}"),
        ([OK + b"Content-Length: 0\r\n\r\n"], b""),
    ],
)
def test_an_answer_is_read_however_it_comes(parts: Any, body: bytes) -> None:
    server = Serving(answering(*parts, pause=0.01))
    client = Client(server.source())
    for _ in range(2):
        assert client.call("POST", "/", b"x", seconds=2).body == body
    assert server.connections == 1
    server.close()


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "not HTTP"),
        ([b"HTTP/1.1 okay\r\n\r\n"], "not HTTP"),
        ([b"\0" * 70000], "too long"),
        ([OK + b"\r\n"], "how long it is"),
        ([OK + b"Content-Length: -5\r\n\r\n"], "how long it is"),
        ([OK + b"Content-Length: 99999999999\r\n\r\n"], "more than 4 MiB"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], "not a number"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 70000], "too long"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"], "more than 4 MiB"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n"], "more than 4 MiB"),
        ([OK + b"Content-Length: 9\r\n\r\nnot JSON!"], "not JSON"),
        ([OK + b"Content-Length: 2\r\n\r\n[]"], "not a JSON object"),
        ([OK + b"Content-Length: 2\r\n\r\n{}"], "no revision"),
    ],
)
def test_an_answer_that_is_none_is_told_as_such(parts: Any, why: str) -> None:
    server = Serving(answering(*parts))
    with pytest.raises(Away, match=why):
        connect(server.source()).poll(["web"], seconds=2)
    server.close()


def test_more_chunks_than_anybody_needs_are_not_read_to_their_end() -> None:
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    server = Serving(answering(OK + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 20))
    with pytest.raises(Away, match="more than 4 MiB"):
        Client(server.source()).call("GET", "/", seconds=5)
    server.close()
    assert LARGEST == 4 << 20


@pytest.mark.parametrize("parts", [[], [b"H"] * 1000, [OK + b"Content-Length: 1000\r\n\r\n"] + [b"x"] * 1000])
def test_a_server_that_hangs_or_drips_takes_no_longer_than_it_is_given(parts: Any) -> None:
    server = Serving(answering(*parts, pause=0.05))
    client = Client(server.source())
    began = time.monotonic()
    with pytest.raises(Away, match="no answer in time"):
        client.call("POST", "/", b"x", seconds=0.4)
    assert time.monotonic() - began < 0.8
    server.close()


@pytest.mark.root
def test_a_name_server_that_is_silent_takes_no_longer_than_the_call_may(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.177\n")
    code = """
import socket, sys, time
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.177", 53))
from podrun_hooks.registry.http import Away, Client
from podrun_hooks.registry import source
for name, address in (("registry.example", "not resolved in time"), ("localhost", "Connection refused")):
    began = time.monotonic()
    try:
        Client(source.parse(f"etcd://{name}:1")).call("GET", "/", seconds=0.5)
    except Away as away:
        assert address in str(away), away
    assert time.monotonic() - began < 1.5
"""
    mount = f"mount --bind {tmp_path}/resolv.conf $(realpath /etc/resolv.conf)"
    script = f'{mount} && ip link set lo up && exec "$0" -c "$1"'
    argv = ["unshare", "-mn", "sh", "-c", script, sys.executable, code]
    subprocess.run(argv, check=True, timeout=20)


def test_a_limit_is_for_all_calls_together() -> None:
    server = Serving(answering(OK + b"Content-Length: 2\r\n\r\n", b"{}", pause=0.15))
    client = connect(server.source())
    client.limit(0.5)
    began = time.monotonic()
    with pytest.raises(Away):
        for _ in range(100):
            client._call("x", {}, 2)  # type: ignore[call-arg]
    assert time.monotonic() - began < 0.9
    server.close()


def test_a_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    def act(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(OK + b"Content-Length: 2\r\n\r\n{}")

    server = Serving(act)
    client = Client(server.source())
    for _ in range(3):
        assert client.call("POST", "/", b"x", seconds=2).body == b"{}"
        time.sleep(0.02)
    assert server.connections == 3
    server.close()


def test_after_a_time_out_the_late_answer_is_not_taken_for_the_next() -> None:
    counter = iter(range(100))

    def act(connection: socket.socket) -> None:
        while connection.recv(65536):
            n = next(counter)
            time.sleep(0.5 if n == 0 else 0)
            connection.sendall(OK + b"Content-Length: 1\r\n\r\n" + str(n).encode())

    server = Serving(act)
    client = Client(server.source())
    with pytest.raises(Away):
        client.call("POST", "/", seconds=0.2)
    time.sleep(0.5)
    assert client.call("POST", "/", seconds=2).body == b"1"
    server.close()


def test_an_error_of_the_registry_is_told_in_its_own_words() -> None:
    body = b'{"error":"etcdserver: permission denied","code":7}'
    server = Serving(answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)))
    with pytest.raises(Refused, match="permission denied"):
        connect(server.source()).records("web", seconds=2)
    server.close()


CANCELED = b'{"result":{"canceled":true,"compact_revision":"9"}}'


@pytest.mark.parametrize(
    ("answer", "rings", "listens"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", True, False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + CANCELED, True, False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"{}" * 400_000, True, True),
        (b"", False, True),
        (None, True, False),
    ],
    ids=["refused", "canceled", "too much", "nothing", "closed"],
)
def test_whatever_a_bell_hears_it_is_not_rung_without_end(answer: bytes | None, rings: bool, listens: bool) -> None:
    def act(connection: socket.socket) -> None:
        while connection.recv(65536) and answer is not None:
            connection.sendall(answer)

    serving = Serving(act)
    bell, client = Bell(), Client(serving.source())
    requests = [Request("web", "POST", "/v3/watch", b"{}")]
    try:
        bell.listen(client, requests, 0.0)
        assert bell.listens
        wait(bell.descriptors(), 5 if rings else 0.2)
        assert (bell.rings(0.0), bell.listens) == (rings, listens)
        bell.listen(client, requests, 0.1)
        if answer and not listens:
            assert (bell.listens, serving.connections) == (False, 1)
            bell.listen(client, requests, 60.0)
        assert bell.listens
    finally:
        bell.close()
        serving.close()
