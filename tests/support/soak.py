"""Thousands of starts and stops, and what there is of the things that leak, in rows over time and as a plot.

Other programs of a machine make and remove such things as well, so the soak has namespaces (network, mounts, processes) and
a memory cgroup of its own: what it counts there is nobody else's, to the last object.

By hand: PYTHONPATH=tests python tests/support/soak.py alone DIRECTORY row|pods COUNT SECONDS [PLOT.svg]
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from podrun.host import tag
from support.launcher import HERE, AsInstalled
from support.objects import listing, settled

POD = """
[pod]
stop_timeout = "0s"
[[chain]]
hook = "image"
ref = "host:"
[[chain]]
hook = "storage"
source = "tmpfs:"
target = "/scratch"
[[chain]]
hook = "network"
publish = ["127.0.0.1:{port}:80"]
[[chain]]
hook = "container"
command = ["sleep", "1000000"]
memory = "64M"
pids = 20
[[chain]]
hook = "register"
service = "{name}"
advertise = "pod"
port = 80
"""


class Sample(NamedTuple):
    """What there is at one moment: in the soak's own namespaces and cgroups, but for ``machine_*``, which is everybody's."""

    seconds: float
    cycles: int
    processes: int
    #: Open in all processes together.
    descriptors: int
    links: int
    #: Named ones, in /run/netns.
    namespaces: int
    mounts: int
    #: Of the podrun's pods, in all hierarchies.
    cgroups: int
    loops: int
    conntrack: int
    #: In the podrun's directories.
    files: int
    #: Charged to the soak's memory cgroup, after the kernel has been asked to give back what it can.
    kernel_kb: int
    #: Of one start and stop, since the sample before.
    milliseconds: float
    machine_inodes: int
    machine_slab_kb: int
    #: Those that the kernel has not given up yet as well.
    machine_memory_cgroups: int


def _number(path: str, pattern: str = r"(\d+)") -> int:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _descriptors() -> tuple[int, int]:
    """How many processes there are, and their open descriptors."""
    processes = descriptors = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                descriptors += len(os.listdir(f"/proc/{entry}/fd"))
                processes += 1
            except OSError:
                continue
    return processes, descriptors


class Charged:
    """A memory cgroup of the soak's own: what the kernel makes for its processes is charged to it."""

    def __init__(self) -> None:
        top = Path("/sys/fs/cgroup")
        self.place = (top if (top / "cgroup.controllers").exists() else top / "memory") / f"soak-{os.urandom(4).hex()}"

    def enter(self) -> None:
        """Makes it and moves this process there."""
        self.place.mkdir()
        (self.place / "cgroup.procs").write_text("0")

    def leave(self) -> None:
        (self.place.parent / "cgroup.procs").write_text("0")
        while True:
            try:
                self.place.rmdir()
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                time.sleep(0.1)

    def kernel_kb(self) -> int:
        """What is charged for the kernel's own objects, once the kernel has been asked to give back what it can."""
        v1 = self.place / "memory.kmem.usage_in_bytes"
        try:
            (self.place / ("memory.force_empty" if v1.exists() else "memory.reclaim")).write_text("1G")
        except OSError:
            pass  # EAGAIN: there was less to give back
        return (_number(str(v1)) if v1.exists() else _number(str(self.place / "memory.stat"), r"^kernel (\d+)")) // 1024


