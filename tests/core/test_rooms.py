"""Which room of the house may import which: imports run downwards only, and no two modules import each other."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.engine import hook_loader
from support.launcher import HERE

TOP = HERE.parent
#: What a hook author imports, and what first-party hooks share with podrun: files of podrun/ itself.
CONTRACT = {"hook", "hook_extras", "options", "facts", "errors", "record", "jsontext", "unit_needs"}
SHARED = {"atomic", "identity", "libc", "ownership", "relay", "host_defaults"}
BASE = {*CONTRACT, *SHARED, "foreign_words", "messages", "host", "tomltext", "bundle"}

#: Each room with the rooms that it may import, wherever in a file that is done; the files of podrun/ are open to all.
ROOMS: dict[str, set[str]] = {
    "podrun/__main__": {"launcher", "cli"},
    "podrun/cli": {"launcher", "cluster", "convert", "conformance", "systemd", "podfile", "engine"},
    "podrun/launcher": {"systemd", "podfile", "engine"},
    "podrun/cluster": {"systemd", "podfile", "engine"},
    "podrun/conformance": {"engine"},
    "podrun/convert": set(),
    "podrun/systemd": {"podfile", "engine"},
    "podrun/podfile": set(),
    "podrun/engine": set(),
    "podrun": set(),
}

#: The same of the hooks' rooms. Those that a service needs to be found make one: who writes a record leads others to it.
HOOKS: dict[str, set[str]] = {
    "container": {"storage", "oci_hooks", "registration", "support"},
    "registration": {"network", "support"},
    "storage": {"image", "support"},
    "image": {"support"},
    "network": {"support"},
    "executable": {"support"},
    "oci_hooks": {"support"},
    "userns": {"support"},
    "support": set(),
}
REGISTRATION = ("registry", "register", "ambassador", "follow", "wait_for")

FILES = {
    ".".join((name, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
    for name, root in (("podrun", TOP / "podrun"), ("podrun_hooks", TOP / "hooks/podrun_hooks"))
    for path in root.rglob("*.py")
}


def imports(path: Path, *, everywhere: bool) -> Iterator[str]:
    """The modules of podrun that a file imports, ``everywhere``: inside functions too; never what is for types only."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in FILES else node.module for name in names)
        elif isinstance(node, ast.Import) and id(node) not in for_types:
            yield from (alias.name for alias in node.names)


def room(module: str) -> str:
    """ "podrun/engine", "podrun" for a file of its own, "container" for a module of the hooks."""
    first, *rest = module.split(".")
    if first == "podrun_hooks":
        return "registration" if rest and rest[0] in REGISTRATION else rest[0] if rest else ""
    return "podrun" if not rest or rest[0] in BASE else f"podrun/{rest[0]}"


def edges(*, everywhere: bool) -> Iterator[tuple[str, str]]:
    for module, path in FILES.items():
        for imported in imports(path, everywhere=everywhere):
            if imported.partition(".")[0] in ("podrun", "podrun_hooks") and imported in FILES:
                yield module, imported


def test_every_file_is_in_a_room_of_the_table_and_every_room_of_the_table_is_there() -> None:
    """Who adds a room says in the tables above what it may import, and in the floor plan what happens there."""
    assert {room(module) for module in FILES} - {""} == {*ROOMS, *HOOKS}


def test_imports_run_downwards() -> None:
    allowed = {name: {f"podrun/{other}" for other in others} for name, others in ROOMS.items()} | HOOKS
    wrong = [
        f"{module} imports {imported}"
        for module, imported in edges(everywhere=True)
        if room(module) != room(imported) != "podrun" and room(imported) not in allowed.get(room(module), set())
    ]
    assert wrong == []


@pytest.mark.parametrize("table", [ROOMS, HOOKS], ids=["podrun", "hooks"])
def test_the_table_has_no_circle(table: Any) -> None:
    names = {
        name: {f"podrun/{other}" if f"podrun/{other}" in table else other for other in table[name]} for name in table
    }
    assert len([*graphlib.TopologicalSorter(names).static_order()]) == len(table)


def test_no_two_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for module, imported in edges(everywhere=False):
        graph.setdefault(module, set()).add(imported)
    graphlib.TopologicalSorter(graph).prepare()


def test_hooks_import_what_hook_authors_import_and_podrun_imports_no_hook() -> None:
    foreign = [
        f"{module} imports {imported}"
        for module, imported in edges(everywhere=True)
        if (module.startswith("podrun_hooks") and imported.startswith("podrun."))
        and imported.removeprefix("podrun.") not in CONTRACT | SHARED
    ]
    assert foreign == []
    assert [
        pair for pair in edges(everywhere=True) if pair[0].startswith("podrun.") and "podrun_hooks" in pair[1]
    ] == []
    assert all(name.startswith("podrun_hooks.") for name in hook_loader.FIRST_PARTY.values())


def test_what_a_file_calls_its_own_no_other_file_imports() -> None:
    private = [
        f"{path.relative_to(TOP)}: {node.module}.{alias.name}"
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("podrun")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert private == []


def test_the_floor_plan_shows_every_room() -> None:
    plan = (TOP / "docs/explanation/floor-plan.md").read_text()
    for name in ROOMS:
        assert f"`{name}" in plan, name
    for name in (*(name for name in HOOKS if name != "registration"), *REGISTRATION):
        assert f"`{name}/`" in plan or f"`{name}.py`" in plan, name
