"""How long until a pod serves, and what many cost: podrun beside podman and docker, with the same image and a bridge.

Three cases, whole processes, interleaved: the first HTTP 200 through a published port after the command was given;
pods one after another, made and removed; and so many at a time. Trust the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from contenders import IDLE, SERVER, Engine, peer, podrun, with_page
from start import PEERS, imported, reach_v1, run

AT_A_TIME = 8


@contextmanager
def engines(directory: Path) -> Iterator[dict[str, Engine]]:
    """The engines to compare, by name; each has the image."""
    root = with_page(directory)
    found = {"podrun": podrun(root)}
    with ExitStack() as undo:
        for engine in PEERS:
            if imported(engine, root, directory):
                undo.callback(run, engine, "rmi", "-f", "podrun-bench:1", check=False)
                found[engine] = peer(engine)
        yield found


def must(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.decode()[-500:]}")


def answers(port: int) -> bool:
    """Whether 127.0.0.1:port says 200 to a GET."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def first_answer(engine: Engine, name: str, port: int) -> float:
    """Milliseconds from the command to the first 200; the pod stays."""
    began = time.perf_counter()
    argv = engine.start(name, port, SERVER)
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not answers(port):
        if time.perf_counter() - began > 30 or process.poll():
            sys.exit(f"{name} does not answer")
        time.sleep(0.0005)
    took = (time.perf_counter() - began) * 1000
    process.wait()
    return took


def one_after_another(engine: Engine, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of every start and of every removal."""
    names = [f"bench{number}" for number in range(count)]
    took: list[list[float]] = []
    for commands in ([engine.start(name, 0, IDLE) for name in names], [*map(engine.remove, names)]):
        times = []
        for argv in commands:
            began = time.perf_counter()
            must(argv)
            times.append((time.perf_counter() - began) * 1000)
        took.append(times)
    return took[0], took[1]


def together(engine: Engine, count: int) -> float:
    """Pods a second, AT_A_TIME starts running at any moment."""
    waiting = [f"bench{number}" for number in range(count)]
    began = time.perf_counter()
    running: list[subprocess.Popen[bytes]] = []
    for name in waiting:
        if len(running) == AT_A_TIME:
            pid, status = os.wait()
            running = [process for process in running if process.pid != pid]
            if status:
                sys.exit(f"a start ended with {os.waitstatus_to_exitcode(status)}")
        argv = engine.start(name, 0, IDLE)
        running.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
    for process in running:
        if process.wait():
            sys.exit(f"a start ended with {process.returncode}")
    rate = count / (time.perf_counter() - began)
    for name in waiting:
        must(engine.remove(name))
    return rate


class Row(NamedTuple):
    """A measure of every engine; podrun's share of each peer's is held against what was aimed at."""

    what: str
    figures: dict[str, float]
    unit: str
    #: Of podman's: at most this share, or, where more is better, at least.
    aim: float
    more_is_better: bool = False

    def told(self) -> str:
        mine, podman = self.figures["podrun"], self.figures.get("podman")
        shown = "".join(f"{figure:10.1f}" for figure in self.figures.values())
        if not podman:
            return f"{self.what:34} {shown} {self.unit}"
        ratio = mine / podman
        reached = ratio >= self.aim if self.more_is_better else ratio <= self.aim
        word = ">=" if self.more_is_better else "<="
        verdict = "reached" if reached else "missed"
        return f"{self.what:34} {shown} {self.unit:5} {ratio:6.2f} of podman ({word} {self.aim:g}: {verdict})"


def measured(found: dict[str, Engine], rounds: int, count: int) -> list[Row]:
    answers_after: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, engine in found.items():
            took = first_answer(engine, f"bench{number}", 18080)
            must(engine.remove(f"bench{number}"))
            if number:
                answers_after[name].append(took)
    starts, removals = {}, {}
    for name, engine in found.items():
        starts[name], removals[name] = one_after_another(engine, count)
    rates = {name: together(engine, count // 2) for name, engine in found.items()}
    tenth = max(1, count // 10)
    late = statistics.median(starts["podrun"][-tenth:]) / statistics.median(starts["podrun"][:tenth])
    print(f"podrun: the last {tenth} of {count} starts took {late:.2f} of the first {tenth} (<= 1.2)")
    return [
        Row("first HTTP 200", {name: statistics.median(times) for name, times in answers_after.items()}, "ms", 0.35),
        Row(f"{count} starts", {name: sum(times) / 1000 for name, times in starts.items()}, "s", 0.40),
        Row(f"{count} removals", {name: sum(times) / 1000 for name, times in removals.items()}, "s", 0.40),
        Row(f"{AT_A_TIME} at a time", rates, "1/s", 4.0, more_is_better=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--rounds", type=int, default=11, help="of the first HTTP 200")
    parser.add_argument("--pods", type=int, default=200)
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed programs have their bytecode
    reach_v1()
    directory = Path(tempfile.mkdtemp(prefix="podrun-bench-", dir="/var/tmp"))
    os.environ.update(PODRUN_ROOT=str(directory / "root"), PODRUN_RUN=str(directory / "run"))
    try:
        with engines(directory) as found:
            rows = measured(found, given.rounds, given.pods)
            print(f"{'':34} " + "".join(f"{name:>10}" for name in found))
            for row in rows:
                print(row.told())
    finally:
        run(str(Path(sys.executable).parent / "podrun"), "gc", check=False)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
