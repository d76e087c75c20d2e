"""One run of everything that can be compared: podrun, podman, docker, nspawn, bare runtimes, in random order.

    ./dev bench all [--rounds N] [--pods N] [--minutes N] [--only PART ...]

Writes docs/performance/figures.json, plots (SVG) beside it, and a page (docs/explanation/performance.md). All engines
work in network and mount namespaces of the bench's own, so that nothing of it meets the machine's. Every figure is a
whole process, from fork to exit; processor time is that of the process and its children (a daemon's is not in it).
Trust the ratios.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import report
from contenders import IDLE, SERVER, Engine, contenders
from images import pulls_and_stores
from many import AT_A_TIME, answers, first_answer, together
from report import Figures
from start import reach_v1, run
from traffic import neighbour, through_ports, within_three_percent


def private() -> None:
    """Goes on in network and mount namespaces of the bench's own, as installed programs run: with bytecode."""
    if "PODRUN_BENCH_ALONE" not in os.environ:
        argv = ["unshare", "--net", "--mount", sys.executable, *sys.argv]
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        os.execvpe("unshare", argv, {**environ, "PODRUN_BENCH_ALONE": "1"})
    run("ip", "link", "set", "lo", "up")


def in_memory(directory: Path) -> None:
    """Gives every engine its run directory on a tmpfs, as /run is one on the hosts that they are made for."""
    place = directory / "run"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(place))
    storage, engine = directory / "storage.conf", directory / "containers.conf"
    rows = {"driver": "overlay", "graphroot": directory / "podman", "runroot": place / "podman"}
    storage.write_text("[storage]\n" + "".join(f'{key} = "{value}"\n' for key, value in rows.items()))
    engine.write_text(f'[engine]\ntmp_dir = "{place}/libpod"\n')
    os.environ.update(
        PODRUN_ROOT=str(directory / "root"),
        PODRUN_RUN=str(place / "podrun"),
        CONTAINERS_STORAGE_CONF=str(storage),
        CONTAINERS_CONF=str(engine),
    )


