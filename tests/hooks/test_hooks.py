"""Hooks on the command line and in chains: by name, from packages, their progress, and what users see when one fails."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import Failure
from podrun.hook import Pod, Step
from podrun_hooks.executable import hook as command
from support.launcher import Podrun

pytestmark = pytest.mark.root


@pytest.fixture
def step(home: Path) -> Any:
    """A step of an executable at ``path``."""
    pod = Pod("web", f"{home}/root", f"{home}/run", tag="podrun-web")
    os.makedirs(pod.directory)

    def make(path: Any, **more: Any) -> Any:
        return Step(pod, f"exec:{path}", "hook", {"size": 3}, **more)

    return make


# --- by name -------------------------------------------------------------------------------------------------------


def test_an_executable_in_a_drop_in_directory_goes_by_its_name(podrun: Podrun, home: Path, dropped: Any) -> None:
    path = dropped("note", f"echo $PODRUN_VERB $PODRUN_OPTION_TEXT >>{home}/told")
    file = podrun.file("web", 'chain = [ { hook = "note", text = "hello" } ]')
    assert re.search(rf"^up +1 note +{path} ", podrun("plan", file).stdout)
    podrun("up", "-d", file, check=True)
    podrun("down", "web", check=True)
    assert (home / "told").read_text() == "describe hello\ncheck hello\nup hello\ndown hello\n"


def test_a_name_that_is_there_but_no_executable_is_told(podrun: Podrun, dropped: Any) -> None:
    path = dropped("note", "true", mode=0o644)
    done = podrun("up", podrun.file("web", 'chain = [ { hook = "note" } ]'))
    assert done.returncode == 78
    assert f"{path} is not an executable file; chmod +x {path}" in done.stderr


def test_a_drop_in_that_others_can_change_is_not_run(podrun: Podrun, dropped: Any) -> None:
    dropped("note", "true", mode=0o775)
    done = podrun("up", podrun.file("web", 'chain = [ { hook = "note" } ]'))
    assert done.returncode == 77


def test_podruns_own_names_cannot_be_taken(podrun: Podrun, dropped: Any) -> None:
    dropped("storage", "exit 9")
    done = podrun("plan", podrun.file("web", 'chain = [ { hook = "storage", source = "tmpfs:", target = "/x" } ]'))
    assert "hooks.d" not in done.stdout


def test_the_nearest_name_is_told_among_all(podrun: Podrun, dropped: Any) -> None:
    dropped("note", "true")
    done = podrun("up", podrun.file("web", 'chain = [ { hook = "noet" } ]'))
    assert "unknown hook 'noet'; did you mean 'note'?" in done.stderr


def test_ls_and_schema_name_drop_ins(podrun: Podrun, dropped: Any) -> None:
    path = dropped("note", "true")
    rows = {row["name"]: row for row in map(json.loads, podrun("hook", "ls", "--format", "json").stdout.splitlines())}
    assert (rows["note"]["kind"], rows["note"]["source"]) == ("executable", str(path))
    assert rows["image"]["kind"] == "first-party"
    assert '"note"' in podrun("schema").stdout


def test_an_executable_may_describe_itself(podrun: Podrun, dropped: Any) -> None:
    dropped("note", 'echo \'{"doc": "writes notes", "takes": [], "gives": ["env"]}\'')
    told = json.loads(podrun("hook", "describe", "note", "--format", "json").stdout)
    assert (told["doc"], told["takes"], told["gives"]) == ("writes notes", [], ["env"])


def test_one_that_says_nothing_of_itself_is_described_all_the_same(podrun: Podrun, dropped: Any) -> None:
    dropped("note", "exit 1")
    assert json.loads(podrun("hook", "describe", "note", "--format", "json").stdout)["takes"] == ["any"]


# --- what it is given, and how long it may take -----------------------------------------------------------------------


def test_a_shell_finds_what_it_needs_in_the_environment(home: Path, dropped: Any, step: Any) -> None:
    path = dropped("note", f"env >{home}/env")
    made = step(path)._replace(options={"a-b": [1, "x y"], "on": True, "table": {"a": 1}, "text": "it's"})
    command.up(made, {"netns": "/run/netns/podrun-web"})
    seen = (home / "env").read_text()
    for line in (
        "PODRUN_OPTION_A_B=1\nx y\n", "PODRUN_OPTION_ON=true\n", "PODRUN_OPTION_TEXT=it's\n", "PODRUN_POD=web\n",
        "PODRUN_TAG=podrun-web\n", "PODRUN_NETNS=/run/netns/podrun-web\n", "PODRUN_HOOK_VERSION=1\n",
        f"PODRUN_DIRECTORY={home}/run/pods/web\n",
    ):  # fmt: skip
        assert line in seen
    assert "TABLE" not in seen


PROGRESS = """
import os, socket
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for word in ("STATUS=half", "MAINPID=1", "READY=1\\nSTATUS=done", "EXTEND_TIMEOUT_USEC=1000", "EXTEND_TIMEOUT_USEC=x"):
    sock.sendto(word.encode(), os.environ["NOTIFY_SOCKET"])
