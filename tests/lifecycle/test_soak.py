"""Many starts: fifty of one pod at once, and by ``./dev prove soak`` thousands in a row and hundreds of pods side by side.

PODRUN_PROVE_CYCLES, PODRUN_PROVE_PODS and PODRUN_PROVE_SECONDS bound them; PODRUN_PROVE_PLOTS names a directory for plots.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from support import soak
from support.launcher import Podrun
from support.objects import listing, settled

pytestmark = [pytest.mark.root, pytest.mark.slow]

_SECONDS = float(os.environ.get("PODRUN_PROVE_SECONDS", "1e9"))
_POD = """
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
[[chain]]
hook = "register"
service = "{name}"
advertise = "pod"
port = 80
"""


def _file(podrun: Podrun, name: str, port: int) -> str:
    return podrun.file(name, _POD.format(name=name, port=port))


def test_of_fifty_starts_of_one_pod_at_once_one_wins_and_the_others_end_with_75(
    podrun: Podrun, nothing_left: None
) -> None:
    path = _file(podrun, "web", random.randint(20000, 30000))
    starts = [podrun.start("up", "-d", path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(50)]
    said = [start.communicate(timeout=120)[1] for start in starts]
    assert Counter(start.returncode for start in starts) == {0: 1, 75: 49}
    assert all("podrun: web: " in words for start, words in zip(starts, said, strict=True) if start.returncode)
    podrun("down", "web", check=True)


@pytest.mark.prove
def test_soak_starts_and_stops_in_a_row_leave_the_machine_as_it_was(podrun: Podrun, nothing_left: None) -> None:
    path = _file(podrun, "web", random.randint(20000, 30000))

    def turn(_: int) -> None:
        podrun("up", "-d", path, check=True)
        podrun("down", "web", check=True)

    turn(0)
    before = listing(podrun.run, podrun.root)
    count = int(os.environ.get("PODRUN_PROVE_CYCLES", "10000"))
    samples = soak.cycles(turn, count, _SECONDS, every=max(1, count // 200))
    _plot(samples, "up and down in a row")
    assert not settled(podrun.run, podrun.root, before)
    _flat(samples)


@pytest.mark.prove
def test_soak_hundreds_of_pods_side_by_side_with_restarts(podrun: Podrun, nothing_left: None) -> None:
    number = int(os.environ.get("PODRUN_PROVE_PODS", "500"))
    # Below the ports that connections get (ip_local_port_range).
    files = {f"p{n}": _file(podrun, f"p{n}", 20000 + n) for n in range(number)}
    dice = random.Random(int(os.environ.get("PODRUN_PROVE_SEED", "1")))
    for path in files.values():
        podrun("up", "-d", path, check=True)

    def turn(_: int) -> None:
        podrun("restart", dice.choice(list(files)), check=True)

    samples = soak.cycles(turn, 10 * number, min(_SECONDS, 3600), every=max(1, number // 20))
    _plot(samples, f"restarts among {number} pods")
    states = Counter(line.split()[1] for line in podrun("ps", check=True).stdout.splitlines()[1:])
    assert states == {"up": number}, states
    for name in files:
        podrun("down", name, check=True)
    _flat(samples)


def _plot(samples: list[soak.Sample], title: str) -> None:
    if place := os.environ.get("PODRUN_PROVE_PLOTS"):
        Path(place, f"{title.replace(' ', '-')}.svg").write_text(soak.svg(samples, title))


def _flat(samples: list[soak.Sample]) -> None:
    """What one leaked object a cycle would show beside everything else that the machine does."""
    cycles = max(1, samples[-1].cycles // 2)
    for field in ("descriptors", "links", "namespaces", "mounts", "cgroups", "loops"):
        assert soak.grows(samples, field) < max(20, cycles / 4), field
