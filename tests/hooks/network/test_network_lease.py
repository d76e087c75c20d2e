"""Addresses of a bridge: who has which, when one is free again, and when there are none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import BUSY, Failure
from podrun.hook import Pod, Step
from podrun_hooks.network import lease, ledger


class Pool:
    """Leases without links: a run directory, a bridge's directory and pods with journals."""

    def __init__(self, home: Path, cidr: str) -> None:
        self.run = str(home)
        self.subnet = lease.subnet(cidr)
        self.directory = f"{home}/network/br"
        os.makedirs(f"{self.directory}/leases")

    def step(self, pod: str) -> Step:
        return Step(Pod(pod, self.run, self.run, f"podrun-{pod}"), "network", "network", None)

    def claim(self, pod: str, wanted: str = "") -> str:
        step = self.step(pod)
        os.makedirs(step.pod.directory, exist_ok=True)
        Path(step.pod.directory, "pod.journal").touch()
        fd = ledger.begin(step)
        try:
            return lease.claim(self.directory, self.run, ledger.path_of(step), fd, [self.subnet], pod, wanted)
        finally:
            os.close(fd)

    def release(self, pod: str) -> None:
        path = ledger.path_of(self.step(pod))
        lease.release(self.directory, ledger.read(path))
        os.unlink(path)

    def kill(self, pod: str) -> None:
        """The pod is gone without a down."""
        os.unlink(f"{self.run}/pods/{pod}/pod.journal")

    def leased(self) -> set[str]:
        return set(os.listdir(f"{self.directory}/leases"))


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """Five addresses."""
    return Pool(tmp_path, "192.0.2.8/29")


@pytest.fixture
def large(tmp_path: Path) -> Any:
    return Pool(tmp_path, "10.160.0.0/16")


def test_every_address_of_a_small_subnet_is_leased_once_and_then_it_is_exhausted(small: Any) -> None:
    found = {small.claim(f"p{n}") for n in range(5)}
    assert found == {f"192.0.2.{n}" for n in range(10, 15)}
    with pytest.raises(Failure, match=r"all 5 addresses of 192\.0\.2\.8/29 are leased") as refused:
        small.claim("p5")
    assert refused.value.code == BUSY


def test_a_failed_claim_leaves_the_others_leases_alone(small: Any) -> None:
    for n in range(5):
        small.claim(f"p{n}")
    with pytest.raises(Failure):
        small.claim("p5")
    small.release("p5")
    assert len(small.leased()) == 5


def test_a_lease_is_free_again_after_its_release(small: Any) -> None:
    for n in range(5):
        small.claim(f"p{n}")
    small.release("p3")
    assert len(small.leased()) == 4
    small.claim("p5")
    assert len(small.leased()) == 5


def test_a_lease_of_a_dead_pod_is_reused_before_the_subnet_is_called_exhausted(small: Any) -> None:
    for n in range(5):
        small.claim(f"p{n}")
    small.kill("p2")
    assert small.claim("p5")


def test_a_lease_of_an_earlier_boot_is_dead(small: Any) -> None:
    small.claim("web")
    path = Path(ledger.path_of(small.step("web")))
    path.write_text(path.read_text().replace(ledger.boot_id(), "0" * 32))
    assert [pod for _, pod in lease.collect(small.directory, small.run, [small.subnet], keep=True)] == ["web"]
    assert len(small.leased()) == 1
    lease.collect(small.directory, small.run, [small.subnet])
    assert small.leased() == set()


def test_a_fixed_address_of_a_dead_pod_is_taken_over(small: Any) -> None:
    small.claim("old", "192.0.2.12")
    with pytest.raises(Failure, match="leased to pod old"):
        small.claim("new", "192.0.2.12")
    small.kill("old")
    small.release("new")
    assert small.claim("new", "192.0.2.12") == "192.0.2.12"


def test_the_release_of_a_pod_whose_lease_was_taken_over_leaves_it_with_the_new_one(small: Any) -> None:
    small.claim("old", "192.0.2.12")
    small.kill("old")
    small.claim("new", "192.0.2.12")
    small.release("old")
    assert small.leased() == {"192.0.2.12"}


def test_a_pod_gets_the_same_address_again(large: Any) -> None:
    first = large.claim("web")
    large.release("web")
    assert large.claim("web") == first


def test_finding_a_free_address_does_not_take_longer_the_more_are_leased(
    large: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1000):
        Path(large.directory, "leases", large.subnet.host(2 + n * 60)).touch()
    listed = []
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or [])
    assert len({large.claim(f"p{n}") for n in range(50)}) == 50
    assert not listed


def test_a_ledger_that_a_kill_left_empty_holds_nothing(small: Any) -> None:
    step = small.step("web")
    os.makedirs(step.pod.directory)
    Path(ledger.path_of(step)).touch()
    found = ledger.read(ledger.path_of(step))
    assert (found.last("address"), found.all("netns")) == ("", [])
    assert not ledger.alive(small.run, found)
    lease.release(small.directory, found)


def test_a_note_that_the_disk_has_no_room_for_names_its_file() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space") as refused:
            ledger.note(fd, "address", "192.0.2.1")
    finally:
        os.close(fd)
    assert refused.value.filename == "/dev/full"


def test_dead_pods_are_looked_for_only_when_no_address_is_free(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(4):
        small.claim(f"p{n}")
    small.kill("p0")
    collected = []
    monkeypatch.setattr(lease, "collect", lambda *words: collected.append(words) or [])
    monkeypatch.setattr(lease, "_guesses", lambda pool, seed: ())
    small.claim("last")
    assert (len(small.leased()), collected) == (5, [])
    with pytest.raises(Failure, match="are leased"):
        small.claim("late")
    assert collected
