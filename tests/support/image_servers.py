"""Registries for tests: Debian's docker-registry, and one in Python that misbehaves as it is told."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from support import image_builder as build


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Registry:
    """A running docker-registry: ``host`` is 127.0.0.1:port."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.host = f"127.0.0.1:{free_port()}"

    def push(self, layout: str, name: str, *options: str) -> str:
        """Copies an image of a layout ("oci:path:tag") there; returns the reference for podrun."""
        argv = ["skopeo", "copy", "--preserve-digests", "--dest-tls-verify=false", *options, layout]
        subprocess.run([*argv, f"docker://{self.host}/{name}"], check=True, capture_output=True)
        return f"{self.host}/{name}"

    def requests(self, word: str) -> list[str]:
        """The GET requests so far whose path has a word in it."""
        time.sleep(0.2)
        lines = (self.place / "log").read_text(errors="replace").splitlines()
        return [line for line in lines if '"GET /v2/' in line and word in line]


@contextmanager
def docker_registry(place: Path) -> Iterator[Registry]:
    registry = Registry(place)
    config = {
        "version": 0.1,
        "log": {"accesslog": {"disabled": False}, "level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(place / "data")}},
        "http": {"addr": registry.host},
    }
    (place / "config.yml").write_text(json.dumps(config))
    with (place / "log").open("wb") as log:
        argv = ["docker-registry", "serve", str(place / "config.yml")]
        environ = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
        server = subprocess.Popen(argv, stdout=log, stderr=log, env=environ)
    try:
        host, _, port = registry.host.partition(":")
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    break
            time.sleep(0.05)
        yield registry
    finally:
        server.terminate()
        server.wait()


class Request(BaseHTTPRequestHandler):
    """One request: what the server's ``answer`` does with it. Every one is noted."""

    protocol_version = "HTTP/1.1"
    server: Faulty

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers.items())))
        self.server.answer(self)

    do_HEAD = do_GET
    do_POST = do_GET
    do_CONNECT = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        if length is not None and length != len(content):
            self.close_connection = True


class Faulty(ThreadingHTTPServer):
    """A registry that serves one image properly unless ``change`` answers first (returns True)."""

    daemon_threads = True

    def __init__(
        self,
        built: build.Built,
        change: Callable[[Request], Any] = lambda request: None,
        certificate: str = "",
    ) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.built = built
        self.change = change
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    def answer(self, request: Request) -> None:
        if not self.change(request):
            self.serve(request)

    def serve(self, request: Request) -> None:
        if request.path == "/v2/":
            request.reply(200, b"{}")
            return
        last = request.path.rpartition("/")[2]
        content = self.built.blobs.get(last, self.built.manifest if "/manifests/" in request.path else None)
        if content is None:
            request.reply(404, b'{"errors":[{"code":"NOT_FOUND","message":"unknown"}]}')
            return
        start = request.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        kind = {"Content_Type": "application/vnd.oci.image.manifest.v1+json"} if "/manifests/" in request.path else {}
        if start:
            request.reply(206, content[int(start) :], **kind)
        else:
            request.reply(200, content, **kind)

    def handle_error(self, *_: object) -> None:
        """Clients that go away are what the tests are about."""

    def paths(self, word: str) -> list[str]:
        return [path for _, path, _ in self.seen if word in path]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def asks_for_a_password(user: str, password: str) -> Callable[[Request], bool]:
    """A registry with basic authentication."""

    def change(request: Request) -> bool:
        if request.headers.get("Authorization") == basic(user, password):
            return False
        request.reply(401, b"{}", WWW_Authenticate='Basic realm="x"')
        return True

    return change


def asks_for_a_token(user: str, password: str, identity: str = "") -> Callable[[Request], bool]:
    """A registry with a token service: a token for a name and password, or for an identity token, by scope."""

    def change(request: Request) -> bool:
        path, _, query = request.path.partition("?")
        if path == "/token":
            form = query
            if request.command == "POST":
                form = request.rfile.read(int(request.headers["Content-Length"])).decode()
            asked = dict(parse_qsl(form))
            by_token = identity and asked.get("refresh_token") == identity
            if by_token or request.headers.get("Authorization") == basic(user, password):
                request.reply(200, json.dumps({"token": f"for {asked.get('scope', 'nothing')}"}).encode())
            else:
                request.reply(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong name or password"}]}')
            return True
        repository = request.path.removeprefix("/v2/").rpartition("/")[0].rpartition("/")[0]
        scope = f"repository:{repository}:pull" if repository else ""
        if request.headers.get("Authorization") == f"Bearer for {scope or 'nothing'}":
            return False
        realm = f"http://{request.headers['Host']}/token"
        told = f'Bearer realm="{realm}",service="reg"' + (f',scope="{scope}"' if scope else "")
        request.reply(401, b"{}", WWW_Authenticate=told)
        return True

    return change


@contextmanager
def faulty(
    built: build.Built, change: Callable[[Request], Any] = lambda request: None, certificate: str = ""
) -> Iterator[Faulty]:
    server = Faulty(built, change, certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
