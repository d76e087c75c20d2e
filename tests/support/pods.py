"""Whole pods: a simple one, its state, and waiting for something to come true."""

from __future__ import annotations

import json
import time
from typing import Any

from support.launcher import Podrun

WAITS = 'trap "exit 0" TERM; while :; do sleep 0.05; done'


def pod(podrun: Podrun, script: Any = WAITS, name: str = "web", more: str = "", before: str = "") -> Any:
    command = json.dumps(["sh", "-c", script])
    return podrun.file(
        name,
        f'[pod]\nstop_timeout = "5s"\n[[chain]]\nhook = "image"\nref = "host:"\n{before}'
        f'[[chain]]\nhook = "container"\ncommand = {command}\n{more}',
    )


def until(condition: Any, patience: float = 10.0) -> Any:
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return value


def state(podrun: Podrun, name: str = "web") -> Any:
    done = podrun("inspect", name)
    return json.loads(done.stdout)["state"] if done.returncode == 0 else "absent"
