"""A pod that answers HTTP and can be swapped, in its versions."""

from __future__ import annotations

import json
import random
from typing import Any

from support.busy import SERVER
from support.launcher import Podrun

_POD = """
[pod]
name = "web"
reload = "swap"
stop_timeout = "10s"
{pod}
[[chain]]
hook = "image"
ref = "host:"
[[chain]]
hook = "storage"
source = "volume:data"
target = "/data"
[[chain]]
hook = "network"
publish = ["127.0.0.1:{port}:80", "198.51.100.1:{port}:80", "[::]:{more}:80", "0.0.0.0:{more}:80", "127.0.0.1:{port}:53/udp"]
[[chain]]
hook = "container"
command = ["/usr/bin/python3", "-c", '''{server}''']
env = {{ VERSION = "{version}" {env} }}
ready = {{ http = ":80/", timeout = "{patience}" }}
{container}
[[chain]]
hook = "register"
service = "web"
advertise = "pod"
port = 80
"""


class Web:
    """The pod file, in its versions."""

    def __init__(self, podrun: Podrun) -> None:
        self.podrun = podrun
        self.port = random.randint(20000, 30000)
        self.more = self.port + 1
        self.path = self.write("1")

    def write(
        self,
        version: str,
        *,
        env: str = "",
        pod: str = "",
        container: str = "",
        patience: str = "20s",
        server: str = SERVER,
    ) -> str:
        return self.podrun.file(
            "web",
            _POD.format(
                port=self.port, more=self.more, version=version, server=server.replace("${", "$${"),
                env=env, pod=pod, container=container, patience=patience,
            ),
        )  # fmt: skip

    def inspect(self) -> dict[str, Any]:
        return json.loads(self.podrun("inspect", "web", check=True).stdout)

    def record(self) -> dict[str, Any]:
        (found,) = (self.podrun.run / "registry" / "web").iterdir()
        return json.loads(found.read_text())
