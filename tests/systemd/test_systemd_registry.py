"""Pods with a registry as units: nothing beside the payload with a map, HAProxy and the follower in units of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.systemd_case import IMAGE, NETWORK, PATIENT, Pods, container, main_pid, sh, show, systemctl, until, words

pytestmark = pytest.mark.systemd

FOLLOWER = "podrun-follow.service"
ETCD = "etcd://127.0.0.1:2379"
SERVE = "exec python3 -m http.server --directory /etc/debian_version 5432"


def step(hook: str, name: str = "", **options: str) -> str:
    """The [[chain]] table of a step for the service "db"."""
    lines = ["[[chain]]", f'hook = "{hook}"', 'service = "db"', *([f'name = "{name}"'] if name else [])]
    return "\n".join([*lines, *(f'{key} = "{value}"' for key, value in options.items())]) + "\n"


def database(pods: Pods, registry: str) -> None:
    register = step("register", registry=registry, advertise="pod", ttl="6s") + "port = 5432\n"
    pods.install("db", IMAGE, NETWORK, register, container(SERVE, ready='{ tcp = ":5432" }'))


def application(pods: Pods, registry: str, **options: str) -> list[str]:
    ambassador = step("ambassador", "lead", registry=registry, **options) + "port = 5432\n"
    return pods.install("app", IMAGE, NETWORK, ambassador, container(PATIENT))


def programs(unit: str) -> set[str]:
    """The programs in a unit's cgroup and below."""
    top = Path(f"/sys/fs/cgroup/system.slice/{unit}")
    pids = [pid for path in top.rglob("cgroup.procs") for pid in path.read_text().split()]
    words = [Path(f"/proc/{pid}/cmdline").read_bytes().split(bytes(1))[0].decode() for pid in pids]
    return {word.rpartition("/")[2] for word in words} - {"sleep"}


def answers() -> bool:
    """Whether the application reaches the database by its name."""
    done = sh("podrun", "exec", "app", "curl", "-s", "--max-time", "5", "-o", "/dev/null", "http://db:5432/")
    return done.returncode == 0


def records() -> list[dict[str, Any]]:
    """The database's records, as people see them."""
    found = sh("podrun", "registry", "get", "--registry", ETCD, "--format", "json", "db")
    return [json.loads(line) for line in found.stdout.splitlines()] if found.returncode == 0 else []


@pytest.fixture
def etcd() -> Iterator[None]:
    argv = ["systemd-run", "--quiet", "--collect", "--unit=t-etcd", "--service-type=notify"]
    started = sh(*argv, "etcd", "--data-dir", "/run/t-etcd")
    assert started.returncode == 0, started.stderr
    yield
    systemctl("stop", "t-etcd")
    sh("rm", "-r", "/run/t-etcd")


def test_a_map_leaves_nothing_beside_the_payload(pods: Pods) -> None:
    database(pods, "file:")
    assert FOLLOWER not in application(pods, "file:")
    assert systemctl("start", "db", "app").returncode == 0, words("app")
    assert answers()
    assert programs("app.service") == {"sh"}
    assert show(FOLLOWER, "ActiveState") == ["inactive"]
    print(sh("systemd-cgls", "--no-pager", "/system.slice/app.service").stdout)
    systemctl("stop", "app", "db")
    pods.nothing_left()


def test_haproxy_has_a_unit_of_its_own(pods: Pods) -> None:
    database(pods, "file:")
    names = application(pods, "file:", via="haproxy", mode="http")
    assert set(names) >= {"app.lead.service", "app.main.service"}
    assert systemctl("start", "db", "app.main").returncode == 0, words("app.main")
    assert answers()
    assert (programs("app.lead.service"), programs("app.main.service")) == ({"haproxy"}, {"sh"})
    systemctl("stop", "db", *(name for name in names if name.startswith("app")))
    pods.nothing_left()


def test_the_follower_is_back_within_the_ttl_and_no_record_is_lost(etcd: None, pods: Pods) -> None:
    database(pods, ETCD)
    application(pods, ETCD)
    assert systemctl("start", "db", "app").returncode == 0, words("app")
    until(answers)
    # Half of the shortest TTL: the follower has said so.
    expected = ["active", "notify", "always", "3s", "yes"]
    until(lambda: show(FOLLOWER, "ActiveState", "Type", "Restart", "WatchdogUSec", "NoNewPrivileges") == expected)
    assert programs("app.service") == {"sh"}
    print(sh("systemd-cgls", "--no-pager", "/system.slice").stdout)
    before = main_pid(FOLLOWER)
    os.kill(before, signal.SIGKILL)
    until(lambda: main_pid(FOLLOWER) not in (0, before) and show(FOLLOWER, "WatchdogUSec") == ["3s"])
    # The next one hangs.
    before = main_pid(FOLLOWER)
    os.kill(before, signal.SIGSTOP)
    end = time.monotonic() + 8
    while time.monotonic() < end:
        assert [one["ready"] for one in records()] == [True]
        time.sleep(0.2)
    assert main_pid(FOLLOWER) not in (0, before)
    # It still does its work, with no more rights than it needs.
    systemctl("stop", "db")
    until(lambda: records() == [])
    assert answers() is False
    assert "Traceback" not in words(FOLLOWER)
    status = Path(f"/proc/{main_pid(FOLLOWER)}/status").read_text()
    assert int(status.partition("CapEff:")[2].split()[0], 16) == 1 << 1 | 1 << 12 | 1 << 21
    assert subprocess.run(["systemd-analyze", "verify", FOLLOWER], check=False).returncode == 0
    systemctl("stop", "app")
    until(lambda: not list(Path("/run/podrun/follow").glob("*.lease")))
    systemctl("stop", FOLLOWER)
    pods.nothing_left()


def test_a_follower_without_a_unit_file_is_back_after_a_daemon_reload(etcd: None, pods: Pods) -> None:
    register = step("register", registry=ETCD, advertise="pod", ttl="6s") + "port = 5432\n"
    pods.file("db", IMAGE + NETWORK + register + container(SERVE, ready='{ tcp = ":5432" }'))
    started = sh("podrun", "up", "-d", "db")
    assert started.returncode == 0, started.stderr
    until(lambda: show(FOLLOWER, "ActiveState", "Transient") == ["active", "yes"])
    systemctl("daemon-reload")
    before = main_pid(FOLLOWER)
    os.kill(before, signal.SIGKILL)
    until(lambda: main_pid(FOLLOWER) not in (0, before) and show(FOLLOWER, "ActiveState") == ["active"])
    assert [one["ready"] for one in records()] == [True]
    assert sh("podrun", "down", "db").returncode == 0
    until(lambda: records() == [])
    systemctl("stop", FOLLOWER)
