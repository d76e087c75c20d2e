"""Three booted hosts under moves, failures and restarts: minutes, so it runs by ``./dev prove cluster``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.prove
@pytest.mark.root
def test_a_cluster_of_three_hosts_stands_what_its_acceptance_asks():
    program = Path(__file__).parent / "acceptance.py"
    assert subprocess.run([sys.executable, program], check=False).returncode == 0
