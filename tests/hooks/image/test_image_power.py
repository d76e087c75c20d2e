"""Power cuts in the middle of a pull; any number by hand: unshare -m python tests/support/image_power.py DIRECTORY CUTS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.slow]

HERE = Path(__file__).parents[2]


def test_a_power_cut_at_any_moment_leaves_nothing_half_under_a_valid_name(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}:{HERE}"}
    # A mount namespace of its own: one that somebody else makes meanwhile would keep the loop devices.
    argv = ["unshare", "--mount", sys.executable, str(HERE / "support" / "image_power.py"), str(tmp_path)]
    done = subprocess.run([*argv, os.environ.get("PODRUN_CUTS", "8")], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"\n{done.stdout}")
    assert "cuts with" in done.stdout
