"""Images that are not what they say: refused, and nothing of them stays."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import MALFORMED, UNAVAILABLE, Failure
from podrun_hooks import image as hook
from support import image_builder as build
from support.image_samples import BASE, layered_image, small_disk, step, visible

__all__ = ["small_disk"]

pytestmark = pytest.mark.root


@pytest.fixture
def layered(tmp_path: Path) -> tuple[str, build.Built]:
    return layered_image(tmp_path)


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


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ],
)
def test_an_image_with_foreign_layers_is_refused(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "layout")
    _with_manifest(lambda m: m["layers"][0].update(mediaType=kind, urls=["https://maker.example/layer"]))(path)
    with pytest.raises(Failure, match="foreign layer") as caught:
        hook.up(step(tmp_path / "root", f"oci:{path}:v1"), {})
    assert caught.value.code == UNAVAILABLE


def test_a_full_disk_leaves_nothing_of_the_image(tmp_path: Path, small_disk: Path) -> None:
    big = build.image(BASE, build.tar(build.file("big", os.urandom(1 << 20))))
    path = build.layout(str(tmp_path / "big"), {"v1": big})
    with pytest.raises(Failure) as caught:
        hook.up(step(small_disk / "root", f"oci:{path}"), {})
    assert caught.value.code == 73
    assert not {name for name in visible(small_disk / "root") if name.startswith(("refs/", "tmp/", "locks/"))}
