"""Three booted hosts: what they have to stand takes minutes and runs by ``./dev prove cluster``, the start of it always."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "acceptance.py"


@pytest.mark.root
@pytest.mark.slow
def test_three_hosts_run_the_examples_pods_and_nothing_is_left_of_them() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "a", "b", "c", "i"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prove
@pytest.mark.root
def test_a_cluster_of_three_hosts_stands_moves_failures_and_restarts() -> None:
    assert subprocess.run([sys.executable, PROGRAM], check=False).returncode == 0


@pytest.mark.prove
@pytest.mark.root
def test_the_storage_of_a_pod_follows_it_to_another_host() -> None:
    assert subprocess.run([sys.executable, PROGRAM.with_name("storage.py")], check=False).returncode == 0
