"""One run of everything that can be compared: podrun, podman, docker, nspawn, bare runtimes, in random order.

    ./dev bench all [--rounds N] [--pods N]

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

import report
from contenders import PROGRAM, Engine, engines
from many import IDLE, SERVER, answers
from report import Figures
from start import reach_v1, run

AT_A_TIME = 8


def private() -> None:
    """Goes on in network and mount namespaces of the bench's own."""
    if "PODRUN_BENCH_ALONE" not in os.environ:
        argv = ["unshare", "--net", "--mount", sys.executable, *sys.argv]
        os.execvpe("unshare", argv, {**os.environ, "PODRUN_BENCH_ALONE": "1"})
    run("ip", "link", "set", "lo", "up")


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


def shuffled(found: Sequence[Engine]) -> list[Engine]:
    return random.sample(list(found), len(found))


def starts(found: Sequence[Engine], figures: Figures, rounds: int) -> None:
    """`true` in a container that is removed, everybody in each round."""
    for turn in range(rounds + 1):
        for engine in shuffled(found):
            took, spent = timed(engine.once)
            if turn:  # the first round warms up
                figures.add("start and end", "ms", engine.name, took)
                figures.add("start and end, processor time", "ms", engine.name, spent)
        took, _ = timed([sys.executable, "-I", "-S", "-c", ""])
        figures.add("start and end", "ms", "the interpreter alone", took)


def first_answers(found: Sequence[Engine], figures: Figures, rounds: int) -> None:
    """From the command to the first 200 through a published port, and the removal of that pod."""
    for turn in range(rounds + 1):
        for engine in shuffled(found):
            assert engine.start and engine.remove and engine.execute
            name = f"answer{turn}"
            began = time.perf_counter()
            process = subprocess.Popen(engine.start(name, 18080, SERVER), stdout=subprocess.DEVNULL)
            while not answers(18080):
                if time.perf_counter() - began > 30 or process.poll():
                    sys.exit(f"{engine.name} does not answer")
                time.sleep(0.0005)
            took = (time.perf_counter() - began) * 1000
            process.wait()
            ran = timed(engine.execute(name))[0]
            removed = timed(engine.remove(name))[0]
            if turn:
                figures.add("first answer over HTTP", "ms", engine.name, took)
                figures.add("exec", "ms", engine.name, ran)
                figures.add("removal", "ms", engine.name, removed)


def through_a_port(found: Sequence[Engine], figures: Figures, rounds: int) -> None:
    """Requests a second and latency by wrk, straight to the pod's own address and through its published port."""
    for turn in range(rounds):
        for engine in shuffled(found):
            assert engine.start and engine.remove
            name = f"port{turn}"
            timed(engine.start(name, 18081, SERVER))
            while not answers(18081):
                time.sleep(0.01)
            done = run("wrk", "-t1", "-c8", "-d3s", "--latency", "http://127.0.0.1:18081/")
            rate = next(line for line in done.stdout.splitlines() if "Requests/sec" in line)
            figures.add(
                "requests through a published port (wrk, 8 connections)", "1/s", engine.name, float(rate.split()[1])
            )
            timed(engine.remove(name))


