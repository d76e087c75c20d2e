"""A system call of podrun fails: it says what failed, ends with a code of the table, and undoes what it began.

./dev test draws as many calls at random as fit into its time; ``./dev prove errors`` takes every one with every error
that it can return, and prints a table. PODRUN_PROVE_PART=3 takes one in three, drawn by PODRUN_PROVE_SEED.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from support.each_call import ERRORS, FAILING, Tracer
from support.launcher import Podrun
from support.proofs import SECONDS, SEED, Rounds, Row, table
from support.scenario import Scenario, scenario
from support.scenarios import COMMANDS, chosen

pytestmark = [pytest.mark.root, pytest.mark.slow]

_SECONDS = 2.0


def _failed(
    kind: type[Scenario], podrun: Podrun, home: Path, name: str, *, follow: bool, seconds: float = 1e9, part: int = 1
) -> Row:
    """Has the calls of a command fail, in an order of chance."""
    with scenario(kind, podrun, home) as scene:
        tracer = Tracer(podrun.argv(*scene.words), podrun.environ, home, follow=follow)
        rounds = Rounds(f"{name}{', children' if follow else ''}", scene, tracer)
        scene.begin()
        calls = tracer.calls(scene.mark, FAILING, scene.until)
        scene.end()
        wanted = [(call, error) for call in calls for error, names in ERRORS.items() if call.name in names]
        rounds.calls = len(calls)
        rounds.fail(random.Random(SEED).sample(wanted, len(wanted) // part), seconds)
        return rounds.row()


@pytest.mark.parametrize("name", ["up", "down", "reload (swap)", "image pull", "gc"])
def test_a_command_of_which_a_system_call_fails_says_so_and_leaves_nothing(
    name: str, podrun: Podrun, home: Path
) -> None:
    row = _failed(COMMANDS[name], podrun, home, name, follow=False, seconds=_SECONDS)
    assert not row.faults, table([row])
    assert row.hit, "there was no time for a single failure"


@pytest.mark.prove
@pytest.mark.parametrize("follow", [False, True], ids=["podrun alone", "with its children"])
def test_errors_at_every_system_call(podrun: Podrun, home: Path, follow: bool) -> None:
    rows = []
    for name, kind in chosen().items():
        part = int(os.environ.get("PODRUN_PROVE_PART", "1"))
        rows.append(_failed(kind, podrun, home, name, follow=follow, seconds=SECONDS, part=part))
        print("\n" + table(rows[-1:]).splitlines()[1], *rows[-1].faults, sep="\n", flush=True)
    print(f"\nseed {SEED}\n{table(rows)}")
    assert not [fault for row in rows for fault in row.faults]
