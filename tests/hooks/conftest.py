"""Registries with a server, one for all tests that want one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import registry_servers


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
