"""The hosts that the other tests run on are what they are meant to be."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def told(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True).stdout.strip()


@pytest.mark.systemd
def test_the_nspawn_host_has_systemd_as_process_1_and_cgroup_v2() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert os.environ["PODRUN_TEST_HOST"] == "nspawn"
    assert os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    assert told("systemctl", "list-units", "--failed", "--plain", "--no-legend") == ""


@pytest.mark.qemu
def test_the_qemu_host_has_all_controllers() -> None:
    assert os.environ["PODRUN_TEST_HOST"] == "qemu"
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    assert {"cpu", "memory", "pids", "io"} <= {*controllers}
    assert told("systemctl", "list-units", "--failed", "--plain", "--no-legend") == ""
