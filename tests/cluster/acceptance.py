"""What several hosts have to stand: three booted hosts, the example's pods, moves, failures; a table at the end.

Run by ``./dev prove cluster [POINT...]``; takes about six minutes. Points: a b c d e f g h i, and ocf (ocf-tester).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent), str(HERE.parent.parent / "hooks")]

from support.cluster_hosts import OUTSIDE, Cluster, Machine, until  # noqa: E402
from support.power_switch import AGENT, PowerSwitch  # noqa: E402
from support.systemd_host import Broken  # noqa: E402

EXAMPLES = HERE.parent.parent / "examples/cluster"
#: client.toml: who calls a service and counts; extra.toml: a registration that needs nothing of the network.
OWN = HERE / "pods"
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

    def found(
        self, point: str, what: str, seconds: float = -1, limit: float = -1, *, right: bool = True, note: str = ""
    ) -> None:
        row = Row(point, what, seconds, limit, right and (limit < 0 or seconds <= limit), note)
        self.rows.append(row)
        print(line(row), flush=True)

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


# --- the points -------------------------------------------------------------------------------------------------------


def loaded(trial: Trial) -> None:
    """a: from a loaded configuration to pods that are up."""
    files = [f"{PODS}/{name}.toml" for name in ("utils", "service1", "service2")]
    done = trial.any().run("podrun", "cluster", "apply", "--without-fencing", *files, timeout=150)
    warned = done.returncode == 0 and done.stderr.count("without fencing") == 1
    seconds = trial.up("service1", "service2")
    spread = trial.where("service1") != trial.where("service2")
    until(lambda: len(trial.where("utils")) == 3, 20)
    right = spread and warned
    trial.found("a", "loaded, with a warning: both services up, apart; utils on three hosts", seconds, 10, right=right)


def waiting(trial: Trial) -> None:
    """b: service2 first; it says what it waits for."""
    trial.podrun("stop", "service1")
    trial.podrun("stop", "service2")
    trial.podrun("start", "service2")
    status: list[str] = []

    def told() -> bool:
        status[:] = [unit["status"] for unit in trial.units() if unit["unit"] == "service2"]
        return any("waiting for service1" in text for text in status)

    until(told, 15, lambda: str(trial.units()))
    trial.found("b", "service2 alone says what it waits for", note=status[0])
    time.sleep(3)
    began = time.monotonic()
    trial.podrun("start", "service1")
    trial.up("service1", "service2")
    trial.found("b", "service1 started 3 s later: both up", time.monotonic() - began, 10)


def views(trial: Trial) -> None:
    """c: the same from each host."""
    until(lambda: "got: hello" in trial.podrun("journal", "-n", "20", "service2"), 20)
    machines = [trial.podrun("machines", machine=machine) for machine in trial.cluster.machines]
    units = [trial.podrun("units", machine=machine) for machine in trial.cluster.machines]
    journals = [trial.podrun("journal", "-n", "50", "service2", machine=machine) for machine in trial.cluster.machines]
    right = len({*machines}) == 1 and len({*units}) == 1 and all("got: hello from n" in text for text in journals)
    right = right and all(text.count("same") == 3 for text in machines)
    trial.found("c", "machines, units and the journal are the same from each host", right=right)
    print(units[0])
    states = [trial.podrun("status", "service1", machine=machine) for machine in trial.cluster.machines]
    right = all("Active: active (running)" in text and text.count("\n--- ") == 0 for text in states)
    trial.found("c", "status from each host is what systemd says where the pod runs", right=right)
    print(states[0])


def moves(trial: Trial, times: int = 20) -> None:
    """d: a client counts while service1 is moved."""
    names = [machine.name for machine in trial.cluster.machines]
    before = trial.count()
    slowest = 0.0
    for _ in range(times):
        here = trial.where("service1")[0]
        began = time.monotonic()
        trial.podrun("move", "service1", names[(names.index(here) + 1) % len(names)])
        trial.up("service1")
        trial.client_goes_on()
        slowest = max(slowest, time.monotonic() - began)
    after = trial.count()
    failed = int(str(after["failed"])) - int(str(before.get("failed", 0)))
    asked = int(str(after["ok"])) - int(str(before.get("ok", 0)))
    note = f"{asked} requests, {failed} failed, the longest took {after['longest']:.1f} s; slowest move {slowest:.1f} s"
    trial.found("d", f"a client counts while service1 is moved {times} times: 0 failed", right=not failed, note=note)


def power_off(trial: Trial) -> None:
    """e: the plug of service1's host is pulled; h: nothing moves when it comes back."""
    gone = trial.apart_from_client()
    trial.client_goes_on()
    others = trial.started("service2")
    before = trial.count()
    gone.power_off()
    seconds = until(lambda: [r["host"] for r in trial.records("service1") if r["ready"]] not in ([], [gone.name]), 60)
    resumed = seconds + trial.client_goes_on(90)
    records = trial.records("service1")
    untouched = trial.started("service2") == others
    after = trial.count()
    lost = int(str(after["failed"])) - int(str(before["failed"]))
    note = f"the client goes on after {resumed:.1f} s, {lost} requests lost with the host"
    right = untouched and len(records) == 1
    trial.found(
        "e",
        "service1's host loses power: registered elsewhere, one record, service2 untouched",
        seconds,
        10,
        right=right,
        note=note,
    )
    placed = [(unit["unit"], unit["machine"]) for unit in trial.units()]
    print(trial.podrun("units"))
    gone.boot()
    trial.cluster.settled()
    until(lambda: len(trial.where("utils")) == 3, 60, lambda: str(trial.units()))
    time.sleep(5)
    moved = [place for place in placed if place not in [(unit["unit"], unit["machine"]) for unit in trial.units()]]
    trial.found("h", "the host comes back: nothing moves", right=not moved, note=str(moved or ""))


