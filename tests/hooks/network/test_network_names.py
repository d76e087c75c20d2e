"""The hosts file of a bridge: records are found without reading those of other pods, and used again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks.network import names


@pytest.fixture
def bridge(tmp_path: Path) -> Any:
    names.begin(str(tmp_path), anew=True)
    return str(tmp_path)


def called(bridge: str) -> list[str]:
    return [name for one in names.known(bridge) for name in one.names]


def add(bridge: str, n: int) -> int:
    return names.add(bridge, [f"192.0.2.{n}", f"2001:db8::{n}"], [f"p{n}"], f"podrun-p{n}/network")


def test_naming_one_more_pod_does_not_read_the_names_of_the_others(
    bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(200):
        add(bridge, n)
    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *words: read.append(len(got := pread(*words))) or got)
    offset = add(bridge, 200)
    names.remove(bridge, "podrun-p200/network", offset)
    assert add(bridge, 201) == offset
    assert sum(read) < 3000
    monkeypatch.undo()
    assert called(bridge) == [f"p{n}" for n in (*range(200), 201)]


@pytest.mark.parametrize("hint", [b"", b"999999         \n", b"61             \n", b"829            \n", b"nonsense"])
def test_a_record_is_used_again_whatever_the_lock_says(bridge: Any, hint: bytes) -> None:
    offsets = [add(bridge, n) for n in range(3)]
    names.remove(bridge, "podrun-p1/network", offsets[1])
    with open(f"{bridge}/hosts.lock", "wb") as file:
        file.write(hint)
    assert add(bridge, 4) == offsets[1]
    assert called(bridge) == ["p0", "p4", "p2"]


@pytest.mark.parametrize("offset", [-1, 0, 61, 61 + 768, 800, 827, 1 << 20])
def test_names_are_taken_back_wherever_the_ledger_says_they_are(bridge: Any, offset: Any) -> None:
    for n in range(3):
        add(bridge, n)
    names.remove(bridge, "podrun-p1/network", offset)
    names.remove(bridge, "podrun-p1/network", offset)
    assert called(bridge) == ["p0", "p2"]


def test_half_a_record_that_a_kill_left_is_written_over(bridge: Any) -> None:
    add(bridge, 0)
    with open(names.path_of(bridge), "ab") as file:
        file.write(b"#half a record")
    add(bridge, 1)
    assert called(bridge) == ["p0", "p1"]


def test_a_pod_without_ipv6_has_one_line_and_its_other_one_is_no_free_record(bridge: Any) -> None:
    names.add(bridge, ["192.0.2.1"], ["p1"], "podrun-p1/network")
    os.unlink(f"{bridge}/hosts.lock")
    add(bridge, 2)
    assert called(bridge) == ["p1", "p2"]
