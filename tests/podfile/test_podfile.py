"""What a right pod file says: names, defaults, variables, instances."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

from podrun import jsontext
from podrun.errors import WRONG_FILE, Failure
from podrun.podfile import loader
from support.podfile_fakes import load_hook, loaded, write

SHORT = '[[chain]]\nhook = "container"\n'


def names(text: Any) -> Any:
    return [(step.hook, step.name) for step in text.steps]


def test_a_pod_is_its_name_and_its_steps_in_file_order(tmp_path: Path) -> None:
    text = loaded(
        tmp_path,
        """
        [pod]
        name = "shop"
        stop_timeout = "1min 5s"
        type = "job"

        [[chain]]
        hook = "image"
        ref = "registry.example/shop:1"
        background = true

        [[chain]]
        hook = "network"
        optional = true
        timeout = "3s"
        for = ["app"]
        publish = ["8080:80"]

        [[chain]]
        hook = "container"
        name = "app"
        env = { MODE = "prod" }
        """,
    )
    assert (text.name, text.type, text.stop_timeout, text.file) == ("shop", "job", 65.0, str(tmp_path / "web.toml"))
    image, network, container = text.steps
    assert image.background
    assert image.options == {"ref": "registry.example/shop:1"}
    assert (network.optional, network.timeout, network.for_) == (True, 3.0, ("app",))
    assert network.options == {"publish": ["8080:80"]}
    assert (container.name, container.options) == ("app", {"env": {"MODE": "prod"}})


def test_a_pod_has_the_name_of_its_file_and_stops_within_20_seconds(tmp_path: Path) -> None:
    text = loaded(tmp_path, SHORT)
    assert (text.name, text.stop_timeout, text.type, text.sections) == ("web", 20.0, "service", {})


def test_a_chain_reads_well_inline(tmp_path: Path) -> None:
    text = loaded(
        tmp_path, 'chain = [ { hook = "image", ref = "nginx" }, { hook = "network" }, { hook = "container" } ]'
    )
    assert names(text) == [("image", "image"), ("network", "network"), ("container", "main")]


def test_unnamed_steps_of_one_hook_are_counted(tmp_path: Path) -> None:
    text = loaded(tmp_path, 3 * '[[chain]]\nhook = "storage"\ntarget = "/a"\n' + SHORT)
    assert [step.name for step in text.steps] == ["storage", "storage-2", "storage-3", "main"]


def test_counting_leaves_out_the_names_that_are_given(tmp_path: Path) -> None:
    storage = '[[chain]]\nhook = "storage"\ntarget = "/a"\n'
    text = loaded(tmp_path, storage + storage + storage + 'name = "storage-2"\n')
    assert [step.name for step in text.steps] == ["storage", "storage-3", "storage-2"]


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        ("exec:/etc/podrun/hooks/metrics", "metrics"),
        ("exec:/opt/My_Hook.sh", "my_hook.sh"),
        ("exec:/opt/größe", "gr--e"),
        ("exec:/opt/---", "step"),
    ],
)
def test_an_executable_names_its_step(tmp_path: Path, hook: str, name: str) -> None:
    assert names(loaded(tmp_path, f'chain = [ {{ hook = "{hook}" }} ]')) == [(hook, name)]


def test_an_executable_takes_any_keys(tmp_path: Path) -> None:
    text = loaded(tmp_path, 'chain = [ { hook = "exec:/bin/x", deep = { list = [1, 2.5, true, "x"] } } ]')
    assert text.steps[0].options == {"deep": {"list": [1, 2.5, True, "x"]}}


def test_a_step_is_plain_data(tmp_path: Path) -> None:
    step = loaded(tmp_path, SHORT + 'command = ["a", "b"]\n').steps[0]
    assert jsontext.loads(jsontext.dumps(step._asdict())) == {**step._asdict(), "for_": []}


@pytest.mark.parametrize("span", ["0", "infinity"])
def test_no_time_limit_can_be_said(tmp_path: Path, span: str) -> None:
    assert loaded(tmp_path, SHORT + f'timeout = "{span}"\n').steps[0].timeout is None


def test_the_tables_for_systemd_are_kept_as_written(tmp_path: Path) -> None:
    text = loaded(
        tmp_path, SHORT + '[service]\nEnvironment = ["A=${B}", "C=%i"]\nNice = 5\n[install]\nAlias = "x.service"\n'
    )
    assert text.sections == {
        "service": {"Environment": ["A=${B}", "C=%i"], "Nice": 5},
        "install": {"Alias": "x.service"},
    }


# --- variables and instances ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("${HOME}/x", "/root/x"),
        ("a${HOME}b${EMPTY}c", "a/rootbc"),
        ("$HOME", "$HOME"),
        ("$$ $", "$$ $"),
        ("$${HOME}", "${HOME}"),
        ("$$${HOME}", "$${HOME}"),
        ("${SELF}", "${HOME}"),
        ("100% %i %%", "100% %i %%"),
    ],
)
def test_variables_are_substituted_in_strings(tmp_path: Path, written: str, meant: str) -> None:
    environ = {"HOME": "/root", "EMPTY": "", "SELF": "${HOME}"}
    text = loaded(tmp_path, SHORT + f"command = ['{written}']\nenv = {{ A = '{written}' }}\n", environ=environ)
    assert text.steps[0].options == {"command": [meant], "env": {"A": meant}}


def test_variables_reach_the_common_keys_and_the_pod_table(tmp_path: Path) -> None:
    text = loaded(tmp_path, '[pod]\nname = "${N}"\n' + SHORT + 'name = "${N}-app"\n', environ={"N": "shop"})
    assert (text.name, text.steps[0].name) == ("shop", "shop-app")


def test_a_step_with_variables_is_not_checked_where_they_are_not_known_yet(tmp_path: Path) -> None:
    path = write(tmp_path, SHORT + 'memory = "${MEM}"\n')
    text = loader.load(str(path), environ=None, load_hook=load_hook)
    assert text.steps[0].options == {"memory": "${MEM}"}


@pytest.mark.parametrize("word", ["web@blue", "FILE"])
def test_a_template_gives_the_instance_to_its_strings_and_its_name(tmp_path: Path, word: str) -> None:
    write(tmp_path, SHORT + 'command = ["%i", "%%i", "100%", "${I}"]\n', "web@.toml")
    word = f"{tmp_path}/web@blue.toml" if word == "FILE" else word
    text = loader.load(word, environ={"I": "%i"}, load_hook=load_hook, etc=str(tmp_path))
    assert (text.name, text.file) == ("web@blue", f"{tmp_path}/web@.toml")
    assert text.steps[0].options["command"] == ["blue", "%i", "100%", "%i"]


def test_the_instance_stands_behind_a_template_s_own_name(tmp_path: Path) -> None:
    write(tmp_path, '[pod]\nname = "shop"\n' + SHORT, "web@.toml")
    assert loader.load("web@2", environ={}, load_hook=load_hook, etc=str(tmp_path)).name == "shop@2"


def test_an_instance_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, SHORT, "web@.toml")
    write(tmp_path, SHORT + 'command = ["own", "%i"]\n', "web@blue.toml")
    text = loader.load("web@blue", environ={}, load_hook=load_hook, etc=str(tmp_path))
    assert (text.name, text.steps[0].options) == ("web@blue", {"command": ["own", "blue"]})


def test_a_name_is_a_file_of_the_configuration_directory(tmp_path: Path) -> None:
    write(tmp_path, SHORT)
    assert loader.load("web", environ={}, load_hook=load_hook, etc=str(tmp_path)).name == "web"


def test_a_word_that_ends_in_toml_is_a_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, SHORT)
    monkeypatch.chdir(tmp_path)
    text = loader.load("web.toml", environ={}, load_hook=load_hook, etc="/nonexistent")
    assert text.file == f"{tmp_path}/web.toml"


# --- without a file -------------------------------------------------------------------------------------------------


def test_tables_are_read_as_a_file_is_but_substitute_nothing() -> None:
    tables = {"chain": [{"hook": "container", "command": ["${X}"]}]}
    text = loader.from_tables(tables, load_hook=load_hook, file="command line", name="web-1")
    assert (text.name, text.file, text.steps[0].options) == ("web-1", "command line", {"command": ["${X}"]})
    assert tables == {"chain": [{"hook": "container", "command": ["${X}"]}]}


def test_wrong_tables_are_refused_without_a_line() -> None:
    with pytest.raises(Failure) as caught:
        loader.from_tables({"chain": [{"hook": "imag"}]}, load_hook=load_hook, file="command line", name="x")
    assert caught.value.code == WRONG_FILE
    assert str(caught.value) == "command line: unknown hook 'imag'; did you mean 'image'?"


def test_reading_imports_nothing_heavy_but_tomllib(tmp_path: Path) -> None:
    path = write(tmp_path, SHORT)
    script = f"""
import sys
before = set(sys.modules)
from podrun.podfile import loader
from types import SimpleNamespace
hook = SimpleNamespace(Options=None, resident=True, default_name="main")
loader.from_tables({{"chain": [{{"hook": "x"}}]}}, load_hook=lambda name: hook, name="web")
bare = set(sys.modules) - before
loader.load({str(path)!r}, environ={{}}, load_hook=lambda name: hook)
print(*bare, "podrun.podfile.position" if "podrun.podfile.position" in sys.modules else "")
"""
    root = Path(loader.__file__).parents[2]
    command = [sys.executable, "-S", "-c", script]
    done = run(command, check=False, capture_output=True, text=True, env={"PYTHONPATH": str(root)})
    heavy = {"typing", "re", "json", "enum", "collections", "dataclasses", "tomllib", "pathlib", "functools"}
    assert "podrun.podfile" in done.stdout, done.stderr
    assert not {*heavy, "podrun.podfile.position"}.intersection(done.stdout.split())
