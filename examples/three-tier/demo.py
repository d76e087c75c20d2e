"""Moves the database of examples/three-tier while a client counts, on one machine and on three hosts.

The hosts are network namespaces with names, networks and run directories of their own, on one wire; etcd stands beside
them. The pod files are the same: what differs is the default registry. Usage: demo.py PODRUN [1]: the command, and 1
for one machine alone.
"""

from __future__ import annotations

import collections
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
WIRE = "t3-wire"


class Host:
    """A machine: this one, or a network namespace that plays one."""

    def __init__(self, podrun: str, home: Path, name: str = "", address: str = "127.0.0.1", registry: str = "") -> None:
        self.podrun, self.name, self.address = podrun, name, address
        self.defaults = home / f"{name or 'host'}.podrun.toml"
        lines = ["[defaults]", *([f'registry = "{registry}"', f'advertise = "{address}"'] if registry else [])]
        self.defaults.write_text("\n".join(lines) + "\n")
        self.environ = {
            **os.environ,
            "PODRUN_RUN": str(home / f"{name or 'host'}.run"),
            "PODRUN_ROOT": str(home / "root"),
            "PODRUN_CONFIG": str(self.defaults),
            "PODRUN_SYSTEMD": "no",
            "THREE_TIER": str(HERE),
        }

    def __call__(self, *words: str, quietly: bool = False) -> str:
        """Runs podrun there; shows the command and what it says."""
        if not quietly:
            print(f"{self.name or 'host'}$ podrun {' '.join(words)}", flush=True)
        argv = [self.podrun, *words]
        if self.name:
            named = f'hostname {self.name} && exec "$@"'
            argv = ["nsenter", f"--net=/run/netns/{self.name}", "unshare", "--uts", "sh", "-c", named, "sh", *argv]
        done = subprocess.run(argv, env=self.environ, cwd=HERE, capture_output=True, text=True, check=False)
        print(done.stderr, end="", flush=True)
        if done.returncode and not quietly:
            raise SystemExit(f"podrun {' '.join(words)} ended with {done.returncode}")
        return done.stdout


class Client(threading.Thread):
    """Calls the edge without a pause, and counts who answered and what failed."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.answers: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self.slowest = 0.0
        self.over = False

    def run(self) -> None:
        """Until it is over."""
        while not self.over:
            began = time.monotonic()
            try:
                with urllib.request.urlopen(self.url, timeout=30) as answer:
                    self.answers[answer.read().decode().strip()] += 1
            except OSError as error:
                self.failures.append(str(error))
            self.slowest = max(self.slowest, time.monotonic() - began)

    def told(self) -> bool:
        """Ends it and prints what it counted; True when nothing failed."""
        self.over = True
        self.join()
        for line, count in sorted(self.answers.items()):
            print(f"  {count:6} x {line}")
        slowest = f"the slowest took {self.slowest * 1000:.0f} ms"
        print(f"  {sum(self.answers.values())} requests, {len(self.failures)} failed, {slowest}", flush=True)
        for failure in sorted(set(self.failures))[:3]:
            print(f"  failed: {failure}")
        return not self.failures


def moved(places: list[tuple[Host, str]]) -> None:
    """Moves the database from place to place: the next one is up before the one before it stops."""
    for (before, old), (after, new) in itertools.pairwise(places):
        time.sleep(1.0)
        after("up", "-d", f"./db@{new}.toml")
        before("down", f"db@{old}")
    time.sleep(1.0)


def on_one_machine(podrun: str, home: Path) -> bool:
    """The file registry: no server, and no process."""
    print("\n--- one machine, the file registry\n")
    host = Host(podrun, home)
    try:
        for file in ("db@1", "app", "edge"):
            host("up", "-d", f"./{file}.toml")
        print(host("registry", "ls"), end="")
        client = Client("http://127.0.0.1:18080/")
        client.start()
        moved([(host, "1"), (host, "2"), (host, "1")])
        return client.told()
    finally:
        for pod in ("edge", "app", "db@1", "db@2"):
            host("down", "--force", pod, quietly=True)
        host("gc", quietly=True)


def on_three_hosts(podrun: str, home: Path) -> bool:
    """etcd, and the same pod files."""
    print("\n--- three hosts, etcd\n")
    run(*"ip link add name".split(), WIRE, "type", "bridge")
    run("ip", "address", "add", "203.0.113.254/24", "dev", WIRE)
    run("ip", "link", "set", WIRE, "up")
    server = etcd(home)
    hosts = []
    try:
        for n in (1, 2, 3):
            name = f"t3-host{n}"
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"t3-{n}", "master", WIRE, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"t3-{n}", "up")
            for words in (f"address add 203.0.113.{n}/24 dev eth0", "link set eth0 up", "link set lo up",
                          "route add default via 203.0.113.254"):  # fmt: skip
                run("ip", "-n", name, *words.split())
            run("nsenter", f"--net=/run/netns/{name}", "sysctl", "-qw", "net.ipv4.ip_forward=1")
            hosts.append(Host(podrun, home, name, f"203.0.113.{n}", "etcd://203.0.113.254:23079"))
        one, two, three = hosts
        for host, file in ((one, "db@1"), (two, "app"), (three, "edge")):
            host("up", "-d", f"./{file}.toml")
        print(one("registry", "ls"), end="")
        client = Client("http://203.0.113.3:18080/")
        client.start()
        moved([(one, "1"), (two, "2"), (three, "3")])
        print(one("registry", "ls"), end="")
        return client.told()
    finally:
        for host in hosts:
            for pod in ("edge", "app", "db@1", "db@2", "db@3"):
                host("down", "--force", pod, quietly=True)
            host("gc", quietly=True)
            run("ip", "netns", "del", host.name)
        server.kill()
        server.wait()
        run("ip", "link", "del", WIRE)


def etcd(home: Path) -> subprocess.Popen[bytes]:
    """One member on the hosts' wire."""
    argv = ["etcd", "--name", "t", "--data-dir", str(home / "etcd")]
    for kind, port in (("client", 23079), ("peer", 23080)):
        url = f"http://203.0.113.254:{port}"
        argv += [f"--listen-{kind}-urls", url]
        argv += ["--advertise-client-urls" if kind == "client" else "--initial-advertise-peer-urls", url]
    argv += ["--initial-cluster", "t=http://203.0.113.254:23080"]
    log = open(home / "etcd.log", "wb")
    server = subprocess.Popen(argv, stdout=log, stderr=log)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("203.0.113.254", 23079), 1).close()
            return server
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"etcd does not answer: see {home}/etcd.log")


def run(*argv: str) -> None:
    """Runs a program that has to succeed."""
    subprocess.run(argv, check=True)


def main() -> int:
    """Both; 0 when no request failed."""
    podrun = os.path.abspath(sys.argv[1])
    home = Path(tempfile.mkdtemp(prefix="three-tier-", dir="/run"))
    try:
        parts = [on_one_machine, on_three_hosts][: int(sys.argv[2]) if len(sys.argv) > 2 else 2]
        return 0 if all(part(podrun, home) for part in parts) else 1
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
