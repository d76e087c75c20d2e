"""One part of a chain at a time: what the units of a pod with several containers call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.launcher import Podrun

pytestmark = pytest.mark.root

DUO = """
[pod]
stop_timeout = "2s"
[[chain]]
hook = "image"
ref = "host:"
[[chain]]
hook = "network"
[[chain]]
hook = "container"
name = "app"
command = ["sleep", "60"]
stop_signal = "KILL"
init = true
[[chain]]
hook = "register"
service = "web"
port = 80
[[chain]]
hook = "container"
name = "side"
command = ["sleep", "60"]
stop_signal = "KILL"
init = true
"""


@pytest.fixture
def duo(podrun: Podrun) -> Any:
    return podrun.file("duo", DUO)


def seen(podrun: Podrun) -> Any:
    return json.loads(podrun("inspect", "duo", check=True).stdout)


def test_segments_start_one_after_the_other_and_share_what_the_first_one_made(podrun: Podrun, duo: Any) -> None:
    for segment in ("pod", "app", "side"):
        podrun("up", "-d", "--segment", segment, duo, check=True)
    assert {f"pods/duo/{segment}.journal" for segment in ("pod", "app", "side")} <= {*podrun.journals()}
    assert seen(podrun)["state"] == "up"
    assert [step["name"] for step in seen(podrun)["steps"]] == ["image", "network", "app", "register", "side"]
    podrun("down", "duo", check=True)


def test_a_segment_goes_down_alone_with_the_steps_after_it(podrun: Podrun, duo: Any) -> None:
    for segment in ("pod", "app", "side"):
        podrun("up", "-d", "--segment", segment, duo, check=True)
    side = seen(podrun)["containers"][1]["pid"]
    podrun("down", "--segment", "app", "duo", check=True)
    assert [step["name"] for step in seen(podrun)["steps"]] == ["image", "network", "side"]
    podrun("up", "-d", "--segment", "app", duo, check=True)
    assert [container["name"] for container in seen(podrun)["containers"]] == ["app", "side"]
    assert seen(podrun)["containers"][1]["pid"] == side
    podrun("down", "duo", check=True)


def test_the_pod_segment_takes_what_stands_on_it_down_too(podrun: Podrun, duo: Any) -> None:
    for segment in ("pod", "app", "side"):
        podrun("up", "-d", "--segment", segment, duo, check=True)
    podrun("down", "--segment", "pod", "duo", check=True)
    assert podrun("inspect", "duo").returncode == 69


@pytest.mark.parametrize(
    ("segment", "code", "words"), [("app", 75, "pod is not up"), ("nosuch", 78, "there are: pod, app, side")]
)
def test_a_segment_that_cannot_start_says_why(podrun: Podrun, duo: Any, segment: str, code: int, words: str) -> None:
    done = podrun("up", "-d", "--segment", segment, duo)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_a_segment_that_fails_undoes_itself_alone(podrun: Podrun) -> None:
    path = podrun.file(
        "duo", DUO.replace('name = "side"\ncommand = ["sleep", "60"]', 'name = "side"\ncommand = ["/no"]')
    )
    podrun("up", "-d", "--segment", "pod", path, check=True)
    podrun("up", "-d", "--segment", "app", path, check=True)
    assert podrun("up", "-d", "--segment", "side", path).returncode == 127
    assert [container["state"] for container in seen(podrun)["containers"]] == ["running"]
    assert podrun("up", "-d", "--segment", "app", path).returncode == 75, "it is up already"
    podrun("down", "duo", check=True)


def test_another_invocations_segment_is_left_alone(podrun: Podrun, duo: Any) -> None:
    podrun("up", "-d", "--segment", "pod", duo, check=True)
    podrun("up", "-d", "--segment", "app", duo, check=True, INVOCATION_ID="a" * 32)
    podrun("down", "--invocation", "b" * 32, "--segment", "app", "duo", check=True)
    assert len(seen(podrun)["containers"]) == 1
    podrun("down", "--invocation", "a" * 32, "--segment", "app", "duo", check=True)
    assert seen(podrun)["containers"] == []
    podrun("down", "duo", check=True)
