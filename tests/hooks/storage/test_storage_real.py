"""Every kind of storage with a real file system: mounted, used, busy, unmounted, and killed in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import BUSY, NOT_ALLOWED, STEP_FAILED, WRONG_FILE, Failure
from podrun_hooks import storage
from podrun_hooks.storage import host_mounts
from support.storage_case import Place, image_file, run

pytestmark = pytest.mark.root


@pytest.fixture
def place(home: Path) -> Iterator[Any]:
    made = Place(home)
    yield made
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if str(home) in line.split()[4]:
            run("umount", "-l", line.split()[4])


@pytest.fixture
def btrfs(home: Path) -> Iterator[Any]:
    """A btrfs with a subvolume of one file."""
    image, top = home / "btrfs.img", home / "btrfs"
    top.mkdir()
    run("truncate", "-s", "120M", str(image))
    try:
        subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("mkfs.btrfs is not installed")
    run("mount", "-o", "loop", str(image), str(top))
    run("btrfs", "subvolume", "create", f"{top}/data")
    (top / "data" / "word").write_text("btrfs")
    yield top / "data"
    run("umount", str(top))


# --- mount(8) ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext4", "squashfs", "erofs"])
def test_a_loop_image_is_mounted_where_the_host_sees_it(place: Any, kind: str) -> None:
    step = place.step(source=image_file(place.home, kind), type=kind)
    path = place.up(step)
    assert path == Path(place.pod.directory, "mnt", "storage")
    assert (path / "word").read_text() == kind
    assert {"nosuid", "nodev"} <= set(run("findmnt", "-no", "OPTIONS", str(path)).strip().split(","))
    storage.down(step, {"mounts": []})
    assert place.left() == []
    assert str(place.home) not in run("losetup", "-a"), "the loop device went with the mount"
    storage.down(step, {})


def test_a_block_device_is_mounted(place: Any) -> None:
    device = run("losetup", "--find", "--show", image_file(place.home, "ext4")).strip()
    try:
        step = place.step(source=device, type="auto", options=["ro"])
        assert (place.up(step) / "word").read_text() == "ext4"
        storage.down(step, {})
        assert place.left() == []
    finally:
        run("losetup", "-d", device)


def test_any_type_is_mounted_by_its_helper(place: Any, tmp_path: Path) -> None:
    """A helper of a type of our own stands for mount.nfs: mount(8) finds it as it finds that one."""
    helper = Path("/sbin/mount.tpodrun")
    helper.write_text('#!/bin/sh\nexec mount -t tmpfs -o "size=1M" tpodrun "$2"\n')
    helper.chmod(0o755)
    try:
        step = place.step(source="server:/export", type="tpodrun", options=["vers=4"])
        path = place.up(step)
        assert run("findmnt", "-no", "SOURCE", str(path)).strip() == "tpodrun"
        storage.down(step, {})
        assert place.left() == []
    finally:
        helper.unlink()


def test_what_mount_says_is_told_and_nothing_is_left(place: Any) -> None:
    (place.home / "empty").write_bytes(bytes(1 << 16))
    step = place.step(source=f"{place.home}/empty", type="ext4")
    with pytest.raises(Failure, match="wrong fs type") as refused:
        storage.up(step, {})
    assert refused.value.code == STEP_FAILED
    storage.down(step, {})
    assert place.left() == []


# --- busy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hold", "words"),
    [
        (lambda path: subprocess.Popen(["sleep", "60"], cwd=path), "its working directory"),
        (lambda path: subprocess.Popen(["sleep", "60"], stdin=open(path / "word")), "word open"),
    ],
    ids=["working directory", "open file"],
)
def test_a_busy_mount_is_named_with_its_holder_and_the_next_down_finishes(place: Any, hold: Any, words: str) -> None:
    step = place.step(source=image_file(place.home, "ext4"), type="ext4")
    path = place.up(step)
    process = hold(path)
    try:
        with pytest.raises(Failure) as refused:
            storage.down(step, {})
        assert refused.value.code == BUSY
        assert f"held by sleep (pid {process.pid}: " in refused.value.what
        assert words in refused.value.what
        assert (path / "word").read_text() == "ext4", "nothing is deleted through it"
    finally:
        process.kill()
        process.wait()
    storage.down(step, {})
    assert place.left() == []


def test_a_mount_inside_it_is_named(place: Any) -> None:
    step = place.step(source=image_file(place.home, "ext4"), type="ext4")
    path = place.up(step)
    (path / "inner").mkdir()
    run("mount", "-t", "tmpfs", "t-storage", str(path / "inner"))
    with pytest.raises(Failure, match=f"a mount at {path}/inner"):
        storage.down(step, {})
    run("umount", str(path / "inner"))
    storage.down(step, {})
    assert place.left() == []


# --- images, overlays, snapshots, owners ----------------------------------------------------------------------------


def test_an_image_is_mounted_read_only(place: Any) -> None:
    root = place.home / "rootfs"
    root.mkdir()
    (root / "word").write_text("image")
    step = place.step(source=f"image:dir:{root}")
    path = place.up(step)
    assert (path / "word").read_text() == "image"
    with pytest.raises(OSError, match="Read-only"):
        (path / "word").write_text("changed")
    storage.down(step, {})
    assert place.left() == []


def test_an_image_of_several_layers_is_stacked(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers are what the image hook hands on; the highest one wins."""
    from podrun_hooks import image

    layers = []
    for n in range(3):
        layer = place.home / f"layer:{n}"
        layer.mkdir()
        (layer / f"of{n}").write_text(str(n))
        (layer / "word").write_text(str(n))
        layers.append(str(layer))
    facts = {"ref": "x", "digest": "sha256:0", "layers": layers}
    monkeypatch.setattr(image, "up", lambda step, facts_: {"images": {step.name: facts}})
    step = place.step(source="image:oci:/x")
    given = storage.up(step, {})
    path = Path(given["mounts"][0]["hostPath"])
    assert sorted(os.listdir(path)) == ["of0", "of1", "of2", "word"]
    assert (path / "word").read_text() == "2"
    assert given["images"]["storage storage"]["digest"] == "sha256:0", "the store keeps what is in use"
    storage.down(step, {})
    assert place.left() == []


