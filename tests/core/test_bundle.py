"""The start path's modules in one file: what comes from it is the source's, whatever has become of either."""

from __future__ import annotations

import importlib
import marshal
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from podrun import bundle
from support.launcher import HERE

#: Says where the launcher's code comes from, its file, and how many modules had to be looked for.
SPY = """
import sys
sys.path[:0] = [{0!r}, {0!r} + "/hooks"]
from podrun import bundle
found = bundle.install()
import podrun.launcher.launch as launch, podrun_hooks.network
print(launch.__cached__ == bundle.PATH, launch.__file__, launch.up.__code__.co_filename, len(found.missed), getattr(launch, "NEW", ""))
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose podrun has run twice: with a bundle."""
    place = tmp_path_factory.mktemp("checkout") / "tree"
    for name in ("podrun", "hooks"):
        shutil.copytree(HERE.parent / name, place / name, ignore=shutil.ignore_patterns("bundle.pyc*"))
    _start(place)
    return place


@pytest.fixture
def tree(kept: Path, tmp_path: Path) -> Path:
    """A checkout of the test's own, with a bundle that a first start has made."""
    place = tmp_path / "tree"
    shutil.copytree(kept, place, ignore=shutil.ignore_patterns("bundle.pyc*"))
    _start(place)
    return place


