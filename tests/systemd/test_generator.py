"""The generator of units as it is installed, one file: it reads pod files as ``podrun up`` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some

from podrun.engine.segments import segments
from podrun.errors import Failure
from podrun.options import Wrong
from podrun.podfile import loader
from podrun.podfile.known_hooks import Known
from podrun.podfile.tables import COMMON
from podrun.systemd import generator, units
from support.podfile_fakes import HOOKS, load_hook

CONTAINER = '[[chain]]\nhook = "container"\n'
KNOWN = {name: Known(hook.resident, hook.default_name) for name, hook in HOOKS.items()}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True, mode=0o755)
    path.write_text(text)
    path.chmod(0o644)


def generated(etc: Path, out: Path) -> dict[str, str]:
    """The units that an installed generator makes of a directory's pod files: names and texts."""
    program = out / "generator"
    program.write_text(generator.text("/opt/podrun", KNOWN, str(etc)))
    made = out / "units"
    made.mkdir()
    done = subprocess.run([sys.executable, "-IS", program, made], capture_output=True, text=True, cwd="/")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    found = {path.name: path.read_text() for path in made.iterdir() if path.is_file()}
    # Whatever files there are; started at boot.
    assert "ExecStart=/opt/podrun gc\n" in found.pop("podrun-gc.service")
    assert os.readlink(made / "multi-user.target.wants/podrun-gc.service") == "../podrun-gc.service"
    return found


def test_it_runs_where_podrun_cannot_be_imported(tmp_path: Path) -> None:
    probe = f"{sys.executable} -ISc 'import podrun'"
    assert "ModuleNotFoundError" in subprocess.run(probe, shell=True, capture_output=True, text=True, cwd="/").stderr
    write(tmp_path / "etc/web.toml", CONTAINER)
    write(tmp_path / "etc/bad.toml", "chain = [")
    assert sorted(generated(tmp_path / "etc", tmp_path)) == ["bad.service", "web.service"]


def test_its_modules_import_the_standard_library_and_each_other() -> None:
    text = generator.text("/opt/podrun")
    assert compile(text, "generator", "exec")
    for name in generator.MODULES:
        assert f"_module('podrun.{name}', " in text


def test_a_file_with_tables_that_only_a_newer_podrun_knows_has_its_units(tmp_path: Path) -> None:
    write(tmp_path / "etc/web.toml", f"{CONTAINER}[tomorrow]\nx = 1\n")
    assert "ExecStart=/opt/podrun up" in generated(tmp_path / "etc", tmp_path)["web.service"]


