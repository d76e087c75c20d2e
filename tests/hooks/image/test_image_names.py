"""Names: those that an archive gives, more of them, none of them, and digests in their place."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Pod, Step
from podrun.options import read
from podrun_hooks import image
from podrun_hooks.image import commands, lookup, manifest, reference
from podrun_hooks.image.manifest import Platform
from podrun_hooks.image.store import layout, publish
from podrun_hooks.image.store.scratch import work
from podrun_hooks.storage import volumes
from podrun_hooks.support.rooted_tree import Tree
from support import image_builder as build
from support.image_samples import BASE, CHANGE

pytestmark = pytest.mark.root

ONE, TWO = build.image(BASE, Cmd=["/bin/one"]), build.image(BASE, CHANGE, Cmd=["/bin/two"])
NAMES = ["docker.io/library/one:latest", "docker.io/library/two:latest"]


def archive(tmp_path: Path, images: dict[str, build.Built]) -> Path:
    """An archive as docker 25 writes it: a layout whose images have their full name, and their tag alone beside it."""
    layout = Path(build.layout(str(tmp_path / f"l{len(images)}"), images))
    index = json.loads((layout / "index.json").read_text())
    for item in index["manifests"]:
        name = item["annotations"]["org.opencontainers.image.ref.name"]
        item["annotations"]["io.containerd.image.name"] = name
        item["annotations"]["org.opencontainers.image.ref.name"] = name.rpartition(":")[2]
    (layout / "index.json").write_text(json.dumps(index))
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as file:
        for entry in sorted(layout.iterdir()):
            file.add(entry, entry.name)
    return path


def refs(root: str) -> list[str]:
    return [one.ref for one in commands.ls(root)]


def test_both_images_of_an_archive_come_by_the_names_in_it(tmp_path: Path, root: str) -> None:
    path = archive(tmp_path, dict(zip(NAMES, (ONE, TWO), strict=True)))
    found = commands.import_(root, str(path))
    assert [(one.ref, one.digest) for one in found] == list(zip(NAMES, (ONE.digest, TWO.digest), strict=True))
    assert refs(root) == NAMES


def test_an_imported_image_starts_by_its_name_where_there_is_no_network(tmp_path: Path, root: str) -> None:
    name = "registry.example/team/web:1.4"
    path = archive(tmp_path, {name: ONE})
    commands.import_(root, str(path))
    path.unlink()
    step = Step(Pod("web", root, str(tmp_path / "run")), "image", "image", read(image.Options, {"ref": name}))
    assert image.check(step) == []
    assert image.up(step, {})["images"]["image"]["digest"] == ONE.digest


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["tar", "gz", "bz2", "xz"])
def test_an_archive_comes_through_a_pipe_however_it_is_compressed(
    tmp_path: Path, root: str, packed: Callable[[bytes], bytes]
) -> None:
    path = archive(tmp_path, dict(zip(NAMES, (ONE, TWO), strict=True)))
    program = "import sys; from podrun_hooks.image import commands; commands.import_(sys.argv[1], sys.argv[2])"
    for place in ("-", "/dev/stdin"):
        argv = [sys.executable, "-c", program, root, place]
        done = subprocess.run(argv, input=packed(path.read_bytes()), capture_output=True)
        assert done.returncode == 0, done.stderr
        assert refs(root) == NAMES
    assert os.listdir(f"{root}/images/tmp") == []


@pytest.mark.parametrize("packed", [bz2.compress, lzma.compress], ids=["bz2", "xz"])
def test_a_compressed_archive_that_is_cut_short_is_told(tmp_path: Path, root: str, packed: Callable) -> None:
    (tmp_path / "cut").write_bytes(packed(archive(tmp_path, {NAMES[0]: ONE}).read_bytes())[:-20])
    with pytest.raises(Failure, match="cannot be unpacked"):
        commands.import_(root, str(tmp_path / "cut"))


@pytest.mark.parametrize(
    ("content", "told", "hint"),
    [
        (b"", "is empty", ""),
        (b"root:x:0:0" * 100, "is neither a tar archive nor a compressed one", ""),
        (build.tar(build.file("etc/passwd")), "it has neither index.json nor manifest.json", "dir:/DIRECTORY"),
        (gzip.compress(build.tar(build.file("a"))), "it has neither index.json nor manifest.json", ""),
    ],
    ids=["nothing", "a text", "a file system", "something else"],
)
@pytest.mark.parametrize("pipe", [False, True])
def test_what_is_no_archive_of_images_is_told_by_its_name(
    tmp_path: Path, root: str, content: bytes, told: str, hint: str, pipe: bool
) -> None:
    path = tmp_path / "it"
    path.write_bytes(content)
    if pipe:
        program = "import sys; from podrun_hooks.image import commands; commands.import_(sys.argv[1], '-')"
        with path.open("rb") as file:
            done = subprocess.run([sys.executable, "-c", program, root], stdin=file, capture_output=True, text=True)
        assert "Failure: standard input is " in done.stderr
        assert told in done.stderr
        return
    with pytest.raises(Failure, match=told) as caught:
        commands.import_(root, str(path))
    assert caught.value.what.startswith(f"{path} is ")
    assert hint in caught.value.hint


def test_an_import_is_told_by_the_images_names(tmp_path: Path, root: str) -> None:
    said: list[str] = []
    commands.import_(root, str(archive(tmp_path, dict(zip(NAMES, (ONE, TWO), strict=True)))), said.append)
    assert {f"STATUS=Importing {name}" for name in NAMES} <= {*said}
    assert not any("Pulling" in line for line in said)


def test_names_are_given_and_taken(tmp_path: Path, root: str) -> None:
    commands.import_(root, str(archive(tmp_path, {NAMES[0]: ONE})))
    assert commands.tag(root, "one", "registry.example/a:2").digest == ONE.digest
    assert commands.tag(root, ONE.digest[7:19], "b").ref == "docker.io/library/b:latest"
    assert refs(root) == ["docker.io/library/b:latest", NAMES[0], "registry.example/a:2"]
    assert commands.untag(root, ["one", "b"]) == [NAMES[0], "docker.io/library/b:latest"]
    assert refs(root) == ["registry.example/a:2"]
    for ref, name, code in (("nowhere", "x", UNAVAILABLE), ("registry.example/a:2", "dir:/x", WRONG_FILE)):
        with pytest.raises(Failure) as caught:
            commands.tag(root, ref, name)
        assert caught.value.code == code


ID = build.digest(ONE.config)


@pytest.mark.parametrize(
    "text",
    [f"one@{ONE.digest}", f"one:9@{ONE.digest}", ONE.digest, ONE.digest[7:], ONE.digest[7:19], ID, ID[7:], ID[7:19]],
)
def test_an_id_or_a_digest_stands_for_an_image_wherever_a_name_does(tmp_path: Path, root: str, text: str) -> None:
    commands.import_(root, str(archive(tmp_path, dict(zip(NAMES, (ONE, TWO), strict=True)))))
    for pull in ("missing", "never"):
        options = read(image.Options, {"ref": text, "pull": pull})
        step = Step(Pod("web", root, str(tmp_path / "run")), "image", "image", options)
        assert image.check(step) == []
        assert image.up(step, {})["images"]["image"]["digest"] == ONE.digest
    assert lookup.names(root, [text]) == {NAMES[0]}


@pytest.mark.parametrize("text", [f"two@{ONE.digest}", f"one@{TWO.digest}", "0123456789ab", ID[7:15]])
def test_a_start_takes_no_image_for_another(tmp_path: Path, root: str, text: str) -> None:
    """A digest is one of its repository's, and a few digits can be a name."""
    commands.import_(root, str(archive(tmp_path, dict(zip(NAMES, (ONE, TWO), strict=True)))))
    step = Step(
        Pod("web", root, str(tmp_path / "run")), "image", "image", read(image.Options, {"ref": text, "pull": "never"})
    )
    [problem] = image.check(step)
    assert problem.code == UNAVAILABLE


