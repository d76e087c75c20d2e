"""Limits where the host cannot hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podrun.hook import Pod, Step
from podrun.options import read
from podrun_hooks.container import cgroups, limits, paths
from podrun_hooks.container.options import Options


@pytest.mark.parametrize(
    ("controllers", "table", "found"),
    [
        ("cpu memory pids", {}, {"limit": 2048}),
        ("cpu memory", {}, None),
        ("cpu memory", {"pids": 9}, {"limit": 9}),
    ],
)
def test_a_limit_of_processes_that_nobody_asked_for_keeps_no_pod_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, controllers: str, table: Any, found: Any
) -> None:
    (tmp_path / "cgroup.controllers").write_text(f"{controllers}\n")
    monkeypatch.setattr(limits, "CGROUPS", str(tmp_path))
    assert limits.resources(read(Options, table)).get("pids") == found


def test_the_end_of_one_container_leaves_the_cgroup_that_others_make_theirs_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cgroups, "TOP", str(tmp_path))
    step = Step(Pod("web", str(tmp_path / "root"), str(tmp_path / "run")), "container", "main", read(Options, {}))
    place = paths.of(step)
    for name in ("memory", "pids"):
        (tmp_path / f"{name}{place.cgroup}/inner").mkdir(parents=True)
    cgroups.remove(place)
    cgroups.remove(place)
    # A runtime makes the two one after the other.
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["memory", "memory/podrun", "pids", "pids/podrun"]
