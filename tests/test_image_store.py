"""The store: pulling from files, what other tools see, whatever goes wrong in the middle, and removing."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import image_builder as build
import pytest

from podrun.errors import BUSY, MALFORMED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Pod, Step
from podrun_hooks import image as hook
from podrun_hooks import linux
from podrun_hooks.image import commands, publish, store

pytestmark = pytest.mark.root

HERE = Path(__file__).parent


def step(root: Path, ref: str, **options: Any) -> Step:
    pod = Pod(name="t", root=str(root), run=str(root.parent / "run"))
    return Step(pod, "image", "image", hook.Options(ref=ref, **{"pull": "missing", "platform": "", **options}))


def nothing() -> set[str]:
    return set()


def visible(root: Path) -> set[str]:
    """Every file of the store but locks and those within layers."""
    found: set[str] = set()
    for directory in ("blobs/sha256", "layers", "refs", "tmp", "locks"):
        if (root / "images" / directory).is_dir():
            found |= {f"{directory}/{name}" for name in os.listdir(root / "images" / directory)}
    return found


BASE = build.tar(
    build.directory("etc/"),
    build.file("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
    build.file("etc/gone", b"gone"),
    build.directory("tmp/", 0o1777),
    build.directory("opt/", 0o750, uid=5, gid=6),
    build.file("opt/old", b"old"),
    build.directory("usr/"),
    build.directory("usr/lib/"),
    build.file("usr/lib/lib.so", b"\x7fELF" * 1000, mode=0o755),
    build.hardlink("usr/lib/lib.so.1", "usr/lib/lib.so"),
    build.symlink("lib", "usr/lib"),
    build.directory("swap/"),
    build.file("swap/inner", b"x"),
    build.header(b"fifo", b"6", mode=0o644),
)
CHANGE = build.tar(
    build.directory("etc/"),
    build.file("etc/.wh.gone"),
    build.file("etc/new", b"new", mode=0o640, uid=1, gid=2),
    build.directory("opt/", 0o755),
    build.file("opt/.wh..wh..opq"),
    build.file("opt/fresh", b"fresh"),
    build.symlink("swap", "opt"),
    build.file("usr/lib/setuid", b"s", mode=0o4755),
)
IMPLICIT = build.tar(build.file("tmp/added", b"1"), build.file("opt/sub/added", b"2"), build.file("etc/a/b/c", b"3"))


@pytest.fixture
def layered(tmp_path: Path) -> tuple[str, build.Built]:
    built = build.image(BASE, CHANGE, IMPLICIT, Cmd=["/bin/app"], Env=["A=1"])
    return build.layout(str(tmp_path / "layout"), {"v1": built}), built


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Any]:
    """Stacks layers as the container step does; returns the directory."""
    targets: list[str] = []

    def mount(layers: list[str]) -> str:
        target = str(tmp_path / f"mnt{len(targets)}")
        for name in (target, f"{target}.upper", f"{target}.work"):
            os.mkdir(name)
        stack = ":".join(reversed(layers))
        linux.mount("overlay", target, "overlay", 0, f"lowerdir={stack},upperdir={target}.upper,workdir={target}.work")
        targets.append(target)
        return target

    yield mount
    for target in targets:
        linux.umount(target)


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
    path, built = layered
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
    publish.remove(found.layers[0])
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


# --- broken images

SMALL = build.tar(build.file("f", b"content"))


def _with_manifest(change: Any) -> Any:
    def make(path: str) -> None:
        built = build.image(SMALL)
        value = json.loads(built.manifest)
        change(value)
        text = json.dumps(value).encode()
        blobs = {**built.blobs, build.digest(text): text}
        build.layout(path, {"v1": build.Built(blobs, text, built.config)})

    return make


def _with_config(change: Any) -> Any:
    def make(path: str) -> None:
        built = build.image(SMALL)
        value = json.loads(built.config)
        value = change(value) or value
        text = json.dumps(value).encode()
        manifest = json.loads(built.manifest)
        manifest["config"] |= {"digest": build.digest(text), "size": len(text)}
        again = json.dumps(manifest).encode()
        blobs = {**built.blobs, build.digest(text): text, build.digest(again): again}
        build.layout(path, {"v1": build.Built(blobs, again, text)})

    return make


def _with_layer(**fields: Any) -> Any:
    def make(path: str) -> None:
        build.layout(path, {"v1": build.image(build.Layer(SMALL, **fields))})

    return make


def _swapped(which: int) -> Any:
    """A layout in which a blob's content is not what its name says."""

    def make(path: str) -> None:
        built = build.image(SMALL)
        build.layout(path, {"v1": built})
        blob = f"{path}/blobs/sha256/{list(built.blobs)[which][7:]}"
        content = Path(blob).read_bytes()
        Path(blob).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return make


