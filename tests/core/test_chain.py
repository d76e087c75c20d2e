"""The chain: order, undoing, facts, optional and background steps; with hooks made of functions."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from podrun.engine import background, chain, processes
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.verbs import verb
from podrun.errors import CANNOT_CREATE, NOT_FOUND, STEP_FAILED, Failure, Interrupted
from podrun.facts import merged
from podrun.options import Wrong
from support.fakes import Hooks, step
from support.fakes import chain_up as up


@pytest.fixture
def hooks() -> Any:
    return Hooks()


def down(hooks: Any, directory: Any, **more: Any) -> Any:
    return chain.down(f"{directory}/run", "web", hooks.world(), **more)


def test_steps_start_in_order_and_stop_in_reverse(hooks: Any, tmp_path: Path) -> None:
    for name in "abc":
        hooks.add(name, {name: 1})
    assert up(hooks, tmp_path, step("a"), step("b"), step("c")) == {"a": 1, "b": 1, "c": 1}
    assert down(hooks, tmp_path) == ["c", "b", "a"]
    assert hooks.calls == [
        ("up", "a"), ("up", "b"), ("up", "c"),
        ("down", "c", {"c": 1}), ("down", "b", {"b": 1}), ("down", "a", {"a": 1}),
    ]  # fmt: skip
    assert states.state(f"{tmp_path}/run", "web") == "absent"


def test_a_failing_step_undoes_itself_with_empty_facts_and_then_those_before_it(hooks: Any, tmp_path: Path) -> None:
    hooks.add("a", {"a": 1})
    hooks.add("b", fails=Failure("no more addresses", hint="ask for a larger subnet"))
    with pytest.raises(Failure) as failed:
        up(hooks, tmp_path, step("a"), step("b"))
    assert str(failed.value) == "b: no more addresses; ask for a larger subnet; undone: b, a"
    assert failed.value.code == STEP_FAILED
    assert hooks.calls[2:] == [("down", "b", {}), ("down", "a", {"a": 1})]
    assert journals.pods(f"{tmp_path}/run") == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Failure("x", code=NOT_FOUND), NOT_FOUND),
        (Failure("x", code=125), STEP_FAILED),
        (OSError(28, "No space left on device"), CANNOT_CREATE),
        (KeyError("oops"), STEP_FAILED),
    ],
)
def test_the_exit_code_says_what_kind_of_failure_it_was(hooks: Any, tmp_path: Path, error: Any, code: Any) -> None:
    hooks.add("a", fails=error)
    with pytest.raises(Failure) as failed:
        up(hooks, tmp_path, step("a"))
    assert failed.value.code == code


def test_an_interruption_undoes_the_chain_and_goes_on_rising(hooks: Any, tmp_path: Path) -> None:
    hooks.add("a", {"a": 1})
    hooks.add("b", fails=Interrupted(15))
    with pytest.raises(Interrupted) as interrupted:
        up(hooks, tmp_path, step("a"), step("b", optional=True))
    assert interrupted.value.hint == "undone: b, a"


def test_an_optional_step_that_fails_is_told_and_skipped_and_still_undone(hooks: Any, tmp_path: Path) -> None:
    hooks.add("a", fails=Failure("unreachable"))
    hooks.add("b")
    up(hooks, tmp_path, step("a", optional=True), step("b"))
    assert hooks.said == ["a: unreachable; the step is optional: going on without it"]
    assert down(hooks, tmp_path) == ["b", "a"]


def test_a_stuck_step_stops_the_undoing_and_the_next_down_goes_on(hooks: Any, tmp_path: Path) -> None:
    stuck = ["/data is busy: nginx (12)"]
    hooks.add("a")
    hooks.add("b", stuck=stuck)
    hooks.add("c")
    up(hooks, tmp_path, step("a"), step("b"), step("c"))
    with pytest.raises(Failure, match=r"b: /data is busy: nginx \(12\); 'podrun down web' goes on from here"):
        down(hooks, tmp_path)
    assert states.state(f"{tmp_path}/run", "web") == "failed"
    stuck.clear()
    assert down(hooks, tmp_path) == ["b", "a"]


def test_force_goes_on_past_a_stuck_step(hooks: Any, tmp_path: Path) -> None:
    hooks.add("a")
    hooks.add("b", stuck=["busy"])
    up(hooks, tmp_path, step("a"), step("b"))
    assert down(hooks, tmp_path, force=True) == ["b", "a"]
    assert hooks.said == ["b: busy; going on"]


def test_a_failed_undoing_is_told_with_the_failure_that_led_to_it(hooks: Any, tmp_path: Path) -> None:
    hooks.add("a", stuck=["busy"])
    hooks.add("b", fails=Failure("broken"))
    with pytest.raises(Failure, match="b: broken; undoing it stopped: a: busy; 'podrun down web' goes on from here"):
        up(hooks, tmp_path, step("a"), step("b"))


def test_an_undoing_that_the_kernel_refuses_does_not_hide_why_it_was_begun(hooks: Any, tmp_path: Path) -> None:
    journal = tmp_path / "run/pods/web/pod.journal"

    def link(*_: Any) -> None:
        journal.rename(tmp_path / "elsewhere")
        journal.symlink_to(tmp_path / "elsewhere")
        raise Failure("no such image", code=NOT_FOUND)

    hooks.add("a", during=link)
    with pytest.raises(Failure, match=r"a: no such image; undoing it stopped: .*pod.journal: Too many") as failed:
        up(hooks, tmp_path, step("a"))
    assert failed.value.code == NOT_FOUND


def test_a_background_step_is_joined_before_the_step_that_takes_its_facts(hooks: Any, tmp_path: Path) -> None:
    hooks.add("slow", {"image": "app"}, during=lambda *_: time.sleep(0.2))
    seen = []
    hooks.add("quick", during=lambda _, facts: seen.append(dict(facts)))
    hooks.add("needs", takes=("image",), during=lambda _, facts: seen.append(dict(facts)))
    up(hooks, tmp_path, step("slow", background=True), step("quick"), step("needs"))
    assert seen == [{}, {"image": "app"}]
    assert [label for event, label in hooks.events if event == "up"] == ["quick", "slow", "needs"]
    assert down(hooks, tmp_path) == ["needs", "quick", "slow"], "the journal keeps the order of intent"


def test_a_hook_that_declares_nothing_joins_everything(hooks: Any, tmp_path: Path) -> None:
    hooks.add("slow", {"image": "app"}, during=lambda *_: time.sleep(0.1))
    seen = []
    hooks.add("any", takes=None, during=lambda _, facts: seen.append(dict(facts)))
    up(hooks, tmp_path, step("slow", background=True), step("any"))
    assert seen == [{"image": "app"}]


def test_a_background_step_that_fails_undoes_the_chain_with_its_own_words(hooks: Any, tmp_path: Path) -> None:
    hooks.add("slow", {"image": "app"}, fails=Failure("no such image", code=NOT_FOUND, hint="spelled right?"))
    hooks.add("a")
    with pytest.raises(Failure, match="slow: no such image; spelled right\\?; undone: a, slow") as failed:
        up(hooks, tmp_path, step("slow", background=True), step("a"))
    assert failed.value.code == NOT_FOUND


def test_a_failure_elsewhere_ends_what_runs_in_the_background(hooks: Any, tmp_path: Path) -> None:
    hooks.add("slow", {"image": "app"}, during=lambda *_: time.sleep(60))
    hooks.add("a", fails=Failure("broken"))
    began = time.monotonic()
    with pytest.raises(Failure, match="a: broken"):
        up(hooks, tmp_path, step("slow", background=True), step("a"))
    assert time.monotonic() - began < 10
    assert ("down", "slow", {}) in hooks.calls


def test_a_background_step_has_no_more_time_than_its_timeout(hooks: Any, tmp_path: Path) -> None:
    hooks.add("slow", {"image": "app"}, during=lambda *_: time.sleep(60))
    hooks.add("a")
    with pytest.raises(Failure, match=r"slow: timed out after 0.1 s; 'timeout' of the step .*; undone: a, slow"):
        up(hooks, tmp_path, step("slow", background=True, timeout=0.1), step("a"))


def children() -> list[str]:
    """The child processes of this one, zombies included (proc_pid_task(5))."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_a_background_step_that_is_deaf_is_killed_soon_after_its_time(
    hooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_GRACE", 0.2)
    before = children()
    deaf = {signal.SIGALRM, signal.SIGTERM}
    hooks.add(
        "slow", {"image": "app"}, during=lambda *_: (signal.pthread_sigmask(signal.SIG_BLOCK, deaf), time.sleep(60))
    )
    with pytest.raises(Failure, match=r"slow: timed out after 0.1 s"):
        up(hooks, tmp_path, step("slow", background=True, timeout=0.1))
    assert children() == before


