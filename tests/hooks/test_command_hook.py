"""Executables as hooks: what they are given, what their answers and their endings mean, and whose may run."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import NOT_ALLOWED, STEP_FAILED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Pod, Step
from podrun_hooks.executable import hook

pytestmark = pytest.mark.root


def step_of(path: Any, home: Path, **more: Any) -> Any:
    pod = Pod("web", f"{home}/root", f"{home}/run", tag="podrun-web")
    return Step(pod, f"exec:{path}", "hook", {"size": 3}, **more)


@pytest.fixture
def script(home: Path) -> Any:
    def write(text: Any, mode: int = 0o755) -> Any:
        path = home / "hook"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return path

    return write


def test_it_reads_one_object_and_its_output_is_the_facts(home: Path, script: Any) -> None:
    path = script(f'cat >{home}/question; echo \'{{"env": ["A=1"]}}\'')
    facts = hook.up(step_of(path, home), {"netns": "/run/netns/x"})
    assert facts == {"env": ["A=1"]}
    asked = json.loads((home / "question").read_text())
    assert asked["version"] == 1
    assert asked["pod"]["name"] == "web"
    assert asked["step"] == {"hook": f"exec:{path}", "name": "hook", "options": {"size": 3}}
    assert asked["facts"] == {"netns": "/run/netns/x"}
    assert asked["own"] == {}


def test_down_is_given_what_up_printed(home: Path, script: Any) -> None:
    path = script(f"cat >{home}/question")
    hook.down(step_of(path, home), {"device": "wg0"})
    assert json.loads((home / "question").read_text())["own"] == {"device": "wg0"}


def test_its_environment_is_scrubbed(home: Path, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "swordfish")
    path = script(f"cat >/dev/null; env | sort >{home}/env")
    hook.up(step_of(path, home), {})
    seen = (home / "env").read_text()
    assert "SECRET" not in seen
    assert "PODRUN_VERB=up" in seen


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        ("exit 3", STEP_FAILED, "ended with 3"),
        ("exit 69", UNAVAILABLE, "ended with 69"),
        ('echo \'{"error": "no such vault", "hint": "ask ops"}\'; exit 1', STEP_FAILED, "no such vault; ask ops"),
        ("echo hello", STEP_FAILED, "not one JSON object"),
        ("echo '[1]'", STEP_FAILED, "not one JSON object"),
        ("kill -9 $$", STEP_FAILED, "ended with 137"),
        ("head -c 2000000 /dev/zero", STEP_FAILED, "more than 1048576 bytes"),
    ],
)
def test_what_goes_wrong_is_told(home: Path, script: Any, text: str, code: Any, what: str) -> None:
    with pytest.raises(Failure, match=what) as failed:
        hook.up(step_of(script(f"cat >/dev/null; {text}"), home), {})
    assert failed.value.code == code


def test_its_log_is_passed_on_with_its_name(home: Path, script: Any, capfd: pytest.CaptureFixture[str]) -> None:
    hook.up(step_of(script("cat >/dev/null; echo one >&2; printf two >&2"), home), {})
    assert capfd.readouterr().err == "hook: one\nhook: two\n"


def test_one_that_hangs_is_killed_with_its_children(home: Path, script: Any) -> None:
    path = script(f"sleep 300 & echo $! >{home}/child; sleep 300")
    began = time.monotonic()
    with pytest.raises(Failure, match="no answer in time"):
        hook.up(step_of(path, home, timeout=0.3), {})
    assert time.monotonic() - began < 60
    child = int((home / "child").read_text())
    time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}") or "Z" in open(f"/proc/{child}/stat").read()


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_file_that_others_can_change_is_not_run(home: Path, script: Any, mode: int) -> None:
    with pytest.raises(Failure, match="can be changed by") as refused:
        hook.up(step_of(script("true", mode), home), {})
    assert refused.value.code == NOT_ALLOWED


def test_a_directory_above_that_others_can_change_is_refused_also_behind_a_symlink(
    home: Path, script: Any, tmp_path: Path
) -> None:
    (tmp_path / "hook").write_text("#!/bin/sh\n")
    (tmp_path / "hook").chmod(0o755)
    link = home / "link"
    link.symlink_to(tmp_path / "hook")
    with pytest.raises(Failure, match="can be changed by"):
        hook.up(step_of(link, home), {})


@pytest.mark.parametrize(("make", "what"), [("missing", "there is no"), ("plain", "not an executable file")])
def test_check_finds_a_missing_or_plain_file(home: Path, script: Any, make: str, what: str) -> None:
    path = home / "none" if make == "missing" else script("true", 0o644)
    [problem] = hook.check(step_of(path, home))
    assert what in problem.what
    assert (problem.code, problem.fatal) == (WRONG_FILE, True)


def test_an_executable_costs_little_more_than_itself(home: Path, script: Any) -> None:
    path = script("cat >/dev/null")
    began = time.monotonic()
    subprocess.run([path], stdin=subprocess.DEVNULL, check=True)
    alone = time.monotonic() - began
    best = min(_timed(lambda: hook.up(step_of(path, home), {})) for _ in range(5))
    assert best < alone + 0.02


def _timed(act: Any) -> Any:
    began = time.monotonic()
    act()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("#!/bin/sh\r\necho {}\r\n", "CRLF"),
        ("echo {}\n", "neither #!"),
        ("#!/no/such/interpreter\n", "which is not there"),
        ("", "neither #!"),
    ],
    ids=["CRLF", "no first line", "interpreter", "empty"],
)
def test_an_executable_that_cannot_be_executed_is_refused_before_anything_is_created(
    home: Path, content: str, words: str
) -> None:
    path = home / "hook"
    path.write_text(content)
    path.chmod(0o755)
    [problem] = hook.check(step_of(path, home))
    assert problem.fatal
    assert words in problem.what
