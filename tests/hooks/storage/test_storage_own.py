"""U of a path or volume: all of it is given to the payload's user, and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.launcher import Podrun

pytestmark = pytest.mark.root


@pytest.fixture
def data(home: Path) -> Iterator[Path]:
    """A directory with links to what is not in it, and another file system in it."""
    outside = home / "outside"
    outside.mkdir()
    (outside / "file").touch()
    place = home / "data"
    (place / "sub").mkdir(parents=True)
    (place / "sub/file").touch()
    (place / "link").symlink_to(outside / "file")
    (place / "way").symlink_to(outside)
    (place / "other").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place / "other")], check=True)
    (place / "other/file").touch()
    yield place
    subprocess.run(["umount", str(place / "other")], check=True)


def owner(path: Path) -> tuple[int, int]:
    about = os.lstat(path)
    return about.st_uid, about.st_gid


@pytest.mark.parametrize("words", [["--rm"], ["-d"]], ids=["foreground", "detached"])
def test_a_path_belongs_to_the_payload_s_user(podrun: Podrun, data: Path, words: list[str]) -> None:
    told = ["--name", "a", "--network", "none", "--user", "1234:567", "-v", f"{data}:/data:U", "host:"]
    podrun("run", *words, *told, "sh", "-c", "stat -c %u:%g /data; touch /data/sub/new", check=True)
    if "-d" in words:
        podrun("wait", "a")
    podrun("down", "a", check=True)
    mine = [data, data / "sub", data / "sub/file", data / "sub/new", data / "link", data / "way"]
    assert {owner(path) for path in mine} == {(1234, 567)}
    outside = [data.parent / "outside", data.parent / "outside/file"]
    assert {owner(path) for path in outside} == {(0, 0)}
    assert owner(data / "other/file") == (0, 0)


def test_a_storage_step_and_a_named_volume_have_it_too(podrun: Podrun, data: Path, home: Path) -> None:
    chain = f"""
chain = [
  {{ hook = "image", ref = "host:" }},
  {{ hook = "storage", source = "{data}", target = "/data", options = ["U", "ro"] }},
  {{ hook = "container", user = "1234:567", volumes = ["kept:/kept:U"], command = ["touch", "/kept/new"] }},
]
"""
    (home / "a.toml").write_text(chain)
    podrun("up", str(home / "a.toml"), check=True)
    assert owner(data / "sub/file") == owner(podrun.root / "volumes/kept/data") == (1234, 567)


@pytest.mark.parametrize(
    ("volume", "told"),
    [("/etc:/x:U", "/etc is the host's"), ("/:/x:U,ro", "/ is the host's")],
)
def test_the_host_s_own_directories_are_not_given_away(podrun: Podrun, volume: str, told: str) -> None:
    done = podrun("run", "--rm", "--network", "none", "-v", volume, "host:", "true")
    assert (done.returncode, told in done.stderr) == (78, True)
