"""Services that move while a client calls them: no request fails in a graceful move, no connect in any."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from podrun_hooks.follow import begin
from support.moving_services import Following

pytestmark = [pytest.mark.root, pytest.mark.server]

MOVES = 4


@pytest.fixture(params=["file", "etcd", "consul"])
def moving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    monkeypatch.setattr(begin, "ensure", lambda step: None)
    found = Following("file:" if request.param == "file" else request.getfixturevalue(request.param).url)
    try:
        yield found
    finally:
        found.close()


def begun(moving: Following) -> tuple[str, list[str]]:
    moving.start("b0")
    address = moving.client("app", registry=moving.url)
    moving.timer(address)
    return address, ["b0", "b1"]


def test_no_request_fails_when_a_service_moves_in_good_order(moving: Any) -> None:
    address, (here, there) = begun(moving)
    calling = moving.load(address, MOVES * 1.0 + 1)
    time.sleep(0.5)
    for _ in range(MOVES):
        moving.start(there)
        time.sleep(0.4)
        moving.stop(here)
        here, there = there, here
    counted = moving.counted(calling)
    assert counted["good"] > 500
    assert [counted[key] for key in ("connect", "reset", "empty", "timeout")] == [0, 0, 0, 0], str(counted)


def test_no_connect_fails_when_a_backend_dies_and_its_successor_comes(moving: Any) -> None:
    address, (here, there) = begun(moving)
    calling = moving.load(address, MOVES * 1.5 + 1)
    time.sleep(0.5)
    for _ in range(MOVES):
        moving.kill(here)
        time.sleep(0.3)
        moving.start(there)
        moving.undo(here, "register")
        time.sleep(1.2)
        here, there = there, here
    counted = moving.counted(calling)
    assert counted["good"] > 500
    # Requests in flight are lost with their backend: four threads have four at most.
    assert (counted["connect"], counted["timeout"]) == (0, 0), str(counted)
    assert counted["reset"] + counted["empty"] <= 4 * MOVES
    assert counted["worst_connect"] < 2500
