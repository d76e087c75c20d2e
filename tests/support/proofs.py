"""Proofs that interrupt commands at their system calls: the rounds, what they find, and the table at the end."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from support.each_call import Call, Ended, Tracer
from support.scenario import Scenario

#: For the rounds that are drawn at random, and printed.
SEED = os.environ.get("PODRUN_PROVE_SEED", "1")
#: Of each scenario, at most; what is left out is drawn by the seed.
SECONDS = float(os.environ.get("PODRUN_PROVE_SECONDS", "1e9"))
#: Exit codes that a failed command may have (DESIGN, section 4); of what a container ended with, none is expected.
CODES = frozenset({65, 69, 73, 75, 76, 77, 78, 125, 126, 127})


class Row(NamedTuple):
    """What came of one scenario."""

    name: str
    calls: int
    runs: int
    #: How often the command was hit: killed, or a call failed.
    hit: int
    #: How often it ended as if nothing had happened.
    good: int
    seconds: float
    faults: list[str]


def table(rows: Sequence[Row]) -> str:
    """The rows as text, and every fault below it."""
    lines = [f"{'':28}{'calls':>7}{'runs':>7}{'hit':>7}{'exit 0':>8}{'faults':>8}{'s':>7}"]
    lines += [
        f"{row.name:28}{row.calls:7}{row.runs:7}{row.hit:7}{row.good:8}{len(row.faults):8}{row.seconds:7.0f}"
        for row in rows
    ]
    sums = [
        sum(column) for column in zip(*[(r.calls, r.runs, r.hit, r.good, len(r.faults)) for r in rows], strict=True)
    ]
    lines.append(f"{'all':28}{sums[0]:7}{sums[1]:7}{sums[2]:7}{sums[3]:8}{sums[4]:8}")
    return "\n".join([*lines, *(f"{row.name}: {fault}" for row in rows for fault in row.faults)])


def drawn(calls: Sequence[Call], seed: str = SEED) -> list[Call]:
    """The same calls in an order of chance."""
    return random.Random(seed).sample(calls, len(calls))


class Rounds:
    """The rounds of one scenario, and what they find."""

    def __init__(self, name: str, scene: Scenario, tracer: Tracer) -> None:
        self.name, self.scene, self.tracer = name, scene, tracer
        self.calls = self.runs = self.hit = self.good = 0
        self.faults: list[str] = []
        self.began = time.monotonic()
        self.before = self.at_rest()

    def row(self) -> Row:
        return Row(self.name, self.calls, self.runs, self.hit, self.good, time.monotonic() - self.began, self.faults)

    def kill(self, calls: Iterable[Call], seconds: float = 1e9) -> None:
        """Kills the command at one call after the other; every other time it is done again before it is undone."""
        for number, call in enumerate(calls):
            if self.hit and time.monotonic() - self.began > seconds:
                return
            try:
                self.scene.begin()
                ended = self.tracer.killed_at(call)
                self.hit += ended.killed
                self.good += ended.code == 0
                if number % 2:
                    self.scene.again()
                self.scene.end()
                self.nothing_left()
            except AssertionError as error:
                self.fault(f"killed at {call.name} {call.n}: {call.words}: {error}")
            self.runs += 1

    def moments(self, count: int, seconds: float = 1e9) -> None:
        """Kills the command at moments of chance; every other time it is done again before it is undone."""
        dice = random.Random(f"{SEED}/{self.name}")
        self.scene.begin()
        began = time.monotonic()
        self.scene.podrun(*self.scene.words)
        took = time.monotonic() - began
        self.scene.end()
        for number in range(count):
            if self.hit and time.monotonic() - self.began > seconds:
                return
            moment = dice.uniform(0, took)
            try:
                self.scene.begin()
                running = self.scene.podrun.start(
                    *self.scene.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                try:
                    running.wait(moment)
                except subprocess.TimeoutExpired:
                    running.kill()
                code = running.wait()
                self.hit += code == -signal.SIGKILL
                self.good += code == 0
                if number % 2:
                    self.scene.again()
                self.scene.end()
                self.nothing_left()
            except AssertionError as error:
                self.fault(f"killed after {moment * 1000:.1f} ms: {error}")
            self.runs += 1

    def fail(self, errors: Iterable[tuple[Call, str]], seconds: float = 1e9) -> None:
        """Has one call after the other fail."""
        for call, error in errors:
            if self.hit and time.monotonic() - self.began > seconds:
                return
            try:
                self.scene.begin()
                here = self.scene.objects() if self.scene.undoes_itself else set()
                ended = self.tracer.failing_at(call, error)
                self.hit += bool(ended.hit)
                self.good += ended.code == 0
                self.said(f"{self.name}: {error} at {call.words[:90]}: {ended.code}: {ended.stderr}")
                self.told(ended)
                if self.scene.undoes_itself and ended.code:
                    self.nothing_left(here, ended.stderr)
                if ended.code:
                    self.scene.failed()
                self.scene.end()
                self.nothing_left(said=ended.stderr)
            except AssertionError as problem:
                self.fault(f"{error} at {call.name} {call.n}: {call.words}: {problem}")
            self.runs += 1

    def said(self, words: str) -> None:
        """Keeps what was said for who wants to read it: PODRUN_PROVE_SAID names a file."""
        if path := os.environ.get("PODRUN_PROVE_SAID"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(" ".join(words.split()) + "\n")

    def told(self, ended: Ended) -> None:
        """Checks what a command said that failed."""
        for word in ("Traceback", "internal error", "the hook failed:", "Exception ignored", "Fatal Python"):
            assert word not in ended.stderr, f"exit {ended.code}: {ended.stderr}"
        # What could not be written to standard output or error was not said.
        mute = re.search(r"write\([12]<", ended.hit)
        if ended.code:
            assert ended.code in CODES, f"exit {ended.code}: {ended.stderr}"
            assert mute or re.search("^podrun: .+", ended.stderr, re.MULTILINE), f"exit {ended.code}: {ended.stderr!r}"

    def nothing_left(self, before: set[str] | None = None, said: str = "") -> None:
        """Checks that what is there is what was there; the kernel drops the links of a network namespace later."""
        before = self.before if before is None else before
        deadline = time.monotonic() + 3
        while (now := self.scene.objects()) != before and time.monotonic() < deadline:
            time.sleep(0.03)
        assert now == before, f"left: {sorted(now - before)}, gone: {sorted(before - now)} {said}"

    def fault(self, what: str) -> None:
        """Notes it, and makes room for the rounds to come."""
        self.faults.append(" ".join(what.split()))
        podrun = self.scene.podrun
        podrun("down", "--force", "web")
        try:
            self.scene.end()
        except AssertionError as error:
            self.faults.append(f"and then: {error}")
        self.before = self.at_rest()

    def at_rest(self) -> set[str]:
        """The objects, once the kernel has dropped what it drops later."""
        now = self.scene.objects()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            time.sleep(0.2)
            before, now = now, self.scene.objects()
            if now == before:
                break
        return now
