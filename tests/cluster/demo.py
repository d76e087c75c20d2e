"""The talk's demo on three booted hosts, played by ``./dev demo cluster``: a chain of steps that spans machines."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent), str(HERE.parent.parent / "hooks")]

from support.cluster_hosts import Cluster, Machine, until  # noqa: E402

EXAMPLES = HERE.parent.parent / "examples/cluster"


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def show(machine: Machine, command: str, *, last: int = 0) -> str:
    """Does a command on a host, and shows it as a terminal would; ``last``: only so many lines of it."""
    done = machine.run("sh", "-c", command, timeout=150)
    text = done.stdout + done.stderr
    lines = text.rstrip().splitlines()
    print(f"{machine.name}# {command}")
    print("\n".join(lines[-last:] if last else lines), flush=True)
    return text


def answered(machine: Machine, who: str) -> bool:
    return f"got: hello from {who}" in machine.do("podrun", "cluster", "journal", "-n", "1", "service2")


def place_of(machine: Machine, pod: str) -> str:
    lines = machine.do("podrun", "cluster", "units").splitlines()
    return next((words[1] for words in map(str.split, lines) if words[0] == pod and "active" in words), "")


def play(cluster: Cluster) -> None:
    one, two, three = cluster.machines
    say("Three hosts: corosync, Pacemaker, etcd, podrun. No daemon of podrun's")
    show(one, "podrun cluster machines")
    say("Three pods: one on every host, one service, one that calls it and must be on another host")
    show(one, "grep -v '^#' /root/pods/service2.toml | head -30")
    show(one, "podrun cluster export /root/pods/utils.toml /root/pods/service1.toml /root/pods/service2.toml | tail -6")
    say("service2 first: its image is pulled while it waits for service1, on whichever host that will be")
    show(one, "podrun cluster apply --without-fencing /root/pods/utils.toml /root/pods/service2.toml")
    until(lambda: "waiting for service1" in one.do("podrun", "cluster", "units"), 60)
    show(two, "podrun cluster units")
    say("service1 joins: it pulls, starts its container, registers; service2 goes on by itself")
    began = time.monotonic()
    show(one, "podrun cluster apply /root/pods/service1.toml")
    until(lambda: place_of(one, "service1") and place_of(one, "service2"), 60)
    print(f"both are up {time.monotonic() - began:.1f} s after apply began")
    first = place_of(one, "service1")
    until(lambda: answered(one, first), 30)
    show(three, "podrun cluster units")
    show(three, "podrun cluster journal -n 4 service2")
    show(two, "podrun cluster status service1", last=22)
    say("service1 moves; service2 is not touched, and calls the same address")
    other = next(m.name for m in cluster.machines if m.name not in (first, place_of(one, "service2")))
    show(one, f"podrun cluster move service1 {other}")
    until(lambda: answered(one, other), 30)
    show(one, "podrun cluster journal -n 6 service2")
    say(f"{other} loses its power")
    witness = next(m for m in cluster.machines if m.name != other)
    cluster[other].power_off()
    began = time.monotonic()
    until(lambda: place_of(witness, "service1") not in ("", other), 60)
    now = place_of(witness, "service1")
    print(f"service1 is up on {now} after {time.monotonic() - began:.1f} s")
    until(lambda: answered(witness, now), 30)
    show(witness, "podrun cluster machines")
    show(witness, "podrun cluster units")
    show(witness, "podrun cluster journal -n 8 service2")
    say("Everything is removed")
    for pod in ("service2", "service1", "utils"):
        show(witness, f"podrun cluster rm {pod}")
    show(witness, "podrun cluster units; podrun ps; ls /run/podrun/pods /run/netns")


def main() -> int:
    """Boots, plays, cleans up."""
    if os.geteuid() != 0:
        print("booting hosts needs root", file=sys.stderr)
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    say("Booting three hosts (the first time their packages are fetched)")
    with Cluster() as cluster:
        for machine in cluster.machines:
            pods = machine.home / "root/root/pods"
            pods.mkdir(parents=True)
            for path in EXAMPLES.glob("*.toml"):
                (pods / path.name).write_text(path.read_text())
        cluster.serve_images()
        cluster.boot()
        print(f"booted in {time.monotonic() - began:.0f} s")
        play(cluster)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
