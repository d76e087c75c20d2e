"""Layers that came whole with a pull that failed: kept for the next try, and not for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from podrun.errors import Failure
from podrun_hooks import image as hook
from podrun_hooks.image import commands
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.unclaimed import KEPT
from support import image_builder as build
from support.image_samples import nothing, visible
from support.image_servers import Faulty, Request, faulty

pytestmark = [pytest.mark.root, pytest.mark.server]

#: The first layer is large: it is there before the second one fails.
IMAGE = build.image(build.tar(build.file("a", os.urandom(100_000))), build.tar(build.file("b", b"b")))
LARGE = max(IMAGE.blobs, key=lambda digest: len(IMAGE.blobs[digest]))


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def failing(root: str) -> Iterator[Faulty]:
    """A registry of which a pull has failed when all layers but one had come. It works from then on."""
    works: list[bool] = []

    def change(request: Request) -> bool:
        last = request.path.rpartition("/")[2]
        small = last in IMAGE.blobs and last != LARGE and last != build.digest(IMAGE.config)
        if works or not small or "/blobs/" not in request.path:
            return False
        while not layers(root):
            pass
        request.reply(404, b"{}")
        return True

    with faulty(IMAGE, change) as server:
        with pytest.raises(Failure):
            commands.pull(root, f"{server.host}/web")
        works.append(True)
        yield server


def layers(root: str) -> set[str]:
    names = {name for name in visible(Path(root)) if name.startswith(("layers/", "blobs/"))}
    return names if any(not name.endswith(".json") for name in names) else set()


def marks(root: str) -> list[str]:
    return os.listdir(f"{root}/images/unclaimed")


def age(root: str) -> None:
    for name in marks(root):
        path = f"{root}/images/unclaimed/{name}"
        os.utime(path, (1, os.stat(path).st_mtime - KEPT - 60))


def collect(root: str, *, only_look: bool = False) -> list[str]:
    return hook.collect(root, "/nowhere", set(), only_look)


def test_they_stay_for_the_next_try_which_downloads_only_the_others(root: str, failing: Faulty) -> None:
    assert len(layers(root)) == 3
    assert len(marks(root)) == 2
    assert collect(root) == []
    failing.seen.clear()
    assert commands.pull(root, f"{failing.host}/web").digest == IMAGE.digest
    assert LARGE not in "".join(failing.paths("/blobs/"))
    assert marks(root) == []


def test_after_a_day_gc_tells_of_them_and_removes_them(root: str, failing: Faulty) -> None:
    age(root)
    told = collect(root, only_look=True)
    assert sorted(line.split()[0] for line in told) == ["blob", "layer"]
    assert len(layers(root)) == 3
    assert collect(root) == told
    assert (layers(root), marks(root)) == (set(), [])
    assert collect(root) == []


def test_after_a_day_the_next_pull_removes_them_too(root: str, failing: Faulty) -> None:
    age(root)
    other = build.image(build.tar(build.file("other")))
    path = build.layout(f"{root}/layout", {"v1": other})
    commands.pull(root, f"oci:{path}:v1")
    assert len(layers(root)) == 5  # manifest, configuration and layer of the other one
    assert marks(root) == []


def test_what_a_pull_at_work_may_be_about_to_use_stays(root: str, failing: Faulty) -> None:
    age(root)
    with locked(root, "store", shared=True):
        assert collect(root) == []
    assert len(layers(root)) == 3


def test_what_an_image_uses_stays_whatever_is_marked(root: str, failing: Faulty) -> None:
    found = commands.pull(root, f"{failing.host}/web")
    for path in found.layers:
        Path(root, "images/unclaimed", f"layer-{os.path.basename(path)}").touch()
    age(root)
    assert collect(root) == []
    assert all(map(os.path.isdir, found.layers))
    assert marks(root) == []


def test_prune_does_not_wait_for_a_day(root: str, failing: Faulty) -> None:
    commands.prune(root, nothing)
    assert (layers(root), marks(root)) == (set(), [])


def test_a_layer_that_another_image_has_is_none_of_them(root: str, tmp_path: Path) -> None:
    """The second image has the first one's layer in another compression, and fails."""
    shared = build.tar(build.file("a", os.urandom(50_000)))
    first = build.image(build.Layer(shared, "gzip"))
    second = build.image(build.Layer(shared, "zstd"), build.tar(build.file("b")))
    missing = min(
        (key for key in second.blobs if key != build.digest(second.config)), key=lambda key: len(second.blobs[key])
    )

    def change(request: Request) -> bool:
        if not request.path.endswith(missing):
            return False
        while len([name for name in visible(Path(root)) if name.startswith("blobs/")]) < 4:
            pass
        request.reply(404, b"{}")
        return True

    with faulty(first) as server:
        found = commands.pull(root, f"{server.host}/web")
    with faulty(second, change) as server, pytest.raises(Failure):
        commands.pull(root, f"{server.host}/web")
    assert [name.partition("-")[0] for name in marks(root)] == ["blob"]
    age(root)
    assert len(collect(root)) == 1
    assert all(map(os.path.isdir, found.layers))
