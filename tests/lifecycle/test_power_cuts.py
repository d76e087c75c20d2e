"""./dev prove cuts: the power goes while images, volumes, pods, swaps and records are made. PODRUN_CUTS: how often each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.prove]

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_cuts_leave_nothing_half_visible_and_nothing_that_gc_does_not_remove(home: Path, kind: str) -> None:
    environ = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}:{HERE}"}
    # A mount namespace of its own: one that somebody else makes meanwhile would keep the loop devices.
    argv = ["unshare", "--mount", sys.executable, str(HERE / "support/power_cuts.py"), str(home)]
    count = os.environ.get("PODRUN_CUTS", "170")
    done = subprocess.run([*argv, count, kind], env=environ, capture_output=True, text=True, check=False)
    print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stderr
