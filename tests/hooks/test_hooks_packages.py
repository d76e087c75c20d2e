"""Hooks of installed packages: found by entry point, imported when they are named, and told when they are wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.hook_kit import rows
from support.launcher import Podrun

pytestmark = pytest.mark.root


PACKAGE_HOOK = """
from podrun.record import NamedTuple
takes = gives = ()
resident = False
default_name = ""
class Options(NamedTuple):
    "None."
def up(step, facts): return {}
def down(step, own): pass
"""


@pytest.fixture
def package(home: Path, podrun: Podrun) -> Any:
    """Twenty hooks of one installed package."""
    site = home / "site"
    metadata = site / "many-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: many\nVersion: 1\n")
    names = [f"many{n}" for n in range(20)]
    (metadata / "entry_points.txt").write_text("[podrun.hooks]\n" + "".join(f"{name} = {name}\n" for name in names))
    for name in names:
        (site / f"{name}.py").write_text(PACKAGE_HOOK)
    podrun.environ["PYTHONPATH"] += f":{site}"
    return names


SPY = """
import sys
from podrun.launcher import arguments, commands as acts
command, given = arguments.plain(sys.argv[1:])
acts.act(command, given)
print(*sorted(name for name in sys.modules if name.startswith(("many", "importlib.metadata"))))
"""


def test_twenty_hooks_of_a_package_cost_a_chain_nothing_that_names_none(
    podrun: Podrun, dropped: Any, package: Any
) -> None:
    dropped("note", "true")
    file = podrun.file("web", 'chain = [ { hook = "storage", source = "tmpfs:", target = "/x" }, { hook = "note" } ]')
    done = subprocess.run(
        [sys.executable, "-c", SPY, "up", "-d", file], env=podrun.environ, capture_output=True, text=True
    )
    assert done.stdout == "\n", done.stderr
    podrun("down", "web", check=True)


def test_a_chain_imports_the_one_hook_of_a_package_that_it_names(podrun: Podrun, package: Any) -> None:
    file = podrun.file("web", 'chain = [ { hook = "many7" } ]')
    done = subprocess.run(
        [sys.executable, "-c", SPY, "up", "-d", file], env=podrun.environ, capture_output=True, text=True
    )
    assert [name for name in done.stdout.split() if name.startswith("many")] == ["many7"]
    podrun("down", "web", check=True)
    assert "many19" in podrun("hook", "ls").stdout


GOOD = """
from podrun.options import INTEGER, TEXT, DURATION, option
from podrun.record import NamedTuple
takes = ("addresses",)
class Options(NamedTuple):
    size: int = option(INTEGER, "How large.", 3)
    name: str = option(TEXT, "Its name.", "")
