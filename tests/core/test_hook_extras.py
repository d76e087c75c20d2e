"""What hooks offer beyond the verbs: found by what they declare, never by their names."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from podrun.engine import hook_loader
from podrun.hook import Pod, Step, read
from podrun.hook_extras import (
    ChecksChain,
    Collects,
    Explains,
    HasUnitNeeds,
    Registers,
    RunsCommands,
    RunsExecutables,
    UsesVolumes,
    offers,
)
from podrun.podfile.known_hooks import HOOKS, NOTHING, Known
from podrun.unit_needs import UnitNeeds


def declared(name: str) -> Known:
    hook = hook_loader.load(name)
    having = offers(hook, HasUnitNeeds)
    return Known(hook.resident, hook.default_name, having.unit_needs if having else UnitNeeds())


@pytest.mark.parametrize("name", hook_loader.FIRST_PARTY)
def test_the_table_for_units_says_what_the_hook_declares(name: Any) -> None:
    assert HOOKS[name] == declared(name)


def test_the_table_knows_no_other_hook() -> None:
    assert {*HOOKS} == {*hook_loader.FIRST_PARTY}


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        (Explains, {*hook_loader.FIRST_PARTY}),
        (Collects, {"container", "image", "network", "register", "storage", "userns"}),
        (RunsCommands, {"container"}),
        (UsesVolumes, {"storage", "container"}),
        (RunsExecutables, set()),
        (Registers, {"register"}),
        (ChecksChain, {"register", "container"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_protocol_finds_the_hooks_that_have_all_of_it(protocol: Any, names: Any) -> None:
    assert {name for name, _ in hook_loader.offering(protocol)} == names


def test_one_name_of_a_protocol_is_not_enough() -> None:
    assert offers(SimpleNamespace(ask=print, describe=print), RunsExecutables) is None
    assert offers(hook_loader.load("exec:/bin/true"), RunsExecutables)


OPTIONS = {
    "image": {"ref": "host:"},
    "storage": {"source": "tmpfs:", "target": "/data"},
    "register": {"service": "web", "port": 80},
    "ambassador": {"service": "web", "port": 80},
    "wait-for": {"service": "web"},
}


@pytest.mark.parametrize("name", hook_loader.FIRST_PARTY)
def test_what_a_hook_offers_it_offers_again_after_the_first_time(name: Any, tmp_path: Path) -> None:
    # A submodule takes the place of a function of the same name in its package once it has been imported.
    hook = hook_loader.load(name)
    step = Step(
        Pod("web", f"{tmp_path}/root", f"{tmp_path}/run"), name, name, read(hook.Options, OPTIONS.get(name, {}))
    )
    explaining = offers(hook, Explains)
    assert explaining and explaining.explain(step) == explaining.explain(step)


@pytest.mark.parametrize("name", hook_loader.FIRST_PARTY)
def test_no_submodule_can_hide_a_name_of_its_package(name: Any) -> None:
    hook = hook_loader.load(name)
    for module in pkgutil.iter_modules(getattr(hook, "__path__", ())):
        assert not callable(vars(hook).get(module.name)), module.name


def test_a_packages_hook_may_leave_out_what_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = SimpleNamespace(__doc__="does little", Options=None, up=lambda step, facts: {}, down=lambda step, own: None)
    entry = SimpleNamespace(load=lambda: bare)

    class Entries(dict[str, object]):
        names = ("bare",)

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: Entries(bare=entry))
    hook = hook_loader.load("bare")
    assert (hook.takes, hook.gives, hook.resident, hook.default_name) == (None, (), False, "")
    assert list(hook.check(Step(Pod("web", "/r", "/r"), "bare", "bare", {}))) == []
    assert (hook.up, hook.__doc__) == (bare.up, "does little")
    assert HOOKS.get("bare", NOTHING) == Known()
