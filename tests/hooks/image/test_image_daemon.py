"""Images of a real dockerd."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podrun.errors import UNAVAILABLE, Failure
from podrun_hooks.image import commands
from support import image_builder as build

pytestmark = [pytest.mark.root, pytest.mark.server]


@pytest.fixture(scope="module")
def dockerd() -> Iterator[None]:
    """A dockerd of the test's own, on a socket with a short name, without a network."""
    if not shutil.which("dockerd"):
        pytest.skip("dockerd is not installed")
    pytest.importorskip("docker")
    place = Path(tempfile.mkdtemp(prefix="t-image-"))
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = f"unix://{place}/sock"
    # In a network of its own: one without a bridge removes docker0, which may be somebody's.
    argv = ["unshare", "--net", "dockerd", "--bridge=none"]
    argv += ["--data-root", str(place / "data"), "--exec-root", str(place / "exec")]
    argv += ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--pidfile", str(place / "pid")]
    with (place / "log").open("wb") as log:
        daemon = subprocess.Popen([*argv, "-H", os.environ["DOCKER_HOST"]], stdout=log, stderr=log)
    try:
        for _ in range(200):
            if daemon.poll() is not None or subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        if daemon.poll() is not None:
            pytest.skip(f"dockerd does not start here: {(place / 'log').read_text()[-500:]}")
        yield
    finally:
        daemon.terminate()
        daemon.wait()
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if str(place) in line:
                subprocess.run(["umount", "-l", line.split()[1]])
        shutil.rmtree(place)


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
