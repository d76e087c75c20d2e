"""Facts: what a start refuses, what it warns of, and that the shapes are those that podrun's own hooks give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podrun.engine import hook_loader
from podrun.errors import Failure
from podrun.facts import KnownFacts, unknown_facts, wrong_facts
from support.fakes import Hooks, chain_up, step

MOUNT = {"containerPath": "/data"}
WRONG = [
    ({"env": {"A": "1"}}, "fact env is an object, not an array"),
    ({"env": ["A=1", 3]}, "fact env holds a number, not a string"),
    ({"env": ("A=1",)}, "fact env is a tuple, not an array"),
    ({"netns": None}, "fact netns is null, not a string"),
    ({"mounts": [{"hostPath": "/x"}]}, "fact mounts lacks containerPath"),
    ({"mounts": [{**MOUNT, "options": "ro"}]}, "fact mounts: options is a string, not an array"),
    ({"mounts": [{**MOUNT, "options": [1]}]}, "fact mounts: options holds a number, not a string"),
    ({"mounts": ["/data"]}, "fact mounts holds a string, not an object"),
    ({"additionalGids": [True]}, "fact additionalGids holds a boolean, not a number"),
    ({"annotations": {"a": 1}}, "fact annotations: a is a number, not a string"),
    ({"process": {"pid": "7", "start": 1}}, "fact process: pid is a string, not a number"),
    ({"process": {"pid": 7}}, "fact process lacks start"),
    ({"images": {"app": {"ref": "x", "digest": "", "layers": "/x", "config": {}}}}, "images: app: layers is a string"),
    ({"hooks": [{"hookName": "prestart", "path": "/x", "when": ["a"]}]}, "fact hooks: when holds a string"),
    (["env"], "facts are an array, not an object"),
    ({"x": object()}, "its facts are not JSON"),
]


@pytest.mark.parametrize("background", [False, True], ids=["in turn", "in the background"])
@pytest.mark.parametrize(("facts", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_start_refuses_facts_of_the_wrong_shape_and_undoes_the_step(
    tmp_path: Path, facts: Any, message: Any, background: bool
) -> None:
    hooks = Hooks()
    hooks.add("a")
    hooks.add("metrics")
    hooks.table["metrics"].up = lambda step, before: facts
    with pytest.raises(Failure) as failed:
        chain_up(hooks, tmp_path, step("a"), step("metrics", background=background))
    assert failed.value.what.startswith("metrics: ")
    assert message in failed.value.what
    assert failed.value.hint.endswith("undone: metrics, a")


def test_facts_of_ones_own_are_nobodys_business(tmp_path: Path) -> None:
    hooks = Hooks()
    hooks.add("metrics", {"wireguard": {"key": None}, "login": 1, "idmap": [], "port": 2.5})
    chain_up(hooks, tmp_path, step("metrics"))
    assert hooks.said == []


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("environment", "env"),
        ("mount", "mounts"),
        ("device_nodes", "deviceNodes"),
        ("Hostname", "hostname"),
        ("adresses", "addresses"),
        ("labels", "annotations"),
    ],
)
def test_a_start_warns_of_a_fact_whose_name_comes_close_to_one_with_a_meaning(
    tmp_path: Path, key: str, meant: str
) -> None:
    hooks = Hooks()
    hooks.add("metrics", {key: ["A=1"]})
    chain_up(hooks, tmp_path, step("metrics"))
    assert hooks.said == [f"metrics: warning: fact {key!r} means nothing to podrun; did you mean {meant!r}?"]


@pytest.mark.parametrize("name", hook_loader.FIRST_PARTY)
def test_what_podruns_own_hooks_give_and_take_is_known(name: Any) -> None:
    hook = hook_loader.load(name)
    assert {*hook.gives, *(hook.takes or ())} <= {*KnownFacts.__annotations__}
    assert list(unknown_facts(dict.fromkeys(hook.gives))) == []


def test_what_is_right_in_every_field_is_accepted() -> None:
    facts = {
        "env": ["A=1"],
        "mounts": [{**MOUNT, "hostPath": "/srv", "type": "bind", "options": ["ro"], "fill": True, "later": 1}],
        "deviceNodes": [{"path": "/dev/null", "major": 1, "minor": 3, "permissions": "rw"}],
        "hooks": [{"hookName": "prestart", "path": "/bin/true", "args": ["true"], "when": [{"always": True}]}],
        "images": {"app": {"ref": "x", "digest": "", "layers": ["/x"], "config": {}, "stdio": []}},
        "process": {"pid": 7, "start": 1},
        "log": {},
        "ready": True,
    }
    assert list(wrong_facts(facts)) == []
