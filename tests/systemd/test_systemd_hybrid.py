"""Hosts that still boot with cgroup v1, v2 beside it: the hand-off is the same, and so are ps and stats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.systemd_case import (
    IMAGE,
    NETWORK,
    PATIENT,
    Pods,
    container,
    ended,
    main_pid,
    sh,
    show,
    systemctl,
    until,
    words,
)

pytestmark = pytest.mark.hybrid


def test_the_host_has_both_versions() -> None:
    assert not os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    assert os.path.exists("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    assert os.path.exists("/sys/fs/cgroup/unified/cgroup.procs")


def used() -> dict[str, Any]:
    """What stats has to say of the pod."""
    [row] = [json.loads(line) for line in sh("podrun", "stats", "--format", "json", "web").stdout.splitlines()]
    assert (row["unit"], row["pid"]) == ("web.service", main_pid("web"))
    assert row["seconds"] > 0
    assert 0 < row["memory"] < 64 << 20
    assert row["processes"] >= 1
    return row


def test_the_main_process_is_the_containers_init_and_its_status_is_the_units(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container("while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 7"))
    assert systemctl("start", "web").returncode == 0, words("web")
    pid = main_pid("web")
    assert "\nPPid:\t1\n" in Path(f"/proc/{pid}/status").read_text()
    [row] = [json.loads(line) for line in sh("podrun", "ps", "--format", "json").stdout.splitlines()]
    assert (row["pid"], row["state"], row["unit"]) == (pid, "up", "web.service")
    used()
    assert sh("podrun", "exec", "web", "touch", "/tmp/go").returncode == 0
    assert ended("web") == ("exit-code", "exited", "7"), words("web")
    pods.nothing_left()


def test_a_container_with_limits_is_still_the_units_for_systemd_and_the_journal(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT, memory='"64M"'))
    assert systemctl("start", "web").returncode == 0, words("web")
    named = Path(f"/proc/{main_pid('web')}/cgroup").read_text().partition("name=systemd:")[2].split()[0]
    assert named == "/system.slice/web.service"
    used()
    systemctl("stop", "web")
    assert ended("web")[0] == "success"
    assert "bye" in words("web")
    pods.nothing_left()


def test_a_limit_is_that_of_a_v1_cgroup_and_going_beyond_it_ends_the_payload(pods: Pods) -> None:
    pods.install("web", IMAGE, container("sleep 1; tail /dev/zero; exit 5", memory='"32M"'))
    assert systemctl("start", "web").returncode == 0, words("web")
    [cgroup] = [path for path in Path("/sys/fs/cgroup/memory/podrun").iterdir() if path.is_dir()]
    assert (cgroup / "memory.limit_in_bytes").read_text().strip() == str(32 << 20)
    result, _, status = ended("web")
    assert result != "success", status
    assert show("web", "ActiveState") == ["failed"]
    pods.nothing_left()


def test_after_kill_9_of_everything_nothing_is_left(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT, pids="20"))
    assert systemctl("start", "web").returncode == 0, words("web")
    systemctl("kill", "--signal=KILL", "--kill-who=all", "web")
    until(lambda: show("web", "ActiveState") == ["failed"], 20)
    pods.nothing_left()
