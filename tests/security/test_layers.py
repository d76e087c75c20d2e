"""No image gets the files of another one's layer by naming it: what a blob is, its content says."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import MALFORMED, Failure
from podrun_hooks.image import commands
from podrun_hooks.image.layer.extract import extract
from podrun_hooks.image.layer.stream import Reader
from support import image_builder as build
from support.image_samples import nothing
from support.image_servers import faulty

pytestmark = [pytest.mark.root, pytest.mark.server]

SECRET = build.tar(build.file("secret", b"of somebody else's"))
ANOTHER = build.tar(build.file("another", b"x"))
EVIL = build.tar(build.file("evil", b"y"))


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


def pulled(root: str, built: build.Built) -> list[str]:
    """Pulls an image; returns the paths of its blobs that were asked for."""
    with faulty(built) as server:
        commands.pull(root, f"{server.host}/web")
        return server.paths("/blobs/")


@pytest.mark.parametrize("secrets", ["gzip", "zstd", ""])
@pytest.mark.parametrize("evils", ["gzip", "zstd", ""])
@pytest.mark.parametrize("known", [True, False], ids=["a blob that is in the store", "a new blob"])
def test_a_layer_is_not_had_by_claiming_its_diff_id(root: str, secrets: str, evils: str, known: bool) -> None:
    pulled(root, build.image(build.Layer(SECRET, secrets), build.Layer(EVIL if known else ANOTHER, evils)))
    claims = build.image(build.Layer(EVIL, evils, diff_id=build.digest(SECRET)))
    with pytest.raises(Failure, match="diffID") as caught:
        pulled(root, claims)
    assert caught.value.code == MALFORMED


def test_what_is_known_of_a_blob_is_not_asked_for_again(root: str) -> None:
    first = build.image(build.Layer(SECRET), build.Layer(ANOTHER))
    pulled(root, first)
    assert len(pulled(root, build.image(build.Layer(SECRET), Cmd=["other"]))) == 1, "the configuration alone"


def test_a_layer_of_a_store_that_has_not_noted_its_blob_is_read_again_and_kept(root: str) -> None:
    pulled(root, build.image(build.Layer(SECRET)))
    shutil.rmtree(f"{root}/images/pairs")
    assert len(pulled(root, build.image(build.Layer(SECRET), Cmd=["other"]))) == 1
    assert len(os.listdir(f"{root}/images/pairs")) == 1


def test_another_compression_of_a_layer_is_believed_when_it_has_been_read(root: str) -> None:
    pulled(root, build.image(build.Layer(SECRET, "gzip")))
    pulled(root, build.image(build.Layer(SECRET, "zstd")))
    assert len(os.listdir(f"{root}/images/pairs")) == 2


@pytest.mark.parametrize("own", ["", "gzip"])
def test_a_docker_archive_that_claims_a_layer_has_to_hold_it(root: str, tmp_path: Path, own: str) -> None:
    pulled(root, build.image(build.Layer(SECRET, "")))
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]}}
    config["rootfs"] = {"type": "layers", "diff_ids": [build.digest(SECRET)]}
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        build.add_to(archive, "layer.tar", build.Layer(EVIL, own).blob())
        build.add_to(archive, "config.json", json.dumps(config).encode())
        listed = [{"Config": "config.json", "RepoTags": ["web:1"], "Layers": ["layer.tar"]}]
        build.add_to(archive, "manifest.json", json.dumps(listed).encode())
    with pytest.raises(Failure) as caught:
        commands.pull(root, f"docker-archive:{tmp_path}/evil.tar")
    assert caught.value.code == MALFORMED


def test_prune_forgets_what_it_knew_of_blobs_that_it_removes(root: str) -> None:
    with faulty(build.image(build.Layer(SECRET))) as server:
        commands.pull(root, f"{server.host}/web")
        commands.rm(root, [f"{server.host}/web"], nothing)
    commands.prune(root, nothing)
    assert os.listdir(f"{root}/images/pairs") == []


#: What hosts leave in images: labels, ACLs, and what overlayfs keeps about the files below it.
LEAKED = [
    "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.origin",
    "user.overlay.opaque", "user.overlay.whiteout", "user.overlay.overlay.opaque", "trusted.anything",
    "security.selinux", "security.ima", "security.evm", "security.apparmor", "system.posix_acl_access",
    "system.posix_acl_default", "system.nfs4_acl", "unknown.class", "userx.note",
]  # fmt: skip


@pytest.mark.parametrize(
    "make", [lambda: build.file("f", b"x"), lambda: build.directory("f"), lambda: build.symlink("f", "x")]
)
def test_of_extended_attributes_a_layer_keeps_its_capability_and_what_is_the_users(tmp_path: Path, make: Any) -> None:
    capability = b"\1\0\0\2\0\x20\0\0" + bytes(12)
    given = dict.fromkeys(LEAKED, b"y") | {"user.note": b"y"}
    if make() == build.file("f", b"x"):
        given["security.capability"] = capability
    records = {f"SCHILY.xattr.{name}".encode(): value for name, value in given.items()}
    target = tmp_path / "layer"
    target.mkdir()
    whole = build.tar(build.pax(records) + make())
    extract(Reader(iter([whole]), "layer"), str(target), str(tmp_path))
    kept = set(os.listxattr(target / "f", follow_symlinks=False))
    assert kept <= {"user.note", "security.capability"}
    assert ("security.capability" in kept) == ("security.capability" in given)


def test_a_whiteout_of_overlayfs_that_leaked_into_a_layer_is_left_out_with_the_rest_kept(tmp_path: Path) -> None:
    target = tmp_path / "layer"
    target.mkdir()
    parts = [
        build.file("a", b"x"),
        build.header(b"gone", b"3", device=(0, 0)),
        build.header(b"tty", b"3", device=(5, 0)),
        build.file("b", b"x"),
    ]
    extract(Reader(iter([build.tar(*parts)]), "layer"), str(target), str(tmp_path))
    assert sorted(os.listdir(target)) == ["a", "b", "tty"]
