"""The store: pulling from files, what comes out, and what other tools see."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks import image as hook
from podrun_hooks.image import commands
from podrun_hooks.image.store.scratch import remove
from podrun_hooks.support import syscalls
from support import image_builder as build
from support.image_samples import BASE, layered_image, step

pytestmark = pytest.mark.root


@pytest.fixture
def layered(tmp_path: Path) -> tuple[str, build.Built]:
    return layered_image(tmp_path)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Any]:
    """Stacks layers as the container step does; returns the directory."""
    targets: list[str] = []

    def mount(layers: list[str]) -> str:
        target = str(tmp_path / f"mnt{len(targets)}")
        for name in (target, f"{target}.upper", f"{target}.work"):
            os.mkdir(name)
        stack = ":".join(reversed(layers))
        syscalls.mount(
            "overlay", target, "overlay", 0, f"lowerdir={stack},upperdir={target}.upper,workdir={target}.work"
        )
        targets.append(target)
        return target

    yield mount
    for target in targets:
        syscalls.umount(target)


# --- what comes out


def test_the_stacked_layers_are_what_umoci_unpacks(
    tmp_path: Path, layered: tuple[str, build.Built], mounted: Any
) -> None:
    path, built = layered
    argv = ["umoci", "raw", "unpack", "--image", f"{path}:v1", str(tmp_path / "umoci")]
    subprocess.run(argv, check=True, capture_output=True)
    facts = hook.up(step(tmp_path / "root", f"oci:{path}:v1"), {})
    found = facts["images"]["image"]
    assert found["digest"] == built.digest
    assert found["config"] == {"Cmd": ["/bin/app"], "Env": ["A=1"]}
    assert build.tree(mounted(found["layers"])) == build.tree(str(tmp_path / "umoci"))


def test_every_compression_of_a_layer_unpacks_to_the_same_directory(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    found = []
    for kind in ("gzip", "zstd", ""):
        path = build.layout(str(tmp_path / f"layout-{kind}"), {"v1": build.image(build.Layer(BASE, kind))})
        found.append(commands.pull(root, f"oci:{path}"))
    assert len({one.digest for one in found}) == 3
    assert len({tuple(one.layers) for one in found}) == 1


def test_an_added_file_does_not_change_the_mode_of_its_directory(tmp_path: Path, mounted: Any) -> None:
    built = build.image(build.tar(build.directory("tmp", 0o1777)), build.tar(build.file("tmp/x")))
    path = build.layout(str(tmp_path / "layout"), {"v1": built})
    found = commands.pull(str(tmp_path / "root"), f"oci:{path}")
    assert os.stat(f"{mounted(found.layers)}/tmp").st_mode & 0o7777 == 0o1777


def test_an_image_that_has_a_layer_twice_is_stacked_once(tmp_path: Path, mounted: Any) -> None:
    again = build.tar(build.file("f", b"again"))
    built = build.image(again, build.tar(build.file(".wh.f"), build.file("g")), again)
    path = build.layout(str(tmp_path / "layout"), {"v1": built})
    found = commands.pull(str(tmp_path / "root"), f"oci:{path}")
    assert len(found.layers) == 2
    assert sorted(os.listdir(mounted(found.layers))) == ["f", "g"]


def test_nothing_shows_through_an_opaque_root(tmp_path: Path, mounted: Any) -> None:
    built = build.image(BASE, build.tar(build.file(".wh..wh..opq"), build.file("only")), build.tar(build.file("top")))
    path = build.layout(str(tmp_path / "layout"), {"v1": built})
    found = commands.pull(str(tmp_path / "root"), f"oci:{path}")
    assert sorted(os.listdir(mounted(found.layers))) == ["only", "top"]


def test_symlinks_to_standard_output_are_in_the_facts(tmp_path: Path) -> None:
    built = build.image(build.tar(build.symlink("var/log/nginx/access.log", "/dev/stdout")))
    path = build.layout(str(tmp_path / "layout"), {"v1": built})
    for _ in range(2):
        facts = hook.up(step(tmp_path / "root", f"oci:{path}"), {})
        assert facts["images"]["image"]["stdio"] == ["/var/log/nginx/access.log"]


# --- what other tools see


def test_the_store_is_a_layout_that_skopeo_reads(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, built = layered
    commands.pull(str(tmp_path / "root"), f"oci:{path}:v1")
    index = json.loads((tmp_path / "root/images/index.json").read_text())
    name = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
    copied = f"oci:{tmp_path}/copy:x"
    subprocess.run(["skopeo", "copy", f"oci:{tmp_path}/root/images:{name}", copied], check=True, capture_output=True)
    shown = subprocess.run(["skopeo", "inspect", "--raw", copied], check=True, capture_output=True).stdout
    assert build.digest(shown) == built.digest


def test_the_store_is_a_layout_that_umoci_reads(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    commands.pull(str(tmp_path / "root"), f"oci:{layered[0]}:v1")
    argv = ["umoci", "list", "--layout", str(tmp_path / "root/images")]
    assert len(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()) == 1


# --- sources


@pytest.mark.parametrize("form", ["plain", "gzip"])
def test_an_oci_archive_gives_the_same_image_as_its_layout(
    tmp_path: Path, layered: tuple[str, build.Built], form: str
) -> None:
    path, built = layered
    archive = tmp_path / "x.tar"
    subprocess.run(["skopeo", "copy", f"oci:{path}:v1", f"oci-archive:{archive}:v1"], check=True, capture_output=True)
    if form == "gzip":
        archive.write_bytes(gzip.compress(archive.read_bytes(), 1))
    root = str(tmp_path / "root")
    assert commands.pull(root, f"oci-archive:{archive}:v1").digest == built.digest
    assert commands.pull(root, f"oci-archive:{archive}").layers == commands.pull(root, f"oci:{path}:v1").layers


@pytest.mark.parametrize("compressed", [False, True])
def test_a_docker_archive_of_two_images_shares_their_layers(tmp_path: Path, compressed: bool) -> None:
    shared = build.image(BASE, build.tar(build.file("a")))
    other = build.image(BASE, build.tar(build.file("b")))
    archive = build.docker_archive(str(tmp_path / "x.tar"), {"web:1": shared, "team/db:2": other}, compressed)
    root = str(tmp_path / "root")
    one = commands.pull(root, f"docker-archive:{archive}:web:1")
    two = commands.pull(root, f"docker-archive:{archive}:team/db:2")
    assert one.layers[0] == two.layers[0]
    assert (os.listdir(one.layers[1]), os.listdir(two.layers[1])) == (["a"], ["b"])
    assert commands.pull(root, f"docker-archive:{archive}:@1").digest == two.digest
    with pytest.raises(Failure, match="several images"):
        commands.pull(root, f"docker-archive:{archive}")


def test_what_skopeo_writes_as_a_docker_archive_is_read(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, _built = layered
    archive = tmp_path / "x.tar"
    argv = ["skopeo", "copy", f"oci:{path}:v1", f"docker-archive:{archive}:web:1"]
    subprocess.run(argv, check=True, capture_output=True)
    root = str(tmp_path / "root")
    found = commands.pull(root, f"docker-archive:{archive}")
    assert found.layers == commands.pull(root, f"oci:{path}:v1").layers
    assert found.config["Cmd"] == ["/bin/app"]


def test_import_brings_every_image_of_a_file(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    built = {"web:1": layered[1], "team/db:2": build.image(build.tar(build.file("b")))}
    archive = build.docker_archive(str(tmp_path / "x.tar"), built)
    root = str(tmp_path / "root")
    assert len(commands.import_(root, archive)) == 2
    assert [one.digest for one in commands.import_(root, layered[0])] == [layered[1].digest]
    assert len(commands.ls(root)) == 3


def test_a_platform_is_chosen_from_an_index(tmp_path: Path) -> None:
    names = {"linux/amd64": "amd64", "linux/arm64/v8": "arm64", "linux/arm/v7": "arm", "linux/arm/v6": "arm"}
    built = {
        platform: build.image(build.tar(build.file(platform)), architecture=name) for platform, name in names.items()
    }
    build.multi_platform(str(tmp_path / "layout"), "v1", built)
    root = str(tmp_path / "root")
    ref = f"oci:{tmp_path}/layout:v1"
    for platform in names:
        assert commands.pull(root, ref, platform=platform).digest == built[platform].digest
    assert commands.pull(root, ref, platform="linux/arm64").digest == built["linux/arm64/v8"].digest
    assert commands.pull(root, ref, "missing", platform="linux/arm/v6").digest == built["linux/arm/v6"].digest
    with pytest.raises(Failure, match=r"linux/s390x.*linux/amd64") as caught:
        commands.pull(root, ref, platform="linux/s390x")
    assert caught.value.code == UNAVAILABLE


def test_a_directory_is_an_image_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    facts = hook.up(step(tmp_path / "root", f"dir:{tmp_path}/rootfs"), {})
    assert facts["images"]["image"]["layers"] == [str(tmp_path / "rootfs")]
    assert not (tmp_path / "root").exists()


# --- policies


def test_an_image_that_is_stored_needs_its_source_no_more(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, _ = layered
    first = hook.up(step(tmp_path / "root", f"oci:{path}:v1"), {})
    os.rename(path, f"{path}.away")
    assert hook.check(step(tmp_path / "root", f"oci:{path}:v1")) == []
    assert hook.up(step(tmp_path / "root", f"oci:{path}:v1"), {}) == first


def test_a_file_that_was_written_anew_is_imported_again(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, _ = layered
    hook.up(step(tmp_path / "root", f"oci:{path}:v1"), {})
    newer = build.image(build.tar(build.file("newer")))
    build.layout(path, {"v1": newer})
    never = hook.up(step(tmp_path / "root", f"oci:{path}:v1", pull="never"), {})
    assert never["images"]["image"]["digest"] == layered[1].digest
    found = hook.up(step(tmp_path / "root", f"oci:{path}:v1"), {})
    assert found["images"]["image"]["digest"] == newer.digest


def test_a_layer_that_was_deleted_is_unpacked_again_from_its_blob(
    tmp_path: Path, layered: tuple[str, build.Built]
) -> None:
    path, _ = layered
    root = str(tmp_path / "root")
    found = commands.pull(root, f"oci:{path}:v1")
    remove(found.layers[0])
    for digest in [layer["digest"] for layer in json.loads(layered[1].manifest)["layers"]]:
        os.unlink(f"{path}/blobs/sha256/{digest[7:]}")
    assert commands.pull(root, f"oci:{path}:v1", "missing").layers == found.layers
    assert os.path.isdir(found.layers[0])


@pytest.mark.parametrize(
    ("ref", "options", "code"),
    [
        ("Web", {}, WRONG_FILE),
        ("dir:/does/not/exist", {}, WRONG_FILE),
        ("oci:/does/not/exist:v1", {}, WRONG_FILE),
        ("docker-archive:/does/not/exist.tar", {}, WRONG_FILE),
        ("web", {"pull": "never"}, UNAVAILABLE),
        ("oci:/etc", {}, WRONG_FILE),
    ],
)
def test_check_names_what_makes_the_step_impossible(
    tmp_path: Path, ref: str, options: dict[str, str], code: int
) -> None:
    problems = hook.check(step(tmp_path / "root", ref, **options))
    assert [problem.code for problem in problems] == [code]
    with pytest.raises(Failure) as caught:
        hook.up(step(tmp_path / "root", ref, **options), {})
    assert caught.value.code == code


def test_an_image_of_more_than_128_layers_runs(podrun: Any) -> None:
    busybox = Path("/bin/busybox").read_bytes()
    first = build.tar(build.file("bin/busybox", busybox, mode=0o755), build.file("old"))
    layers = [build.tar(build.file(f"d/{number}"), build.file(f"d/.wh.{number - 1}")) for number in range(140)]
    path = build.layout(str(podrun.home / "layout"), {"v1": build.image(first, *layers)})
    done = podrun("run", "--rm", f"oci:{path}:v1", "/bin/busybox", "ls", "/d")
    assert (done.returncode, done.stdout) == (0, "139\n"), done.stderr