def _start(tree: Path, *options: str, **more: str) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environ |= {
        "PYTHONPATH": f"{tree}:{tree}/hooks",
        "PODRUN_RUN": f"{tree}/run",
        "PODRUN_ROOT": f"{tree}/root",
        **more,
    }
    done = subprocess.run(
        [sys.executable, *options, "-m", "podrun", "down", "nobody"],
        env=environ,
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _spied(tree: Path, *options: str, **more: str) -> list[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | more
    code = SPY.format(str(tree))
    done = subprocess.run(
        [sys.executable, *options, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_second_start_takes_its_modules_from_the_bundle_and_they_know_their_files(tree: Path) -> None:
    launch = f"{tree}/podrun/launcher/launch.py"
    cached, file, code, missed, *_ = _spied(tree)
    assert (cached, file, code) == ("True", launch, launch)
    # What 'down' of no pod has not needed: the network hook and what it imports.
    assert 0 < int(missed) < 30
    before = os.stat(tree / "podrun/bundle.pyc")
    _start(tree)
    assert os.stat(tree / "podrun/bundle.pyc").st_ino == before.st_ino, "nothing was new, and it was written again"


def _edited(tree: Path) -> None:
    with open(tree / "podrun/launcher/launch.py", "a") as file:
        file.write("\nNEW = 'new'\n")


def _edited_without_a_trace(tree: Path) -> None:
    """The same size, and the time set back: only ctime tells, which nobody sets."""
    path = tree / "podrun/launcher/launch.py"
    was = path.stat()
    path.write_text(path.read_text().replace("_SOON = 10.0", "_SOON = 11.0"))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    for bytecode in path.parent.glob("__pycache__/launch.*"):
        bytecode.unlink()  # which Python itself would believe


def _cut(tree: Path) -> None:
    os.truncate(tree / "podrun/bundle.pyc", 5000)


def _zeroed(tree: Path) -> None:
    path = tree / "podrun/bundle.pyc"
    path.write_bytes(path.read_bytes()[:30] + bytes(path.stat().st_size - 30))


def _of_another_python(tree: Path) -> None:
    path = tree / "podrun/bundle.pyc"
    path.write_bytes(path.read_bytes().replace(sys.implementation.cache_tag.encode(), b"cpython-399"))


def _a_link(tree: Path) -> None:
    path = tree / "podrun/bundle.pyc"
    path.rename(tree / "elsewhere")
    path.symlink_to(tree / "elsewhere")


@pytest.mark.parametrize(
    "spoil",
    [
        _edited,
        _edited_without_a_trace,
        _cut,
        _zeroed,
        _of_another_python,
        _a_link,
        lambda tree: (tree / "podrun/bundle.pyc").write_bytes(b""),
        lambda tree: (tree / "podrun/bundle.pyc").chmod(0o664),
        lambda tree: (tree / "podrun/bundle.pyc").chmod(0o646),
        pytest.param(lambda tree: os.chown(tree / "podrun/bundle.pyc", 1234, 0), marks=pytest.mark.root),
    ],
    ids=["edited", "edited, mtime set back", "cut", "zeroed", "python", "link", "empty", "group", "others", "owner"],
)
def test_a_module_comes_from_its_source_when_the_bundle_is_not_its_or_not_to_be_believed(
    tree: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(tree)
    told = _spied(tree)
    assert told[0] == "False"
    assert (told[4:] == ["new"]) == (spoil is _edited)
    # The next start makes it good.
    _start(tree)
    assert _spied(tree)[0] == "True"


def test_the_bundle_takes_no_code_from_bytecode_of_an_earlier_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "edited_within_a_second.py"
    path.write_text("X = 1\n")
    os.utime(path, (1e9, 1e9))
    py_compile.compile(str(path))
    path.write_text("X = 2\n")
    os.utime(path, (1e9, 1e9))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(path.stem)
    kept = bundle._compiled(module)
    assert kept
    assert (module.X, 2 in marshal.loads(kept[1]).co_consts) == (1, True)


def test_a_copy_of_the_tree_runs_its_own_code(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", tree, copy], check=True)
    assert _spied(copy)[:3] == ["False", *[f"{copy}/podrun/launcher/launch.py"] * 2]


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        (["-O"], {}),
        (["-B"], {}),
        ([], {"PYTHONPYCACHEPREFIX": "/nonexistent/nowhere"}),
        ([], {"PYTHONDONTWRITEBYTECODE": "1"}),
    ],
)
def test_who_wants_no_bytecode_or_another_gets_no_bundle(
    kept: Path, options: list[str], environ: dict[str, str]
) -> None:
    (kept / "podrun/bundle.pyc").unlink(missing_ok=True)
    _start(kept, *options, **environ)
    assert not list((kept / "podrun").glob("bundle.pyc*"))


@pytest.mark.root
def test_doctor_says_whose_bundle_is_not_believed(kept: Path) -> None:
    _start(kept)
    code = f"import sys; sys.path.insert(0, {str(kept)!r}); from podrun import bundle; print(bundle.problem())"
    told = []
    for change in (lambda path: None, lambda path: os.chown(path, 1234, 0), Path.unlink):
        change(kept / "podrun/bundle.pyc")
        told.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
    assert told == ["", f"{kept}/podrun/bundle.pyc belongs to uid 1234, or others can write to it: not used", ""]


@pytest.mark.root
def test_root_writes_nothing_into_a_directory_of_somebody_elses(kept: Path) -> None:
    (kept / "podrun/bundle.pyc").unlink(missing_ok=True)
    os.chown(kept / "podrun", 1234, 1234)
    try:
        _start(kept)
        assert not list((kept / "podrun").glob("bundle.pyc*"))
    finally:
        os.chown(kept / "podrun", 0, 0)


def test_what_a_killed_start_has_left_is_removed_by_the_next_one(kept: Path) -> None:
    (kept / "podrun/bundle.pyc").unlink(missing_ok=True)
    (kept / "podrun/bundle.pyc.4711").write_bytes(b"half")
    _start(kept)
    assert [path.name for path in (kept / "podrun").glob("bundle.pyc*")] == ["bundle.pyc"]


def test_a_traceback_has_the_lines_of_the_source(tree: Path) -> None:
    code = SPY.format(str(tree)) + "\nlaunch.down(None, None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert f'File "{tree}/podrun/launcher/launch.py", line' in done.stderr
    assert "with patient_lock(name, host)" in done.stderr or "_stop_units(name, host" in done.stderr