def test_an_instance_with_drop_ins_of_its_own_has_units_of_its_own(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    write(etc / "web@.toml", f'{CONTAINER}[install]\nWantedBy = "multi-user.target"\n')
    write(etc / "web@.toml.d/all.toml", "[service]\nNice = 5\n")
    write(etc / "web@blue.toml.d/side.toml", f'{CONTAINER}name = "side"\n')
    made = generated(etc, tmp_path)
    assert sorted(made) == ["web.main@blue.service", "web.side@blue.service", "web@.service", "web@blue.service"]
    assert f"ExecStart=/opt/podrun up --segment side {etc}/web@blue.toml\n" in made["web.side@blue.service"]
    assert f"SourcePath={etc}/web@.toml\n" in made["web@blue.service"]
    assert "Nice=5" in made["web.side@blue.service"]
    assert "[Install]" not in made["web@blue.service"], "drop-ins alone do not start an instance at boot"


def test_an_instances_own_file_has_the_templates_drop_ins_too(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    write(etc / "web@blue.toml", CONTAINER)
    write(etc / "web@.toml.d/side.toml", f'{CONTAINER}name = "side"\n')
    assert sorted(generated(etc, tmp_path)) == ["web.main@blue.service", "web.side@blue.service", "web@blue.service"]


def test_a_new_step_goes_before_one_that_was_named_by_its_number(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    storage = '[[chain]]\nhook = "storage"\ntarget = "/a"\n'
    write(etc / "web.toml", storage + CONTAINER + storage + CONTAINER + 'name = "b"\n')
    write(etc / "web.toml.d/new.toml", f'{CONTAINER}name = "c"\nbefore = "storage-2"\n')
    wants = [line for line in generated(etc, tmp_path)["web.service"].splitlines() if line.startswith("Wants=web")]
    assert wants == ["Wants=web.main.service web.c.service web.b.service"]


# --- on any files ---------------------------------------------------------------------------------------------------

NAMES = some.sampled_from(["a", "b", "main", "storage-2", "x.y", "network"])
REQUIRED = {"image": {"ref": "x:1"}, "storage": {"target": "/a"}, "ambassador": {"port": 80}}


@some.composite
def steps(draw: Any, *, drop_in: bool) -> dict[str, Any]:
    hook = draw(some.sampled_from(["image", "storage", "network", "container", "ambassador", "exec:/opt/Metrics"]))
    table = {"hook": hook, **REQUIRED.get(hook, {})}  # type: ignore[dict-item]
    if draw(some.booleans()):
        table["name"] = draw(NAMES)
    if drop_in and draw(some.integers(0, 2)) == 0:
        table["before"] = draw(NAMES)
    return table


def files(*, drop_in: bool) -> Any:
    about = some.fixed_dictionaries(
        {}, optional={"name": some.sampled_from(["shop", "web"]), "stop_timeout": some.just("5s")}
    )
    service = some.fixed_dictionaries({}, optional={"Nice": some.integers(0, 9), "Restart": some.just("always")})
    tables = {"pod": about, "service": service, "chain": some.lists(steps(drop_in=drop_in), max_size=4)}
    return some.fixed_dictionaries({}, optional=tables)


PODS = some.tuples(
    some.sampled_from(["web", "web@blue", "web@blue of a template"]),
    files(drop_in=False),
    some.lists(files(drop_in=True), max_size=3),
    some.lists(files(drop_in=True), max_size=1),
)


def as_toml(tables: dict[str, Any]) -> str:
    def pairs(table: dict[str, Any]) -> str:
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())

    heads = [f"[{key}]\n{pairs(table)}" for key, table in tables.items() if key != "chain"]
    return "".join([*heads, *(f"[[chain]]\n{pairs(step)}" for step in tables.get("chain", ()))])


def laid_out(place: Path, pod: Any) -> str:
    """Writes the files of a pod; returns the path that it is called by."""
    kind, base, beside, of_instance = pod
    word, _, template = kind.partition(" ")
    write(place / ("web@.toml" if template else f"{word}.toml"), as_toml(base))
    for n, tables in enumerate(beside):
        write(place / f"{'web@' if '@' in word else 'web'}.toml.d/{n}.toml", as_toml(tables))
    for n, tables in enumerate(of_instance if "@" in word else ()):
        write(place / f"web@blue.toml.d/{n}.toml", as_toml(tables))
    return f"{place}/{word}.toml"


@settings(max_examples=150, deadline=None)
@given(PODS)
def test_units_are_made_of_any_pod_as_it_is_started(pod: Any) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = laid_out(Path(scratch), pod)
        try:
            text = loader.load(path, environ=None, load_hook=load_hook)
        except Failure:
            # Starting the unit fails with the same words.
            with suppress(Failure, Wrong):
                units.read(path, KNOWN, strictly=False)
            return
        seen = units.read(path, KNOWN, strictly=False)
        assert seen.name + seen.at == text.name
        chain = [step for segment in seen.segments for step in segment.steps]
        assert [(step["hook"], step["name"]) for step in chain] == [(step.hook, step.name) for step in text.steps]
        assert [{key: step[key] for key in step if key not in COMMON} for step in chain] == [
            step.options for step in text.steps
        ]
        named = {segment.name or "pod": len(segment.steps) for segment in seen.segments if segment.steps}
        assert named == {name: len(members) for name, members in segments(text.steps, load_hook)}
        assert {key: table for key, table in seen.sections.items() if table} == {
            key: table for key, table in text.sections.items() if table
        }
