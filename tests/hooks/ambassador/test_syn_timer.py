"""How soon connections to an ambassador try again: with real SYNs, counted by the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from podrun_hooks.ambassador import syn_timer

pytestmark = pytest.mark.root

NAMESPACE = "t-syn-timer"


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup (v2), and a namespace in which nothing answers two addresses."""
    mount = "/sys/fs/cgroup" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "/sys/fs/cgroup/unified"
    path = f"{mount}/t-syn-timer"
    os.makedirs(path, exist_ok=True)
    rules = "".join(f"add rule ip t o ip daddr 198.18.0.{n} counter drop\n" for n in (1, 2))
    script = "add table ip t\nadd chain ip t o { type filter hook output priority 0; }\n" + rules
    for argv, text in (
        (["ip", "netns", "add", NAMESPACE], ""),
        (["ip", "-n", NAMESPACE, "link", "set", "lo", "up"], ""),
        (["ip", "-n", NAMESPACE, "address", "add", "198.18.0.9/24", "dev", "lo"], ""),
        (["ip", "netns", "exec", NAMESPACE, "nft", "-f", "-"], script),
    ):
        subprocess.run(argv, input=text, text=True, check=True)
    yield path
    subprocess.run(["ip", "netns", "del", NAMESPACE], check=True)
    end = time.monotonic() + 5
    while True:
        try:
            os.rmdir(path)
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.01)


def sent(cgroup: str, seconds: float) -> list[int]:
    """How many SYNs go to each address when a process of the cgroup calls both for so long."""
    code = f"""
import socket, time
both = [socket.socket() for _ in range(2)]
for n, client in enumerate(both):
    client.setblocking(False)
    client.connect_ex((f"198.18.0.{{n + 1}}", 80))
time.sleep({seconds})
"""
    join = 'echo $$ >"$0/cgroup.procs"; exec ip netns exec "$@"'
    subprocess.run(["sh", "-c", join, cgroup, NAMESPACE, sys.executable, "-c", code], check=True)
    listing = subprocess.run(
        ["ip", "netns", "exec", NAMESPACE, "nft", "list", "chain", "ip", "t", "o"], capture_output=True, text=True
    ).stdout
    return [int(line.split("packets ")[1].split()[0]) for line in listing.splitlines() if "packets" in line]


def test_only_connections_to_the_ambassador_try_again_every_50_ms(cgroup: Any) -> None:
    assert syn_timer.attach(cgroup, {"198.18.0.1": [50, 60], "198.18.0.7": [50, 60]}) == ""
    ours, others = sent(cgroup, 0.7)
    assert ours >= 4
    assert others == 1


def test_why_it_cannot_be_done_is_told(cgroup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syn_timer, "_SYSTEM_CALL", {})
    assert "is not known" in syn_timer.attach(cgroup, {"198.18.0.1": [50, 60]})


@pytest.mark.parametrize(("seconds", "times"), [(0, 20), (1, 21), (60, 80), (3600, 127)])
def test_it_goes_on_for_as_long_as_clients_are_held(seconds: int, times: int) -> None:
    assert syn_timer.retries(50, seconds) == times
