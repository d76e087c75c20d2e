"""podrun is killed (-9) at its system calls: the next command finishes what it began, and nothing is left.

./dev test draws as many calls at random as fit into its time; ``./dev prove kill`` takes every one, and prints a table.
PODRUN_PROVE_TIMES=25 takes them so many times, PODRUN_PROVE_SECONDS ends each scenario after so long.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.each_call import Tracer
from support.hook_scenarios import HOOKS, while_stopping
from support.launcher import AsInstalled, Podrun
from support.proofs import SECONDS, SEED, Rounds, Row, drawn, table
from support.scenario import Scenario, scenario
from support.scenarios import COMMANDS, chosen

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: In ./dev test: seconds for a command, and kills for a hook's step.
_SECONDS, _KILLS = 2.0, 2


def _killed(
    kind: type[Scenario],
    podrun: Podrun,
    home: Path,
    name: str,
    *,
    follow: bool,
    seconds: float = 1e9,
    most: int = 10**9,
) -> Row:
    """Kills a command at its calls in an order of chance."""
    podrun = AsInstalled(podrun.home)
    with scenario(kind, podrun, home) as scene:
        tracer = Tracer(podrun.argv(*scene.words), podrun.environ, home, follow=follow)
        rounds = Rounds(f"{name}{', children' if follow else ''}", scene, tracer)
        scene.begin()
        calls = tracer.calls(scene.mark, until=scene.until)
        scene.end()
        rounds.calls = len(calls)
        for time in range(int(os.environ.get("PODRUN_PROVE_TIMES", "1"))):
            rounds.kill(drawn(calls, f"{SEED}/{time}")[:most], seconds)
        return rounds.row()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_a_system_call_is_finished_by_the_next(name: str, podrun: Podrun, home: Path) -> None:
    row = _killed(COMMANDS[name], podrun, home, name, follow=name in ("up", "image pull"), seconds=_SECONDS)
    assert not row.faults, table([row])
    assert row.hit, "there was no time for a single kill"


@pytest.mark.parametrize("stopping", [False, True], ids=["up", "down"])
def test_a_step_of_each_kind_killed_at_a_system_call_is_undone_by_one_down(
    stopping: bool, podrun: Podrun, home: Path
) -> None:
    rows = []
    for name, kind in HOOKS.items():
        rows.append(_killed(while_stopping(kind) if stopping else kind, podrun, home, name, follow=False, most=_KILLS))
    assert not [fault for row in rows for fault in row.faults], table(rows)


@pytest.mark.prove
@pytest.mark.parametrize("follow", [False, True], ids=["podrun alone", "with its children"])
def test_kill_at_every_system_call(podrun: Podrun, home: Path, follow: bool) -> None:
    rows = []
    for name, kind in chosen().items():
        rows.append(_killed(kind, podrun, home, name, follow=follow, seconds=SECONDS))
        print("\n" + table(rows[-1:]).splitlines()[1], *rows[-1].faults, sep="\n", flush=True)
    print(f"\nseed {SEED}\n{table(rows)}")
    assert not [fault for row in rows for fault in row.faults]


@pytest.mark.prove
def test_kill_at_random_moments(podrun: Podrun, home: Path) -> None:
    """PODRUN_PROVE_MOMENTS: how many, of all scenarios together."""
    rows = []
    scenes = chosen()
    for name, kind in scenes.items():
        with scenario(kind, AsInstalled(podrun.home), home) as scene:
            tracer = Tracer([], {}, home)
            rounds = Rounds(f"{name}, moments", scene, tracer)
            rounds.moments(-(-int(os.environ.get("PODRUN_PROVE_MOMENTS", "1000")) // len(scenes)), SECONDS)
            rows.append(rounds.row())
        print("\n" + table(rows[-1:]).splitlines()[1], *rows[-1].faults, sep="\n", flush=True)
    print(f"\nseed {SEED}\n{table(rows)}")
    assert not [fault for row in rows for fault in row.faults]
