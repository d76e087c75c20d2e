"""Images of a real dockerd."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from podrun.errors import UNAVAILABLE, Failure
from podrun_hooks.image import commands
from support import image_builder as build

pytestmark = [pytest.mark.root, pytest.mark.server]


def docker_import(content: bytes, name: str) -> None:
    argv = ["docker", "import", "--change", 'CMD ["/app"]', "-", name]
    subprocess.run(argv, input=content, check=True, capture_output=True)


@pytest.mark.usefixtures("dockerd")
def test_an_image_of_dockerd_is_taken_and_taken_again_only_when_it_changes(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    docker_import(build.tar(build.directory("d", 0o750), build.file("d/f", b"1")), "t-image:1")
    found = commands.pull(root, "docker-daemon:t-image:1")
    assert Path(found.layers[0], "d/f").read_bytes() == b"1"
    assert found.config["Cmd"] == ["/app"]
    told: list[str] = []
    assert commands.pull(root, "docker-daemon:t-image:1", notify=told.append) == found
    assert len(told) == 1
    docker_import(build.tar(build.file("g")), "t-image:1")
    assert commands.pull(root, "docker-daemon:t-image:1", "missing") == found
    assert os.listdir(commands.pull(root, "docker-daemon:t-image:1", "newer").layers[0]) == ["g"]


@pytest.mark.usefixtures("dockerd")
def test_an_image_that_dockerd_has_not_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="dockerd has no image") as caught:
        commands.pull(str(tmp_path), "docker-daemon:nothing/such")
    assert caught.value.code == UNAVAILABLE


def test_a_dockerd_that_does_not_run_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing")
    with pytest.raises(Failure, match="dockerd cannot be asked") as caught:
        commands.pull(str(tmp_path), "docker-daemon:web")
    assert caught.value.code == UNAVAILABLE
    assert "\n" not in str(caught.value)
