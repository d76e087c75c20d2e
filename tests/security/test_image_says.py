"""Whatever an image says of itself: it runs, or it is malformed (65) and a person reads why. Never an internal error."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from podrun.errors import MALFORMED, OF_A_STEP, Failure
from podrun.options import read
from podrun_hooks.container import options as container
from podrun_hooks.container import spec, users
from podrun_hooks.image import commands, manifest
from podrun_hooks.image.sources import archive
from support import image_builder as build
from support.launcher import Podrun

SHORT = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
DIGEST = "sha256:" + "0" * 64

ODD = some.sampled_from(
    ["", "\0", "\ud800", "9" * 5000, "-1", "²", "٣", ":", "a:b:c", "/" * 5000, "RTMIN+" + "9" * 5000, "SIG", "=", "A=\ud800",
     "x" * 200_000, None, True, 5, -1, 10**400, 0.5, float("inf"), [], {}, [[]], [5], {"a": 5}, ["\ud800"], ["a=b"], DIGEST],
)  # fmt: skip
JSON = some.recursive(
    some.one_of(ODD, some.text(max_size=5)),
    lambda below: some.one_of(
        some.lists(below, max_size=3), some.dictionaries(some.text(max_size=3), below, max_size=3)
    ),
    max_leaves=6,
)


def holding(*keys: str) -> some.SearchStrategy[dict[str, Any]]:
    """Objects with some of the keys, which may have any values."""
    return some.fixed_dictionaries({}, optional=dict.fromkeys(keys, JSON))


CONFIGS = some.fixed_dictionaries(
    {
        "rootfs": some.one_of(some.just({"diff_ids": []}), JSON),
        "config": some.one_of(
            holding("User", "Env", "Entrypoint", "Cmd", "WorkingDir", "StopSignal", "Volumes", "ExposedPorts", "Labels",
                    "Healthcheck"),
            JSON,
        ),
    },
    optional={"os": JSON, "architecture": JSON, "history": JSON},
)  # fmt: skip
DESCRIPTORS = some.one_of(
    some.just({"mediaType": manifest.OCI_CONFIG, "digest": DIGEST, "size": 1}),
    holding("mediaType", "digest", "size"),
    JSON,
)
MANIFESTS = some.fixed_dictionaries(
    {"config": DESCRIPTORS, "layers": some.one_of(some.lists(DESCRIPTORS, max_size=2), JSON)},
    optional={"schemaVersion": JSON, "mediaType": JSON, "fsLayers": JSON},
)
INDEXES = some.fixed_dictionaries(
    {"manifests": some.one_of(some.lists(holding("platform", "digest", "size", "annotations"), max_size=3), JSON)}
)


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


class Told:
    """Asserts that what is done in it succeeds, or fails with a step's own code and a line that can be printed."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
        if not isinstance(error, Failure):
            return False
        assert error.code in OF_A_STEP
        assert str(error).isprintable()
        assert len(str(error)) < 1000
        return True


@SHORT
@given(CONFIGS)
@example({"rootfs": {"diff_ids": []}, "config": {"User": "9" * 5000}})
@example({"rootfs": {"diff_ids": []}, "config": {"StopSignal": "9" * 5000}})
@example({"rootfs": {"diff_ids": []}, "config": {"Env": ["A=\ud800"]}})
@example({"rootfs": {"diff_ids": []}, "config": {"Env": ["PATH=" + ":/x" * 600_000]}})
def test_a_configuration(value: dict[str, Any]) -> None:
    with Told():
        config = manifest.configuration(text(value), 0, "it").config
        options = read(container.Options, {})
        spec.stop_signal(config, options, list[str]().append)
        argv = spec.arguments(config, options)
        variables = spec.environment(config, options, {}, "host", "/")
        spec.refuse_bytes([*argv, *variables.values()])
        users.resolve(config.get("User") or "", Tree(b"", b""), of_image=True)
        json.dumps([argv, variables], ensure_ascii=False).encode()


@SHORT
@given(some.one_of(MANIFESTS, JSON))
def test_a_manifest(value: Any) -> None:
    with Told():
        told = manifest.Descriptor(manifest.OCI_MANIFEST, DIGEST, 1)
        manifest.as_oci(manifest.manifest(text(value), told, "it"))


@SHORT
@given(some.one_of(INDEXES, JSON))
def test_an_index(value: Any) -> None:
    with Told():
        found = manifest.document(text(value), "it")
        archive.tags_of(found)
        manifest.media_type(found)
        manifest.choose(found, manifest.platform(""), "it")


class Tree:
    """A root file system with nothing but passwd and group."""

    def __init__(self, passwd: bytes, group: bytes) -> None:
        self.files = {"/etc/passwd": passwd, "/etc/group": group}

    def read(self, path: str, _limit: int) -> bytes:
        return self.files[path]