def test_changes_to_an_overlaid_path_are_thrown_away(place: Any) -> None:
    source = place.home / "so,urce:x"
    source.mkdir(mode=0o750)
    os.chown(source, 7, 7)
    (source / "word").write_text("below")
    step = place.step(source=str(source), options=["O"])
    path = place.up(step)
    assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o750, 7)
    (path / "word").write_text("above")
    (path / "more").touch()
    assert (source / "word").read_text() == "below"
    storage.down(step, {})
    assert os.listdir(source) == ["word"]
    assert place.left() == []


def test_every_start_gets_a_snapshot_of_its_own(place: Any, btrfs: Any) -> None:
    step = place.step(source=f"btrfs-snapshot:{btrfs}")
    path = place.up(step)
    (path / "word").write_text("changed")
    assert (btrfs / "word").read_text() == "btrfs"
    run("btrfs", "subvolume", "create", str(path / "inner"))
    storage.down(step, {})
    assert place.left() == ([f"mount {btrfs.parent}"])
    assert os.listdir(btrfs.parent) == ["data"]
    assert (place.up(step) / "word").read_text() == "btrfs"
    storage.down(step, {})


@pytest.mark.parametrize("again", [True, False])
def test_a_snapshot_that_a_power_cut_has_left_is_replaced_or_collected(place: Any, btrfs: Any, again: bool) -> None:
    step = place.step(source=f"btrfs-snapshot:{btrfs}")
    path = place.up(step)
    (path / "word").write_text("changed")
    run("umount", str(path))
    shutil.rmtree(step.pod.directory)
    assert len(os.listdir(btrfs.parent)) == 2
    if again:
        assert (place.up(step) / "word").read_text() == "btrfs"
        storage.down(step, {})
    else:
        assert storage.collect(step.pod.root, step.pod.run, {"web"}, False) == []
        found = storage.collect(step.pod.root, step.pod.run, set(), False)
        assert found == [f"snapshot of {step.name} of {step.pod.name}"]
    assert os.listdir(btrfs.parent) == ["data"]
    assert not os.listdir(f"{step.pod.root}/pods")


def test_what_is_no_subvolume_has_no_snapshot(place: Any, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="not a btrfs subvolume") as refused:
        storage.up(place.step(source=f"btrfs-snapshot:{tmp_path}"), {})
    assert refused.value.code == WRONG_FILE


