"""Installing what a host of a cluster needs: the resource agent, the generator of units, the order at shutdown."""

from __future__ import annotations

import os
import subprocess

from podrun import atomic
from podrun.errors import UNAVAILABLE, Failure
from podrun.systemd import generator
from podrun.systemd.install import program

#: Where Pacemaker looks for ocf:podrun:pod; a distribution's package puts the same file there.
AGENT = "/usr/lib/ocf/resource.d/podrun/pod"
SOURCE = os.path.join(os.path.dirname(__file__), "ocf-pod")
ORDER = "/etc/systemd/system/pacemaker.service.d/podrun.conf"
_GENERATORS = (
    generator.PATH,
    "/usr/local/lib/systemd/system-generators/podrun-generator",
    "/usr/lib/systemd/system-generators/podrun-generator",
)

#: Units stop in the reverse order: Pacemaker moves the pods away before systemd stops what their steps talk to.
ORDER_TEXT = """# Made by podrun.
[Unit]
After=etcd.service consul.service podrun-follow.service network-online.target
"""


def install() -> list[str]:
    """Writes all three and reloads systemd; returns the paths."""
    with open(SOURCE, encoding="utf-8") as file:
        _write(AGENT, file.read(), 0o755)
    _write(ORDER, ORDER_TEXT, 0o644)
    done = [AGENT, ORDER, generator.install(program())]
    subprocess.run(["systemctl", "daemon-reload"], check=False, timeout=60)
    return done


def required() -> None:
    """Raises Failure where the agent or the generator is missing: pods of the cluster could not be started here."""
    if not os.path.exists(AGENT) or not any(map(os.path.exists, _GENERATORS)):
        hint = f"'podrun cluster install-agent' on {os.uname().nodename}"
        raise Failure("the resource agent is not installed", code=UNAVAILABLE, hint=hint)


def _write(path: str, text: str, mode: int) -> None:
    atomic.replace(path, text, mode, parents=0o755)
