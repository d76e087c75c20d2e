"""Registries with a server, one for all tests that want one; executables in a drop-in directory."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import registry_servers
from support.launcher import Podrun


@pytest.fixture(scope="session")
def etcd() -> Iterator[registry_servers.Server]:
    """etcd, one member."""
    server = registry_servers.etcd()
    yield server
    server.close()


@pytest.fixture(scope="session")
def consul() -> Iterator[registry_servers.Server]:
    """Consul, or what stands for it where there is none."""
    server = registry_servers.consul()
    yield server
    server.close()


@pytest.fixture(params=["etcd", "consul"])
def server(request: pytest.FixtureRequest) -> registry_servers.Server:
    """Each kind of registry that has a server."""
    found: registry_servers.Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def dropped(home: Path, podrun: Podrun) -> Any:
    """Writes an executable into a drop-in directory."""
    place = home / "hooks.d"
    place.mkdir()
    podrun.environ["PODRUN_HOOKS"] = str(place)

    def write(name: Any, text: Any, mode: int = 0o755, shebang: str = "#!/bin/sh") -> Any:
        path = place / name
        path.write_text(f"{shebang}\n{textwrap.dedent(text)}\n")
        path.chmod(mode)
        return path

    return write