def timed(argv: Sequence[str]) -> tuple[float, float]:
    """Milliseconds from fork to exit, and of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    return took * 1000, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def shuffled(found: dict[str, Any]) -> list[tuple[str, Any]]:
    return random.sample(list(found.items()), len(found))


def starts(found: dict[str, list[str]], figures: Figures, rounds: int) -> None:
    """`true` in a container that is removed, everybody in each round."""
    for turn in range(rounds + 1):
        for name, argv in shuffled(found):
            took, spent = timed(argv)
            if turn:  # the first round warms up
                figures.add("start and end", "ms", name, took)
                figures.add("start and end, processor time", "ms", name, spent)
        took, _ = timed([sys.executable, "-I", "-S", "-c", ""])
        figures.add("start and end", "ms", "the interpreter alone", took)


def first_answers(found: dict[str, Engine], figures: Figures, rounds: int) -> None:
    """From the command to the first 200 through a published port, and the removal of that pod.

    Beside another pod of each engine, as on a host: a bridge without any port has no carrier. Docker's proxy takes
    connections before the container's port is there. What it sends is lost then, and repeated after a second.
    """
    for engine in found.values():
        timed(engine.start("beside", 0, IDLE))
    time.sleep(2)
    for turn in range(rounds + 1):
        for name, engine in shuffled(found):
            pod = f"answer{turn}"
            took = first_answer(engine, pod, 18080)
            ran = timed(engine.execute(pod))[0]
            removed = timed(engine.remove(pod))[0]
            if turn:
                figures.add("first answer over HTTP", "ms", name, took)
                figures.add("exec", "ms", name, ran)
                figures.add("removal", "ms", name, removed)
    for engine in found.values():
        timed(engine.remove("beside"))


def through_a_port(found: dict[str, Engine], figures: Figures, rounds: int) -> None:
    """Requests a second by wrk through a published port."""
    for turn in range(rounds):
        for name, engine in shuffled(found):
            pod = f"port{turn}"
            timed(engine.start(pod, 18081, SERVER))
            while not answers(18081):
                time.sleep(0.01)
            done = run("wrk", "-t1", "-c8", "-d3s", "--latency", "http://127.0.0.1:18081/")
            rate = next(line for line in done.stdout.splitlines() if "Requests/sec" in line)
            figures.add("requests through a published port (wrk, 8 connections)", "1/s", name, float(rate.split()[1]))
            timed(engine.remove(pod))


def at_a_time(found: dict[str, Engine], figures: Figures, count: int) -> None:
    """Pods a second, AT_A_TIME starts running at any moment."""
    for name, engine in shuffled(found):
        figures.add(f"{AT_A_TIME} starts at a time", "1/s", name, together(engine, count))


def the_nth(found: dict[str, Engine], figures: Figures, most: dict[str, int]) -> None:
    """Start after start without a removal: the first, the 10th ...; then ps of all, and the memory beside them."""
    for name, engine in shuffled(found):
        count = most[name]
        before = resident(engine)
        pods = [f"nth{number}" for number in range(1, count + 1)]
        took = [timed(engine.start(pod, 0, IDLE))[0] for pod in pods]
        for n in (1, 10, 100, 1000):
            if n <= count:
                # The median of those around it: one start is an anecdote.
                around = took[max(0, n - 1 - n // 20) : n + n // 20]
                figures.add(f"start number {n:,}", "ms", name, sorted(around)[len(around) // 2])
        for _ in range(5):
            figures.add(f"ps of {most['podrun']:,} pods (peers: a tenth)", "ms", name, timed(engine.ps)[0])
        figures.add("memory beside a payload (PSS)", "MB", name, (resident(engine) - before) / count)
        for pod in pods:
            timed(engine.remove(pod))


def resident(engine: Engine) -> float:
    """MB of all processes that are the engine's (proportional set size)."""
    total = 0
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and Path(f"/proc/{entry}/comm").read_text().startswith(engine.beside):
                rows = Path(f"/proc/{entry}/smaps_rollup").read_text().splitlines()
                total += next(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
        except OSError:
            continue
    return total / 1000


def output(found: dict[str, Engine], figures: Figures, megabytes: int) -> None:
    """What a payload can write a second: into what the engine keeps while nobody looks, and into a pipe."""
    script = f"i=0; while [ $i -lt {megabytes} ]; do busybox cat /big; i=$((i+1)); done"
    for name, engine in shuffled(found):
        argv = engine.start("log", 0, ["sh", "-c", script])
        began = time.perf_counter()
        timed(argv)
        timed([engine.ps[0], "wait", "log"])
        figures.add("output that is kept in a file", "MB/s", name, megabytes / (time.perf_counter() - began))
        timed(engine.remove("log"))
        attached = [word for word in argv if word != "-d"]
        began = time.perf_counter()
        timed(["sh", "-c", '"$@" | cat >/dev/null', "sh", *attached])
        figures.add("output through a pipe", "MB/s", name, megabytes / (time.perf_counter() - began))
        timed(engine.remove("log"))


def traffic(found: dict[str, Engine], figures: Figures, rounds: int, left_out: list[str]) -> None:
    """Throughput and round trips through published ports."""
    with neighbour() as far:
        for turn in range(rounds):
            unreached = through_ports(shuffled(found), figures, far, turn)
            left_out += [line for line in unreached if line not in left_out]
    within_three_percent(figures)


PARTS = ("starts", "answers", "together", "port", "traffic", "output", "nth", "pulls")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--rounds", type=int, default=21)
    parser.add_argument("--pods", type=int, default=1000, help="podrun's; a peer gets a tenth of it")
    parser.add_argument("--minutes", type=float, default=0, help="begin no part after so many; 0: begin all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=PARTS, help="these parts; nothing is written then")
    given = parser.parse_args()
    private()
    reach_v1()
    random.seed(given.seed)
    directory = Path(tempfile.mkdtemp(prefix="pb-", dir="/var/tmp"))
    in_memory(directory)
    figures = Figures()
    for name in ("subuid", "subgid"):
        (directory / name).write_text("podrun:1073741824:655360\ncontainers:2147483648:655360\n")
        if os.path.exists(f"/etc/{name}"):
            run("mount", "--bind", str(directory / name), f"/etc/{name}")
    try:
        with contenders(directory, dict(os.environ)) as (once, whole, left_out):
            (directory / "rootfs/big").write_bytes((b"x" * 99 + b"\n") * 10486)
            most = {name: given.pods if name == "podrun" else given.pods // 10 for name in whole}
            parts: dict[str, Callable[[], None]] = {
                "starts": lambda: starts(once, figures, given.rounds),
                "answers": lambda: first_answers(whole, figures, given.rounds),
                "port": lambda: through_a_port(whole, figures, 3),
                "traffic": lambda: traffic(whole, figures, 3, left_out),
                "together": lambda: at_a_time(whole, figures, max(16, given.pods // 10)),
                "output": lambda: output(whole, figures, 200),
                "pulls": lambda: pulls_and_stores(figures, 2),
                "nth": lambda: the_nth(whole, figures, most),
            }
            left_out.append("output through the journal: it needs a machine that systemd has booted")
            all_began = time.monotonic()
            for what in given.only or PARTS:
                began = time.monotonic()
                if given.minutes and began - all_began > given.minutes * 60:
                    left_out.append(f"{what}: the time was over")
                    continue
                try:
                    parts[what]()
                except (Exception, SystemExit) as error:  # the other figures are not lost
                    left_out.append(f"{what}: {' '.join(str(error).split())[:200]}")
                print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            for line in left_out:
                print(f"left out: {line}", file=sys.stderr)
            program = whole["podrun"].ps[0]
            run(program, "kill", "-a", check=False)
            run(program, "gc", check=False)
    finally:
        for place in ("podman/overlay", "run"):
            run("umount", "-l", str(directory / place), check=False)
        shutil.rmtree(directory, ignore_errors=True)
    if given.only:
        print(report.table(figures))
    else:
        report.write(figures, left_out, given.rounds)


if __name__ == "__main__":
    main()
