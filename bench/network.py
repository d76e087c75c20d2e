"""How long a pod's network takes: namespace, veth, address, route and three published ports, made and given up.

In the launcher's own process, as a start does it, with the modules imported: one pod alone, the 200th beside 199
others, and 1,000 beside each other, which is what a bridge has ports for (1,023).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from podrun.hook import Pod, Step, read
from podrun.launch import tag
from podrun_hooks import network
from podrun_hooks.network import bridge, inspect


class Host:
    """A run directory of the benchmark's own."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="podrun-bench-", dir="/run" if os.access("/run", os.W_OK) else None))
        self.run, self.root = str(self.home / "run"), str(self.home / "root")

    def step(self, name: str, ports: int) -> Step:
        """The network step of a pod with a journal; its first published port follows from ``ports``."""
        pod = Pod(name, self.root, self.run, tag(name, self.run), invocation="bench")
        os.makedirs(pod.directory, mode=0o700, exist_ok=True)
        Path(pod.directory, "pod.journal").touch()
        published = [f"127.0.0.1:{ports + n}:{80 + n}" for n in range(3)] if ports else []
        return Step(pod, "network", "network", read(network.Options, {"publish": published}))

    def elements(self) -> int:
        """How many ports the table has."""
        name = bridge.table(self.step("any", 0).pod)
        argv = ["nft", "-j", "list", "map", "inet", name, "host4"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return sum(len(item["map"].get("elem", [])) for item in json.loads(done.stdout)["nftables"] if "map" in item)


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """A host, and nothing of it afterwards."""
    made = Host()
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


def one(made: Host, rounds: int) -> tuple[list[float], list[float]]:
    """A pod with three ports, up and down, again and again: the times of both."""
    ups, downs = [], []
    for n in range(rounds):
        step = made.step("web", 20000 + n * 3)
        ups.append(timed(network.up, step, {}))
        downs.append(timed(network.down, step, {}))
        time.sleep(0.1)  # the kernel deletes the links meanwhile; a start of its own would not meet that either
    return ups, downs


def line(name: str, times: Sequence[float], limit: float | None = None) -> None:
    told = f"   (budget {limit:g})" if limit else ""
    print(f"{name:44} {statistics.median(times):7.2f} ms   {min(times):.2f} to {max(times):.2f}{told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--rounds", type=int, default=31)
    parser.add_argument("--pods", type=int, default=200, help="how many beside each other")
    parser.add_argument("--leases", type=int, default=1000, help="how many pods with a lease and a port each")
    given = parser.parse_args()
    with host() as made:
        made_bridge = timed(network.up, made.step("first", 0), {})
        print(f"{'the first pod of a host, with its bridge':44} {made_bridge:7.2f} ms")
        ups, downs = one(made, given.rounds)
        line("up: namespace, veth, address, route, 3 ports", ups, 12)
        line("down", downs, 5)
        others = [made.step(f"p{n}", 0) for n in range(given.pods - 1)]
        for step in others:
            network.up(step, {})
        crowded, crowded_downs = one(made, given.rounds)
        line(f"up beside {given.pods - 1} others", crowded)
        line(f"down beside {given.pods - 1} others", crowded_downs)
        ratio = statistics.median(crowded) / statistics.median(ups)
        print(f"{'the last against the first':44} {ratio:7.2f}      (budget 1.2)")
        for step in others:
            network.down(step, {})
    with host() as made:
        steps = [made.step(f"p{n}", 10000 + 3 * n) for n in range(given.leases)]
        began = time.perf_counter()
        times = [timed(network.up, step, {}) for step in steps]
        took = time.perf_counter() - began
        print(f"{given.leases} pods up: {took:.1f} s; {len(inspect.leases(made.run))} leases, {made.elements()} ports")
        tenth = max(1, given.leases // 10)
        line("  the first tenth of them", times[:tenth])
        line("  the last tenth of them", times[-tenth:])
        began = time.perf_counter()
        for step in steps:
            network.down(step, {})
        took = time.perf_counter() - began
        print(
            f"{given.leases} pods down: {took:.1f} s; {len(inspect.leases(made.run))} leases, {made.elements()} ports"
        )


if __name__ == "__main__":
    main()
