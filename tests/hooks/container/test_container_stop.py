"""Stopping: the signal, the patience, the kill; and that nothing is left whatever the payload does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks.container import paths as places
from podrun_hooks.container import processes
from support.container_case import Case

pytestmark = pytest.mark.root

LOOP = "while :; do sleep 0.02; done"


def stopped(case: Case) -> float:
    """Stops the container; returns how many seconds it took."""
    case.said.clear()
    began = time.monotonic()
    case.down()
    took = time.monotonic() - began
    assert case.left() == []
    return took


def shared(tmp_path: Path) -> dict[str, Any]:
    """Facts with a directory of the host at /told, where a payload's last words survive its log."""
    (tmp_path / "told").mkdir(exist_ok=True)
    mount = {"hostPath": str(tmp_path / "told"), "containerPath": "/told", "type": "bind", "options": []}
    return {"mounts": [mount]}


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize(
    ("image", "given", "name"),
    [
        ({}, {}, "TERM"),
        ({"StopSignal": "SIGQUIT"}, {}, "QUIT"),
        ({"StopSignal": "SIGQUIT"}, {"stop_signal": "USR1"}, "USR1"),
        ({"StopSignal": "nonsense"}, {}, "TERM"),
    ],
    ids=str,
)
def test_the_payload_gets_the_images_or_the_options_signal(
    tmp_path: Path, runtime: str, image: dict[str, str], given: dict[str, str], name: str
) -> None:
    case = Case(tmp_path)
    case.config = image
    traps = "; ".join(f"trap 'echo {word} > /told/me; exit 0' {word}" for word in ("TERM", "QUIT", "USR1"))
    case.up("sh", "-c", f"{traps}; {LOOP}", runtime=runtime, facts=shared(tmp_path), **given)
    assert stopped(case) < 1
    assert (tmp_path / "told/me").read_text() == f"{name}\n"


def test_a_stop_before_the_handler_is_there_waits_for_it(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.up("sh", "-c", f"sleep 0.4; trap 'echo asked > /told/me; exit 0' TERM; {LOOP}", facts=shared(tmp_path))
    assert 0.2 < stopped(case) < 1.5
    assert (tmp_path / "told/me").read_text() == "asked\n"


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        # What a payload that ignores the signal is finishing is its own business, as in docker and in a plain unit.
        (("sleep", "60"), "; as process 1 it has no handler for it: init = true passes the signal on"),
        (("sh", "-c", f"trap '' TERM; {LOOP}"), "; it ignores the signal: stop_signal can name one that it does not"),
        (("sh", "-c", f"trap 'echo no' TERM; {LOOP}"), ""),
    ],
    ids=["no handler", "ignored", "handled"],
)
@pytest.mark.parametrize("given", [{"stop_timeout": 1.5}, {}], ids=["its own time", "the pod's"])
def test_a_payload_that_does_not_end_has_its_whole_time_and_is_told_of(
    tmp_path: Path, command: tuple[str, ...], hint: str, given: dict[str, Any]
) -> None:
    case = Case(tmp_path, stop_timeout=0.7)
    case.up(*command, **given)
    seconds = given.get("stop_timeout", 0.7)
    assert seconds <= stopped(case) < seconds + 0.7
    [line] = [line for line in case.said if not line.startswith("STATUS=")]
    assert line == f"it did not end within {seconds:g} s of SIGTERM: killed{hint}"


def test_a_payload_that_ends_as_asked_is_not_spoken_of(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.up("sh", "-c", f"trap 'exit 0' TERM; {LOOP}")
    assert stopped(case) < 1
    assert [line for line in case.said if not line.startswith("STATUS=")] == []


def test_init_passes_the_signal_on_and_reaps(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.up("sh", "-c", "(sleep 0.05 &); sleep 60", init=True)
    time.sleep(0.1)
    assert "Z" not in case.exec("ps", "-o", "stat")
    assert stopped(case) < 0.5
    assert not any("kill" in line for line in case.said)


def test_a_container_that_has_ended_is_only_removed(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.up("true")
    time.sleep(0.1)
    assert stopped(case) < 0.3
    assert stopped(case) < 0.3


def test_a_zombie_counts_as_ended(tmp_path: Path) -> None:
    code = """
import ctypes, os, sys, time
from pathlib import Path
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, as podrun in the foreground is
from support.container_case import Case
from podrun_hooks.container import processes
case = Case(Path(sys.argv[1]))
case.up("sh", "-c", "exit 7")
process = processes.Process(**case.own["process"])
while processes.exit_status(process) is None:
    time.sleep(0.01)
began = time.monotonic()
case.down()
case.down({})
print(processes.exit_status(process), time.monotonic() - began < 4, case.left(), os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]))
"""
    paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=":".join(paths)),
    )
    assert run.stdout == "7 True [] 7\n", run.stderr


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_every_process_of_the_container_goes(tmp_path: Path, runtime: str) -> None:
    case = Case(tmp_path)
    script = f"trap 'exit 0' TERM; (trap '' TERM HUP; sleep 61)& (setsid sleep 62)& {LOOP}"
    case.up("sh", "-c", script, runtime=runtime)
    exec_ = case.exec("sh", "-c", "sleep 63 > /dev/null 2>&1 & echo started")
    assert exec_ == "started"
    assert stopped(case) < 1
    assert subprocess.run(["pgrep", "-f", "^sleep 6[123]$"], capture_output=True).stdout == b""


def test_down_ends_what_a_killed_launcher_left_in_its_cgroup(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.up("sleep", "60", memory="32M", stop_signal="KILL")
    assert any(f"{case.pod.tag}.main" in path for path in case.left())
    case.down({})
    assert case.left() == []


def test_down_works_when_the_bundle_and_the_state_are_gone(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.up("sleep", "60", stop_signal="KILL")
    place = places.of(case.step())
    for path in (place.config, f"{place.state}/config.json", f"{place.state}/status"):
        os.unlink(path)
    case.down()
    case.down()
    assert case.left() == []


def test_down_finds_a_container_whose_state_directory_is_gone(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.up("sleep", "60", stop_signal="KILL")
    places.clear(places.of(case.step()).state)
    case.down({})
    assert case.left() == []


@pytest.mark.parametrize("when", ["never up", "twice"])
def test_down_succeeds_when_there_is_nothing(tmp_path: Path, when: str) -> None:
    case = Case(tmp_path)
    if when == "twice":
        case.run("true")
    case.down({})
    case.down({"process": {"pid": 2**22 - 1, "start": 1}})
    assert case.left() == []


def test_a_frozen_or_stopped_payload_is_removed_too(tmp_path: Path) -> None:
    case = Case(tmp_path, stop_timeout=0.3)
    case.up("sh", "-c", f"trap 'exit 0' TERM; {LOOP}")
    time.sleep(0.1)
    os.kill(case.own["process"]["pid"], 19)
    assert stopped(case) < 1
    assert processes.identify(case.own["process"]["pid"]) is None