def check(step): return ()
def up(step, facts): return {}
def down(step, own): pass
"""


@pytest.fixture
def single(home: Path, podrun: Podrun) -> Any:
    """Writes a package with one hook, called ``name``, into the path."""

    def write(text: str, name: str = "odd") -> Path:
        site = home / "site"
        metadata = site / f"{name}-1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(f"[podrun.hooks]\n{name} = the_{name}\n")
        path = site / f"the_{name}.py"
        path.write_text(text)
        podrun.environ["PYTHONPATH"] += f":{site}"
        return path

    return write


def test_an_exit_a_print_and_an_odd_answer_are_told_in_the_hooks_name(podrun: Podrun, single: Any) -> None:
    path = single(GOOD)
    file = podrun.file("web", 'chain = [ { hook = "odd" } ]')
    for verb, line, code, told in [
        ("up", "raise SystemExit(3)", 76, "podrun: web: odd: the hook called sys.exit(3)"),
        ("up", "return {'x-tags'}", 76, "podrun: web: odd: facts are a set, not an object"),
        ("up", "return {'x-tags': {1}}", 76, "podrun: web: odd: its facts are not JSON"),
        ("up", "print('one'); print('two'); return {}", 0, "podrun: web: odd: one\npodrun: web: odd: two\n"),
        ("check", "raise SystemExit", 76, "podrun: web: odd: the hook called sys.exit(None)"),
        ("check", "return 5", 76, "podrun: web: odd: the hook failed: TypeError"),
        ("check", "print('looking'); return ()", 0, "podrun: web: odd: looking\n"),
    ]:
        path.write_text(re.sub(rf"(def {verb}\(.*\)): .*", rf"\1: {line}", GOOD))
        done = podrun("check" if verb == "check" else "up", file)
        assert (done.returncode, told in done.stderr) == (code, True), (line, done.stdout, done.stderr)
        assert "looking" not in done.stdout
        podrun("down", "web", check=True)
    path.write_text(GOOD.replace("step, own): pass", "step, own): raise SystemExit"))
    podrun("up", "-d", file, check=True)
    done = podrun("down", "web")
    assert done.returncode == 76
    assert "podrun: web: odd: the hook called sys.exit(None)" in done.stderr
    path.write_text(GOOD)
    podrun("down", "web", check=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("def up(step, facts): return {}", "def up(step, facts:"), "the_odd.py:9: '(' was never closed"),
        (("def up(step, facts): return {}", "raise SystemExit(2)"), "cannot be imported: SystemExit(2)"),
        (("def up(step, facts): return {}", ""), "lacks up"),
        (('takes = ("addresses",)', 'takes = "addresses"'), "has takes = 'addresses', which is not a list of names"),
        (('size: int = option(INTEGER, "How large.", 3)', "size: int = 3"), "not made by option(): size"),
        (("def down(step, own): pass", "down = 5"), "has a down that cannot be called"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hook_that_cannot_be_used_is_told_when_a_file_names_it(
    podrun: Podrun, single: Any, change: Any, told: str
) -> None:
    single(GOOD.replace(*change))
    done = podrun("up", podrun.file("web", 'chain = [ { hook = "odd" } ]'))
    assert done.returncode == 78
    assert "the hook 'odd'" in done.stderr
    assert told in done.stderr


def test_what_takes_a_name_that_is_taken_is_told(podrun: Podrun, single: Any, dropped: Any) -> None:
    single(GOOD, "network")
    dropped("storage", "true")
    listed = podrun("hook", "ls").stdout
    assert re.search(r"^network +hidden +the_network +podrun's own hook has this name", listed, re.M), listed
    assert re.search(r"^storage +hidden +/.*/storage +podrun's own hook has this name", listed, re.M), listed
    assert "the hook network of the_network is never used" in podrun("doctor").stdout


@pytest.mark.parametrize(
    ("change", "check", "note"),
    [
        (("return {}", "print('said'); return {}"), "", ""),
        (("return {}", "import tempfile; tempfile.mkstemp(); return {}"), "up, down", "down left file"),
        (
            ("return {}", "facts.get('netns'); return {}"),
            "up, down",
            "reads fact netns, which is not among its 'takes'",
        ),
        (('("addresses",)', "None"), "", ""),
        (('"How large.", 3', '"How large.", "3"'), "declaration", "size: expected an integer, not a string"),
        (('INTEGER, "How large.", 3', 'DURATION, "How long.", "3s"'), "declaration", "size: '3s' is read as 3.0"),
        (('TEXT, "Its name.", ""', 'TEXT, "Its name.", []'), "declaration", "name: expected a string, not an array"),
        (("return {}", "import sys; print('why', file=sys.stderr); raise OSError(5, 'x')"), "up, down", "(log: why)"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_the_kit_finds_what_a_python_hook_does_wrong(
    podrun: Podrun, single: Any, change: Any, check: str, note: str
) -> None:
    single(GOOD.replace(*change))
    done = podrun("hook", "test", "--rounds", "1", "--format", "json", "odd")
    failed = {name: note for name, (result, note) in rows(done).items() if result == "FAILED"}
    assert list(failed)[:1] == ([check] if check else [])
    assert note in failed.get(check, "")
    assert "\0" not in done.stdout
    assert "\\u0000" not in done.stdout
