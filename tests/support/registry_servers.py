"""Real registries on loopback for tests: etcd, and Consul where there is one; else a server that answers like it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from podrun_hooks.registry import connect
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.http import Away, Refused
from support.launcher import HERE

#: Where ./dev puts Debian bullseye's Consul: later releases have none.
CONSUL = HERE.parent / ".venv/consul/usr/bin/consul"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Server:
    """A registry's server: ``url`` is what pod files say."""

    def __init__(self, url: str, argv: list[str], directory: str, ca: str = "", *, wait: bool = True) -> None:
        self.url, self.argv, self.directory, self.ca = url, argv, directory, ca
        self.process: subprocess.Popen[bytes] | None = None
        self.start(wait=wait)

    def start(self, *, wait: bool = True) -> None:
        with open(f"{self.directory}/log", "ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log, cwd=self.directory)
        if wait:
            self.await_answer()

    def await_answer(self) -> None:
        client = connect(sources.parse({"url": self.url, "ca": self.ca} if self.ca else self.url))
        deadline = time.monotonic() + 30
        while True:
            try:
                client.services(seconds=1)
                return
            except Refused:
                return
            except Away:
                assert time.monotonic() < deadline, Path(f"{self.directory}/log").read_text()[-2000:]
                time.sleep(0.05)
            finally:
                client.close()

    def pause(self) -> None:
        """It hangs: connections are taken by the kernel, and nobody answers."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory)


def etcd(*more: str, scheme: str = "http", ca: str = "", directory: str = "") -> Server:
    """etcd with one member; ``more``: further options."""
    directory = directory or tempfile.mkdtemp(prefix="t-etcd-")
    os.makedirs(directory, exist_ok=True)
    port, peer = free_port(), free_port()
    client = f"{scheme}://127.0.0.1:{port}"
    argv = ["etcd", "--name", "t", "--data-dir", f"{directory}/data", "--listen-client-urls", client]
    argv += ["--advertise-client-urls", client, "--listen-peer-urls", f"http://127.0.0.1:{peer}"]
    argv += ["--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"]
    argv += ["--initial-cluster", f"t=http://127.0.0.1:{peer}", *more]
    return Server(f"etcd{'s' * (scheme == 'https')}://127.0.0.1:{port}", argv, directory, ca)


def etcdctl(server: Server, *words: str, given: str = "") -> Any:
    """What etcdctl says of a member, as JSON. ``given``: its standard input."""
    argv = ["etcdctl", "--command-timeout=2s", "--endpoints", server.url.removeprefix("etcd://"), "-w", "json", *words]
    environ = {**os.environ, "ETCDCTL_API": "3"}
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=True, env=environ)
    return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout


class EtcdCluster:
    """Three members of etcd on loopback; ``url`` names all of them."""

    def __init__(self, *more: str) -> None:
        ports = [(free_port(), free_port()) for _ in range(3)]
        peers = ",".join(f"m{n}=http://127.0.0.1:{peer}" for n, (_, peer) in enumerate(ports))
        self.members: list[Server] = []
        for n, (port, peer) in enumerate(ports):
            client, between = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
            argv = ["etcd", "--name", f"m{n}", "--data-dir", "data", "--listen-client-urls", client]
            argv += ["--advertise-client-urls", client, "--listen-peer-urls", between]
            argv += ["--initial-advertise-peer-urls", between, "--initial-cluster", peers, *more]
            self.members.append(
                Server(f"etcd://127.0.0.1:{port}", argv, tempfile.mkdtemp(prefix="t-etcd-"), wait=False)
            )
        self.url = "etcd://" + ",".join(member.url.removeprefix("etcd://") for member in self.members)
        for member in self.members:
            member.await_answer()

    def etcdctl(self, *words: str, member: int = 0, given: str = "") -> Any:
        """What etcdctl says, as JSON."""
        return etcdctl(self.members[member], *words, given=given)

    def leader(self) -> Server:
        """The member that leads."""
        for n, member in enumerate(self.members):
            if member.process:
                status = self.etcdctl("endpoint", "status", member=n)[0]["Status"]
                if status["leader"] == status["header"]["member_id"]:
                    return member
        raise AssertionError("nobody leads")

    def close(self) -> None:
        for member in self.members:
            member.close()


def consul() -> Any:
    """Consul's agent in its development mode, or what stands for it."""
    if not CONSUL.exists():
        return LikeConsul()
    directory = tempfile.mkdtemp(prefix="t-consul-")
    ports = [free_port() for _ in range(3)]
    argv = [str(CONSUL), "agent", "-dev", "-bind", "127.0.0.1", "-http-port", str(ports[0]), "-dns-port", "-1"]
    argv += ["-grpc-port", "-1", "-serf-lan-port", str(ports[1]), "-serf-wan-port", "-1", "-server-port", str(ports[2])]
    return Server(f"consul://127.0.0.1:{ports[0]}", argv, directory)


class LikeConsul:
    """The part of Consul's HTTP API that podrun uses, as Consul 1.8.7 answers it; one agent, no cluster."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, Any]] = {}
        self.checks: dict[str, str] = {}
        self.keys: dict[str, bytes] = {}
        self.index = 1
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                status, answer = outer.answer(self.command, self.path, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_DELETE = _do

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"consul://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        place = urllib.parse.urlsplit(path).path
        words = place.strip("/").split("/")
        self.index += method != "GET"
        if words[1] == "kv":
            return self._key("/".join(words[2:]), method, body)
        if words[1:3] == ["agent", "check"]:
            return self._check(words[3], words[4], body)
        if words[1:4] == ["agent", "service", "register"]:
            entry = json.loads(body)
            entry["CreateIndex"] = self.services.get(entry["ID"], {}).get("CreateIndex", self.index)
            self.services[entry["ID"]] = entry
            for check in [*entry.get("Checks", ()), *([entry["Check"]] if "Check" in entry else ())]:
                name = check.get("CheckID", f"service:{entry['ID']}")
                self.checks.setdefault(name, check.get("Status", "passing" if "AliasService" in check else "critical"))
            return 200, b""
        if words[1:4] == ["agent", "service", "deregister"]:
            self.services.pop(words[4], None)
            self.checks = {name: status for name, status in self.checks.items() if not name.startswith(words[4])}
            return 200, b""
        if words[1:3] == ["agent", "service"]:
            found = self.services.get(words[3])
            return (200, json.dumps(found).encode()) if found else (404, b"unknown service ID: " + words[3].encode())
        if words[1:3] == ["agent", "services"]:
            return 200, json.dumps(self.services).encode()
        if words[1:3] == ["catalog", "services"]:
            return 200, json.dumps({entry["Name"]: [] for entry in self.services.values()}).encode()
        assert words[1:3] == ["health", "service"], path
        rows = [
            {
                "Node": {"Node": os.uname().nodename, "Address": "127.0.0.1"},
                "Service": {"Service": entry["Name"], **entry},  # type: ignore[dict-item]
                "Checks": [{"Status": status} for name, status in self.checks.items() if name.startswith(entry["ID"])],
            }
            for entry in self.services.values()
            if entry["Name"] == words[3]
        ]
        return 200, json.dumps(rows).encode()

    def _key(self, key: str, method: str, body: bytes) -> tuple[int, bytes]:
        if method == "PUT":
            self.keys[key] = body
        elif method == "DELETE":
            self.keys.pop(key, None)
        else:
            found = [{"Value": base64.b64encode(value).decode()} for k, value in self.keys.items() if k.startswith(key)]
            return (200, json.dumps(found).encode()) if found else (404, b"")
        return 200, b"true"

    def _check(self, verb: str, name: str, body: bytes) -> tuple[int, bytes]:
        if name not in self.checks:
            return 500, f'CheckID "{name}" does not have associated TTL'.encode()
        self.checks[name] = "passing" if verb == "pass" else json.loads(body)["Status"]
        return 200, b""

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