"""


def test_its_progress_is_passed_on_and_nothing_else(dropped: Any, step: Any) -> None:
    told = []
    command.up(step(dropped("note", PROGRESS, shebang="#!/usr/bin/python3"), notify=told.append), {})
    assert told == ["STATUS=half", "STATUS=done", "EXTEND_TIMEOUT_USEC=1000"]


def test_systemd_notify_does_not_wait_for_an_answer_that_never_comes(dropped: Any, step: Any) -> None:
    told = []
    began = time.monotonic()
    command.up(step(dropped("note", "systemd-notify --status='on the way'"), notify=told.append), {})
    assert "STATUS=on the way" in told
    assert time.monotonic() - began < 20


def test_progress_reaches_the_notify_socket_of_podrun(podrun: Podrun, home: Path, dropped: Any) -> None:
    dropped("note", "[ $PODRUN_VERB != up ] || systemd-notify --status=painting")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{home}/notify")
        sock.settimeout(5)
        file = podrun.file("web", 'chain = [ { hook = "note" } ]')
        environ = {**podrun.environ, "NOTIFY_SOCKET": f"{home}/notify"}
        script = f"export SYSTEMD_EXEC_PID=$$; exec {' '.join(podrun.argv('up', file))}"
        process = subprocess.Popen(["sh", "-c", script], env=environ)
        told = ""
        while "READY=1" not in told:
            told += sock.recv(4096).decode() + "\n"
        assert "STATUS=painting" in told
        # systemd would answer the barrier by closing it.
        assert process.wait(10) == 0
    podrun("down", "web", check=True)


def test_asking_for_more_time_moves_the_usual_limit_and_not_the_steps_own(
    dropped: Any, step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dropped(
        "note",
        """
        import os, socket, time
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.sendto(b"EXTEND_TIMEOUT_USEC=5000000", os.environ["NOTIFY_SOCKET"])
        time.sleep(0.8)
        """.replace("\n        ", "\n"),
        shebang="#!/usr/bin/python3",
    )
    monkeypatch.setattr(command, "PATIENCE", 0.5)
    command.up(step(path), {})
    with pytest.raises(Failure, match="no answer in time"):
        command.up(step(path, timeout=0.5), {})


def test_what_it_leaves_running_after_success_stays_and_does_not_keep_podrun_waiting(
    home: Path, dropped: Any, step: Any
) -> None:
    began = time.monotonic()
    command.up(step(dropped("note", f"sleep 30 & echo $! >{home}/pid")), {})
    assert time.monotonic() - began < 5
    pid = int((home / "pid").read_text())
    os.kill(pid, 9)


def test_what_it_leaves_running_after_a_failure_is_killed(home: Path, dropped: Any, step: Any) -> None:
    with pytest.raises(Failure):
        command.up(step(dropped("note", f"sleep 30 & echo $! >{home}/pid; exit 1")), {})
    pid = int((home / "pid").read_text())
    deadline = time.monotonic() + 2
    while os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read():
        assert time.monotonic() < deadline


def test_what_a_killed_podrun_left_of_an_executable_is_over_before_its_down(
    podrun: Podrun, home: Path, dropped: Any
) -> None:
    # The shell dies with podrun; the sleep and what comes after it would go on if it were a program of its own.
    dropped("slow", f"[ $PODRUN_VERB != up ] || {{ touch {home}/begun; sh -c 'sleep 0.5; touch {home}/late'; }}")
    process = podrun.start("up", podrun.file("web", 'chain = [ { hook = "slow" } ]'))
    deadline = time.monotonic() + 5
    while not (home / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    podrun("down", "web", check=True)
    time.sleep(0.8)
    assert not (home / "late").exists()


def test_the_whole_group_of_an_executable_ends_at_once_when_podrun_is_killed(
    podrun: Podrun, home: Path, dropped: Any
) -> None:
    dropped("slow", f"[ $PODRUN_VERB != up ] || {{ sh -c 'echo $$ >{home}/pid; sleep 60; true'; true; }}")
    process = podrun.start("up", podrun.file("web", 'chain = [ { hook = "slow" } ]'))
    deadline = time.monotonic() + 20
    while not (home / "pid").exists() or not (home / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pid = int((home / "pid").read_text())
    process.kill()
    process.wait()
    while os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    podrun("down", "web", check=True)


def test_a_problem_may_be_fatal_for_check_and_an_up_is_not_slowed_by_it(
    podrun: Podrun, home: Path, dropped: Any
) -> None:
    problem = {"what": "no key", "hint": "ask ops", "code": 69, "fatal": True}
    dropped("note", f"[ $PODRUN_VERB != check ] || echo '{json.dumps({'problems': ['old', problem]})}'")
    file = podrun.file("web", 'chain = [ { hook = "note" } ]')
    done = podrun("check", file)
    assert done.returncode == 69
    assert done.stdout == f"{file}:1: note: warning: old\n{file}:1: note: error: no key; ask ops\n"


COST = """
import os, sys, time
from podrun.hook import Pod, Step
from podrun_hooks.executable import hook as command
path, home = sys.argv[1:]
made = Step(Pod("web", f"{home}/root", f"{home}/run", tag="podrun-web"), f"exec:{path}", "hook", {"size": 3})
def alone():
    os.waitpid(os.posix_spawn(path, [path], {"PATH": "/usr/bin:/bin"}), 0)