def test_an_index_s_digest_means_the_image_of_the_platform(tmp_path: Path, root: str) -> None:
    commands.import_(root, str(archive(tmp_path, {NAMES[0]: ONE})))
    stored = layout.stored(root, NAMES[0])
    assert stored
    index = f"sha256:{'1' * 64}"
    with work(root) as scratch:
        publish.put_record(root, scratch, stored._replace(remote=index, platform="linux/arm64"))
    named = reference.parse(f"one@{index}")
    assert lookup.identified(root, named, "") is None
    found = lookup.identified(root, named, "linux/arm64")
    assert found
    assert found.digest == ONE.digest


def test_the_list_shows_what_an_image_is_for(tmp_path: Path, root: str) -> None:
    commands.import_(root, str(archive(tmp_path, {NAMES[0]: ONE})))
    [one] = commands.ls(root)
    config = json.loads(ONE.config)
    assert one.platform == f"{config['os']}/{config['architecture']}"


# --- platforms -----------------------------------------------------------------------------------------------------


def index_of(*platforms: str) -> dict[str, object]:
    keys = ("os", "architecture", "variant")
    items = [dict(zip(keys, text.split("/"), strict=False)) for text in platforms]
    return {
        "manifests": [
            {"mediaType": manifest.OCI_MANIFEST, "digest": f"sha256:{n:064x}", "size": n + 1, "platform": item}
            for n, item in enumerate(items)
        ]
    }


