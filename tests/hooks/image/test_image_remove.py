"""Looking into the store and removing from it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from podrun.errors import BUSY, UNAVAILABLE, Failure
from podrun_hooks.image import commands
from podrun_hooks.image.store import layout
from podrun_hooks.image.store.locks import locked
from support import image_builder as build
from support.image_samples import BASE, layered_image, nothing, visible

pytestmark = pytest.mark.root


@pytest.fixture
def layered(tmp_path: Path) -> tuple[str, build.Built]:
    return layered_image(tmp_path)


def test_ls_and_inspect_show_what_is_stored(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, built = layered
    root = str(tmp_path / "root")
    assert commands.ls(root) == []
    commands.pull(root, f"oci:{path}:v1")
    (one,) = commands.ls(root)
    assert (one.ref, one.digest) == (f"oci:{path}:v1", built.digest)
    for name in (one.ref, built.digest, built.digest[7:19]):
        (shown,) = commands.inspect(root, name)
        assert shown["configuration"]["config"]["Cmd"] == ["/bin/app"]
        assert len(shown["layers"]) == 4
    with pytest.raises(Failure) as caught:
        commands.inspect(root, "nothing/such")
    assert caught.value.code == UNAVAILABLE


def test_what_a_killed_removal_has_left_in_the_index_goes_with_the_next_prune(
    tmp_path: Path, layered: tuple[str, build.Built]
) -> None:
    root = str(tmp_path / "root")
    commands.pull(root, f"oci:{layered[0]}:v1")
    for record in Path(root, "images/refs").rglob("*"):
        if record.is_file():
            record.unlink()  # it had come so far
    commands.prune(root, nothing)
    assert json.loads(Path(root, "images/index.json").read_text())["manifests"] == []
    assert not list(Path(root, "images/blobs/sha256").iterdir())


def test_removing_an_image_removes_what_no_other_needs(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    images = {"a": build.image(BASE, build.tar(build.file("a"))), "b": build.image(BASE, build.tar(build.file("b")))}
    path = build.layout(str(tmp_path / "layout"), images)
    one, two = (commands.pull(root, f"oci:{path}:{name}") for name in images)
    removed = commands.rm(root, [f"oci:{path}:a"], nothing)
    assert removed.refs == [one.ref]
    assert removed.freed > 0
    assert not os.path.exists(one.layers[1])
    assert all(map(os.path.isdir, two.layers))
    assert [item.digest for item in commands.ls(root)] == [two.digest]
    assert len(json.loads((tmp_path / "root/images/index.json").read_text())["manifests"]) == 1
    commands.rm(root, [two.digest], nothing)
    assert visible(tmp_path / "root") == set()


def test_an_image_in_use_is_not_removed(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, built = layered
    root = str(tmp_path / "root")
    found = commands.pull(root, f"oci:{path}:v1")
    before = visible(tmp_path / "root")
    for used in ({built.digest}, {f"oci:{path}:v1"}):
        with pytest.raises(Failure) as caught:
            commands.rm(root, [f"oci:{path}:v1"], lambda used=used: used)  # type: ignore[misc]
        assert caught.value.code == BUSY
        assert commands.prune(root, lambda used=used: used, unused=True).refs == []  # type: ignore[misc]
    assert visible(tmp_path / "root") == before
    assert commands.prune(root, nothing, unused=True).refs == [found.ref]


def test_a_pod_that_starts_while_its_image_is_being_removed_keeps_it(
    tmp_path: Path, layered: tuple[str, build.Built]
) -> None:
    path, _ = layered
    root = str(tmp_path / "root")
    commands.pull(root, f"oci:{path}:v1")
    answers = iter([set(), {f"oci:{path}:v1"}])
    with pytest.raises(Failure) as caught:
        commands.rm(root, [f"oci:{path}:v1"], lambda: next(answers))
    assert caught.value.code == BUSY
    assert len(commands.ls(root)) == 1


def test_the_old_image_of_a_name_stays_while_a_pod_uses_it(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, built = layered
    root = str(tmp_path / "root")
    old = commands.pull(root, f"oci:{path}:v1")
    build.layout(path, {"v1": build.image(build.tar(build.file("newer")))})
    commands.pull(root, f"oci:{path}:v1")
    commands.prune(root, lambda: {built.digest})
    assert all(map(os.path.isdir, old.layers))
    commands.prune(root, nothing)
    assert not any(map(os.path.isdir, old.layers))


def test_nothing_is_removed_while_somebody_pulls(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    root = str(tmp_path / "root")
    commands.pull(root, f"oci:{layered[0]}:v1")
    with locked(root, "store", shared=True), pytest.raises(Failure) as caught:
        commands.prune(root, nothing)
    assert caught.value.code == BUSY


def test_a_record_of_another_version_counts_as_none(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, _ = layered
    root = str(tmp_path / "root")
    commands.pull(root, f"oci:{path}:v1")
    record = Path(layout.record(root, f"oci:{path}:v1"))
    for text in (record.read_text().replace('"v":1', '"v":0'), "{", "", "[]", '{"v":1}'):
        record.write_text(text)
        assert layout.stored(root, f"oci:{path}:v1") is None
    assert commands.pull(root, f"oci:{path}:v1", "missing").digest == layered[1].digest
