"""Limits where the host cannot hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podrun.options import read
from podrun_hooks.container import limits
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
