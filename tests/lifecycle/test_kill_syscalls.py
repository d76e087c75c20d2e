"""podrun is killed (-9) at its system calls, by strace's fault injection: one ``down`` leaves nothing behind.

By default as many calls, drawn at random, as fit into six seconds a test; PODRUN_KILL_SYSCALLS=all tries every one.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.launcher import Podrun
from support.objects import listing, settled

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
]

ALL = os.environ.get("PODRUN_KILL_SYSCALLS") == "all"
#: Seconds for one test.
PATIENCE = 1e9 if ALL else 6.0

#: Calls that change something outside the process, or that wait for somebody who does.
CHANGING = frozenset(
    [
        "access",
        "chmod",
        "clone",
        "execve",
        "fchdir",
        "fchmod",
        "fchown",
        "fcntl",
        "flock",
        "fsconfig",
        "fsmount",
        "fsopen",
        "ftruncate",
        "kill",
        "link",
        "linkat",
        "memfd_create",
        "mkdir",
        "mkdirat",
        "mknodat",
        "mount",
        "mount_setattr",
        "move_mount",
        "openat",
        "openat2",
        "pidfd_open",
        "pidfd_send_signal",
        "pipe2",
        "poll",
        "prctl",
        "pwrite64",
        "recvfrom",
        "rename",
        "renameat",
        "renameat2",
        "rmdir",
        "sendmsg",
        "sendto",
        "setns",
        "socket",
        "symlinkat",
        "umount2",
        "unlink",
        "unlinkat",
        "unshare",
        "vfork",
        "wait4",
        "waitid",
        "write",
    ]
)


def traced(podrun: Podrun, *words: str, follow: bool, trace: str = "/dev/null", inject: str = "") -> int:
    """Runs podrun below strace; returns how it ended. With ``follow`` the children count, and are hit, as well."""
    # -D: podrun is our own child, and strace, which stays with the containers that it follows, is nobody's.
    argv = ["strace", "-D", "-o", trace, *(["-f"] if follow else []), *(["-e", f"inject={inject}"] if inject else [])]
    return subprocess.run(
        [*argv, *podrun.argv(*words)], env=podrun.environ, timeout=60,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ).returncode  # fmt: skip


def points(podrun: Podrun, home: Path, *words: str, follow: bool) -> list[tuple[str, int]]:
    """The calls of one whole run in random order: (name, how many of that name the process has made before, plus 1)."""
    trace = home / "trace"
    assert traced(podrun, *words, follow=follow, trace=str(trace)) == 0
    counts: dict[str, Counter[str]] = {}
    began: list[tuple[str, int]] = []
    at_work = False
    for line in trace.read_text(errors="replace").splitlines():
        # Before podrun has the pod's lock there is only the start of the interpreter.
        at_work = at_work or "/locks/" in line
        # With -f each line has the process in front, and strace counts for each process on its own.
        found = re.match(r"(\d+ +)?(\w+)\(", line)
        if not found or found[2] not in CHANGING:
            continue
        count = counts.setdefault(found[1] or "", Counter())
        count[found[2]] += 1
        if at_work:
            began.append((found[2], count[found[2]]))
    wanted = list(dict.fromkeys(began))
    random.Random(os.environ.get("PODRUN_KILL_SEED")).shuffle(wanted)
    return wanted


def kills(podrun: Podrun, home: Path, *words: str, follow: bool, restore: Any) -> Iterator[Any]:
    """Kills podrun at one call after the other, and says at which; ``restore`` makes the state to start from."""
    wanted = points(podrun, home, *words, follow=follow)
    restore()
    deadline = time.monotonic() + PATIENCE
    tried = 0
    for name, n in wanted:
        if time.monotonic() > deadline:
            break
        ended = traced(podrun, *words, follow=follow, inject=f"{name}:signal=KILL:when={n}")
        tried += 1
        yield f"{' '.join(words[:1])} killed at {name} number {n}, {'children too' if follow else 'alone'}: {ended}"
        restore()
    assert tried > 2, "there was hardly time to try"


@pytest.mark.parametrize("follow", [False, True], ids=["podrun", "podrun-and-its-children"])
def test_up_killed_at_a_system_call_is_undone_by_one_down(podrun: Podrun, home: Path, web: Any, follow: bool) -> None:
    before = listing(podrun.run, podrun.root)

    def restore() -> None:
        done = podrun("down", "web")
        assert done.returncode == 0, f"{told}: {done.stderr}"
        assert not settled(podrun.run, podrun.root, before), told

    told = "nothing yet"
    for told in kills(podrun, home, "up", "-d", web, follow=follow, restore=restore):  # noqa: B007
        pass


@pytest.mark.parametrize("follow", [False, True], ids=["podrun", "podrun-and-its-children"])
def test_down_killed_at_a_system_call_is_finished_by_the_next(
    podrun: Podrun, home: Path, web: Any, follow: bool
) -> None:
    before = listing(podrun.run, podrun.root)

    def restore() -> None:
        done = podrun("down", "web")
        assert done.returncode == 0, f"{told}: {done.stderr}"
        assert not settled(podrun.run, podrun.root, before), told
        podrun("up", "-d", web, check=True)

    told = "nothing yet"
    podrun("up", "-d", web, check=True)
    for told in kills(podrun, home, "down", "web", follow=follow, restore=restore):  # noqa: B007
        pass


def test_up_killed_at_a_system_call_does_not_keep_the_next_up_from_working(
    podrun: Podrun, home: Path, web: Any
) -> None:
    before = listing(podrun.run, podrun.root)

    def restore() -> None:
        podrun("down", "web", check=True)
        assert not settled(podrun.run, podrun.root, before), told

    told = "nothing yet"
    for told in kills(podrun, home, "up", "-d", web, follow=False, restore=restore):
        again = podrun("up", "-d", web)
        # 75: it was killed when all was done.
        assert again.returncode in (0, 75), f"{told}: {again.stderr}"
        assert podrun("exec", "web", "true").returncode == 0, told


def test_a_run_in_the_foreground_killed_at_a_system_call_is_undone_by_one_down(
    podrun: Podrun, home: Path, web: Any
) -> None:
    before = listing(podrun.run, podrun.root)

    def restore() -> None:
        done = podrun("down", "one")
        assert done.returncode == 0, f"{told}: {done.stderr}"
        assert not settled(podrun.run, podrun.root, before), told

    told = "nothing yet"
    words = ("run", "--rm", "--name", "one", "host:", "true")
    for told in kills(podrun, home, *words, follow=False, restore=restore):  # noqa: B007
        pass