@pytest.mark.parametrize(
    ("wanted", "level", "offered", "chosen"),
    [
        ("linux/amd64", 1, ("linux/amd64/v3", "linux/amd64", "linux/amd64/v2"), 1),
        ("linux/amd64", 2, ("linux/amd64/v3", "linux/amd64", "linux/amd64/v2"), 2),
        ("linux/amd64", 4, ("linux/amd64", "linux/amd64/v3", "linux/amd64/v2"), 1),
        ("linux/amd64/v2", 4, ("linux/amd64", "linux/amd64/v3", "linux/amd64/v2"), 2),
        ("linux/amd64", 1, ("linux/amd64/v3", "linux/amd64/v2"), None),
        ("linux/arm/v7", 1, ("linux/arm/v5", "linux/arm/v6"), 1),
        ("linux/arm/v7", 1, ("linux/arm/v6", "linux/arm/v7"), 1),
        ("linux/arm/v6", 1, ("linux/arm/v7", "linux/arm/v5"), 1),
        ("linux/arm/v6", 1, ("linux/arm/v7",), None),
        ("linux/arm64", 1, ("linux/arm/v7", "linux/arm64/v8"), 1),
    ],
)
def test_the_best_variant_that_runs_is_chosen(
    wanted: str, level: int, offered: tuple[str, ...], chosen: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_amd64_level", lambda: level)
    if chosen is None:
        with pytest.raises(Failure, match="has no image for"):
            manifest.choose(index_of(*offered), manifest.platform(wanted), "x")
    else:
        assert manifest.choose(index_of(*offered), manifest.platform(wanted), "x").size == chosen + 1


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("fpu sse2", 1),
        ("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3", 2),
        ("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma movbe xsave", 3),
        ("abm avx avx2 bmi1 bmi2 f16c fma movbe xsave", 1),
    ],
)
def test_the_level_of_a_processor_follows_from_its_flags(tmp_path: Path, flags: str, level: int) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags\t\t: {flags}\n")
    assert manifest._amd64_level(str(tmp_path / "cpuinfo")) == level
    assert Platform("linux", "amd64", "") == manifest.platform("linux/x86_64")


@pytest.mark.parametrize("kind", ["application/octet-stream", "text/html", "application/json", ""])
def test_a_configuration_of_an_old_media_type_is_taken(kind: str) -> None:
    config = {"digest": f"sha256:{1:064x}", "size": 2, "mediaType": kind}
    text = json.dumps({"schemaVersion": 2, "mediaType": manifest.OCI_MANIFEST, "config": config, "layers": []})
    found = manifest.manifest(text.encode(), manifest.Descriptor("", manifest.digest_of(text.encode()), 1), "x")
    assert found.config.digest == config["digest"]


# --- volumes -------------------------------------------------------------------------------------------------------


def test_a_volume_inside_another_mount_is_filled_from_the_image(tmp_path: Path) -> None:
    """The node_modules pattern: /app from the host, a volume at /app/node_modules with what the image has there."""
    from podrun_hooks.container import mounts

    for place, word in (("image/app/node_modules", "image"), ("host/node_modules", "host")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "from").write_text(word)
    for name in ("proc", "sys", "dev"):
        (tmp_path / "image" / name).mkdir()
    root = str(tmp_path / "root")
    assert volumes.provide(root, "modules")
    place = SimpleNamespace(stage=str(tmp_path / "stage"), rootfs=str(tmp_path / "rootfs"))  # type: ignore[assignment]
    wanted = [
        {"hostPath": str(tmp_path / "host"), "containerPath": "/app", "options": ["bind"]},
        {
            "hostPath": volumes.path_of(root, "modules"), "containerPath": "/app/node_modules", "options": ["bind"],
            "fill": True,
        },
    ]  # fmt: skip
    fd = os.open(tmp_path / "image", os.O_PATH)
    mounts.make(Tree(fd), wanted, place).close()
    os.close(fd)
    assert Path(volumes.path_of(root, "modules"), "from").read_text() == "image"
