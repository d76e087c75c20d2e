"""How long a pod's network takes: namespace, veth, address, route and three published ports, made and given up.

In the launcher's own process, as a start does it, with the modules imported: one pod alone, the 200th beside 199
others, and 1,000 beside each other in a /16 (a bridge has 1,023 ports), 250 in a /24. Each line says whether the figure
reaches its target; the exit code is 1 when one does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from podrun.hook import Pod, Step
from podrun.host import tag
from podrun.options import read
from podrun_hooks import network
from podrun_hooks.network import bridge, inspect

#: Figures that miss their target.
missed: list[str] = []


class Host:
    """A run directory of the benchmark's own."""

    def __init__(self, **table: Any) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="podrun-bench-", dir="/run" if os.access("/run", os.W_OK) else None))
        self.run, self.root = str(self.home / "run"), str(self.home / "root")
        self.table = table

    def step(self, name: str, ports: int) -> Step:
        """The network step of a pod with a journal; its first published port follows from ``ports``."""
        pod = Pod(name, self.root, self.run, tag(name, self.run), invocation="bench")
        os.makedirs(pod.directory, mode=0o700, exist_ok=True)
        Path(pod.directory, "pod.journal").touch()
        published = [f"127.0.0.1:{ports + n}:{80 + n}" for n in range(3)] if ports else []
        return Step(pod, "network", "network", read(network.Options, {"publish": published, **self.table}))

    def elements(self) -> int:
        """How many ports the table has."""
        name = bridge.table(self.step("any", 0).pod)
        argv = ["nft", "-j", "list", "map", "inet", name, "host4"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return sum(len(item["map"].get("elem", [])) for item in json.loads(done.stdout)["nftables"] if "map" in item)

    def links(self) -> int:
        """How many pods are on the bridge, as the kernel knows it."""
        return len(os.listdir(f"/sys/class/net/{bridge.default_name(self.step('any', 0).pod)}/brif"))


@contextlib.contextmanager
def host(**table: Any) -> Iterator[Host]:
    """A host, and nothing of it afterwards. ``table``: what its pods' network steps say."""
    made = Host(**table)
    try:
        yield made
    finally:
        for journal in made.home.glob("run/pods/*/*.journal"):
            journal.unlink()
        inspect.collect(made.run)
        inspect.remove_bridges(made.run)
        shutil.rmtree(made.home)


def timed(verb: Any, *arguments: Any) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    verb(*arguments)
    return (time.perf_counter() - began) * 1000


def one(made: Host, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """A pod with three ports, up and down, again and again: the times of both, and until its link is gone."""
    ups, downs, gone = [], [], []
    before = made.links()
    for n in range(rounds):
        step = made.step("web", 20000 + n * 3)
        ups.append(timed(network.up, step, {}))
        downs.append(timed(network.down, step, {}))
        began = time.perf_counter()
        while made.links() > before:  # a start of its own would not meet the kernel at that work either
            time.sleep(0.001)
        gone.append((time.perf_counter() - began) * 1000)
        time.sleep(0.05)
    return ups, downs, gone


def told(name: str, figure: float, unit: str, target: float | None = None, more: str = "") -> None:
    """One line; without a ``target`` (the most it may be) it is for information."""
    verdict = ""
    if target is not None:
        verdict = f"target {target:g}{unit}: {'reached' if figure <= target else 'NOT REACHED'}"
        if figure > target:
            missed.append(name)
    print(f"{name:48} {figure:8.2f}{unit:3} {more:24} {verdict}".rstrip(), flush=True)


def line(name: str, times: Sequence[float], target: float | None = None) -> None:
    told(name, statistics.median(times), " ms", target, f"({min(times):.2f} to {max(times):.2f})")


def alone_and_beside(rounds: int, pods: int) -> None:
    """One pod, the same beside ``pods`` - 1 others, and once more alone: the machine's mood is the same for both."""
    with host() as made:
        told("the first pod of a host, with its bridge", timed(network.up, made.step("first", 0), {}), " ms")
        one(made, 3)
        ups, downs, gone = one(made, rounds)
        others = [made.step(f"p{n}", 0) for n in range(pods - 1)]
        began = time.perf_counter()
        for step in others:
            network.up(step, {})
        told(f"{pods - 1} others, one after another", time.perf_counter() - began, " s")
        time.sleep(3)  # until they have said their multicast listener reports (RFC 3810)
        beside, downs_beside, gone_beside = one(made, rounds)
        for step in others:
            network.down(step, {})
        while made.links() > 1:
            time.sleep(0.1)
        again = one(made, rounds)
    ups, downs, gone = ups + again[0], downs + again[1], gone + again[2]
    line("up: namespace, veth, address, route, 3 ports", ups, 12)
    line("down", downs, 5)
    line("until the kernel has removed the link", gone, 1000)
    line(f"up beside {pods - 1} others", beside, 12)
    line(f"down beside {pods - 1} others", downs_beside, 5)
    line("until the kernel has removed the link", gone_beside, 1000)
    told("the last against the first", statistics.median(beside) / statistics.median(ups), "", 1.2)


def many(subnet: str, pods: int) -> None:
    """As many pods as that beside each other: nothing is refused, and nothing is left."""
    with host(subnet=subnet) as made:
        steps = [made.step(f"p{n}", 10000 + 3 * n) for n in range(pods)]
        began = time.perf_counter()
        times = [timed(network.up, step, {}) for step in steps]
        told(f"{pods} pods in {subnet}, up", time.perf_counter() - began, " s")
        lacking = pods - len(inspect.leases(made.run)) + 3 * pods - made.elements()
        told("  leases and published ports that are missing", lacking, "", 0)
        tenth = max(1, pods // 10)
        line("  the first tenth of them", times[:tenth])
        line("  the last tenth of them", times[-tenth:])
        began = time.perf_counter()
        for step in steps:
            network.down(step, {})
        told(f"{pods} pods in {subnet}, down", time.perf_counter() - began, " s")
        told("  leases and published ports that are left", len(inspect.leases(made.run)) + made.elements(), "", 0)
        began = time.perf_counter()
        while made.links():
            time.sleep(0.01)
        told("  until the kernel has removed the last link", time.perf_counter() - began, " s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--rounds", type=int, default=31)
    parser.add_argument("--pods", type=int, default=200, help="how many beside each other")
    parser.add_argument("--leases", type=int, default=1000, help="how many pods with a lease and three ports each")
    given = parser.parse_args()
    alone_and_beside(given.rounds, given.pods)
    if given.leases:
        many("10.190.0.0/16", given.leases)
        many("10.190.0.0/24", min(given.leases, 250))
    print(f"not reached: {', '.join(missed)}" if missed else "every target is reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
