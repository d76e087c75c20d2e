"""What a machine has of the things that leak, in rows over time, and those rows as a plot."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    """The machine at one moment: everybody's, not the pods' alone."""

    seconds: float
    cycles: int
    descriptors: int
    inodes: int
    links: int
    namespaces: int
    mounts: int
    cgroups: int
    conntrack: int
    slab_kb: int
    loops: int


def _number(path: str, pattern: str = r"(\d+)") -> int:
    found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def sample(began: float, cycles: int) -> Sample:
    """Now."""
    conntrack = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    cgroups = sum(int(line.split()[2]) for line in Path("/proc/cgroups").read_text().splitlines()[1:])
    return Sample(
        round(time.monotonic() - began, 1),
        cycles,
        _number("/proc/sys/fs/file-nr"),
        _number("/proc/sys/fs/inode-nr"),
        len(os.listdir("/sys/class/net")),
        len(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else 0,
        len(Path("/proc/self/mountinfo").read_text().splitlines()),
        cgroups,
        _number(str(conntrack)) if conntrack.exists() else 0,
        _number("/proc/meminfo", r"^SUnreclaim: +(\d+)"),
        sum(
            1
            for name in os.listdir("/sys/block")
            if name.startswith("loop") and os.path.exists(f"/sys/block/{name}/loop")
        ),
    )


def table(samples: Sequence[Sample]) -> str:
    """Ten rows of them, the first and the last among these."""
    step = max(1, len(samples) // 10)
    rows = [*samples[::step], samples[-1]]
    return "\n".join("".join(f"{cell!s:>12}" for cell in row) for row in (Sample._fields, *rows))


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


def cycles(
    turn: Callable[[int], None], count: int, seconds: float, every: int, said: Callable[[str], None] = print
) -> list[Sample]:
    """Does so many turns, for ``seconds`` at most; a sample before and after every few."""
    began = time.monotonic()
    samples = [sample(began, 0)]
    for number in range(1, count + 1):
        turn(number)
        if number % every == 0:
            samples.append(sample(began, number))
        if time.monotonic() - began > seconds:
            break
    samples.append(sample(began, number))
    said(table(samples))
    return samples