def table(samples: Sequence[Sample]) -> str:
    """Ten rows of them, the first and the last among these."""
    step = max(1, len(samples) // 10)
    rows = [*samples[::step], samples[-1]]
    return "\n".join("".join(f"{cell!s:>16}" for cell in row) for row in (Sample._fields, *rows))


def grows(samples: Sequence[Sample], field: str) -> float:
    """By how much the last quarter's median is above that of the second: the first warms caches up."""
    values = [getattr(one, field) for one in samples]
    quarter = max(1, len(values) // 4)
    early, late = sorted(values[quarter : 2 * quarter]), sorted(values[-quarter:])
    return float(late[len(late) // 2] - early[len(early) // 2])


def svg(samples: Sequence[Sample], title: str, fields: Sequence[str] = Sample._fields[2:]) -> str:
    """One small plot a field, all over the number of cycles; each from 0 to its own maximum."""
    wide, high, gap = 360, 90, 46
    parts = []
    for at, field in enumerate(fields):
        x, y = 20 + (at % 2) * (wide + gap), 50 + at // 2 * (high + gap)
        values = [float(getattr(one, field)) for one in samples]
        most, last = max(*values, 1.0), max(samples[-1].cycles, 1)
        points = " ".join(
            f"{x + wide * one.cycles / last:.1f},{y + high * (1 - value / most):.1f}"
            for one, value in zip(samples, values, strict=True)
        )
        parts.append(
            f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" fill="none" stroke="#ccc"/>'
            f'<polyline points="{points}" fill="none" stroke="#0b62a4" stroke-width="1.5"/>'
            f'<text x="{x}" y="{y - 6}">{field}: {values[0]:.0f} to {values[-1]:.0f}, at most {most:.0f}</text>'
        )
    rows = (len(fields) + 1) // 2
    size = f'width="{2 * wide + gap + 40}" height="{60 + rows * (high + gap)}"'
    head = (
        f'<text x="20" y="22" font-size="14">{title}, {samples[-1].cycles} cycles in {samples[-1].seconds:.0f} s</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{head}{"".join(parts)}</svg>\n'
    )


class Soak:
    """One soak: a podrun of its own, and the rows."""

    def __init__(self, home: Path, seconds: float) -> None:
        self.podrun = AsInstalled(home)
        self.charged = Charged()
        self.tag = tag("", str(self.podrun.run))
        self.seconds = seconds
        self.began = time.monotonic()
        self.samples: list[Sample] = []

    def do(self, *words: str) -> None:
        """Runs podrun; what it says is kept only when it fails."""
        with open(self.podrun.home / "said", "wb+") as said:
            argv, environ = self.podrun.argv(*words), self.podrun.environ
            code = subprocess.call(argv, env=environ, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            said.seek(0)
            assert code == 0, f"podrun {' '.join(words)}: {code}: {said.read().decode(errors='replace')}"

    def file(self, name: str, port: int) -> str:
        return self.podrun.file(name, POD.format(name=name, port=port))

    def sample(self, cycles: int) -> None:
        """Notes how things stand."""
        now = time.monotonic() - self.began
        before = self.samples[-1] if self.samples else None
        done = cycles - before.cycles if before else 0
        processes, descriptors = _descriptors()
        self.samples.append(
            Sample(
                round(now, 1),
                cycles,
                processes,
                descriptors,
                # /sys shows the network namespace of whoever has mounted it.
                len(Path("/proc/self/net/dev").read_text().splitlines()) - 2,
                len(os.listdir("/run/netns")),
                len(Path("/proc/self/mountinfo").read_text().splitlines()),
                sum(self.tag in name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names),
                sum(
                    str(self.podrun.home) in path.read_text()
                    for path in Path("/sys/block").glob("loop*/loop/backing_file")
                ),
                _number("/proc/sys/net/netfilter/nf_conntrack_count"),
                sum(len(names) + len(files) for _, names, files in os.walk(self.podrun.home)),
                self.charged.kernel_kb(),
                round((now - before.seconds) * 1000 / done, 1) if before and done else 0,
                _number("/proc/sys/fs/inode-nr"),
                _number("/proc/meminfo", r"^SUnreclaim: +(\d+)"),
                _number("/proc/cgroups", r"^memory\s+\d+\s+(\d+)"),
            )
        )

    def cycles(self, turn: Callable[[int], None], count: int, plot: str, title: str) -> None:
        """Does so many turns while there is time; a sample before, after, and every few. The plot is drawn all along."""
        every = max(1, count // 200)
        self.sample(0)
        number = 0
        while number < count and time.monotonic() - self.began < self.seconds:
            number += 1
            turn(number)
            if number % every == 0:
                self.sample(number)
                if plot:
                    Path(plot).write_text(svg(self.samples, title))
        if self.samples[-1].cycles != number:
            self.sample(number)
        print(table(self.samples), flush=True)

    def flat(self) -> None:
        """Raises AssertionError for what one leaked object in twenty cycles would show; a few may be about to go."""
        half = max(1, self.samples[-1].cycles // 2)
        for field in (
            "processes",
            "descriptors",
            "links",
            "namespaces",
            "mounts",
            "cgroups",
            "loops",
            "conntrack",
            "files",
        ):
            assert grows(self.samples, field) <= max(4, half / 20), field
        # Less than a pod's smallest object of its own in the kernel (a dentry takes 192 bytes).
        assert grows(self.samples, "kernel_kb") * 1024 < max(1 << 20, half * 100), "kernel_kb"


def in_a_row(soak: Soak, count: int, plot: str) -> None:
    """One pod starts and stops, again and again."""
    podrun = soak.podrun
    path = soak.file("web", random.randint(20000, 30000))

    def turn(_: int) -> None:
        soak.do("up", "-d", path)
        soak.do("down", "web")

    turn(0)
    before = listing(podrun.run, podrun.root)
    soak.cycles(turn, count, plot, "up and down in a row")
    left = settled(podrun.run, podrun.root, before)
    assert not left, left
    soak.flat()


def side_by_side(soak: Soak, count: int, plot: str) -> None:
    """Many pods are up, and one after the other is restarted, by chance."""
    podrun = soak.podrun
    # Below the ports that connections get (ip_local_port_range).
    files = {f"p{n}": soak.file(f"p{n}", 20000 + n) for n in range(count)}
    dice = random.Random(int(os.environ.get("PODRUN_PROVE_SEED", "1")))
    # What all pods share is there once one has been.
    soak.do("up", "-d", files["p0"])
    soak.do("down", "p0")
    before = listing(podrun.run, podrun.root)
    for path in files.values():
        soak.do("up", "-d", path)
    print(f"{count} pods after {time.monotonic() - soak.began:.0f} s", flush=True)
    soak.cycles(
        lambda _: soak.do("restart", dice.choice(list(files))), 20 * count, plot, f"restarts among {count} pods"
    )
    listed = podrun("ps", "--format", "json", check=True).stdout.splitlines()
    states = Counter(json.loads(line)["state"] for line in listed)
    assert states == {"up": count}, states
    for name in files:
        soak.do("down", name)
    left = settled(podrun.run, podrun.root, before)
    assert not left, left
    soak.flat()


def alone(argv: Sequence[str]) -> list[str]:
    """The command line that runs this program in namespaces of its own, below an init that reaps."""
    own = 'ip link set lo up && mount -t tmpfs none /run/netns && exec catatonit -- "$@"'
    spaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*spaces, "sh", "-c", f"mkdir -p /run/netns && {own}", "soak", sys.executable, __file__, *argv]


def environ() -> dict[str, str]:
    """What it needs to find itself."""
    return {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}:{HERE.parent / 'hooks'}"}


def main() -> None:
    if sys.argv[1] == "alone":
        argv = alone(sys.argv[2:])
        os.execvpe(argv[0], argv, environ())
    home, kind, count, seconds, *plot = sys.argv[1:]
    Path(home).mkdir(exist_ok=True)
    soak = Soak(Path(home), float(seconds))
    soak.charged.enter()
    try:
        {"row": in_a_row, "pods": side_by_side}[kind](soak, int(count), "".join(plot))
    finally:
        soak.charged.leave()


if __name__ == "__main__":
    main()
