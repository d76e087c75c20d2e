"""Through an HTTP proxy: CONNECT to a registry that speaks TLS with a certificate authority of its own, and plain HTTP."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from podrun.errors import UNAVAILABLE, Failure
from podrun_hooks.image import commands
from support import image_builder as build
from support.image_servers import Request, faulty

pytestmark = [pytest.mark.root, pytest.mark.server, pytest.mark.usefixtures("own_configuration")]

IMAGE = build.image(*[build.tar(build.file(f"l{layer}", os.urandom(300_000))) for layer in range(4)])
WHO = base64.b64encode(b"me:secret").decode()


class Proxy:
    """Takes every CONNECT of who knows the password to one port of this machine, whatever host it names."""

    def __init__(self, port: int, certificate: str = "") -> None:
        self.port = port
        #: Of a proxy that itself speaks TLS.
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if certificate else None
        if self.context:
            self.context.load_cert_chain(certificate)
        self.asked: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.tunnel, args=(connection,), daemon=True).start()

    def tunnel(self, connection: socket.socket) -> None:
        if self.context:
            try:
                connection = self.context.wrap_socket(connection, server_side=True)
            except OSError:  # the client does not trust us
                return
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        lines = head.decode().split("\r\n")
        self.asked.append(lines[0])
        if not lines[0].startswith("CONNECT "):
            connection.sendall(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")
        elif f"proxy-authorization: basic {WHO}".lower() not in head.decode().lower():
            connection.sendall(b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n")
        else:
            there = socket.create_connection(("127.0.0.1", self.port))
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_copy, args=(there, connection), daemon=True)
            back.start()
            _copy(connection, there)
            back.join()
            there.close()
        connection.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def proxied(port: int, certificate: str = "") -> Iterator[Proxy]:
    proxy = Proxy(port, certificate)
    threading.Thread(target=proxy.serve, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.listener.close()


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_an_image_comes_through_a_proxy_over_tls(
    tmp_path: Path, registered: Path, certificate: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with faulty(IMAGE, certificate=certificate) as server:
        port = int(server.host.rpartition(":")[2])
        host = f"registry.example:{port}"
        registered.write_text(f'[registry."{host}"]\nca = "{certificate}"')
        with proxied(port) as proxy:
            monkeypatch.setenv(variable, f"http://me:secret@{proxy.host}")
            root = str(tmp_path / "root")
            assert commands.pull(root, f"{host}/team/web").digest == IMAGE.digest
            assert commands.pull(root, f"{host}/team/web").digest == IMAGE.digest
            assert {asked.rpartition(" ")[0] for asked in proxy.asked} == {f"CONNECT {host}"}
            # The proxy's password is the proxy's.
            assert not [headers for _, _, headers in server.seen if "Proxy-Authorization" in headers]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("name", ["registry.example", "[fd00::5]"])
def test_a_proxy_may_itself_speak_tls_and_a_registry_be_an_ipv6_address(
    tmp_path: Path, registered: Path, certificate: str, monkeypatch: pytest.MonkeyPatch, scheme: str, name: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    with faulty(IMAGE, certificate=certificate) as server:
        port = int(server.host.rpartition(":")[2])
        with proxied(port, certificate if scheme == "https" else "") as proxy:
            monkeypatch.setenv("https_proxy", f"{scheme}://me:secret@{proxy.host}")
            assert commands.pull(str(tmp_path / "root"), f"{name}:{port}/team/web").digest == IMAGE.digest
            assert {asked.rpartition(" ")[0] for asked in proxy.asked} == {f"CONNECT {name}:{port}"}


def test_a_proxy_whose_certificate_nobody_vouches_for_is_told(
    tmp_path: Path, registered: Path, certificate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(1, certificate) as proxy:
        monkeypatch.setenv("https_proxy", f"https://me:secret@{proxy.host}")
        with pytest.raises(Failure, match="certificate") as caught:
            commands.pull(str(tmp_path / "root"), "registry.example/team/web")
    assert caught.value.code == UNAVAILABLE
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("who", "ca"), [("me:wrong@", True), ("me:secret@", False)])
def test_a_proxy_that_refuses_us_and_a_registry_that_nobody_vouches_for_are_told(
    tmp_path: Path, registered: Path, certificate: str, monkeypatch: pytest.MonkeyPatch, who: str, ca: bool
) -> None:
    with faulty(IMAGE, certificate=certificate) as server:
        port = int(server.host.rpartition(":")[2])
        host = f"registry.example:{port}"
        registered.write_text(f'[registry."{host}"]\nca = "{certificate}"' if ca else "")
        with proxied(port) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{who}{proxy.host}")
            with pytest.raises(Failure, match="407" if ca else "certificate") as caught:
                commands.pull(str(tmp_path / "root"), f"{host}/team/web")
    assert caught.value.code == UNAVAILABLE
    assert "secret" not in str(caught.value)


def test_a_proxy_of_the_environment_is_used_and_not_for_this_machine(
    root: str, registered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def change(request: Request) -> bool:
        asked.append(f"{request.command} {request.path}")
        if request.command == "CONNECT":
            request.reply(502)
            return True
        request.path = request.path.removeprefix("http://registry.example")
        return False

    registered.write_text('[registry."registry.example"]\ninsecure = true')
    with faulty(IMAGE, change) as proxy, faulty(IMAGE) as server:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        monkeypatch.setenv("https_proxy", proxy.host)
        assert commands.pull(root, "registry.example/web").digest == IMAGE.digest
        assert asked[0].startswith("CONNECT registry.example")
        assert "GET http://registry.example/v2/web/manifests/latest" in asked
        asked.clear()
        commands.pull(root, f"{server.host}/web")
        assert asked == []
        monkeypatch.setenv("no_proxy", "registry.example")
        with pytest.raises(Failure, match="cannot be reached"):
            commands.pull(root, "registry.example/other")
        assert asked == []