ROWS = some.lists(
    some.lists(some.sampled_from(["root", "0", "1000", "9" * 5000, "", "²", "-1", "4294967295", "a,root", "\ud800"]), max_size=8)
    .map(lambda fields: ":".join(fields).encode("utf-8", "surrogatepass")),
    max_size=4,
).map(b"\n".join)  # fmt: skip


@SHORT
@given(
    ROWS,
    ROWS,
    some.sampled_from(["", "root", "0", "1000", "1000:root", "9" * 5000, "root:" + "9" * 5000, "²", ":", "a:b:c"]),
)
def test_passwd_and_group(passwd: bytes, group: bytes, word: str) -> None:
    for of_image in (True, False):
        with Told():
            found = users.resolve(word, Tree(passwd, group), of_image=of_image)
            assert 0 <= found.uid < 2**32 - 1
            assert 0 <= found.gid < 2**32 - 1
            if word.partition(":")[0].isdigit():
                assert found.uid == int(word.partition(":")[0])
    with Told():
        users.group(word, Tree(passwd, group))


LISTED = some.one_of(some.lists(holding("Config", "RepoTags", "Layers"), max_size=2), JSON)


@SHORT
@given(LISTED, CONFIGS, some.sampled_from(["", "web:1", "@0", "@" + "9" * 5000, "@²"]))
@example([{"RepoTags": 5, "Config": "c", "Layers": []}], {}, "")
def test_the_manifest_of_a_docker_archive(listed: Any, config: Any, tag: str) -> None:
    place = Path("/dev/shm") / f"podrun-test-{os.getpid()}.tar"
    try:
        with tarfile.open(place, "w") as made:
            build.add_to(made, "manifest.json", text(listed))
            build.add_to(made, "c", text(config))
        with Told(), place.open("rb") as file:
            archive.of_docker_archive(file, "it", tag)
    finally:
        place.unlink()


# --- the same on the running program

SAID = {
    "a user of 5,000 digits": {"User": "9" * 5000},
    "a group of 5,000 digits": {"User": "0:" + "9" * 5000},
    "a signal of 5,000 digits": {"StopSignal": "9" * 5000},
    "half a character": {"Env": ["A=\ud800"]},
    "a PATH of 600,000 entries": {"Env": ["PATH=" + ":/x" * 600_000]},
    "a directory of 5,000 characters": {"WorkingDir": "/" + "x" * 5000},
    "a name of 300 characters": {"WorkingDir": "/" + "x" * 300},
    "a user of two lines": {"User": "a\nb"},
}


@pytest.mark.root
@pytest.mark.parametrize("config", SAID.values(), ids=SAID)
def test_an_image_that_says_nonsense_is_malformed_for_run(podrun: Podrun, config: dict[str, Any]) -> None:
    built = build.image(build.tar(build.directory("etc"), build.file("true", b"", mode=0o755)), Cmd=["/true"], **config)
    layout = build.layout(str(podrun.home / "layout"), {"web": built})
    done = podrun("run", "--rm", f"oci:{layout}:web")
    assert done.returncode == MALFORMED, done.stderr
    assert "internal error" not in done.stderr
    assert len(done.stderr) < 1000


def test_an_archive_whose_tags_are_none_is_imported_by_its_number(tmp_path: Path) -> None:
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        build.add_to(made, "c", text(config))
        build.add_to(made, "manifest.json", text([{"Config": "c", "RepoTags": 5, "Layers": []}]))
    assert commands.import_(str(tmp_path / "root"), str(tmp_path / "a.tar"))


@pytest.mark.parametrize("kind", ["", manifest.OCI_MANIFEST, manifest.OCI_INDEX, manifest.DOCKER_LIST])
def test_a_document_is_an_index_or_an_image_and_never_both(kind: str) -> None:
    """CVE-2021-41190: whose signature is checked and what is run could be two things."""
    described = {"mediaType": manifest.OCI_CONFIG, "digest": DIGEST, "size": 1}
    both = {"mediaType": kind, "config": described, "layers": [], "manifests": [{"digest": DIGEST, "size": 1}]}
    content = text(both if kind else {key: both[key] for key in both if key != "mediaType"})
    with pytest.raises(Failure, match="an index and an image in one") as refused:
        if manifest.is_index(manifest.media_type(json.loads(content))):
            manifest.choose(json.loads(content), manifest.Platform("linux", "amd64", ""), "x")
        else:
            manifest.manifest(content, manifest.Descriptor("", DIGEST, len(content)), "x")
    assert refused.value.code == MALFORMED