def test_owners_are_mapped(place: Any) -> None:
    source = place.home / "source"
    source.mkdir()
    (source / "word").touch()
    for path in (source, source / "word"):
        os.chown(path, 1000, 1000)
    step = place.step(source=str(source), idmap=["1000:0:1"])
    path = place.up(step)
    assert (path / "word").stat().st_uid == 0
    (path / "new").touch()
    assert (source / "new").stat().st_uid == 1000
    storage.down(step, {})
    assert place.left() == []


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_file_is_in_memory_and_for_its_owner_alone(place: Any) -> None:
    step = place.step(source="file:", content="s3cret", options=["mode=0440", "uid=1000", "gid=7"])
    path = place.up(step)
    about = path.stat()
    assert (path.read_text(), about.st_mode & 0o7777, about.st_uid, about.st_gid) == ("s3cret", 0o440, 1000, 7)
    assert run("findmnt", "-no", "FSTYPE", str(path.parent)).strip() == "ramfs"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    storage.down(step, {})
    assert place.left() == []


def test_a_credential_is_copied_from_where_systemd_put_it(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_bytes(b"\0bin\xff")
    step = place.step(source="file:", credential="token")
    (problem,) = storage.check(step)
    assert (problem.code, problem.fatal) == (NOT_ALLOWED, True)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = place.up(step)
    assert path.read_bytes() == b"\0bin\xff"
    storage.down(step, {})


# --- killed --------------------------------------------------------------------------------------------------------

_VICTIM = """
import os, sys
sys.path[:0] = {path!r}
from podrun.hook import Pod, Step, read
from podrun.host import tag
from podrun_hooks import storage
count = 0
def tell(_):
    global count
    count += 1
    if count == {point}:
        os.kill(os.getpid(), 9)
step = Step(Pod(*{pod!r}), "storage", "storage", read(storage.Options, {table!r}), tell)
storage.{verb}(step, {{}})
"""


@pytest.mark.parametrize("verb", ["up", "down"])
@pytest.mark.parametrize("kind", ["ext4", "image", "overlay", "file", "idmap", "snapshot"])
def test_killed_at_every_notification_one_down_leaves_nothing(
    place: Any, kind: str, verb: str, request: pytest.FixtureRequest
) -> None:
    source = place.home / "source"
    source.mkdir()
    tables = {
        "ext4": lambda: {"source": image_file(place.home, "ext4"), "type": "ext4"},
        "image": lambda: {"source": f"image:dir:{source}"},
        "overlay": lambda: {"source": str(source), "options": ["O"]},
        "file": lambda: {"source": "file:", "content": "x"},
        "idmap": lambda: {"source": str(source), "idmap": ["0:1:1"]},
        "snapshot": lambda: {"source": f"btrfs-snapshot:{request.getfixturevalue('btrfs')}"},
    }
    table = {"target": "/data", **tables[kind]()}  # type: ignore[dict-item, no-untyped-call]
    before = place.left()
    step = place.step(**table)
    for point in range(1, 9):
        if verb == "down":
            place.up(step)
        code = _VICTIM.format(path=sys.path, point=point, pod=tuple(place.pod), table=table, verb=verb)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode in (0, -9), done.stderr
        storage.down(step, {})
        assert place.left() == before, f"notification {point}"
        if not done.returncode:
            break
    assert point > 2


def test_a_helper_that_outlives_a_killed_up_does_not_mount_later(place: Any) -> None:
    helper = Path("/sbin/mount.tpodrun")
    helper.write_text('#!/bin/sh\nsleep 1\nexec mount -t tmpfs tpodrun "$2"\n')
    helper.chmod(0o755)
    try:
        step = place.step(source="server:/export", type="tpodrun")
        table = {"target": "/data", "source": "server:/export", "type": "tpodrun"}
        code = _VICTIM.format(path=sys.path, point=99, pod=tuple(place.pod), table=table, verb="up")
        victim = subprocess.Popen([sys.executable, "-c", code])
        while b"mount.tpodrun" not in b"".join(_command_lines()):
            assert victim.poll() is None
        victim.kill()
        victim.wait()
        storage.down(step, {})
        assert not [line for line in _command_lines() if b"mount.tpodrun" in line]
        assert place.left() == []
    finally:
        helper.unlink()


def _command_lines() -> list[bytes]:
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            continue
    return found


def test_the_mounts_place_is_the_steps_name(place: Any) -> None:
    assert host_mounts.place_of(place.step("data", source="file:")) == f"{place.pod.directory}/mnt/data"
