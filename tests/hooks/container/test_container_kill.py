"""kill -9 of podrun at any moment of ``up``: one ``down`` without facts leaves nothing, a second one succeeds too."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks import container
from podrun_hooks.container import paths as places
from podrun_hooks.container import processes
from support.container_case import Case

pytestmark = pytest.mark.root

# Starts the container of a Case that exists already; says "go" when everything is imported, dies at a notification.
DRIVER = """
import os, sys
from pathlib import Path
from support.container_case import Case
from podrun_hooks import container
from podrun_hooks.container.seccomp import filter
from podrun.hook import Step
at, options, tmp = int(sys.argv[1]), eval(sys.argv[2]), Path(sys.argv[3])
case = Case(tmp)
step = case.step(**options)
count = 0
def notify(text):
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), 9)
facts = case.facts()
print("go", flush=True)
container.up(step._replace(notify=notify, announce=notify), facts)
print(count, flush=True)
os.read(0, 1)
"""
HANDLER = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait; done"]


def start(case: Case, at: int, **options: Any) -> subprocess.Popen[str]:
    case.options = options
    paths = [str(Path(__file__).parents[2]), *[path for path in sys.path if path]]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(at), repr(options), str(case.tmp)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=":".join(paths)),
    )


def end(driver: subprocess.Popen[str]) -> None:
    driver.kill()
    driver.communicate()


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("options", [{}, {"memory": "64M"}, {"init": True}], ids=["plain", "limits", "init"])
def test_a_kill_at_any_notification_leaves_nothing(tmp_path: Path, runtime: str, options: dict[str, Any]) -> None:
    case = Case(tmp_path)
    for at in range(1, 20):
        driver = start(case, at, command=HANDLER, runtime=runtime, **options)
        assert driver.stdout and driver.stdout.readline() == "go\n"
        count = driver.stdout.readline()
        end(driver)
        case.down({})
        assert case.left() == [], f"killed at notification {at}"
        case.down({})
        if count:  # it was not killed: it has fewer notifications than that
            assert at > 4
            return
    raise AssertionError("up does not come to an end")


@pytest.mark.parametrize(("runtime", "times"), [("crun", 60), ("runc", 25)])
def test_a_kill_at_a_random_moment_leaves_nothing(tmp_path: Path, runtime: str, times: int) -> None:
    case = Case(tmp_path)
    case.run("true", runtime=runtime)  # from here on the seccomp filter is in the store
    driver = start(case, 0, command=HANDLER, runtime=runtime)
    assert driver.stdout and driver.stdout.readline() == "go\n"
    began = time.monotonic()
    assert driver.stdout.readline()
    longest = time.monotonic() - began
    end(driver)
    case.down({})
    chance = random.Random(runtime)
    alive = 0
    for turn in range(times):
        driver = start(case, 0, command=HANDLER, runtime=runtime)
        assert driver.stdout and driver.stdout.readline() == "go\n"
        after = chance.uniform(0, longest)
        time.sleep(after)
        end(driver)
        alive += bool(processes.with_mount(places.of(case.step()).mark))
        case.down({})
        assert case.left() == [], f"turn {turn}: killed after {after * 1000:.2f} ms"
        case.down({})
    assert alive, "no kill met a process"


def test_a_container_that_was_created_but_never_started_is_killed_at_once(tmp_path: Path) -> None:
    case = Case(tmp_path)
    driver = start(case, 3, command=HANDLER)  # the announcement
    assert driver.stdout and driver.stdout.readline() == "go\n"
    driver.wait()
    place = places.of(case.step())
    assert os.path.exists(f"{place.state}/exec.fifo")
    waiting = processes.with_mount(place.mark)
    assert waiting
    began = time.monotonic()
    case.down({"process": {"pid": waiting[0].pid, "start": waiting[0].start}})
    assert time.monotonic() - began < 4
    assert case.left() == []


def test_a_payload_whose_podrun_was_killed_is_still_asked_to_stop(tmp_path: Path) -> None:
    case = Case(tmp_path)
    told = tmp_path / "told"
    told.mkdir()
    mount = {"hostPath": str(told), "containerPath": "/told", "type": "bind", "options": []}
    script = "trap 'echo TERM > /told/me; exit 0' TERM; while :; do sleep 1 & wait; done"
    container.up(case.step(command=["sh", "-c", script]), case.facts(mounts=[mount]))
    case.down({})
    assert (told / "me").read_text() == "TERM\n"
    assert case.left() == []


def test_leftovers_of_the_runtime_without_a_process_are_removed(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.up("sleep", "60", stop_signal="KILL")
    process = processes.Process(**case.own["process"])
    pidfd = processes.opened(process)
    os.kill(process.pid, 9)
    assert pidfd is not None and processes.ended(pidfd, 5)
    os.close(pidfd)
    Path(places.of(case.step()).state, "status").write_text("{")
    case.down({})
    assert case.left() == []


def test_a_pid_file_that_names_somebody_elses_process_kills_nobody(tmp_path: Path) -> None:
    case = Case(tmp_path)
    place = places.of(case.step())
    places.prepare(place, persist=False)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        Path(place.pid_file).write_text(str(stranger.pid))
        case.down({})
        assert stranger.poll() is None
        stranger.kill()
    assert case.left() == []


def test_facts_of_a_process_whose_pid_is_used_again_kill_nobody(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.step()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        start_time = processes.identify(stranger.pid)
        assert start_time
        case.down({"process": {"pid": stranger.pid, "start": start_time.start + 1}})
        assert stranger.poll() is None
        stranger.kill()
    assert case.left() == []
