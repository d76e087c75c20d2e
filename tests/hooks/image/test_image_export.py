"""Images that leave the store: archives that skopeo, podman and docker read, and come back the same."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from podrun.errors import CANNOT_CREATE, UNAVAILABLE, Failure
from podrun_hooks.image import commands
from support import image_builder as build
from support.image_samples import BASE, CHANGE, IMPLICIT
from support.image_servers import docker_registry
from support.launcher import Podrun

pytestmark = [pytest.mark.root, pytest.mark.server]

LAYERED = build.image(BASE, CHANGE, IMPLICIT, Cmd=["/bin/app"], Env=["A=1"])
MIXED = build.image(build.Layer(BASE, "zstd"), build.Layer(CHANGE, ""), IMPLICIT, Cmd=["/bin/app"])
FORMATS = ["oci-archive", "docker-archive"]


def pulled(tmp_path: Path, root: str, built: build.Built = LAYERED, name: str = "registry.example/team/web:1") -> str:
    """A store with an image of this name in it; returns the reference."""
    path = build.layout(str(tmp_path / "layout"), {name: built})
    return commands.pull(root, f"oci:{path}:{name}").ref


def config_of(built: build.Built) -> dict[str, object]:
    return json.loads(built.config)["config"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("built", [LAYERED, MIXED], ids=["gzip", "mixed"])
def test_what_is_exported_comes_back_the_same(tmp_path: Path, root: str, form: str, built: build.Built) -> None:
    ref = pulled(tmp_path, root, built)
    before = commands.pull(root, ref)
    assert commands.export(root, [ref], str(tmp_path / "out.tar"), form) == [built.digest]
    [after] = commands.import_(str(tmp_path / "other"), str(tmp_path / "out.tar"))
    assert [os.path.basename(layer) for layer in after.layers] == [os.path.basename(layer) for layer in before.layers]
    assert after.config == before.config
    if form == "oci-archive":
        assert after.digest == built.digest
    for one, other in zip(before.layers, after.layers, strict=True):
        assert build.tree(one) == build.tree(other)


@pytest.mark.parametrize("form", FORMATS)
def test_skopeo_reads_it(tmp_path: Path, root: str, form: str) -> None:
    ref = pulled(tmp_path, root)
    commands.export(root, [ref], str(tmp_path / "out.tar"), form)
    argv = ["skopeo", "inspect", "--config", f"{form}:{tmp_path}/out.tar"]
    told = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    assert told["config"] == config_of(LAYERED)


@pytest.mark.parametrize("form", FORMATS)
def test_podman_loads_it_under_its_name(tmp_path: Path, home: Path, root: str, form: str) -> None:
    ref = pulled(tmp_path, root)
    commands.export(root, [ref], str(tmp_path / "out.tar"), form)
    podman = ["podman", "--root", str(home / "p"), "--runroot", str(home / "r"), "--storage-driver", "vfs"]
    done = subprocess.run([*podman, "load", "-i", str(tmp_path / "out.tar")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "registry.example/team/web:1" in done.stdout
    argv = [*podman, "image", "inspect", "registry.example/team/web:1"]
    [told] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    assert told["Config"]["Cmd"] == ["/bin/app"]
    assert told["RootFS"]["Layers"] == json.loads(LAYERED.config)["rootfs"]["diff_ids"]


@pytest.mark.usefixtures("dockerd")
@pytest.mark.parametrize(
    ("form", "built"),
    [("oci-archive", LAYERED), ("docker-archive", LAYERED), ("docker-archive", MIXED)],
    ids=["oci", "docker", "docker of zstd"],
)
def test_docker_loads_it_and_it_comes_back_from_there(tmp_path: Path, root: str, form: str, built: build.Built) -> None:
    ref = pulled(tmp_path, root, built)
    commands.export(root, [ref], str(tmp_path / "out.tar"), form)
    done = subprocess.run(["docker", "load", "-i", str(tmp_path / "out.tar")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "registry.example/team/web:1" in done.stdout
    back = commands.pull(str(tmp_path / "other"), "docker-daemon:registry.example/team/web:1")
    first = commands.pull(root, ref)
    assert [os.path.basename(layer) for layer in back.layers] == [os.path.basename(layer) for layer in first.layers]
    subprocess.run(["docker", "rmi", "registry.example/team/web:1"], check=True, capture_output=True)


def test_an_image_of_docker_media_types_becomes_an_oci_archive(tmp_path: Path, root: str) -> None:
    path = build.layout(str(tmp_path / "layout"), {"v1": LAYERED})
    (tmp_path / "registry").mkdir()
    with docker_registry(tmp_path / "registry") as registry:
        target = f"docker://{registry.host}/team/web:1"
        argv = ["skopeo", "copy", "--dest-tls-verify=false", "--format=v2s2", f"oci:{path}:v1", target]
        subprocess.run(argv, check=True, capture_output=True)
        ref = commands.pull(root, f"{registry.host}/team/web:1").ref
    commands.export(root, [ref], str(tmp_path / "out.tar"))
    with tarfile.open(tmp_path / "out.tar") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    [entry] = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(files[f"blobs/{entry['digest'].replace(':', '/')}"])
    oci = "application/vnd.oci.image"
    assert {entry["mediaType"], manifest["mediaType"]} == {f"{oci}.manifest.v1+json"}
    assert manifest["config"]["mediaType"] == f"{oci}.config.v1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [f"{oci}.layer.v1.tar+gzip"] * 3
    for blob in (entry, manifest["config"], *manifest["layers"]):
        content = files[f"blobs/{blob['digest'].replace(':', '/')}"]
        assert (build.digest(content), len(content)) == (blob["digest"], blob["size"])
    assert json.loads(files[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])["config"] == config_of(LAYERED)
    copy = ["skopeo", "copy", f"oci-archive:{tmp_path}/out.tar", f"oci:{tmp_path}/copy:x"]
    subprocess.run(copy, check=True, capture_output=True)


def test_an_export_through_a_pipe_is_the_same(podrun: Podrun, home: Path) -> None:
    path = build.layout(str(home / "layout"), {"v1": LAYERED})
    podrun("image", "pull", "-q", f"oci:{path}:v1", check=True)
    podrun("image", "export", f"oci:{path}:v1", str(home / "out.tar"), check=True)
    argv = podrun.argv("image", "export", f"oci:{path}:v1", "-")
    done = subprocess.run(argv, env=podrun.environ, capture_output=True, check=True)
    assert done.stdout == (home / "out.tar").read_bytes()
    assert done.stderr.decode().strip() == LAYERED.digest


def test_an_export_that_fails_leaves_no_file(tmp_path: Path, root: str) -> None:
    ref = pulled(tmp_path, root)
    (tmp_path / "full").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path / "full")], check=True)
    try:
        with pytest.raises(Failure) as caught:
            commands.export(root, [ref], str(tmp_path / "full/out.tar"), "docker-archive")
        assert caught.value.code == CANNOT_CREATE
        assert os.listdir(tmp_path / "full") == []
    finally:
        subprocess.run(["umount", str(tmp_path / "full")], check=True)
    with pytest.raises(Failure) as caught:
        commands.export(root, ["nothing/such"], str(tmp_path / "out.tar"))
    assert caught.value.code == UNAVAILABLE
    with pytest.raises(Failure, match="/dev/null is not a plain file"):
        commands.export(root, [ref], "/dev/null")


def test_the_archive_holds_every_blob_once(tmp_path: Path, root: str) -> None:
    twice = build.image(BASE, CHANGE, BASE)
    commands.export(root, [pulled(tmp_path, root, twice)], str(tmp_path / "out.tar"))
    with tarfile.open(tmp_path / "out.tar") as archive:
        names = archive.getnames()
    assert len(names) == len(set(names)) == 2 + 1 + 1 + 3


# --- history and sizes


def test_history_tells_every_step_with_its_size_the_newest_first(tmp_path: Path, root: str) -> None:
    path = str(tmp_path / "layout")
    built = build.image(build.tar(build.file("a", bytes(100_000))), build.tar(build.file("b", b"1")))
    config = json.loads(built.config)
    config["history"] = [
        {"created": "2024-01-01T00:00:00Z", "created_by": "COPY a\n /"},
        {"created_by": "ENV A=1\x1b[31m", "empty_layer": True},
        {"created_by": "COPY b /", "comment": "buildkit"},
    ]
    text = json.dumps(config).encode()
    manifest = json.loads(built.manifest)
    manifest["config"] |= {"digest": build.digest(text), "size": len(text)}
    again = json.dumps(manifest).encode()
    blobs = {**built.blobs, build.digest(text): text, build.digest(again): again}
    build.layout(path, {"v1": build.Built(blobs, again, text)})
    commands.pull(root, f"oci:{path}:v1")
    made = commands.history(root, f"oci:{path}:v1")
    assert [(step.created_by, step.size, step.comment) for step in made] == [
        ("COPY b /", 4096, "buildkit"),
        ("ENV A=1 [31m", 0, ""),
        ("COPY a /", 102_400, ""),
    ]


def test_an_image_without_a_history_has_a_step_for_every_layer(podrun: Podrun, home: Path) -> None:
    path = build.layout(str(home / "layout"), {"v1": LAYERED})
    podrun("image", "pull", f"oci:{path}:v1", check=True)
    done = podrun("image", "history", "--format", "json", f"oci:{path}:v1", check=True)
    assert len(done.stdout.splitlines()) == 3
    assert len(podrun("image", "history", f"oci:{path}:v1", check=True).stdout.splitlines()) == 4


def test_the_size_that_is_listed_is_the_one_on_the_disk(tmp_path: Path, root: str) -> None:
    files = [build.file(f"f{number}", os.urandom(5000)) for number in range(200)]
    path = build.layout(str(tmp_path / "layout"), {"v1": build.image(build.tar(*files, build.hardlink("h", "f0")))})
    commands.pull(root, f"oci:{path}:v1")
    [listed] = commands.ls(root)
    os.sync()
    store = f"{root}/images"
    told = subprocess.run(["du", "-s", "-B1", f"{store}/blobs", f"{store}/layers"], check=True, capture_output=True)
    real = sum(int(line.split()[0]) for line in told.stdout.splitlines())
    assert abs(listed.size - real) < 0.05 * real


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_an_image_keeps_its_names_through_a_file_without_one(podrun: Podrun, home: Path, form: str) -> None:
    def names(ref: str) -> list[str]:
        podrun("image", "export", "--format", form, ref, str(home / "out.tar"), check=True)
        with tarfile.open(home / "out.tar") as archive:
            file = archive.extractfile("manifest.json")
            assert file
            (home / "out.tar").unlink()
            return list(json.load(file)[0]["RepoTags"] or [])

    layout = build.layout(str(home / "layout"), {"web": build.image(build.tar(build.file("a")))})
    for name in ("registry.example/team/web:1.4", "registry.example/web:2"):
        podrun("image", "pull", f"oci:{layout}:web", check=True)
        podrun("image", "tag", f"oci:{layout}:web", name, check=True)
    podrun("image", "untag", f"oci:{layout}:web", check=True)
    digest = json.loads(podrun("image", "ls", "--format", "json").stdout.splitlines()[0])["digest"]
    assert names("registry.example/web:2") == ["registry.example/web:2"]
    assert names(digest) == ["registry.example/team/web:1.4", "registry.example/web:2"]
    podrun("image", "export", "--format", form, "registry.example/web:2", str(home / "one.tar"), check=True)
    podrun("image", "rm", digest, check=True)
    podrun("image", "pull", f"{form}:{home}/one.tar", check=True)
    assert names(f"{form}:{home}/one.tar") == ["registry.example/web:2"]
