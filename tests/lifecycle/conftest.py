"""Fixtures of tests with whole pods."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kill_chain import CHAIN, loops
from support.launcher import Podrun
from support.objects import listing, settled
from support.swap_case import Web


@pytest.fixture
def web(podrun: Podrun, home: Path) -> Iterator[str]:
    """A pod with a step of every kind. It has been up once: what all pods share is there."""
    hook = home / "hook"
    hook.write_text("#!/bin/sh\ncat >/dev/null\n")
    hook.chmod(0o755)
    (home / "content").mkdir()
    (home / "content" / "word").write_text("here")
    argv = ["mksquashfs", str(home / "content"), str(home / "disk.squashfs"), "-quiet", "-no-progress"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    port, second = random.randint(20000, 30000), f"pk-{os.urandom(4).hex()}"
    path = podrun.file("web", CHAIN.format(port=port, hook=hook, home=home, second=second))
    podrun("up", "-d", path, check=True)
    podrun("down", "web", check=True)
    yield path
    podrun("down", "web", check=True)
    # The kernel lets go of it with the last mount namespace that a killed runtime was about to leave.
    deadline = time.monotonic() + 5
    while found := loops(home):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


@pytest.fixture
def swapped(podrun: Podrun) -> Iterator[Web]:
    podrun("run", "--rm", "--name", "warm", "host:", "true", check=True)
    (podrun.root / "volumes" / "data").mkdir(parents=True, exist_ok=True)
    own = Web(podrun)
    podrun("up", "-d", own.path, check=True)
    podrun("down", "web", check=True)
    before = listing(podrun.run, podrun.root)
    yield own
    podrun("down", "web", check=True)
    assert not settled(podrun.run, podrun.root, before)