BROKEN = {
    "layer content": _swapped(0),
    "configuration content": _swapped(1),
    "manifest content": _swapped(2),
    "diffID": _with_layer(diff_id="sha256:" + "0" * 64),
    "layer cut off": _with_layer(stored=gzip.compress(SMALL)[:-20]),
    "tar cut off": _with_layer(stored=gzip.compress(SMALL[:600])),
    "zstd cut off": _with_layer(stored=build.Layer(SMALL, "zstd").blob()[:-5], compression="zstd"),
    "more after the tar than the diffID says": _with_layer(stored=gzip.compress(SMALL + b"more")),
    "layer size too small": _with_manifest(lambda m: m["layers"][0].update(size=m["layers"][0]["size"] - 1)),
    "layer size too big": _with_manifest(lambda m: m["layers"][0].update(size=m["layers"][0]["size"] + 1)),
    "layer size negative": _with_manifest(lambda m: m["layers"][0].update(size=-1)),
    "layer size no number": _with_manifest(lambda m: m["layers"][0].update(size="12")),
    "layer digest as a path": _with_manifest(lambda m: m["layers"][0].update(digest="sha256:../../../etc/passwd")),
    "layer digest unknown": _with_manifest(lambda m: m["layers"][0].update(digest="md5:" + "0" * 32)),
    "layers missing": _with_manifest(lambda m: m.pop("layers")),
    "config missing": _with_manifest(lambda m: m.pop("config")),
    "more layers than diffIDs": _with_manifest(lambda m: m["layers"].append(m["layers"][0])),
    "too many layers": _with_manifest(lambda m: m.update(layers=m["layers"] * 501)),
    "no container image": _with_manifest(lambda m: m["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json")),
    "encrypted": _with_manifest(
        lambda m: m["layers"][0].update(mediaType="application/vnd.oci.image.layer.v1.tar+gzip+encrypted")
    ),
    "configuration no object": _with_config(lambda c: [1]),
    "no rootfs": _with_config(lambda c: c.pop("rootfs") and None),
    "diffID as a path": _with_config(lambda c: c["rootfs"].update(diff_ids=["sha256:" + "../" * 21 + "x"])),
    "Env no list": _with_config(lambda c: c["config"].update(Env="A=1")),
    "Cmd of numbers": _with_config(lambda c: c["config"].update(Cmd=[1])),
    "Cmd with a NUL": _with_config(lambda c: c["config"].update(Cmd=["a\0b"])),
    "User no string": _with_config(lambda c: c["config"].update(User=0)),
    "deeply nested": lambda path: (
        build.layout(path, {"v1": build.image(SMALL)}),
        Path(f"{path}/index.json").write_text("[" * 100_000),
    ),
    "index empty": lambda path: (
        build.layout(path, {"v1": build.image(SMALL)}),
        Path(f"{path}/index.json").write_text('{"manifests":[]}'),
    ),
    "schema 1": _with_manifest(lambda m: m.update(schemaVersion=1, fsLayers=[])),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_image_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    path = str(tmp_path / "layout")
    BROKEN[case](path)
    with pytest.raises(Failure) as caught:
        hook.up(step(tmp_path / "root", f"oci:{path}:v1"), {})
    assert caught.value.code == MALFORMED, caught.value
    assert "\n" not in str(caught.value)
    left = visible(tmp_path / "root")
    assert not {name for name in left if name.startswith(("refs/", "tmp/", "locks/", "layers/"))}
    assert json.loads((tmp_path / "root/images/index.json").read_text())["manifests"] == []


def test_a_full_disk_leaves_nothing_of_the_image(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    linux.mount("tmpfs", str(small), "tmpfs", 0, "size=200k")
    try:
        big = build.image(BASE, build.tar(build.file("big", os.urandom(1 << 20))))
        path = build.layout(str(tmp_path / "big"), {"v1": big})
        with pytest.raises(Failure) as caught:
            hook.up(step(small / "root", f"oci:{path}"), {})
        assert caught.value.code == 73
        assert not {name for name in visible(small / "root") if name.startswith(("refs/", "tmp/", "locks/"))}
    finally:
        linux.umount(str(small))


# --- many at once, and killed


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
    with publish.work(root) as scratch, publish.locked(root, "host"):
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
            with publish.locked(root, "x"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
            publish.sweep(root)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (400, 1)


# --- looking and removing


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
    with publish.locked(root, "store", shared=True), pytest.raises(Failure) as caught:
        commands.prune(root, nothing)
    assert caught.value.code == BUSY


def test_a_record_of_another_version_counts_as_none(tmp_path: Path, layered: tuple[str, build.Built]) -> None:
    path, _ = layered
    root = str(tmp_path / "root")
    commands.pull(root, f"oci:{path}:v1")
    record = Path(store.record(root, f"oci:{path}:v1"))
    for text in (record.read_text().replace('"v":1', '"v":0'), "{", "", "[]", '{"v":1}'):
        record.write_text(text)
        assert store.stored(root, f"oci:{path}:v1") is None
    assert commands.pull(root, f"oci:{path}:v1", "missing").digest == layered[1].digest