def isolation(trial: Trial) -> None:
    """f: the cable of service1's host is pulled."""
    cut = trial.apart_from_client()
    trial.client_goes_on()
    before = len(trial.count()["seen"])
    cut.isolate()
    began = time.monotonic()
    up: dict[str, float] = {}

    def stopped() -> bool:
        others = [m for m in trial.cluster.machines if m is not cut]
        if "there" not in up and any(trial.is_active("service1", m) for m in others):
            up["there"] = time.monotonic() - began
        return not trial.is_active("service1", cut)

    seconds = until(stopped, 120)
    until(lambda: any(trial.is_active("service1", m) for m in trial.cluster.machines if m is not cut), 60)
    double = max(0.0, seconds - up["there"]) if "there" in up else 0.0
    until(lambda: len(trial.count()["seen"]) > before, 90, lambda: str(trial.count()))
    cut.isolate(False)
    seen, one = seen_since(trial, before, 5)
    note = f"double run {double:.1f} s; the client saw {' -> '.join(seen)}"
    trial.found("f", "a host is cut off: its copy stops; the client sees one copy", seconds, 15, right=one, note=note)


def seen_since(trial: Trial, before: int, pause: float) -> tuple[list[str], bool]:
    """All hosts are back: whom the client has seen since, and whether it was one after the other and is one now."""
    trial.cluster.settled()
    until(lambda: len(trial.where("utils")) == 3, 90, lambda: str(trial.units()))
    time.sleep(pause)
    trial.client_goes_on()
    seen = trial.count()["seen"][before - 1 :]
    return seen, seen == list(dict.fromkeys(seen)) and len(trial.where("service1")) == 1


#: The processes of the cluster on a host, as a script sees them.
DAEMONS = "$(pidof corosync pacemakerd pacemaker-based pacemaker-fenced pacemaker-execd pacemaker-attrd pacemaker-schedulerd pacemaker-controld)"


def hangs(trial: Trial, seconds: float = 20) -> None:
    """f: the cluster's processes hang on service1's host, and its copy lives on."""
    hung = trial.apart_from_client()
    others = [machine for machine in trial.cluster.machines if machine is not hung]
    trial.client_goes_on()
    before = len(trial.count()["seen"])
    hung.sh(f"kill -STOP {DAEMONS}")
    there = until(lambda: any(trial.is_active("service1", machine) for machine in others), 60)
    until(lambda: len(trial.count()["seen"]) > before, 30, lambda: str(trial.count()))
    time.sleep(seconds)
    both = trial.is_active("service1", hung) and any(trial.is_active("service1", machine) for machine in others)
    hung.sh(f"kill -CONT {DAEMONS}")
    stopped = until(lambda: not trial.is_active("service1", hung), 60)
    seen, one = seen_since(trial, before, 3)
    note = f"another copy after {there:.1f} s, both for {seconds:g} s and until the host goes on ({stopped:.1f} s after that)"
    note += f"; the client saw {' -> '.join(seen)}"
    trial.found(
        "f", "a host hangs, without fencing: two copies run, the client sees one", right=one and both, note=note
    )