def test_a_background_step_may_be_over_long_before_anybody_asks(
    hooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_GRACE", 0.0)
    hooks.add("slow", {"image": "app"})
    hooks.add("a", during=lambda *_: time.sleep(0.3))
    assert up(hooks, tmp_path, step("slow", background=True, timeout=0.1), step("a")) == {"image": "app"}


def test_facts_for_some_containers_reach_only_those(hooks: Any, tmp_path: Path) -> None:
    hooks.add("storage", {"addresses": ["10.0.0.2/16"]})
    seen = {}
    hooks.add("container", takes=None, during=lambda step, facts: seen.update({step.name: facts.get("addresses")}))
    up(hooks, tmp_path, step("storage", for_=("db",)), step("container", "app"), step("container", "db"))
    assert seen == {"app": None, "db": ["10.0.0.2/16"]}


def test_lists_of_facts_grow_tables_merge_and_the_later_value_wins() -> None:
    assert merged([{"l": [1], "t": {"a": 1}, "s": 1}, {"l": [2], "t": {"b": 2}, "s": 2}]) == {
        "l": [1, 2], "t": {"a": 1, "b": 2}, "s": 2,
    }  # fmt: skip


def test_each_resident_step_begins_a_segment_with_a_journal_of_its_own(hooks: Any, tmp_path: Path) -> None:
    hooks.add("network")
    hooks.add("register")
    mine = {"process": {"pid": os.getpid(), "start": processes.start_time(os.getpid())}}
    hooks.add("container", mine, resident=True)
    steps = [step("network"), step("container", "db"), step("container", "app"), step("register")]
    up(hooks, tmp_path, *steps)
    found = journals.journals(f"{tmp_path}/run", "web")
    assert [(journal.header.segment, [entry.step["hook"] for entry in journal.entries]) for journal in found] == [
        ("pod", ["network"]), ("db", ["container"]), ("app", ["container", "register"]),
    ]  # fmt: skip
    assert states.state(f"{tmp_path}/run", "web") == "up"
    assert down(hooks, tmp_path) == ["register", "container app", "container db", "network"]


def test_a_container_that_ends_while_the_chain_starts_ends_the_start(hooks: Any, tmp_path: Path) -> None:
    hooks.add("container", {"process": {"pid": 2**22 + 1, "start": 1}}, resident=True)
    hooks.add("register")
    with pytest.raises(Failure, match="container: it ended before the pod was up"):
        up(hooks, tmp_path, step("container"), step("register"))
    assert ("up", "register") not in hooks.calls


@pytest.mark.parametrize(
    "call",
    [lambda step, pid: step.announce(pid), lambda step, pid: step.notify(f"MAINPID={pid}")],
    ids=["announce", "notify, as hooks of version 1 did first"],
)
def test_the_main_process_is_in_the_journal_before_anybody_hears_of_it(hooks: Any, tmp_path: Path, call: Any) -> None:
    path = f"{tmp_path}/run/pods/web/app.journal"
    seen = []

    def announce(step: Any, _facts: Any) -> None:
        call(step, os.getpid())
        seen.extend(entry.process["pid"] for entry in journals.read(path).entries)

    hooks.add("container", {"x": 1}, resident=True, during=announce)
    up(hooks, tmp_path, step("container", "app"))
    assert seen == [os.getpid()]
    assert hooks.notified == ["STATUS=1/1 container app", f"main process {os.getpid()}"]


def test_what_a_status_says_cannot_announce_a_process(hooks: Any, tmp_path: Path) -> None:
    hooks.add("storage", during=lambda step, _facts: step.status("mounting /srv\nMAINPID=1"))
    up(hooks, tmp_path, step("storage"))
    assert hooks.notified == ["STATUS=1/1 storage", r"STATUS=mounting /srv\nMAINPID=1"]


def test_a_journal_of_an_earlier_boot_is_undone_with_empty_facts(hooks: Any, tmp_path: Path) -> None:
    hooks.add("a", {"a": 1})
    up(hooks, tmp_path, step("a"))
    path = f"{tmp_path}/run/pods/web/pod.journal"
    with open(path) as file:
        text = file.read().replace(processes.boot_id(), "an-earlier-boot")
    with open(path, "w") as file:
        file.write(text)
    assert states.state(f"{tmp_path}/run", "web") == "dead"
    down(hooks, tmp_path)
    assert hooks.calls[-1] == ("down", "a", {})


def test_a_step_that_takes_too_long_is_interrupted(hooks: Any, tmp_path: Path) -> None:
    hooks.add("a", during=lambda *_: time.sleep(30))
    with pytest.raises(Failure, match=r"a: timed out after 0.1 s"):
        up(hooks, tmp_path, step("a", timeout=0.1))


def test_a_step_that_ends_just_as_its_time_does_leaves_nothing_behind(hooks: Any) -> None:
    stdout, handler = sys.stdout, signal.getsignal(signal.SIGALRM)
    for n in range(2000):
        text = SimpleNamespace(timeout=0.0002, report=print)
        end = time.monotonic() + text.timeout - n % 100 / 1e6 + 5e-5
        try:
            with verb(text):
                while time.monotonic() < end:
                    pass
        except Failure:
            pass
        assert (sys.stdout, signal.getsignal(signal.SIGALRM)) == (stdout, handler)


def test_undoing_uses_the_options_of_the_start_not_todays(hooks: Any, tmp_path: Path) -> None:
    hooks.add("a")
    seen = []
    hooks.table["a"].down = lambda step, own: seen.append(step.options)
    up(hooks, tmp_path, step("a", options={"size": 1}))
    down(hooks, tmp_path)
    assert seen == [{"size": 1}]


def test_options_that_a_newer_hook_refuses_stop_the_undoing_with_a_reason(hooks: Any, tmp_path: Path) -> None:
    hooks.add("a")
    up(hooks, tmp_path, step("a", options={"size": 1}))

    class Options:
        _field_defaults = {}

    hooks.table["a"].Options = Options
    with pytest.raises(Failure, match="unknown key 'size'"):
        down(hooks, tmp_path)
    assert isinstance(Wrong("x"), ValueError)
