"""Seven real servers as units of a booted host: logs, reload, stop, restart and data."""

from __future__ import annotations

import json
import subprocess

import pytest

from support import servers
from support.servers import SERVERS, Server, lived
from support.systemd_case import Pods, sh, show, systemctl, words
from support.systemd_host import SERVERS_AT

pytestmark = [pytest.mark.systemd, pytest.mark.prove]


def pod_of(server: Server) -> str:
    """The pod's name: the server's own may be a unit of the host."""
    return f"{server.name}-pod"


class Units:
    """podrun's unit of each server, as systemd runs it."""

    name = "unit"

    def __init__(self, pods: Pods) -> None:
        self.pods = pods
        self.installed: set[str] = set()

    def start(self, server: Server) -> None:
        if server.name in self.installed:
            # Once more from the beginning, and then of one that runs.
            self._do("start", server)
            self._do("restart", server)
            return
        self.pods.install(
            pod_of(server),
            f'[[chain]]\nhook = "image"\nref = "dir:{SERVERS_AT}"\n[[chain]]\nhook = "network"\nmode = "none"\n',
            f'[[chain]]\nhook = "container"\ncommand = {json.dumps(["sh", "-c", server.script])}\n'
            f'volumes = ["{server.name}-data:/data"]\nstop_signal = "{server.stop}"\n',
            stop_timeout="20s",
            pod=f'reload = "{server.reload}"' if server.reload else "",
        )
        self.installed.add(server.name)
        self._do("start", server)

    def _do(self, verb: str, server: Server) -> None:
        done = systemctl(verb, pod_of(server))
        assert done.returncode == 0, (server.name, verb, words(pod_of(server)))

    def exec(self, server: Server, script: str) -> subprocess.CompletedProcess[str]:
        return sh("podrun", "exec", pod_of(server), "bash", "-c", script)

    def reload(self, server: Server) -> None:
        self._do("reload", server)

    def stop(self, server: Server) -> int:
        self._do("stop", server)
        active, result, status = show(pod_of(server), "ActiveState", "Result", "ExecMainStatus")
        assert (active, result) == ("inactive", "success"), words(pod_of(server))
        return int(status)

    def logs(self, server: Server) -> str:
        sh("journalctl", "--sync")
        return sh("podrun", "logs", pod_of(server)).stdout

    def remove(self, server: Server) -> None:
        systemctl("stop", pod_of(server))


def test_servers_live_as_units(pods: Pods) -> None:
    engine = Units(pods)
    print(servers.table([]))
    for server in SERVERS:
        row = lived(engine, server)
        print(servers.table([row]).splitlines()[1])
        assert (row.words, row.kept) == (True, True), (row, words(pod_of(server)))
        assert row.stop_seconds < 20, row
    for server in SERVERS:
        sh("podrun", "volume", "rm", "--force", f"{server.name}-data")
