"""Waiting for services: until they are there, no longer than was said, and never in a circle."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import STEP_FAILED, UNAVAILABLE, Failure
from podrun.hook import DURATION, Pod, Step, read
from podrun_hooks import register, wait_for


class Waiting:
    """The step of a pod, in a thread."""

    def __init__(self, home: Path, pod: str = "app", offers: Any = (), registry: str = "file:", **table: Any) -> None:
        self.words: list[str] = []
        pod = Pod(pod, f"{home}/root", f"{home}/run", invocation=pod, services=offers)  # type: ignore[assignment]
        seconds = DURATION.parse(table.pop("timeout", "infinity"))
        options = read(wait_for.Options, {"registry": registry, **table})
        self.step = Step(pod, "wait-for", "wait-for", options, self.words.append, seconds)
        self.facts: dict | None = None
        self.failure: Failure | None = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        try:
            self.facts = wait_for.up(self.step, {})
        except Failure as failure:
            self.failure = failure

    def begin(self) -> Any:
        self.thread.start()
        return self

    def join(self, seconds: int = 10) -> Any:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), self.words
        return self


def registered(home: Path, name: str = "db1", registry: str = "file:", ready: bool = True, service: str = "db") -> Any:
    pod = Pod(name, f"{home}/root", f"{home}/run", invocation=name)
    table = {"service": service, "port": 80, "registry": registry, "advertise": "192.0.2.1"}
    step = Step(pod, "register", "register", read(register.Options, table))
    return step, register.up(step, {"ready": ready})


@pytest.fixture(params=["file", "etcd", "consul"])
def registry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each kind; no follower is started: these tests are over before a lease is."""
    from podrun_hooks.follow import begin

    monkeypatch.setattr(begin, "ensure", lambda step: None)
    return "file:" if request.param == "file" else request.getfixturevalue(request.param).url


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Any:
    return "w" + "".join(c for c in request.node.name if c.isalnum()).lower()[:40]


def test_it_ends_when_the_service_is_ready_not_before(tmp_path: Path, registry: Any, service: Any) -> None:
    waiting = Waiting(tmp_path, service=service, registry=registry).begin()
    step, facts = registered(tmp_path, registry=registry, ready=False, service=service)
    time.sleep(0.5)
    assert waiting.thread.is_alive()
    register.up(step, {"ready": True})
    assert waiting.join().facts["waited"][service] > 400
    register.down(step, facts)
    assert waiting.words[:2] == [f"STATUS=waiting for {service} for 0 s", "EXTEND_TIMEOUT_USEC=30000000"]


def test_it_waits_for_as_many_as_it_was_told(tmp_path: Path) -> None:
    registered(tmp_path, "db1")
    waiting = Waiting(tmp_path, service="db", min=2, timeout="300ms").begin().join()
    assert waiting.failure.code == UNAVAILABLE
    assert waiting.failure.what == "db is 1 of 2 ready after 0.3 s"
    registered(tmp_path, "db2")
    assert Waiting(tmp_path, service="db", min=2, timeout="300ms").begin().join().facts


def test_a_registry_that_is_away_is_waited_for_too_and_told(tmp_path: Path) -> None:
    from support.registry_servers import free_port

    waiting = Waiting(tmp_path, service="db", timeout="700ms", registry=f"etcd://127.0.0.1:{free_port()}")
    assert "Connection refused" in waiting.begin().join().failure.what
    assert "the registry is away" in waiting.words[0]


def test_pods_that_wait_for_each_other_are_named(tmp_path: Path, registry: Any, service: Any) -> None:
    a, b, c = (f"{service}{word}" for word in "abc")
    first = Waiting(tmp_path, "a", [a], registry, service=b).begin()
    second = Waiting(tmp_path, "b", [b], registry, service=c).begin()
    outside = Waiting(tmp_path, "outside", [], registry, service=a, timeout="4s").begin()
    time.sleep(0.6)
    assert first.thread.is_alive()
    assert second.thread.is_alive()
    third = Waiting(tmp_path, "c", [c], registry, service=a).begin()
    for waiting in (first, second, third):
        failure = waiting.join(3).failure
        assert failure
        assert failure.code == STEP_FAILED
        assert failure.what.startswith("pods wait for each other: ")
        assert all(f"{name}.wait-for" in failure.what for name in "abc")
        assert "outside" not in failure.what
    assert outside.thread.is_alive()


def test_no_note_is_left_behind(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, service="db", timeout="200ms").begin().join()
    assert not (tmp_path / "run/registry/.waiting").exists()
    registry = tmp_path / "run/registry"
    (registry / ".waiting").mkdir(parents=True)
    (registry / f".waiting/{wait_for._identity(waiting.step)}.json").write_text("{}")
    wait_for.down(waiting.step, {})
    wait_for.down(waiting.step, {})
    assert not (registry / ".waiting").exists()


def test_pods_that_begin_and_end_to_wait_at_once_do_not_meet(tmp_path: Path) -> None:
    """The last one to go removes the directory in which the next one is about to note itself."""
    failures = []

    def begin_and_end(name: str) -> None:
        registry = wait_for._Directory(str(tmp_path))
        try:
            for _ in range(400):
                registry.note(name, "{}")
                registry.unnote(name)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=begin_and_end, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not (tmp_path / ".waiting").exists()


def test_strangers_notes_harm_nobody(tmp_path: Path) -> None:
    directory = tmp_path / "run/registry/.waiting"
    directory.mkdir(parents=True)
    for n, text in enumerate(
        ["", "[]", '{"v":1}', '{"v":1,"id":[],"waits":{},"offers":"x"}', "x" * 100_000, "[" * 9000]
    ):
        (directory / f"{n}.json").write_text(text)
    assert Waiting(tmp_path, service="db", timeout="200ms").begin().join().failure.code == UNAVAILABLE


def test_waiting_for_oneself_is_found_before_anything_starts(tmp_path: Path) -> None:
    problems = wait_for.check(Waiting(tmp_path, "db", ["db"], service="db").step)
    assert [problem.what for problem in problems] == ["the pod would wait for db, which it registers itself"]
