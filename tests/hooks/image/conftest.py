"""Fixtures of tests of the image hook."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


@pytest.fixture
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """registries.toml; write it."""
    path = tmp_path / "registries.toml"
    path.write_text("")
    monkeypatch.setenv("PODRUN_REGISTRIES", str(path))
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A self-signed certificate of 127.0.0.1 and registry.example and its key in one PEM file."""
    place = tmp_path_factory.mktemp("tls")
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    argv += [
        "-addext",
        "subjectAltName=IP:127.0.0.1,IP:fd00::5,DNS:registry.example",
        "-keyout",
        f"{place}/key",
        "-out",
        f"{place}/crt",
    ]
    subprocess.run(argv, check=True, capture_output=True)
    (place / "pem").write_text((place / "key").read_text() + (place / "crt").read_text())
    yield str(place / "pem")


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
