"""Real servers, as people run them: logs, reload, stop, restart and data, beside podman and docker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support import servers
from support.launcher import Podrun
from support.servers import SERVERS, Own, Peer, lived, sh

pytestmark = pytest.mark.root


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an image with all of them; PODRUN_SERVERS names one that is there already."""
    if given := os.environ.get("PODRUN_SERVERS"):
        return Path(given)
    root = tmp_path_factory.mktemp("servers") / "root"
    argv = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(servers.PACKAGES)}",
        "bookworm",
        str(root),
    ]
    subprocess.run(argv, check=True, timeout=900)
    return root


@pytest.mark.prove
def test_servers_live_as_under_podman_and_docker(podrun: Podrun, tree: Any, dockerd: Any) -> None:
    # On a short path: podman's run directory may have 50 letters.
    storage = podrun.home / "p"
    podman = Peer("podman", "--root", str(storage / "root"), "--runroot", str(storage / "r"))
    docker = Peer("docker")
    for peer in (podman, docker):
        packed = subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE)
        subprocess.run([*peer.argv, "import", "-", "servers"], stdin=packed.stdout, check=True, capture_output=True)
    rows = []
    for server in SERVERS:
        for engine in (Own(podrun, f"dir:{tree}"), podman, docker):
            rows.append(lived(engine, server))
            print(servers.table(rows[-1:]).splitlines()[1], flush=True)
    print(servers.table(rows))
    by = {(row.server, row.engine): row for row in rows}
    for server in SERVERS:
        own, peer = by[server.name, "podrun"], by[server.name, "docker"]  # type: ignore[assignment]
        assert (own.status, own.words, own.kept) == (peer.status, True, True), (own, peer)
    for server in SERVERS:
        sh("docker", "volume", "rm", f"{server.name}-data")
    sh("docker", "image", "rm", "servers")
    shutil.rmtree(storage, ignore_errors=True)


@pytest.mark.parametrize("name", ["haproxy", "docker-registry"])
def test_two_servers_of_this_host_live_a_whole_life(podrun: Podrun, name: str) -> None:
    """The short form: what the tests' own packages have, in an image that is the host's /usr."""
    registry = (
        "printf 'version: 0.1\\nlog: {accesslog: {disabled: true}}\\nstorage: {filesystem: {rootdirectory: /data}}\\n"
        "http: {addr: 0.0.0.0:5000}\\n' >/tmp/r.yml; exec docker-registry serve /tmp/r.yml"
    )
    known = {server.name: server for server in SERVERS}
    server = known.get(name) or servers.Server(name, registry, 5000, "SIGTERM", "", "listening on")
    row = lived(Own(podrun, "host:"), server)
    assert (row.words, row.kept) == (True, True), row
    assert row.status in (0, 143, 2)
    assert row.stop_seconds < 10
