"""The signature test: podrun is killed at every step of every chain, and one ``down`` leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.launcher import HERE, Podrun
from support.objects import listing, settled

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: More random moments: PODRUN_KILL_ROUNDS=1000 ./dev test tests/test_kill.py
ROUNDS = int(os.environ.get("PODRUN_KILL_ROUNDS", "30"))


def killed_at(podrun: Podrun, point: int, *words: str) -> str | None:
    """Kills podrun at an event; returns which one it was, None when there were not that many."""
    argv = [sys.executable, str(HERE / "support" / "killed.py"), str(point), *words]
    done = subprocess.run(
        argv, env=podrun.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        text=True, timeout=60,
    )  # fmt: skip
    if done.returncode == 0:
        return None
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stderr.strip().splitlines()[-1]


def every_point(podrun: Podrun, *words: str) -> Iterator[Any]:
    point = 1
    while told := killed_at(podrun, point, *words):
        yield told
        point += 1
    assert point > 10, "the chain told of fewer events than it has"


def test_killed_at_every_event_of_up_one_down_leaves_nothing(podrun: Podrun, web: Any) -> None:
    before = listing(podrun.run, podrun.root)
    for told in every_point(podrun, "up", "-d", web):
        podrun("down", "web", check=True)
        assert not settled(podrun.run, podrun.root, before), told
    podrun("down", "web", check=True)
    assert not settled(podrun.run, podrun.root, before)


def test_killed_at_every_event_of_up_the_next_up_works(podrun: Podrun, web: Any) -> None:
    before = listing(podrun.run, podrun.root)
    for told in every_point(podrun, "up", "-d", web):
        again = podrun("up", "-d", web)
        assert again.returncode == 0, f"{told}: {again.stderr}"
        seen = podrun(
            "exec", "web", "cat", "/opt/disk/word", "/opt/files/word", "/opt/secret", "/sys/class/net/eth1/flags"
        )
        assert seen.stdout.startswith("herehere" + "s3cret"), f"{told}: {seen.stderr}"
        podrun("down", "web", check=True)
        assert not settled(podrun.run, podrun.root, before), told
    podrun("down", "web", check=True)


def test_killed_at_every_event_of_down_the_next_down_finishes(podrun: Podrun, web: Any) -> None:
    before = listing(podrun.run, podrun.root)
    podrun("up", "-d", web, check=True)
    for told in every_point(podrun, "down", "web"):
        podrun("down", "web", check=True)
        assert not settled(podrun.run, podrun.root, before), told
        podrun("up", "-d", web, check=True)
    assert not settled(podrun.run, podrun.root, before)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_killed_at_random_moments_one_down_leaves_nothing(podrun: Podrun, web: Any, verb: str) -> None:
    before = listing(podrun.run, podrun.root)
    began = time.monotonic()
    podrun("up", "-d", web, check=True)
    took = {"up": time.monotonic() - began}
    began = time.monotonic()
    podrun("down", "web", check=True)
    took["down"] = time.monotonic() - began
    dice = random.Random(os.environ.get("PODRUN_KILL_SEED"))
    for _ in range(ROUNDS):
        if verb == "down":
            podrun("up", "-d", web, check=True)
        moment = dice.uniform(0, took[verb])
        process = podrun.start(*(["up", "-d", web] if verb == "up" else ["down", "web"]), stderr=subprocess.DEVNULL)
        time.sleep(moment)
        process.kill()
        process.wait()
        podrun("down", "web", check=True)
        assert not settled(podrun.run, podrun.root, before), f"{verb} killed after {moment * 1000:.1f} ms"


def test_a_foreground_podrun_that_is_killed_leaves_a_running_pod_that_down_undoes(podrun: Podrun, web: Any) -> None:
    before = listing(podrun.run, podrun.root)
    process = podrun.start("up", web)
    deadline = time.monotonic() + 20
    while '"up"' not in podrun("inspect", "web").stdout.replace('"state": "up"', '"up"', 1)[:60]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.wait()
    podrun("down", "web", check=True)
    assert not settled(podrun.run, podrun.root, before)