def fenced(trial: Trial) -> None:
    """f: the same with a fencing device: the host's power is cut before another copy starts."""
    switch = PowerSwitch(
        {machine.name: machine for machine in trial.cluster.machines}, trial.cluster.namespace, OUTSIDE
    )
    switch.start()
    assert switch.ready.wait(10)
    one = trial.any()
    names = ",".join(machine.name for machine in trial.cluster.machines)
    device = f"primitive switch stonith:fence_switch params ip={OUTSIDE} pcmk_host_list={names} op monitor interval=60s"
    one.sh(f"crm -F configure {device}")
    one.sh("crm -F configure property stonith-enabled=true stonith-action=off")
    until(lambda: "switch" in one.sh("crm_mon -1") and "Started" in one.sh("crm_mon -1 | grep switch"), 30)
    warned = one.run("podrun", "cluster", "apply", "service1", timeout=150)
    quiet = warned.returncode == 0 and "fencing" not in warned.stdout + warned.stderr
    hung = trial.apart_from_client()
    others = [machine for machine in trial.cluster.machines if machine is not hung]
    trial.client_goes_on()
    before = trial.count()
    began = time.monotonic()
    hung.sh(f"kill -STOP {DAEMONS}")
    there = until(
        lambda: any(trial.is_active("service1", machine) for machine in others), 90, lambda: trial.cluster.why(others)
    )
    cut = switch.cut[0][1] - began if switch.cut else -1.0
    back = there + trial.client_goes_on(60)
    lost = int(str(trial.count()["failed"])) - int(str(before["failed"]))
    hung.boot()
    trial.cluster.settled()
    until(lambda: len(trial.where("utils")) == 3, 90, lambda: str(trial.units()))
    any_ = trial.any()
    any_.sh("crm -F configure property stonith-enabled=false && crm -F resource stop switch")
    any_.sh("crm -F configure delete --force switch")
    note = f"power cut after {cut:.1f} s, no double run; the client goes on after {back:.1f} s, {lost} requests lost"
    right = quiet and [name for name, _ in switch.cut] == [hung.name] and 0 < cut < there
    trial.found(
        "f", "a host hangs, with fencing: cut off first, then started elsewhere", there, 30, right=right, note=note
    )


def without_etcd(trial: Trial, away: float = 60) -> None:
    """g: etcd is away, and quorum is lost and comes back."""
    trial.client_goes_on()
    before = {pod: trial.started(pod) for pod in ("service1", "service2", "client")}
    counted = trial.count()
    for machine in trial.cluster.machines:
        machine.do("systemctl", "stop", "etcd")
    began = time.monotonic()
    trial.podrun("apply", f"{PODS}/extra.toml")
    started = trial.up("extra")
    time.sleep(max(0.0, away - (time.monotonic() - began)))
    alive = {pod: trial.started(pod) for pod in before} == before
    failed = int(str(trial.count()["failed"])) - int(str(counted["failed"]))
    for machine in trial.cluster.machines:
        machine.do("systemctl", "start", "--no-block", "etcd")
    seconds = until(lambda: trial.records("extra") and trial.records("service1"), 60, lambda: "no records")
    note = f"a new pod was up after {started:.1f} s, the client lost {failed}"
    trial.found(
        "g",
        f"etcd away for {away:g} s: pods live, records are back",
        seconds,
        30,
        right=alive and not failed,
        note=note,
    )
    trial.podrun("rm", "extra")


