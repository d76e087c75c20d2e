"""Whole pods: a simple one, its state, and waiting for something to come true."""

from __future__ import annotations

import json
import time

WAITS = 'trap "exit 0" TERM; while :; do sleep 0.05; done'


def pod(podrun, script=WAITS, name="web", more="", before=""):
    command = json.dumps(["sh", "-c", script])
    return podrun.file(
        name,
        f'[pod]\nstop_timeout = "5s"\n[[chain]]\nhook = "image"\nref = "host:"\n{before}'
        f'[[chain]]\nhook = "container"\ncommand = {command}\n{more}',
    )


def until(condition, patience=10.0):
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return value


def state(podrun, name="web"):
    done = podrun("inspect", name)
    return json.loads(done.stdout)["state"] if done.returncode == 0 else "absent"