def at_a_time(found: Sequence[Engine], figures: Figures, count: int) -> None:
    """Pods a second, AT_A_TIME starts running at any moment."""
    for engine in shuffled(found):
        assert engine.start and engine.remove
        names = [f"together{number}" for number in range(count)]
        waiting = [engine.start(name, 0, IDLE) for name in names]
        began = time.perf_counter()
        running: dict[int, subprocess.Popen[bytes]] = {}
        while waiting or running:
            while waiting and len(running) < AT_A_TIME:
                process = subprocess.Popen(waiting.pop(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                running[process.pid] = process
            pid, status = os.wait()
            running.pop(pid, None)
            if status:
                sys.exit(f"{engine.name}: a start ended with {os.waitstatus_to_exitcode(status)}")
        figures.add(f"{AT_A_TIME} starts at a time", "1/s", engine.name, count / (time.perf_counter() - began))
        for name in names:
            timed(engine.remove(name))


def the_nth(found: Sequence[Engine], figures: Figures, most: dict[str, int]) -> None:
    """Start after start without a removal: the first, the 10th ...; then ps of all, and the memory beside them."""
    for engine in shuffled(found):
        assert engine.start and engine.remove and engine.ps
        count = most.get(engine.name, 0)
        before = resident(engine)
        names = [f"nth{number}" for number in range(1, count + 1)]
        took = [timed(engine.start(name, 0, IDLE))[0] for name in names]
        for n in (1, 10, 100, 1000):
            if n <= count:
                # The median of those around it: one start is an anecdote.
                around = took[max(0, n - 1 - n // 20) : n + n // 20]
                figures.add(f"start number {n:,}", "ms", engine.name, sorted(around)[len(around) // 2])
        for _ in range(5):
            figures.add(f"ps of {most['podrun']:,} pods (peers: a tenth)", "ms", engine.name, timed(engine.ps)[0])
        figures.add("memory beside a payload (PSS)", "MB", engine.name, (resident(engine) - before) / count)
        for name in names:
            timed(engine.remove(name))


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


def logs(found: Sequence[Engine], figures: Figures, megabytes: int) -> None:
    """What a payload can write a second when its output is kept and nobody looks."""
    script = f"i=0; while [ $i -lt {megabytes} ]; do busybox cat /big; i=$((i+1)); done"
    for engine in shuffled(found):
        assert engine.start and engine.remove
        began = time.perf_counter()
        timed(engine.start("log", 0, ["sh", "-c", script]))
        wait = [PROGRAM, "wait", "log"] if engine.name == "podrun" else [engine.name, "wait", "log"]
        timed(wait)
        figures.add("output that is kept", "MB/s", engine.name, megabytes / (time.perf_counter() - began))
        timed(engine.remove("log"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--rounds", type=int, default=21)
    parser.add_argument("--pods", type=int, default=1000, help="podrun's; a peer gets a tenth of it")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    private()
    reach_v1()
    random.seed(given.seed)
    directory = Path(tempfile.mkdtemp(prefix="pb-", dir="/var/tmp"))
    os.environ.update(PODRUN_ROOT=str(directory / "root"), PODRUN_RUN=str(directory / "run"))
    figures = Figures()
    for name in ("subuid", "subgid"):
        (directory / name).write_text("podrun:1073741824:655360\n")
        if os.path.exists(f"/etc/{name}"):
            run("mount", "--bind", str(directory / name), f"/etc/{name}")
    try:
        with engines(directory, dict(os.environ)) as (found, left_out):
            left_out.append("docker's first answer: a second on the bench's own bridge, for a reason not found")
            for line in left_out:
                print(f"left out: {line}", file=sys.stderr)
            (directory / "rootfs/big").write_bytes((b"x" * 99 + b"\n") * 10486)
            whole = [engine for engine in found.values() if engine.start]
            # On the bridge that the bench makes for it docker's port answers after a second; why, has not been found.
            quick = [engine for engine in whole if engine.name != "docker"]
            parts: list[tuple[str, Callable[[], None]]] = [
                ("starts", lambda: starts(list(found.values()), figures, given.rounds)),
                ("first answers", lambda: first_answers(quick, figures, given.rounds)),
                ("a published port", lambda: through_a_port(whole, figures, 3)),
                ("several at a time", lambda: at_a_time(whole, figures, max(16, given.pods // 10))),
                ("output", lambda: logs(whole, figures, 200)),
                ("one after another", lambda: the_nth(
                    whole, figures, {"podrun": given.pods, "podman": given.pods // 10, "docker": given.pods // 10}
                )),
            ]  # fmt: skip
            for what, part in parts:
                print(f"{what} ...", file=sys.stderr, flush=True)
                part()
    finally:
        run(PROGRAM, "gc", check=False)
        shutil.rmtree(directory, ignore_errors=True)
    report.write(figures, left_out, given.rounds)


if __name__ == "__main__":
    main()