def without_quorum(trial: Trial) -> None:
    """g: every host is alone for a while."""
    pods = ("service1", "service2", "client")
    for machine in trial.cluster.machines:
        machine.isolate()
    quiet = until(lambda: not any(trial.started(pod) for pod in pods), 90)
    since = {machine.name: machine.sh("date +%s.%N").strip() for machine in trial.cluster.machines}
    for machine in trial.cluster.machines:
        machine.isolate(False)
    began = time.monotonic()
    trial.cluster.settled()
    trial.up(*pods, seconds=90)
    seconds = time.monotonic() - began
    time.sleep(10)
    starts = dict.fromkeys(pods, 0)
    for machine in trial.cluster.machines:
        for pod in pods:
            script = f"journalctl -q --no-pager -o cat --since=@{since[machine.name]} -u {pod} | grep -c ^Started"
            starts[pod] += int(machine.run("sh", "-c", script).stdout.strip() or 0)
    right = set(starts.values()) == {1}
    note = f"stopped {quiet:.1f} s after the cut; starts: {' '.join(f'{pod} {n}' for pod, n in starts.items())}"
    trial.found("g", "quorum lost and regained: every pod starts once", seconds, 60, right=right, note=note)


def rolling(trial: Trial) -> None:
    """h: every host is shut down in an orderly way and comes back, one after the other."""
    slowest, failed, asked = 0.0, 0, 0
    for machine in trial.cluster.machines:
        if trial.where("client") == [machine.name]:
            # The client's own restart is not what is counted.
            other = next(m for m in trial.cluster.machines if m is not machine)
            trial.podrun("move", "client", other.name)
            trial.up("client")
        if trial.where("service1") != [machine.name]:
            trial.podrun("move", "service1", machine.name)
            trial.up("service1", "service2")
        trial.client_goes_on()
        before = trial.count()
        began = time.monotonic()
        machine.shut_down()
        slowest = max(slowest, time.monotonic() - began)
        trial.up("service1", "service2")
        trial.client_goes_on(60)
        after = trial.count()
        failed += int(str(after["failed"])) - int(str(before["failed"]))
        asked += int(str(after["ok"])) - int(str(before["ok"]))
        machine.boot()
        trial.cluster.settled()
        until(lambda: len(trial.where("utils")) == 3, 60, lambda: str(trial.units()))
    note = f"{asked} requests, {failed} failed; slowest poweroff {slowest:.1f} s"
    trial.found(
        "h", "rolling restart: an orderly poweroff moves pods with a drained record", right=not failed, note=note
    )


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


def nothing_left(trial: Trial, before: dict[str, set[str]]) -> None:
    """i: everything is stopped."""
    pods = sorted({unit["unit"] for unit in trial.units()}, key=lambda pod: pod == "utils")
    for pod in pods:
        trial.podrun("rm", pod)
    more: dict[str, set[str]] = {}

    def gone() -> bool:
        for machine in trial.cluster.machines:
            more[machine.name] = left(machine) - before[machine.name]
        return not any(more.values())

    try:
        until(gone, 15)
    except Broken:
        pass
    records = trial.any().sh("ETCDCTL_API=3 etcdctl get --prefix --keys-only /podrun/v1/svc/").split()
    files = {m.name: m.sh("ls /etc/podrun").split() for m in trial.cluster.machines}
    pod_files = [name for names in files.values() for name in names if name.startswith(("service", "client", "utils"))]
    what = [f"{name}: {item}" for name, items in more.items() for item in sorted(items)] + records + pod_files
    trial.found("i", "everything removed: nothing is left on any host", right=not what, note="; ".join(what)[:2000])


def ocf(trial: Trial) -> None:
    """The agent passes ocf-tester."""
    machine = trial.cluster["n1"]
    (machine.home / "root/etc/podrun/trial.toml").write_text(
        (OWN / "extra.toml").read_text().replace("9090", "9091").replace('"extra"', '"trial"')
    )
    machine.do("systemctl", "daemon-reload")
    done = machine.run("ocf-tester", "-n", "trial", "-o", "pod=trial", "/usr/lib/ocf/resource.d/podrun/pod")
    (machine.home / "root/etc/podrun/trial.toml").unlink()
    machine.do("systemctl", "daemon-reload")
    right = done.returncode == 0 and "passed all tests" in done.stdout
    trial.found("ocf", "ocf-tester", right=right, note="" if right else (done.stdout + done.stderr)[-600:])