def timed(act):
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
rounds = [(timed(alone), timed(lambda: command.up(made, {}))) for _ in range(180)]
print(1000 * (min(hook for _, hook in rounds) - min(bare for bare, _ in rounds)))
"""


@pytest.mark.usefixtures("step")
def test_an_executable_costs_at_most_three_milliseconds_more_than_itself(
    home: Path, podrun: Podrun, dropped: Any
) -> None:
    # In a process of podrun's size: to fork that of the tests takes longer.
    argv = [sys.executable, "-c", COST, str(dropped("note", "exit 0")), str(home)]
    cost = subprocess.run(argv, env=podrun.environ, capture_output=True, text=True, check=True).stdout
    assert float(cost) < 3


# --- OCI hooks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["prestart", "createRuntime", "poststop"])
def test_an_oci_hook_reaches_the_runtime_unchanged(podrun: Podrun, home: Path, dropped: Any, moment: str) -> None:
    stock = dropped("stock", f'cat >{home}/state; echo "$0 $1 $COLOUR" >{home}/called')
    hook = {"hookName": moment, "path": str(stock), "args": ["stock", "one"], "env": ["COLOUR=blue"], "timeout": 5}
    dropped("injects", f"[ $PODRUN_VERB != up ] || echo '{json.dumps({'hooks': [hook]})}'")
    chain = '{ hook = "image", ref = "host:" }, { hook = "injects" }, { hook = "container", command = ["true"] }'
    done = podrun("up", podrun.file("web", f"chain = [ {chain} ]"))
    assert done.returncode == 0, done.stderr
    # The kernel gives a script its own path as $0.
    assert (home / "called").read_text() == f"{stock} one blue\n"
    state = json.loads((home / "state").read_text())
    assert state["id"].endswith("web.main")
    assert state["status"] in ("creating", "created", "stopped")


# --- what users see ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(10))
def test_a_failing_hook_is_named_and_everything_before_it_is_undone(
    podrun: Podrun, home: Path, dropped: Any, position: Any
) -> None:
    dropped(
        "step",
        f"""
        echo $PODRUN_VERB $PODRUN_STEP >>{home}/told
        [ $PODRUN_VERB-$PODRUN_STEP != up-{position} ] || {{ echo '{{"error": "no such vault", "hint": "ask ops"}}'; exit 69; }}
        """,
    )
    tables = ", ".join(f'{{ hook = "step", name = "{n}" }}' for n in range(10))
    done = podrun("up", podrun.file("web", f"chain = [ {tables} ]"))
    undone = ", ".join(f"step {n}" for n in range(position, -1, -1))
    assert done.stderr == f"podrun: web: step {position}: no such vault; ask ops; undone: {undone}\n"
    assert done.returncode == 69
    told = (home / "told").read_text().splitlines()
    assert told == [f"up {n}" for n in range(position + 1)] + [f"down {n}" for n in range(position, -1, -1)]


# --- plan, completion, trace -----------------------------------------------------------------------------------------


def test_plan_explains_with_commands_that_exist(podrun: Podrun) -> None:
    chain = (
        '{ hook = "image", ref = "host:" }, { hook = "storage", source = "volume:data", target = "/data" },'
        '{ hook = "network", publish = ["127.0.0.1:8080:80"] }, { hook = "container", command = ["x"], ready = { tcp = ":80" } },'
        '{ hook = "register", service = "web", port = 80 }'
    )
    told = podrun("plan", "--explain", podrun.file("web", f"chain = [ {chain} ]"), check=True).stdout
    for words in (
        "mount --rbind", "ip netns add podrun-", "nft add element inet", "mount -t overlay", "crun --root", "nsenter --net",
        ".json", "type veth peer name eth0",
    ):  # fmt: skip
        assert words in told, words


def test_a_registry_that_does_not_answer_is_a_warning(podrun: Podrun) -> None:
    file = podrun.file("web", 'chain = [ { hook = "image", ref = "localhost:1/web:1" } ]')
    done = podrun("check", file)
    assert done.returncode == 0
    assert "image: warning: registry localhost:1 does not answer: Connection refused" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete(podrun: Podrun, shell: str) -> None:
    script = podrun("completion", shell, check=True).stdout
    assert "_PODRUN_COMPLETE" in script
    words = {"COMP_WORDS": "podrun hook d", "COMP_CWORD": "d" if shell == "fish" else "2"}
    done = subprocess.run(
        podrun.argv(), env={**podrun.environ, **words, "_PODRUN_COMPLETE": f"{shell}_complete"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "describe" in done.stdout


def test_pods_are_completed_by_name(podrun: Podrun) -> None:
    podrun(
        "up", "-d", podrun.file("web", 'chain = [ { hook = "storage", source = "tmpfs:", target = "/x" } ]'), check=True
    )
    done = podrun(_PODRUN_COMPLETE="bash_complete", COMP_WORDS="podrun down w", COMP_CWORD="2")
    assert done.stdout == "plain,web\n"
    podrun("down", "web", check=True)


def test_the_picture_of_a_start_has_a_bar_for_every_step_at_its_time(podrun: Podrun, dropped: Any) -> None:
    dropped("slow", "[ $PODRUN_VERB != up ] || sleep 0.2")
    dropped("broken", "[ $PODRUN_VERB != up ] || exit 1")
    tables = '{ hook = "slow" }, { hook = "storage", source = "tmpfs:", target = "/x" }, { hook = "broken", optional = true }'
    podrun("up", "-d", podrun.file("web", f"chain = [ {tables} ]"), check=True)
    picture = ET.fromstring(podrun("trace", "--svg", "web", check=True).stdout)
    podrun("down", "web", check=True)
    titles = [title.text for title in picture.iter("{http://www.w3.org/2000/svg}title")]
    found = dict(re.match(r"(\S+): from ([\d.]+) ms", title).groups() for title in titles)  # type: ignore[misc]
    assert list(found) == ["podrun", "slow", "storage", "broken"]
    assert float(found["storage"]) - float(found["slow"]) >= 200


@pytest.mark.parametrize("words", [[], ["--svg"], ["--format", "json"]])
def test_there_is_no_trace_of_a_pod_that_is_not_there(podrun: Podrun, words: Any) -> None:
    done = podrun("trace", *words, "nobody")
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == "podrun: nobody: there is no such pod; 'podrun ps' lists the pods\n"
