"""What several hosts have to stand: three booted hosts, the example's pods, moves, failures; a table at the end.

Run by ``./dev prove cluster [POINT...]``; takes about six minutes. Points: a b c d e f g h i, and ocf (ocf-tester).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent), str(HERE.parent.parent / "hooks")]

from support.cluster_failures import (  # noqa: E402
    fenced,
    hangs,
    isolation,
    power_off,
    rolling,
    without_etcd,
    without_quorum,
)
from support.cluster_hosts import Cluster, until  # noqa: E402
from support.cluster_trial import OWN, PODS, Trial, furnish, left  # noqa: E402
from support.systemd_host import Broken  # noqa: E402

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


def followed(trial: Trial) -> None:
    """c: the journal of a pod is followed from a host that does not run it, and the pod moves."""
    here, server = trial.machine_of("service2"), trial.machine_of("service1")
    there = next(machine for machine in trial.cluster.machines if machine not in (here, server))
    # sed ends with the first answer on the other host, and podrun with it.
    script = f"podrun cluster journal -f -n 1 service2 | sed '/{there.name} got: hello/q'"
    with subprocess.Popen(
        server.inside("sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as reader:
        time.sleep(3)
        began = time.monotonic()
        trial.podrun("move", "service2", there.name)
        told = reader.communicate(timeout=60)[0].splitlines()
    seconds = time.monotonic() - began
    answers = [line for line in told if "got: hello" in line]
    right = here.name in answers[0] and there.name in answers[-1] and len({*told}) == len(told)
    until(lambda: not any(m.sh("pgrep -f '[j]ournalctl.*--follow' || true") for m in trial.cluster.machines), 10)
    note = f"{len(told)} lines, none twice, {len(answers)} answers; no reader is left"
    trial.found("c", "journal -f goes on with a pod that moves, and ends", seconds, 20, right=right, note=note)


def unreachable(trial: Trial) -> None:
    """c: a host that ssh does not reach: views say so, and nothing is changed."""
    silent, asked = trial.machine_of("service2"), trial.machine_of("service1")
    silent.do("systemctl", "stop", "ssh")
    try:
        shown = asked.do("podrun", "cluster", "units")
        began = time.monotonic()
        refused = [asked.run("podrun", "cluster", *words) for words in (("rm", "service2"), ("status", "service2"))]
        seconds = time.monotonic() - began
    finally:
        silent.do("systemctl", "start", "ssh")
    right = f"{silent.name}: ssh: " in shown and all(done.returncode == 69 for done in refused)
    right = right and all(f"{silent.name}: " in done.stderr for done in refused) and bool(trial.where("service2"))
    note = refused[0].stderr.strip()
    trial.found(
        "c", "a host without ssh: rm and status name it, nothing is changed", seconds, 20, right=right, note=note
    )


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


def with_client(trial: Trial) -> None:
    """A client calls service1 and counts."""
    if not trial.where("client"):
        trial.podrun("apply", f"{PODS}/client.toml")
        trial.up("client")
        trial.client_goes_on()


# --- the run ----------------------------------------------------------------------------------------------------------


def main(wanted: list[str]) -> int:
    """Boots, tries the points in order, prints the table; 1 when one of them is not met."""
    if os.geteuid() != 0:
        print("booting hosts needs root", file=sys.stderr)
        return 77
    steps: list[tuple[str, Callable[[Trial], None]]] = [
        ("ocf", ocf), ("a", loaded), ("b", waiting), ("c", views), ("c", followed), ("c", unreachable),
        ("-", at_rest), ("d", moves), ("e", power_off),
        ("f", isolation), ("f", hangs), ("f", fenced), ("g", without_etcd), ("g", without_quorum), ("h", rolling),
    ]  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Cluster() as cluster:
        trial = Trial(cluster)
        furnish(cluster)
        cluster.serve_images()
        cluster.boot()
        ready = time.monotonic() - trial.began
        trial.found("-", "three hosts booted, one partition with quorum, etcd with a leader", ready)
        for machine in cluster.machines:
            machine.do("podrun", "run", "--rm", "host:", "true")  # the bridge is made by the first pod, and stays
        before = {machine.name: left(machine) for machine in cluster.machines}
        for point, step in steps:
            if wanted and point not in (*wanted, "a"):
                continue
            if point in "defgh":
                trial.attempt(point, with_client)
            trial.attempt(point, step)
        if not wanted or "i" in wanted:
            nothing_left(trial, before)
    return trial.over()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
