"""``podrun volume``: what it lists, removes and leaves. Driven as a command group of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from podrun.cli import volumes
from podrun.errors import BUSY, UNAVAILABLE
from support.launcher import Podrun

pytestmark = pytest.mark.root


@pytest.fixture
def volume(podrun: Podrun) -> Any:
    """The command, with the test's own directories; two volumes, one of them used by a pod."""
    chain = """[[chain]]
hook = "storage"
source = "volume:{name}"
target = "/x"
"""
    podrun("up", "-d", podrun.file("web", chain.format(name="data")), check=True)
    podrun("up", "-d", podrun.file("gone", chain.format(name="old")), check=True)
    podrun("down", "gone", check=True)
    given = {"root": str(podrun.root), "run": str(podrun.run), "debug": False}

    def call(*words: str) -> Any:
        return CliRunner().invoke(volumes.group, list(words), obj=given)

    return call


def test_it_lists_volumes_with_their_pods(volume: Any) -> None:
    rows = [json.loads(line) for line in volume("ls", "--format", "json").output.splitlines()]
    assert [(row["name"], row["pods"]) for row in rows] == [("data", ["web"]), ("old", [])]
    assert volume("ls", "-q").output.split() == ["data", "old"]
    assert json.loads(volume("inspect", "data").output)["pods"] == ["web"]


def test_a_used_volume_stays(volume: Any, podrun: Podrun) -> None:
    done = volume("rm", "old", "data")
    assert done.exit_code == BUSY
    assert volume("ls", "-q").output.split() == ["data", "old"], "all or nothing"
    podrun("down", "web", check=True)
    assert volume("rm", "data").exit_code == 0
    assert volume("ls", "-q").output.split() == ["old"]


def test_pruning_removes_what_no_pod_uses(volume: Any) -> None:
    assert volume("prune", "--all", "--force").output == "removed old\n"
    assert volume("ls", "-q").output.split() == ["data"]


def test_a_volume_that_is_not_there_is_an_error(volume: Any) -> None:
    assert volume("rm", "none").exit_code == UNAVAILABLE
