"""Limits and devices on a kernel with cgroup v2 and all its controllers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.systemd_case import IMAGE, NETWORK, PATIENT, Pods, container, ended, main_pid, sh, show, systemctl, words

pytestmark = pytest.mark.qemu

#: A child that grows without end (tail keeps the last line), and a process 1 that would outlive it.
GREEDY = "tail /dev/zero; exec sleep 100"


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_hand_off_on_cgroup_v2(pods: Pods, runtime: str) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT, runtime=f'"{runtime}"'))
    assert systemctl("start", "web").returncode == 0, words("web")
    print(systemctl("status", "--no-pager", "web").stdout, sh("systemd-cgls", "--no-pager", "-u", "web.service").stdout)
    pid = main_pid("web")
    assert Path(f"/proc/{pid}/cgroup").read_text() == "0::/system.slice/web.service/main\n"
    systemctl("stop", "web")
    assert ended("web")[0] == "success"
    pods.nothing_left()


def test_a_payload_beyond_its_memory_limit_shows_as_oom_kill(pods: Pods) -> None:
    pods.install("web", IMAGE, container(f"sleep 1; {GREEDY}", memory='"32M"'))
    assert systemctl("start", "web").returncode == 0, words("web")
    assert ended("web")[0] == "oom-kill", words("web")
    pods.nothing_left()


def test_a_limit_of_the_unit_shows_as_oom_kill_as_well(pods: Pods) -> None:
    pods.install("web", IMAGE, container(f"sleep 1; {GREEDY}"), service='MemoryMax = "64M"\nMemorySwapMax = 0')
    systemctl("start", "web")
    assert ended("web")[0] == "oom-kill", words("web")
    pods.nothing_left()


def test_the_limits_of_a_container_are_those_of_its_cgroup(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT, memory='"64M"', pids="20", cpus="0.5"))
    assert systemctl("start", "web").returncode == 0, words("web")
    cgroup = Path("/sys/fs/cgroup/system.slice/web.service/main")
    told = [(cgroup / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")]
    assert told == [str(64 << 20), "20", "50000 100000"]
    assert int(show("web", "MemoryCurrent")[0]) > 0
    [row] = [json.loads(line) for line in sh("podrun", "stats", "--format", "json", "web").stdout.splitlines()]
    assert (row["pod"], row["name"], row["unit"], row["pid"]) == ("web", "main", "web.service", main_pid("web"))
    assert 0 < row["memory"] < 64 << 20
    assert row["seconds"] > 0


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_container_cannot_read_the_hosts_disk(pods: Pods, runtime: str) -> None:
    major, minor = Path("/sys/block/vda/dev").read_text().split(":")
    script = f"mknod /tmp/disk b {major} {minor.strip()}; head -c 10 /tmp/disk && echo readable; {PATIENT}"
    pods.install("web", IMAGE, container(script, runtime=f'"{runtime}"'))
    assert systemctl("start", "web").returncode == 0, words("web")
    assert sh("podrun", "exec", "web", "head", "-c", "1", "/tmp/disk").returncode != 0
    assert "readable" not in words("web")
    assert sh("podrun", "exec", "web", "head", "-c", "1", "/dev/zero").returncode == 0
