"""Threads beside the launcher's own: they enter namespaces, it does not, and nobody goes on before they have ended."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import pytest

from podrun_hooks.support import syscalls
from podrun_hooks.support.aside import Thread


@pytest.mark.root
def test_a_thread_enters_namespaces_and_the_launcher_stays_where_it_is() -> None:
    before = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt")}
    seen: dict[str, str] = {}

    def enter() -> None:
        syscalls.unshare(syscalls.CLONE_FS | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET)
        seen.update({kind: os.readlink(f"/proc/thread-self/ns/{kind}") for kind in before})

    Thread(enter).join()
    assert all(seen[kind] != before[kind] for kind in before)
    assert {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in before} == before


def test_what_the_work_has_raised_is_raised_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise FileNotFoundError("gone")

    failing = Thread(fail)
    failing.end()
    with pytest.raises(FileNotFoundError, match="gone"):
        failing.join()


def test_a_signals_exception_comes_after_the_end_of_the_work() -> None:
    done: list[int] = []

    def work() -> None:
        time.sleep(0.3)
        done.append(1)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        working = Thread(work)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            working.join()
        assert done
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
