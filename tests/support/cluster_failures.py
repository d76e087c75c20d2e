"""What a cluster has to outlive: a host without power, cut off or hanging, no etcd, no quorum, a rolling restart."""

from __future__ import annotations

import time

from support.cluster_hosts import OUTSIDE, until
from support.cluster_trial import PODS, Trial
from support.power_switch import PowerSwitch

#: The processes of the cluster on a host, as a script sees them.
DAEMONS = "$(pidof corosync pacemakerd pacemaker-based pacemaker-fenced pacemaker-execd pacemaker-attrd pacemaker-schedulerd pacemaker-controld)"


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
    refused = cut.run("podrun", "cluster", "stop", "service1")
    cut.isolate(False)
    seen, one = seen_since(trial, before, 5)
    note = f"double run {double:.1f} s; the client saw {' -> '.join(seen)}; a change from there is refused"
    one = one and refused.returncode == 69 and "no quorum" in refused.stderr
    trial.found("f", "a host is cut off: its copy stops; the client sees one copy", seconds, 15, right=one, note=note)


def seen_since(trial: Trial, before: int, pause: float) -> tuple[list[str], bool]:
    """All hosts are back: whom the client has seen since, and whether it was one after the other and is one now."""
    trial.cluster.settled()
    until(lambda: len(trial.where("utils")) == 3, 90, lambda: str(trial.units()))
    time.sleep(pause)
    trial.client_goes_on()
    seen = trial.count()["seen"][before - 1 :]
    return seen, seen == list(dict.fromkeys(seen)) and len(trial.where("service1")) == 1


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
