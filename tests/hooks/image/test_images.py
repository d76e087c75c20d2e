"""Images through the whole command line: from a real registry and from files, into a running container."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import image_builder as build
from support.image_servers import Registry, docker_registry
from support.launcher import Podrun

pytestmark = [pytest.mark.root, pytest.mark.server]


def busybox() -> bytes:
    return Path("/bin/busybox").read_bytes()


#: Three layers: the second hides a file and a whole directory of the first, the third replaces what is below.
LAYERS = build.image(
    build.tar(
        build.directory("bin"),
        build.file("bin/busybox", busybox(), mode=0o755),
        build.symlink("bin/sh", "busybox"),
        build.symlink("bin/ls", "busybox"),
        build.symlink("bin/cat", "busybox"),
        build.symlink("bin/sleep", "busybox"),
        build.directory("data"),
        build.file("data/kept", b"first\n"),
        build.file("data/removed", b"first\n"),
        build.directory("gone"),
        build.file("gone/file", b"x"),
        build.directory("opaque"),
        build.file("opaque/old", b"x"),
        build.directory("etc"),
        build.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1234:1234::/data:/bin/sh\n"),
    ),
    build.tar(
        build.file("data/.wh.removed"),
        build.file(".wh.gone"),
        build.directory("opaque"),
        build.file("opaque/.wh..wh..opq"),
        build.file("opaque/new", b"y"),
    ),
    build.tar(build.file("data/kept", b"third\n")),
    Entrypoint=["/bin/sh", "-c"],
    Cmd=["ls /data /opaque; ls / | cat; cat /data/kept; echo $GREETING"],
    Env=["PATH=/bin", "GREETING=hello"],
    User="app",
    WorkingDir="/data",
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def layout(home: Path) -> str:
    return build.layout(str(home / "layout"), {"v1": LAYERS})


def chain(podrun: Podrun, ref: Any) -> Any:
    return podrun.file("web", f'chain = [ {{ hook = "image", ref = "{ref}" }}, {{ hook = "container" }} ]')


def test_an_image_of_several_layers_from_a_registry_runs_as_it_says(podrun: Podrun, layout: Any, registry: Any) -> None:
    ref = registry.push(f"oci:{layout}:v1", "team/web:1.4")
    done = podrun("up", chain(podrun, ref))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[:5] == ["/data:", "kept", "/opaque:", "new", "bin"]
    assert "gone" not in lines
    assert lines[-2:] == ["third", "hello"]


def test_the_second_start_asks_nobody(podrun: Podrun, layout: Any, registry: Any) -> None:
    ref = registry.push(f"oci:{layout}:v1", "team/cached:1")
    podrun("image", "pull", ref, check=True)
    before = len(registry.requests("cached"))
    assert podrun("run", "--rm", ref).returncode == 0
    assert len(registry.requests("cached")) == before


def test_every_kind_of_source_gives_the_same_container(podrun: Podrun, home: Path, layout: Any) -> None:
    archive = build.docker_archive(str(home / "docker.tar"), {"web:1": LAYERS})
    shutil.make_archive(str(home / "oci"), "tar", layout)
    seen = set()
    for ref in (f"oci:{layout}:v1", f"oci-archive:{home}/oci.tar:v1", f"docker-archive:{archive}:web:1"):
        done = podrun("run", "--rm", ref)
        assert done.returncode == 0, f"{ref}: {done.stderr}"
        seen.add(done.stdout)
    assert len(seen) == 1


def test_the_users_and_the_working_directory_are_the_images(podrun: Podrun, layout: Any) -> None:
    done = podrun("run", "--rm", f"oci:{layout}:v1", "busybox id -u; busybox pwd; echo $HOME")
    assert done.stdout.split() == ["1234", "/data", "/data"], done.stderr


def test_what_a_container_writes_is_gone_and_the_image_is_untouched(podrun: Podrun, layout: Any) -> None:
    ref = f"oci:{layout}:v1"
    assert podrun("run", "--rm", "-u", "0", ref, "echo changed >/data/kept; cat /data/kept").stdout == "changed\n"
    assert podrun("run", "--rm", ref, "cat /data/kept").stdout == "third\n"


def test_an_image_in_use_is_not_removed(podrun: Podrun, layout: Any) -> None:
    ref = f"oci:{layout}:v1"
    podrun("run", "-d", "--name", "web", ref, "trap 'exit 0' TERM; while :; do busybox sleep 0.1; done", check=True)
    refused = podrun("image", "rm", ref)
    assert refused.returncode == 75, refused.stderr
    podrun("down", "web", check=True)
    assert podrun("image", "rm", ref).returncode == 0
    assert podrun("image", "ls", "-q").stdout == ""


def test_pull_prints_the_manifests_digest_and_ls_and_inspect_show_it(podrun: Podrun, layout: Any) -> None:
    ref = f"oci:{layout}:v1"
    digest = podrun("image", "pull", ref, check=True).stdout.strip()
    assert digest == LAYERS.digest
    [row] = [json.loads(line) for line in podrun("image", "ls", "--format", "json").stdout.splitlines()]
    assert row["digest"] == digest
    [told] = json.loads(podrun("image", "inspect", ref).stdout)
    assert told["digest"] == digest
    assert len(told["layers"]) >= 3


def test_an_image_is_known_by_its_id_too_and_goes_through_an_archive(podrun: Podrun, home: Path, layout: Any) -> None:
    ref = f"oci:{layout}:v1"
    podrun("image", "pull", ref, check=True)
    podrun("image", "tag", ref, "localhost/mine:1", check=True)
    form = ["--format", "{id}"]
    [id] = {*podrun("images", *form, check=True).stdout.split()}
    assert len(id) == 71
    short = id[7:19]
    assert podrun("run", "--rm", short, "cat /data/kept").stdout == "third\n"
    assert podrun("run", "--rm", "--label", "a=b", id, "cat /data/kept").stdout == "third\n"
    assert [podrun("image", "exists", word).returncode for word in (short, id, "localhost/mine:1", "nope")] == [
        0,
        0,
        0,
        1,
    ]
    assert podrun("images", "localhost/mine:1", "--format", "{ref}").stdout == "localhost/mine:1\n"
    for word in (short, f"localhost/mine@{LAYERS.digest}"):
        source = f'{{ hook = "storage", source = "image:{word}", target = "/mnt" }}'
        steps = f'{{ hook = "image", ref = "{word}" }}, {{ hook = "network", mode = "none" }}, {source}'
        command = '{ hook = "container", command = ["cat /mnt/data/kept"] }'
        assert podrun("up", podrun.file("mounts", f"chain = [ {steps}, {command} ]")).stdout == "third\n"
        assert set(podrun("images", word, "--format", "{ref}").stdout.split()) >= {"localhost/mine:1"}
    for word in (short, "localhost/mine:1"):  # what is no pod can be an image
        assert podrun("inspect", "-f", "{id}", word).stdout.split()[0] == id
    podrun("save", "-o", str(home / "saved.tar"), "localhost/mine:1", check=True)
    podrun("rmi", short, check=True)
    assert podrun("image", "exists", short).returncode == 1
    assert podrun("load", "-i", str(home / "saved.tar"), check=True).stdout == "Loaded image: localhost/mine:1\n"
    assert podrun("image", "inspect", "-f", "{ref} {id}", "localhost/mine:1").stdout == f"localhost/mine:1 {id}\n"


def test_a_registry_that_nobody_listens_at_is_unavailable(podrun: Podrun) -> None:
    done = podrun("run", "--rm", "--name", "x", "127.0.0.1:1/team/web:1", "true")
    assert done.returncode == 69
    assert done.stderr.strip().splitlines()[-1].startswith("podrun: x: image: 127.0.0.1:1")


def test_an_image_that_lies_about_a_layer_is_malformed(podrun: Podrun, home: Path, layout: Any) -> None:
    digest = json.loads(LAYERS.manifest)["layers"][2]["digest"]
    blob = home / "layout/blobs/sha256" / digest.removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes()[:-5] + b"\0\0\0\0\0")
    done = podrun("run", "--rm", "--name", "x", f"oci:{layout}:v1")
    assert done.returncode == 65, done.stderr
    assert podrun("image", "ls", "-q").stdout == ""


@pytest.mark.parametrize(
    "words", [["UPPER/x"], ["oci:/nowhere"], ["127.0.0.1:1/x"], ["--policy", "/nowhere", "x"], ["dir:/"], ["nginx:"]]
)
def test_a_pull_ends_the_same_whether_click_reads_its_arguments_or_not(podrun: Podrun, words: Any) -> None:
    plain = podrun("image", "pull", *words)
    by_click = podrun("image", "pull", *words[:-1], "--", words[-1])
    assert (plain.returncode, plain.stdout, plain.stderr) == (by_click.returncode, by_click.stdout, by_click.stderr)


def test_a_pull_that_finds_nothing_to_do_tells_the_digest_and_asks_only_once(podrun: Podrun) -> None:
    from support.image_servers import faulty

    built = build.image(build.tar(build.file("a", b"a")))
    other = build.image(build.tar(build.file("a", b"b")))
    now = [built]

    def change(request: Any) -> Any:
        if "/manifests/" in request.path:
            kind = "application/vnd.oci.image.manifest.v1+json"
            request.reply(200, now[0].manifest, Docker_Content_Digest=now[0].digest, Content_Type=kind)
            return True
        content = {**built.blobs, **other.blobs}.get(request.path.rpartition("/")[2])
        if content:
            request.reply(200, content)
        return bool(content)

    with faulty(built, change) as server:
        ref = f"{server.host}/web"
        said = [podrun("image", "pull", ref, check=True) for _ in range(2)]
        assert [done.stdout for done in said] == [f"{built.digest}\n"] * 2
        assert said[1].stderr == f"Pulling {server.host}/web:latest\n"
        now[0] = other
        server.seen.clear()
        assert podrun("image", "pull", ref, check=True).stdout == f"{other.digest}\n"
        asked = [path for _, path, _ in server.seen if "/manifests/" in path]
        assert len(asked) == 2  # HEAD by the quick way, GET
    # Nobody answers any more: that is told as ever.
    done = podrun("image", "pull", ref)
    assert done.returncode == 69
    assert "cannot be reached" in done.stderr


def test_a_pod_whose_image_is_not_there_shows_the_pull_and_one_whose_image_is_there_shows_nothing(
    podrun: Podrun, home: Path
) -> None:
    from support.image_servers import faulty

    built = build.image(build.tar(build.file("a", b"a")))
    with faulty(built) as server:
        ref = f"{server.host}/web:1"
        line = f"Pulling {server.host}/web:1\n"
        file = podrun.file("web", f'chain = [ {{ hook = "image", ref = "{ref}" }} ]')
        told = podrun("image", "pull", ref, check=True).stderr
        assert told.startswith(line)
        for words, ends in (
            (["run", "--network", "none", "--name", "web", ref, "/nothing"], True),
            (["up", file], False),
            (["up", "-d", file], False),
        ):
            podrun("image", "rm", ref, check=True)
            first, second = podrun(*words), (podrun("down", "web"), podrun(*words))[1]
            podrun("down", "web")
            assert line in first.stderr, words
            assert "Pulling" not in second.stderr, words
            assert (first.returncode == second.returncode != 0) is ends, first.stderr
