"""[placement]: what it may say, how drop-ins change it, and what it changes on one machine (almost nothing)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import Failure
from podrun.systemd import units
from support.launcher import Podrun
from support.podfile_fakes import loaded, write

CHAIN = '[[chain]]\nhook = "container"\n'


def test_a_pod_without_the_table_has_no_placement(tmp_path: Path) -> None:
    assert loaded(tmp_path, CHAIN).placement == {}


def test_every_key_is_read_and_the_others_have_their_defaults(tmp_path: Path) -> None:
    text = (
        '[placement]\nconflicts = ["web@*"]\nmetadata = { disk = "ssd" }\nprefer = ["n2.example", "n1"]\npriority = 5\n'
    )
    assert loaded(tmp_path, text + CHAIN).placement == {
        "conflicts": ["web@*"],
        "global": False,
        "machine_of": "",
        "metadata": {"disk": "ssd"},
        "prefer": ["n2.example", "n1"],
        "priority": 5,
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("globl = true", "unknown key 'globl'; did you mean 'global'?"),
        ("global = 1", "global: expected true or false"),
        ("conflicts = 'db'", "conflicts: expected an array"),
        ("conflicts = ['DB']", "conflicts: expected a pod's name or a pattern"),
        ("conflicts = ['']", "conflicts: expected a pod's name or a pattern"),
        ("machine_of = 'db inf:'", "machine_of: expected a pod's name"),
        ("metadata = { disk = 'a b' }", "disk: expected a value"),
        ('metadata = { disk = "a\\nb" }', "disk: expected a value"),
        ("metadata = { disk = 5 }", "disk: expected a string"),
        ("metadata = { '#uname' = 'n1' }", "'#uname' cannot be the name of a node attribute"),
        ("metadata = { defined = 'x' }", "'defined' cannot be the name of a node attribute"),
        ("prefer = ['-oProxyCommand=x']", "prefer: expected the name of a machine"),
        ("prefer = ['-n1']", "prefer: expected the name of a machine"),
        ("prefer = ['n1 n2']", "prefer: expected the name of a machine"),
        ("priority = 'high'", "priority: expected an integer"),
        ("priority = 1000001", "priority: expected an integer from"),
    ],
)
def test_what_a_cluster_could_not_be_told_is_refused_with_its_line(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(Failure) as caught:
        loaded(tmp_path, f"[placement]\n{line}\n{CHAIN}")
    assert f":2: {told}" in str(caught.value)


def test_a_drop_in_changes_it_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "[placement]\npriority = 2\n", "web.toml.d/10-more.toml")
    found = loaded(tmp_path, f"[placement]\npriority = 1\nprefer = ['n1']\n{CHAIN}").placement
    assert (found["priority"], found["prefer"]) == (2, ["n1"])


@pytest.mark.parametrize("second", ["", CHAIN + 'name = "second"\n'])
def test_units_of_a_placed_pod_stop_after_pacemaker_has_moved_them_away(tmp_path: Path, second: Any) -> None:
    path = tmp_path / "web.toml"
    path.write_text(f"{CHAIN}{second}\n[placement]\npriority = 1\n[unit]\nBefore = 'other.service'\n")
    for text in units.units(units.read(str(path), strictly=False), units.Command()).values():
        assert "Before=pacemaker.service" in text.splitlines()


def test_units_of_other_pods_know_nothing_of_pacemaker(tmp_path: Path) -> None:
    path = tmp_path / "web.toml"
    path.write_text(CHAIN)
    assert "pacemaker" not in "".join(units.units(units.read(str(path), strictly=False), units.Command()).values())


def test_check_and_plan_tell_it(podrun: Podrun) -> None:
    path = podrun.file("web", '[placement]\npriority = 3\n[[chain]]\nhook = "image"\nref = "host:"\n')
    assert "[placement] means nothing on one machine" in podrun("check", path, check=True).stdout
    assert "in a cluster: priority=3" in podrun("plan", path, check=True).stdout
    assert json.loads(podrun("plan", "--format", "json", path, check=True).stdout)["placement"]["priority"] == 3
