"""podrun stats on this machine's cgroups, whichever they are."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from support.launcher import Podrun

pytestmark = pytest.mark.root

BUSY = "x=$(head -c 20m /dev/zero | tail -c 20m | tr '\\0' x); while :; do :; done"


@pytest.mark.parametrize("limits", [(), ("--memory", "200M")], ids=["in the caller's cgroup", "in one of its own"])
def test_a_busy_container_uses_a_processor_and_the_memory_that_it_filled(podrun: Podrun, limits: Any) -> None:
    podrun("run", "-d", "--name", "web", "--network", "none", *limits, "host:", "sh", "-c", BUSY, check=True)
    rows = [json.loads(podrun("stats", "--format", "json", check=True).stdout) for _ in range(20)]
    assert rows[-1]["pod"] == "web"
    assert max(float(row["cpu"].rstrip("%")) for row in rows) > 20
    assert max(row["memory"] for row in rows) > 10 << 20
    assert [row["limit"] for row in rows[-1:]] == [200 << 20 if limits else None]
    assert (rows[-1]["network"], [type(count) for count in rows[-1]["block"]]) == ([0, 0], [int, int])
    assert "web" in podrun("stats", "web", check=True).stdout
    assert podrun("stats", "--format", "{pod} {limit}").stdout == f"web {'200.0M' if limits else ''}\n"
    following = podrun.start("stats", "-f", "-i", "0.1", "--format", "pod", stdout=subprocess.PIPE)
    assert following.stdout is not None
    assert [following.stdout.readline() for _ in range(3)] == ["web\n"] * 3
    following.terminate()
    following.wait()
    podrun("down", "web", check=True)


def test_without_a_container_there_is_nothing_to_show(podrun: Podrun) -> None:
    assert podrun("stats", check=True).stdout == ""
