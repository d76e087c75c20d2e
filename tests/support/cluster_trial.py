"""A cluster under trial: what is asked of it, what pods leave on a host, the table of what was found."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from support.cluster_hosts import Cluster, Machine, until
from support.power_switch import AGENT
from support.systemd_host import CHECKOUT, Broken

EXAMPLES = CHECKOUT / "examples/cluster"
#: client.toml: who calls a service and counts; extra.toml: a registration that needs nothing of the network.
OWN = CHECKOUT / "tests/cluster/pods"
PODS = "/root/pods"


class Row(NamedTuple):
    """One line of the table. ``seconds`` and ``limit``: -1 where the point is not about time."""

    point: str
    what: str
    seconds: float
    limit: float
    right: bool
    note: str = ""


class Trial:
    """The cluster under trial, and what has been found so far."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.rows: list[Row] = []
        self.began = time.monotonic()

    def found(
        self, point: str, what: str, seconds: float = -1, limit: float = -1, *, right: bool = True, note: str = ""
    ) -> None:
        row = Row(point, what, seconds, limit, right and (limit < 0 or seconds <= limit), note)
        self.rows.append(row)
        print(line(row), flush=True)

    def attempt(self, point: str, step: Callable[[Trial], None]) -> None:
        """Does a step; what goes wrong in it is a row of the table."""
        try:
            step(self)
        except (Broken, AssertionError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            self.found(point, step.__doc__ or "", right=False, note=f"{type(error).__name__}: {error}"[-1500:])

    def over(self) -> int:
        """Prints the table; 1 when a row is not as it should be."""
        print(f"\n{time.monotonic() - self.began:.0f} s")
        print("\n".join(map(line, self.rows)))
        return 0 if all(row.right for row in self.rows) else 1

    # --- asking ---

    def any(self) -> Machine:
        return next(machine for machine in self.cluster.machines if machine.leader)

    def podrun(self, *words: str, machine: Machine | None = None, timeout: float = 150) -> str:
        return (machine or self.any()).do("podrun", "cluster", *words, timeout=timeout)

    def units(self, machine: Machine | None = None) -> list[dict[str, str]]:
        return [json.loads(text) for text in self.podrun("units", "--format", "json", machine=machine).splitlines()]

    def where(self, pod: str) -> list[str]:
        """The hosts on which systemd has the pod active."""
        return sorted(unit["machine"] for unit in self.units() if unit["unit"] == pod and unit["systemd"] == "active")

    def is_active(self, pod: str, machine: Machine) -> bool:
        return machine.run("systemctl", "is-active", "--quiet", pod).returncode == 0

    def records(self, service: str) -> list[dict[str, object]]:
        """What etcd has of a service, asked of each host that runs until one answers."""
        script = f"ETCDCTL_API=3 etcdctl --command-timeout=1s get --prefix --print-value-only /podrun/v1/svc/{service}/"
        for machine in self.cluster.machines:
            if machine.leader and (done := machine.run("sh", "-c", script)).returncode == 0:
                return [json.loads(text) for text in done.stdout.splitlines() if text]
        return []

    def started(self, pod: str) -> dict[str, str]:
        """The invocation of a pod's unit on each host that has it active."""
        found = {}
        for machine in self.cluster.machines:
            if machine.leader and self.is_active(pod, machine):
                found[machine.name] = machine.do("systemctl", "show", "-P", "InvocationID", pod).strip()
        return found

    def count(self) -> dict[str, object]:
        """What the client has counted, on whichever host it is."""
        for machine in self.cluster.machines:
            if machine.leader and self.is_active("client", machine):
                done = machine.run("cat", "/run/count/state")
                return json.loads(done.stdout) if done.returncode == 0 else {}
        return {}

    def client_goes_on(self, seconds: float = 30) -> float:
        """How long until the client has one more answer."""
        before = int(str(self.count().get("ok", 0)))
        return until(lambda: int(str(self.count().get("ok", 0))) > before, seconds, lambda: f"client: {self.count()}")

    def up(self, *pods: str, seconds: float = 60) -> float:
        return until(lambda: all(self.where(pod) for pod in pods), seconds, lambda: str(self.units()))

    def machine_of(self, pod: str) -> Machine:
        return self.cluster[self.where(pod)[0]]

    def apart_from_client(self) -> Machine:
        """Brings service1 to a host without the client; returns the host."""
        client = self.where("client")
        if self.where("service1") == client:
            other = next(m for m in self.cluster.machines if m.leader and m.name not in client)
            self.podrun("move", "service1", other.name)
            self.up("service1", "service2")
        return self.machine_of("service1")


def line(row: Row) -> str:
    seconds = f"{row.seconds:6.1f}" if row.seconds >= 0 else "      "
    limit = f"<= {row.limit:g}" if row.limit >= 0 else ""
    note = f"  ({row.note})" if row.note else ""
    return f"{row.point:3} {'ok ' if row.right else 'NOT'} {seconds} {limit:6} {row.what}{note}"


LEFT = """
import json, sys
sys.path.insert(0, "/opt")
from pathlib import Path
from support.objects import listing
print(json.dumps(sorted(listing(Path("/run/podrun"), Path("/var/lib/podrun")))))
"""


def left(machine: Machine) -> set[str]:
    """What pods are made of on a host; the follower and the agents of the cluster are not part of it."""
    # A process of the system has another number after a reboot, and sees the mount of /var/lib/podrun.
    found = {re.sub("^process [0-9]+", "process", text) for text in json.loads(machine.do("python3", "-c", LEFT))}
    for path in machine.sh("find /sys/fs/cgroup -type d -name podrun").split():
        found.add(f"cgroup {path}")
    own = ("/var/lib/podrun ", "follow")
    return {item for item in found if not any(word in item for word in own)}


def furnish(cluster: Cluster) -> None:
    """The pod files, and what lists leftovers."""
    for machine in cluster.machines:
        root = machine.home / "root"
        (root / "root/pods").mkdir(parents=True, exist_ok=True)
        for path in (*EXAMPLES.iterdir(), *OWN.iterdir()):
            (root / "root/pods" / path.name).write_text(path.read_text())
        subprocess.run(["cp", "-r", CHECKOUT / "tests/support", root / "opt/support"], check=True)
        (root / "etc/tmpfiles.d/count.conf").write_text("d /run/count 0755 root root\n")
        (root / "usr/sbin/fence_switch").write_text(AGENT)
        (root / "usr/sbin/fence_switch").chmod(0o755)
