"""Fixtures of tests of the image hook."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import image_trust
from support.image_servers import Faulty, faulty


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


@pytest.fixture
def server() -> Iterator[Faulty]:
    """A registry with one image."""
    with faulty(image_trust.IMAGE) as running:
        yield running


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
