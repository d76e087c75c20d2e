"""A run directory of a test's own with pods that have nothing but a network, and programs that talk between them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from podrun.hook import Pod, Problem, Step
from podrun.host import tag
from podrun.options import read
from podrun_hooks import network
from podrun_hooks.network import bridge, inspect, names

_SERVER = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
server = socket.socket(family, kind)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((sys.argv[2], int(sys.argv[3])))
if kind == socket.SOCK_STREAM:
    server.listen(16)
print("listening", flush=True)
while True:
    if kind == socket.SOCK_STREAM:
        connection, peer = server.accept()
        connection.sendall(f"{sys.argv[4]} to {peer[0]}".encode())
        connection.close()
    else:
        _, peer = server.recvfrom(100)
        server.sendto(f"{sys.argv[4]} to {peer[0]}".encode(), peer)
"""
_CLIENT = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
client = socket.socket(family, kind)
client.settimeout(float(sys.argv[4]))
client.connect((sys.argv[2], int(sys.argv[3])))
if kind == socket.SOCK_DGRAM:
    client.send(b"?")
print(client.recv(100).decode())
"""


class Place:
    """A run directory, and the pods in it; :meth:`close` leaves nothing of it."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="t-net-"))
        self.run, self.root = str(self.home / "run"), str(self.home / "root")
        self.servers: list[subprocess.Popen[str]] = []
        self.started: dict[str, Step] = {}

    def step(self, pod: str, step: str = "network", **table: Any) -> Step:
        """A network step of a pod that has a journal, as the chain writes one before it calls a hook."""
        found = Pod(pod, self.root, self.run, tag(pod, self.run), invocation=os.urandom(4).hex())
        os.makedirs(found.directory, mode=0o700, exist_ok=True)
        Path(found.directory, "pod.journal").touch()
        return Step(found, "network", step, read(network.Options, table))

    def up(self, pod: str, **table: Any) -> dict[str, Any]:
        step = self.step(pod, **table)
        self.started[pod] = step
        return network.up(step, {})

    def further(self, pod: str, facts: dict[str, Any], name: str = "network-2", **table: Any) -> dict[str, Any]:
        """One more network step of a pod that is up."""
        step = self.step(pod, name, **table)
        self.started[f"{pod} {name}"] = step
        return network.up(step, facts)

    def down(self, pod: str, own: dict[str, Any] | None = None) -> None:
        for key in [key for key in reversed(self.started) if key == pod or key.startswith(f"{pod} ")]:
            network.down(self.started.pop(key), own or {})

    def check(self, pod: str, **table: Any) -> list[Problem]:
        return network.check(self.step(pod, **table))

    def bridge(self) -> str:
        return bridge.default_name(self.step("any").pod)

    def table(self) -> str:
        return bridge.table(self.step("any").pod)

    def serve(self, netns: str, port: int, word: str, *, proto: str = "tcp", host: str = "0.0.0.0") -> None:
        """A server in a namespace ("": the host's) that tells everybody who calls a word and the caller's address."""
        argv = [*inside(netns), sys.executable, "-c", _SERVER, proto, host, str(port), word]
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self.servers.append(server)
        assert server.stdout
        assert server.stdout.readline() == "listening\n"

    def silence(self) -> None:
        """Ends all servers: a process keeps the namespace that it is in."""
        while self.servers:
            server = self.servers.pop()
            server.kill()
            server.wait()
            if server.stdout:
                server.stdout.close()

    def close(self) -> None:
        self.silence()
        for step in reversed(self.started.values()):
            network.down(step, {})
        for journal in self.home.glob("run/pods/*/*.journal"):
            journal.unlink()
        inspect.collect(self.run)
        inspect.remove_bridges(self.run)
        subprocess.run(["rm", "-r", str(self.home)], check=True)


def inside(netns: str) -> list[str]:
    """The words that make a command run in a namespace, "" for the host's."""
    return ["ip", "netns", "exec", os.path.basename(netns)] if netns else []


def call(netns: str, address: str, port: int, *, proto: str = "tcp", timeout: float = 3) -> str:
    """What the server answers, or "" when nobody does."""
    argv = [*inside(netns), sys.executable, "-c", _CLIENT, proto, address, str(port), str(timeout)]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def plain(facts: dict[str, Any], version: int = 4) -> str:
    """A pod's address without its prefix length."""
    return next(one for one in facts["addresses"] if (":" in one) == (version == 6)).partition("/")[0]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def outside_host() -> Iterator[tuple[str, str, str]]:
    """Another machine on a wire of its own: its namespace, its address and this host's address for it."""
    name = "t-net-outside"
    run("ip", "netns", "add", name)
    run("ip", "link", "add", "t-net-wire", "type", "veth", "peer", "name", "wire", "netns", name)
    try:
        run("ip", "address", "add", "198.51.100.1/24", "dev", "t-net-wire")
        run("ip", "link", "set", "t-net-wire", "up")
        run(*inside(name), "ip", "address", "add", "198.51.100.2/24", "dev", "wire")
        run(*inside(name), "ip", "link", "set", "wire", "up")
        run(*inside(name), "ip", "link", "set", "lo", "up")
        yield name, "198.51.100.2", "198.51.100.1"
    finally:
        run("ip", "netns", "delete", name)
        run("ip", "link", "delete", "t-net-wire", check=False)


def run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{argv}: {done.stderr}"
    return done.stdout


def seen(place: Place) -> set[str]:
    """What the kernel and the file system have of a place's pods; what pods share is left out."""
    mine = bridge.prefix(place.step("any").pod)
    found = {f"netns {line.split()[0]}" for line in run("ip", "netns", "list").splitlines() if line.startswith(mine)}
    found |= {f"link {row['name']}" for row in inspect.links(place.run)}
    found |= {f"port {row}" for row in inspect.published(place.run)}
    for name in ("host4", "any4", "host6", "any6"):
        text = run("nft", "list", "map", "inet", place.table(), name, check=False)
        found |= {f"element {line}" for line in text.splitlines() if "comment" in line}
    for directory, _, files in os.walk(place.run):
        lasting = (".journal", ".lock", "/hosts") if directory.startswith(f"{place.run}/network/") else (".journal",)
        found |= {f"file {path}" for name in files if not (path := f"{directory}/{name}").endswith(lasting)}
    for known in bridge.known_in(place.run):
        found |= {f"name {name}" for name in names.known(known.directory)}
    found |= {
        f"mount {line.split()[4]}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f"/{mine}" in line
    }
    return found


def settled(place: Place, before: set[str]) -> set[str]:
    """What is left, once the kernel has had a second for what it deletes later."""
    deadline = time.monotonic() + 2
    while (left := seen(place) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left
