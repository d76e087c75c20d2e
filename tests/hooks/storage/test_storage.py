"""The storage step: sources, targets and options, and the mounts it tells of."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import WRONG_FILE, Failure
from podrun.hook import Pod, Step
from podrun.options import Wrong, read
from podrun_hooks import storage
from podrun_hooks.storage.docker_spelling import docker_source, from_docker, missing, provide


def step(root: object, **table: object) -> Step:
    pod = Pod("web", str(root), str(root), "podrun-web")
    return Step(pod, "storage", "storage", read(storage.Options, {"target": "/data", **table}))


def mount(root: object, **table: object) -> dict:
    (found,) = storage.up(step(root, **table), {})["mounts"]
    return found


def test_a_path_becomes_a_bind_without_setuid_programs_and_devices(tmp_path: Path) -> None:
    assert mount(tmp_path, source=str(tmp_path), options=["ro"]) == {
        "hostPath": str(tmp_path),
        "containerPath": "/data",
        "type": "bind",
        "options": ["rbind", "nosuid", "nodev", "ro"],
    }


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ([], ["rbind", "nosuid", "nodev"]),
        (["bind"], ["bind", "nosuid", "nodev"]),
        (["suid", "dev"], ["rbind", "suid", "dev"]),
        (["ro", "rw"], ["rbind", "nosuid", "nodev", "rw"]),
        (["noexec", "rslave"], ["rbind", "nosuid", "nodev", "noexec", "rslave"]),
        (["private", "rshared"], ["rbind", "nosuid", "nodev", "rshared"]),
    ],
)
def test_of_options_that_contradict_each_other_the_later_wins(tmp_path: Path, given: Any, resolved: Any) -> None:
    assert mount(tmp_path, source="/", options=given)["options"] == resolved


def test_a_tmpfs_may_be_written_by_anybody_unless_told_otherwise(tmp_path: Path) -> None:
    assert mount(tmp_path, source="tmpfs:", options=["size=64M", "noexec"]) == {
        "hostPath": "tmpfs",
        "containerPath": "/data",
        "type": "tmpfs",
        "options": ["nosuid", "nodev", "mode=1777", "size=64M", "noexec"],
    }
    assert "mode=0700" in mount(tmp_path, source="tmpfs:", options=["mode=0700"])["options"]
    assert "mode=1777" not in mount(tmp_path, source="tmpfs:", options=["mode=0700"])["options"]


def test_a_named_volume_is_created_at_up_and_kept_at_down(tmp_path: Path) -> None:
    data = tmp_path / "volumes" / "db" / "data"
    found = storage.check(step(tmp_path, source="volume:db"))
    assert (found, data.exists()) == ([], False), "a check has no side effects"
    before = os.umask(0o077)
    try:
        facts = storage.up(step(tmp_path, source="volume:db"), {})
    finally:
        os.umask(before)
    assert facts["mounts"][0]["hostPath"] == str(data)
    assert data.stat().st_mode & 0o777 == 0o755
    (data / "row").touch()
    storage.down(step(tmp_path, source="volume:db"), facts)
    storage.up(step(tmp_path, source="volume:db"), {})
    assert (data / "row").exists()


def test_a_volume_keeps_the_mode_that_its_user_gave_it(tmp_path: Path) -> None:
    storage.up(step(tmp_path, source="volume:db"), {})
    data = tmp_path / "volumes" / "db" / "data"
    data.chmod(0o700)
    storage.up(step(tmp_path, source="volume:db"), {})
    assert data.stat().st_mode & 0o777 == 0o700


def test_down_without_facts_may_be_repeated(tmp_path: Path) -> None:
    for source in ("volume:db", "tmpfs:", "/nonexistent"):
        wanted = step(tmp_path, source=source)
        before = sorted(tmp_path.rglob("*"))
        storage.down(wanted, {})
        storage.down(wanted, {})
        assert sorted(tmp_path.rglob("*")) == before


def test_a_path_that_is_not_there_is_fatal_and_named(tmp_path: Path) -> None:
    gone = f"{tmp_path}/gone"
    (problem,) = storage.check(step(tmp_path, source=gone))
    assert (problem.code, problem.fatal) == (WRONG_FILE, True)
    assert gone in problem.what
    with pytest.raises(Failure, match=gone) as refused:
        storage.up(step(tmp_path, source=gone), {})
    assert refused.value.code == WRONG_FILE
    assert not os.path.exists(gone)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"source": "-o"}, "absolute path"),
        ({"source": "-o", "type": "ext4"}, "absolute path"),
        ({"source": "srv/web"}, "absolute path"),
        ({"source": "./web"}, "absolute path"),
        ({"source": "/srv/../etc"}, "'..' is not allowed"),
        ({"source": ""}, "absolute path"),
        ({"source": "volume:"}, "volume's name"),
        ({"source": "volume:../x"}, "volume's name"),
        ({"source": "volume:.x"}, "volume's name"),
        ({"source": "volume:a/b"}, "volume's name"),
        ({"source": "tmpfs:64M"}, "size is an option"),
        ({"source": "nfs:host"}, "host:/export"),
        ({"source": "image:"}, "an image's name"),
        ({"source": "btrfs-snapshot:x"}, "absolute path"),
        ({"source": "file:/etc/passwd"}, "say content or credential"),
        ({"source": "file:"}, "one of content, credential and secret"),
        ({"source": "file:", "content": "a", "credential": "b"}, "one of content, credential and secret"),
        ({"source": "file:", "credential": "../x"}, "volume's name"),
        ({"content": "a"}, "content is not for a source such as /srv"),
        ({"source": "tmpfs:", "idmap": ["0:1:1"]}, "idmap is not for"),
        ({"idmap": ["0:1"]}, "SOURCE:POD:COUNT"),
        ({"source": "volume:x", "type": "ext4"}, "does not go with volume:x"),
        ({"source": "//srv/share", "type": "cifs", "options": ["password=x"]}, "does not belong in a pod file"),
        ({"source": "/dev/x", "type": "ext4", "options": ["a,b"]}, "string of its own"),
        ({"source": "/srv\0x"}, "NUL"),
        ({"target": "data"}, "absolute path"),
        ({"target": "/data/../etc"}, "'..' is not allowed"),
        ({"target": "/"}, "nothing can be mounted over it"),
        ({"target": "/./"}, "nothing can be mounted over it"),
        ({"options": ["remount"]}, "not an option"),
        ({"options": ["lowerdir=/etc"]}, "not an option of a bind mount"),
        ({"options": ["ro,dev"]}, "string of its own"),
        ({"options": ["rw", "evil"]}, "is not an option of a bind mount"),
        ({"options": ["nocopy"]}, "is not an option of a bind mount"),
        ({"source": "tmpfs:", "options": ["size=lots"]}, "expected a size"),
        ({"source": "tmpfs:", "options": ["mode=888"]}, "octal"),
        ({"source": "tmpfs:", "options": ["uid=4294967296"]}, "numeric id"),
        ({"typ": "nfs"}, "did you mean 'type'"),
    ],
)
def test_a_wrong_option_is_refused_with_the_reason(tmp_path: Path, table: Any, words: str) -> None:
    try:
        problems = storage.check(step(tmp_path, **{"source": "/srv", **table}))
    except Wrong as wrong:
        assert words in wrong.what
    else:
        assert problems[0].fatal
        assert words in problems[0].what


@pytest.mark.parametrize(
    ("source", "option"), [("/", "size=1M"), ("volume:x", "mode=700"), ("tmpfs:", "rbind"), ("tmpfs:", "rslave")]
)
def test_an_option_of_another_kind_of_mount_is_a_problem(tmp_path: Path, source: str, option: str) -> None:
    (problem,) = storage.check(step(tmp_path, source=source, options=[option]))
    assert problem.code == WRONG_FILE
    assert option in problem.what


@pytest.mark.parametrize(
    ("text", "path", "target", "options"),
    [
        ("/a:/b", "/a", "/b", ["rbind", "nosuid", "nodev"]),
        ("/a:/b:ro", "/a", "/b", ["rbind", "nosuid", "nodev", "ro"]),
        ("/a:/b/:ro,z,noexec", "/a", "/b", ["rbind", "nosuid", "nodev", "ro", "noexec"]),
        ("data:/var/lib/x", "ROOT/volumes/data/data", "/var/lib/x", ["rbind", "nosuid", "nodev"]),
        ("data:/b:rw", "ROOT/volumes/data/data", "/b", ["rbind", "nosuid", "nodev", "rw"]),
    ],
)
def test_dockers_spelling_of_a_volume_is_read(text: str, path: str, target: str, options: Any) -> None:
    assert from_docker(text, "ROOT") == {
        "hostPath": path,
        "containerPath": target,
        "type": "bind",
        "options": options,
    }


@pytest.mark.parametrize("text", ["/a", "/a:/b:ro:x", ":/b", "./a:/b", "/a:b", "/a:/b:evil", "/a:/..", "/a:/b:size=1"])
def test_a_wrong_volume_in_dockers_spelling_is_refused(text: str) -> None:
    with pytest.raises(Wrong):
        from_docker(text, "/root")


def test_the_source_in_dockers_spelling_is_checked_and_provided_like_a_steps(tmp_path: Path) -> None:
    assert missing(docker_source("data:/x")) == []
    provide(docker_source("data:/x"), str(tmp_path))
    assert (tmp_path / "volumes/data/data").is_dir()
    assert missing(docker_source(f"{tmp_path}/gone:/x"))


@pytest.mark.root
@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            {"source": "tmpfs:", "options": ["size=1M", "mode=0750", "uid=7"]},
            {"tmpfs", "nosuid", "nodev", "size=1024k"},
        ),
        ({"source": "volume:x", "options": ["ro", "noexec"]}, {"nosuid", "nodev", "ro", "noexec"}),
    ],
)
def test_the_kernel_takes_the_options(tmp_path: Path, table: Any, expected: Any) -> None:
    """mount(8) in a mount namespace of its own stands for the container step."""
    found = mount(tmp_path, **table)
    options = ",".join(found["options"])
    target = tmp_path / "target"
    target.mkdir()
    kind = ["-t", "tmpfs"] if found["type"] == "tmpfs" else []
    script = 'mount "$@" && findmnt -no FSTYPE,OPTIONS "$TARGET" | tail -1'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "-", *kind, "-o", options, found["hostPath"], str(target)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TARGET": str(target)},
    )
    assert done.returncode == 0, done.stderr
    assert expected <= set(done.stdout.replace(" ", ",").replace("\n", ",").split(","))
