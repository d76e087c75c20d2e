"""What is built of the checkout, once for all tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.launcher import HERE

RELEASE = HERE.parent / "release"


def _built(name: str, place: Path) -> Path:
    done = subprocess.run(
        [sys.executable, str(RELEASE / name), str(place)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package."""
    return _built("deb.py", tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="session")
def unpacked(package: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the Debian package, its control files in DEBIAN."""
    place = tmp_path_factory.mktemp("unpacked") / "tree"
    subprocess.run(["dpkg-deb", "-R", package, place], check=True, timeout=60)
    return place


@pytest.fixture(scope="session")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The single file."""
    return _built("single_file.py", tmp_path_factory.mktemp("pyz"))
