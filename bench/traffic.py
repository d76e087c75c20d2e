"""What a published port costs: throughput (iperf3) and round trips of small messages, beside the pod's own address.

Servers and clients are the machine's own programs in the namespaces of the pod and of a neighbour: nothing depends on
what an engine's image holds. From the host: 127.0.0.1. From outside: a neighbour on a link of its own. Hairpin: the pod
calls its own published port by the host's address.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from contenders import IDLE, Engine
from report import Figures
from start import run

PORT = 18082
_HOST, _NEIGHBOUR = "198.51.100.1", "198.51.100.2"
_ECHO = """
import socket
listening = socket.create_server(("", 80))
while True:
    with listening.accept()[0] as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(64):
            connection.sendall(data)
"""
_ASK = """
import socket, statistics, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    took = []
    for _ in range(3000):
        began = time.perf_counter()
        connection.sendall(b"x" * 64)
        assert connection.recv(64)
        took.append(time.perf_counter() - began)
print(statistics.median(took[500:]) * 1e6)
"""


def within(pid: int) -> list[str]:
    """What has a program run in the network namespace of a process."""
    return ["nsenter", f"--net=/proc/{pid}/ns/net"]


@contextlib.contextmanager
def neighbour() -> Iterator[int]:
    """A machine next door: a process in a network namespace that a link joins with the host's."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        deadline = time.monotonic() + 5
        while run("readlink", f"/proc/{process.pid}/ns/net").stdout == run("readlink", "/proc/self/ns/net").stdout:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run("ip", "link", "add", "bench-out", "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        run("ip", "address", "add", f"{_HOST}/24", "dev", "bench-out")
        run("ip", "link", "set", "bench-out", "up")
        inside = within(process.pid)
        run(*inside, "ip", "link", "set", "lo", "up")
        run(*inside, "ip", "address", "add", f"{_NEIGHBOUR}/24", "dev", "eth0")
        run(*inside, "ip", "link", "set", "eth0", "up")
        run(*inside, "ip", "route", "add", "default", "via", _HOST)
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _serving(argv: Sequence[str]) -> Iterator[None]:
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.3)
        yield
    finally:
        server.kill()
        server.wait()


def _throughput(client: Sequence[str], address: str, port: int) -> float | None:
    """Gbit/s, None when it cannot be reached."""
    argv = ["iperf3", "-c", address, "-p", str(port), "-t", "1", "-J", "--connect-timeout", "3000"]
    told = run(*client, *argv, check=False).stdout
    try:
        return float(json.loads(told)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (ValueError, KeyError):
        return None


def _round_trip(client: Sequence[str], address: str, port: int) -> float | None:
    """Microseconds, None when it cannot be reached."""
    done = run(*client, sys.executable, "-IS", "-c", _ASK, address, str(port), check=False)
    return float(done.stdout) if done.returncode == 0 else None


def through_ports(engines: Sequence[tuple[str, Engine]], figures: Figures, far: int, turn: int) -> list[str]:
    """One round; returns who could not be reached from where."""
    unreached = []
    for name, engine in engines:
        pod = f"traffic{turn}"
        run(*engine.start(pod, PORT, IDLE, "0.0.0.0"))
        pid = int(run(*engine.pid(pod)).stdout)
        own = json.loads(run(*within(pid), "ip", "-j", "-4", "address", "show", "dev", "eth0").stdout)
        address = own[0]["addr_info"][0]["local"]
        ways = [
            ("from the host", name, [], "127.0.0.1", PORT),
            ("from outside", name, within(far), _HOST, PORT),
            ("hairpin", name, within(pid), _HOST, PORT),
            ("from the host", f"{name}, the pod's own address", [], address, 80),
        ]
        measures = (
            ("throughput of a published port", "Gbit/s", _throughput, ["iperf3", "-s", "-p", "80"]),
            ("round trip by a published port", "µs", _round_trip, [sys.executable, "-IS", "-c", _ECHO]),
        )
        for what, unit, measure, server in measures:
            with _serving([*within(pid), *server]):
                for where, label, client, at, port in ways:
                    found = measure(client, at, port)
                    if found is None:
                        unreached.append(f"{label}, {where}: not reached ({what})")
                    else:
                        figures.add(f"{what}, {where}", unit, label, found)
        run(*engine.remove(pod))
    return unreached


def within_three_percent(figures: Figures) -> None:
    """Says what podrun's published port costs beside no port at all."""
    for what, unit in (("throughput of a published port", "Gbit/s"), ("round trip by a published port", "µs")):
        rows = figures.rows.get((f"{what}, from the host", unit), {})
        if "podrun" in rows:
            ratio = statistics.median(rows["podrun"]) / statistics.median(rows["podrun, the pod's own address"])
            print(f"{what}: {ratio:.3f} of the pod's own address")
