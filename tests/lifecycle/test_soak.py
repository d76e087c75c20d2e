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

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_of_fifty_starts_of_one_pod_at_once_one_wins_and_the_others_end_with_75(
    podrun: Podrun, nothing_left: None
) -> None:
    path = podrun.file("web", soak.POD.format(name="web", port=random.randint(20000, 30000)))
    starts = [podrun.start("up", "-d", path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(50)]
    said = [start.communicate(timeout=120)[1] for start in starts]
    assert Counter(start.returncode for start in starts) == {0: 1, 75: 49}
    assert all("podrun: web: " in words for start, words in zip(starts, said, strict=True) if start.returncode)
    podrun("down", "web", check=True)


@pytest.mark.prove
@pytest.mark.parametrize(
    ("kind", "variable", "count"), [("row", "PODRUN_PROVE_CYCLES", "10000"), ("pods", "PODRUN_PROVE_PODS", "500")]
)
def test_soak_leaves_the_machine_as_it_was(home: Path, kind: str, variable: str, count: str) -> None:
    seconds = os.environ.get("PODRUN_PROVE_SECONDS", "3600")
    plots = os.environ.get("PODRUN_PROVE_PLOTS", "")
    words = [
        str(home),
        kind,
        os.environ.get(variable, count),
        seconds,
        *([f"{plots}/soak-{kind}.svg"] if plots else []),
    ]
    done = subprocess.run(
        soak.alone(words), env=soak.environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(f"\n{done.stdout}")
    assert done.returncode == 0