def at_rest(trial: Trial, seconds: float = 10) -> None:
    """Memory (PSS) and processor time of a host that only keeps three pods running."""
    script = r"""
for pid in $(pgrep -x 'corosync|pacemaker.*|etcd' ; pgrep -f follow.process); do
  read -r line </proc/$pid/stat; set -- ${line##*) }
  echo "$(cat /proc/$pid/comm) $(awk '/^Pss:/{print $2}' /proc/$pid/smaps_rollup) $((${12} + ${13}))"
done"""

    def sample() -> dict[str, tuple[float, int]]:
        found: dict[str, tuple[float, int]] = {}
        for text in trial.any().sh(script).splitlines():
            name, kilobytes, ticks = text.split()
            name = (
                "pacemaker" if name.startswith("pacemaker") else "podrun-follow" if name.startswith("python") else name
            )
            memory, time_ = found.get(name, (0.0, 0))
            found[name] = memory + int(kilobytes) / 1024, time_ + int(ticks)
        return found

    first = sample()
    time.sleep(seconds)
    second = sample()
    parts = [
        f"{name} {memory:.0f} MB {(ticks - first.get(name, (0, ticks))[1]) / seconds:.1f}%"
        for name, (memory, ticks) in sorted(second.items())
    ]
    trial.found("-", "a host at rest: memory, share of one processor", note=", ".join(parts))


# --- the run ----------------------------------------------------------------------------------------------------------


def line(row: Row) -> str:
    seconds = f"{row.seconds:6.1f}" if row.seconds >= 0 else "      "
    limit = f"<= {row.limit:g}" if row.limit >= 0 else ""
    note = f"  ({row.note})" if row.note else ""
    return f"{row.point:3} {'ok ' if row.right else 'NOT'} {seconds} {limit:6} {row.what}{note}"


def furnish(cluster: Cluster) -> None:
    """The pod files, and what lists leftovers."""
    for machine in cluster.machines:
        root = machine.home / "root"
        (root / "root/pods").mkdir(parents=True, exist_ok=True)
        for path in (*EXAMPLES.glob("*.toml"), *OWN.glob("*.toml")):
            (root / "root/pods" / path.name).write_text(path.read_text())
        subprocess.run(["cp", "-r", HERE.parent / "support", root / "opt/support"], check=True)
        (root / "etc/tmpfiles.d/count.conf").write_text("d /run/count 0755 root root\n")
        (root / "usr/sbin/fence_switch").write_text(AGENT)
        (root / "usr/sbin/fence_switch").chmod(0o755)


def main(wanted: list[str]) -> int:
    """Boots, tries the points in order, prints the table; 1 when one of them is not met."""
    if os.geteuid() != 0:
        print("booting hosts needs root", file=sys.stderr)
        return 77
    steps: list[tuple[str, Callable[[Trial], None]]] = [
        ("ocf", ocf), ("a", loaded), ("b", waiting), ("c", views), ("-", at_rest), ("d", moves), ("e", power_off),
        ("f", isolation), ("f", hangs), ("f", fenced), ("g", without_etcd), ("g", without_quorum), ("h", rolling),
    ]  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with Cluster() as cluster:
        furnish(cluster)
        cluster.serve_images()
        cluster.boot()
        trial = Trial(cluster)
        trial.found("-", "three hosts booted, one partition with quorum, etcd with a leader", time.monotonic() - began)
        for machine in cluster.machines:
            machine.do("podrun", "run", "--rm", "host:", "true")  # the bridge is made by the first pod, and stays
        before = {machine.name: left(machine) for machine in cluster.machines}
        for point, step in steps:
            if wanted and point not in (*wanted, "a"):
                continue
            try:
                if point in "defgh" and not trial.where("client"):
                    trial.podrun("apply", f"{PODS}/client.toml")
                    trial.up("client")
                    trial.client_goes_on()
                step(trial)
            except (Broken, AssertionError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
                trial.found(point, step.__doc__ or "", right=False, note=f"{type(error).__name__}: {error}"[-1500:])
        if not wanted or "i" in wanted:
            nothing_left(trial, before)
    print(f"\n{time.monotonic() - began:.0f} s")
    print("\n".join(map(line, trial.rows)))
    return 0 if all(row.right for row in trial.rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
