"""Names: no two pods or steps meet under one, and each can be read again."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as some

from podrun import identity
from podrun.hook import Step, read
from podrun.identity import Identity
from podrun.podfile.tables import POD_NAME, STEP_NAME
from podrun.systemd import exit_records, notify
from podrun_hooks import container, register
from podrun_hooks.registry import wishes
from support.fakes import pod_in

NAMES = some.from_regex(r"[a-z0-9][a-z0-9-]{0,5}", fullmatch=True)
PARTS = some.from_regex(r"[a-z0-9][a-z0-9_.-]{0,5}", fullmatch=True)
IDENTITIES = some.builds(
    lambda name, instance, part: Identity(f"{name}@{instance}" if instance else name, part),
    NAMES,
    some.just("") | PARTS,
    some.just("") | PARTS,
)


@given(IDENTITIES, some.sampled_from(["host1", "host1.example", "10"]))
def test_every_name_can_be_read_again(one: Any, host: Any) -> None:
    POD_NAME.parse(one.pod.partition("@")[0])
    STEP_NAME.parse(one.part or "x")
    assert identity.of_text(one.text) == one
    assert identity.of_record(one.record(host), host) == one
    assert identity.of_unit(one.unit()) == one
    for run in (identity.RUN, "/run/elsewhere"):
        assert identity.of_tag(one.tag(run), run) == Identity(one.pod)


@given(IDENTITIES, IDENTITIES)
def test_no_two_have_the_same_name(one: Any, other: Any) -> None:
    assume(one != other)
    assert one.text != other.text
    assert one.record("h") != other.record("h")
    assert one.unit() != other.unit()
    assert one.pod == other.pod or one.tag() != other.tag()


def test_a_name_without_dots_is_what_it_always_was() -> None:
    assert Identity("web", "app").text == "web.app"
    assert Identity("web@blue", "app").record("host1") == "web@blue.app@host1"
    assert Identity("web@blue", "app").unit() == "web.app@blue.service"
    assert Identity("web@blue").tag() == "podrun-web+blue"


# --- names that did meet --------------------------------------------------------------------------------------------


def noted(run: str, pod: str, segment: str = "") -> None:
    environ = {"INVOCATION_ID": "1", "EXIT_STATUS": "7"}
    exit_records.note(run, pod, segment, "1", environ, [])


def test_gc_forgets_the_gone_pod_and_not_the_living_one_with_a_dot(tmp_path: Path) -> None:
    run = str(tmp_path)
    for pod in ("web", "web@1.2"):
        noted(run, pod)
        noted(run, pod, "main")
        os.makedirs(f"{run}/units", exist_ok=True)
        unit = tmp_path / "units" / f"{Identity(pod).text}.json"
        unit.write_text("{}")
        os.utime(unit, (0, 0))
    exit_records.forget(run, ["web@1.2"])
    assert exit_records.names(run) == ["web@1.2"]
    assert [ending.status for ending in exit_records.all_of(run, "web@1.2")] == [7, 7]
    assert [path.name for path in (tmp_path / "units").iterdir()] == ["web@1..2.json"]


def test_gc_leaves_alone_what_a_unit_is_about_to_be_started_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There is no pod yet, or none between two starts of Restart=."""
    monkeypatch.setattr(notify, "is_transient", lambda unit: unit.endswith("-restarts.service"))
    (tmp_path / "units").mkdir()
    for pod, age in (("gone", 3600), ("starts", 1), ("restarts", 3600)):
        for name in (f"{pod}.json", f"{pod}.env"):
            (tmp_path / "units" / name).write_text("")
            os.utime(tmp_path / "units" / name, (time.time() - age,) * 2)
    exit_records.forget(str(tmp_path), [])
    left = sorted(path.name for path in (tmp_path / "units").iterdir())
    assert left == ["restarts.env", "restarts.json", "starts.env", "starts.json"]


def test_a_segment_called_new_has_an_exit_record_like_any_other(tmp_path: Path) -> None:
    noted(str(tmp_path), "web", "new")
    assert [ending.status for ending in exit_records.all_of(str(tmp_path), "web")] == [7]


def register_step(tmp_path: Path, pod: Any, name: Any) -> Any:
    options = read(register.Options, {"service": "db", "port": 1})
    return Step(pod_in(tmp_path, pod), "register", name, options)


def test_steps_of_two_pods_with_dots_have_records_of_their_own(tmp_path: Path) -> None:
    steps = [register_step(tmp_path, "web@1", "2.x"), register_step(tmp_path, "web@1.2", "x")]
    owns = [register.up(step, {"addresses": ["10.0.0.2/16"]}) for step in steps]
    assert len({own["record"] for own in owns}) == 2
    assert {(wish.pod, wish.step) for wish in wishes.everything(steps[0].pod.run)} == {
        ("web@1", "2.x"),
        ("web@1.2", "x"),
    }
    register.down(steps[0], owns[0])
    assert [wish.pod for wish in wishes.everything(steps[0].pod.run)] == ["web@1.2"]
    assert os.path.exists(owns[1]["record"])


@pytest.mark.parametrize("name", ["2.x", "console", "pod", "mnt", "podrun"])
def test_a_container_is_not_called_what_would_meet_another_name(name: str, tmp_path: Path) -> None:
    step = Step(pod_in(tmp_path, "web@1"), "container", name, read(container.Options, {}))
    assert "name" in {problem.key for problem in container.check(step)}
