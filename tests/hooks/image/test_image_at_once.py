"""Many pulls at once, and pulls that are killed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from podrun_hooks import image as hook
from podrun_hooks.image import commands
from podrun_hooks.image.store import publish
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.scratch import reclaim, work
from support import image_builder as build
from support.image_samples import BASE, layered_image, nothing, step, visible

pytestmark = pytest.mark.root

HERE = Path(__file__).parents[2]


@pytest.fixture
def layered(tmp_path: Path) -> tuple[str, build.Built]:
    return layered_image(tmp_path)


def pulling(root: Path, ref: str, *, kill_at: str = "") -> subprocess.Popen[str]:
    """A process that pulls. With ``kill_at`` it ends as by kill -9 when that word is in a notification."""
    program = (
        "import os, sys\n"
        "from podrun_hooks.image import commands\n"
        "def notify(text):\n"
        "    if sys.argv[3] and sys.argv[3] in text: os.kill(os.getpid(), 9)\n"
        "print(commands.pull(sys.argv[1], sys.argv[2], 'missing', notify=notify).digest)\n"
    )
    environ = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}"}
    argv = [sys.executable, "-c", program, str(root), ref, kill_at]
    return subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_several_processes_pull_one_image_together(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, built = layered
    running = [pulling(tmp_path / "root", f"oci:{path}:v1") for _ in range(6)]
    outputs = [process.communicate() for process in running]
    assert {output.strip() for output, _ in outputs} == {built.digest}, outputs
    assert not {name for name in visible(tmp_path / "root") if name.startswith(("tmp/", "locks/"))}


@pytest.fixture(scope="module")
def many_files() -> build.Built:
    parts = [build.file(f"d{number % 50}/f{number}", os.urandom(2000)) for number in range(3000)]
    return build.image(build.tar(*parts), build.tar(*parts[:100]), BASE)


@pytest.mark.parametrize("word", ["Pulling", "layers", "Storing", "Listing"])
def test_a_pull_that_was_killed_between_two_effects_is_made_good(
    tmp_path: Path, layered: tuple[str, build.Built], word: str
) -> None:
    path, built = layered
    assert pulling(tmp_path / "root", f"oci:{path}:v1", kill_at=word).wait() == -signal.SIGKILL
    hook.down(step(tmp_path / "root", f"oci:{path}:v1"), {})
    assert not {name for name in visible(tmp_path / "root") if name.startswith("tmp/")}
    assert commands.pull(str(tmp_path / "root"), f"oci:{path}:v1", "missing").digest == built.digest


@pytest.mark.parametrize("after", [0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6])
def test_a_pull_that_was_killed_at_any_moment_is_made_good(
    tmp_path: Path, many_files: build.Built, after: float
) -> None:
    path = build.layout(str(tmp_path / "layout"), {"v1": many_files})
    process = pulling(tmp_path / "root", f"oci:{path}:v1")
    time.sleep(after)
    process.kill()
    process.communicate()
    root = tmp_path / "root"
    for name in visible(root):
        if name.startswith("layers/") and not name.endswith(".json"):
            index = [build.digest(layer) for layer in _plain_layers(many_files)].index(f"sha256:{name[7:]}")
            assert sum(len(files) for _, _, files in os.walk(root / "images" / name)) == [3000, 100, 7][index]
    commands.collect(str(root))
    assert not {name for name in visible(root) if name.startswith(("tmp/", "locks/"))}
    found = commands.pull(str(root), f"oci:{path}:v1", "missing")
    assert found.digest == many_files.digest
    commands.prune(str(root), nothing)
    assert len({name for name in visible(root) if name.startswith("blobs/")}) == 5


def _plain_layers(built: build.Built) -> list[bytes]:
    return [gzip.decompress(built.blobs[layer["digest"]]) for layer in json.loads(built.manifest)["layers"]]


def test_work_that_goes_on_is_not_swept_away(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    publish.prepare(root)
    with work(root) as scratch, locked(root, "host"):
        commands.collect(root)
        assert os.path.isdir(scratch)
        assert os.listdir(f"{root}/images/locks") == ["host"]
    assert not {name for name in visible(tmp_path / "root") if name.startswith(("tmp/", "locks/"))}


def test_a_lock_keeps_everybody_else_out_however_often_its_file_goes(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    publish.prepare(root)
    inside: list[int] = []
    most: list[int] = []

    def take() -> None:
        for _ in range(100):
            with locked(root, "x"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
            reclaim(root)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (400, 1)
