"""Starting and stopping whole pods: the foreground, the detached start, the hand-off, two starts at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from support.launcher import Podrun
from support.pods import WAITS, pod, state, until

pytestmark = pytest.mark.root


def parent_of(pid: Any) -> Any:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7)])
def test_the_foreground_returns_the_containers_status_and_undoes_the_chain(
    podrun: Podrun, nothing_left: None, script: str, status: int
) -> None:
    assert podrun("up", pod(podrun, f"sleep 0.3; {script}")).returncode == status
    assert state(podrun) == "absent"


def test_a_payload_that_is_killed_shows_as_its_signal(podrun: Podrun, nothing_left: None) -> None:
    process = podrun.start("up", pod(podrun))
    until(lambda: state(podrun) == "up")
    os.kill(json.loads(podrun("inspect", "web").stdout)["containers"][0]["pid"], signal.SIGKILL)
    assert process.wait(10) == 137


def test_a_payload_that_ends_at_once_still_has_its_status_told(podrun: Podrun, nothing_left: None) -> None:
    for script, status in (("exit 0", 0), ("exit 3", 3)):
        assert podrun("run", "--rm", "host:", "sh", "-c", script).returncode == status


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "TERM"), (signal.SIGINT, "INT")])
def test_a_signal_that_ends_the_pod_reaches_the_container(
    podrun: Podrun, nothing_left: None, number: Any, name: str
) -> None:
    out = podrun.home / "out"
    path = pod(podrun, f"trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.05; done")
    with out.open("w") as file:
        process = podrun.start("up", path, stdout=file)
        until(lambda: "ready" in out.read_text() and state(podrun) == "up")
        process.send_signal(number)
        assert process.wait(10) == 9
    assert f"got {name}" in out.read_text()


def test_signals_that_are_the_payloads_own_business_are_passed_on(podrun: Podrun, nothing_left: None) -> None:
    out = podrun.home / "out"
    numbers = [1, 3, 10, 12, 14, 16, 18, 23, 24, 26, 27, 28, 29, 30, 34, 40, 64]
    traps = "; ".join(f"trap 'echo got {number}.' {number}" for number in numbers)
    path = pod(podrun, f"{traps}; trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    with out.open("w") as file:
        process = podrun.start("up", path, stdout=file)
        until(lambda: "ready" in out.read_text() and state(podrun) == "up")
        for number in numbers:
            process.send_signal(number)
            until(lambda number=number: f"got {number}." in out.read_text())
        process.terminate()
        assert process.wait(10) == 0


def test_a_signal_while_starting_undoes_what_was_started(podrun: Podrun, nothing_left: None) -> None:
    path = pod(podrun, more='ready = { exec = ["false"], timeout = "60s" }\n')
    process = podrun.start("up", path, stderr=subprocess.PIPE)
    until(lambda: podrun.journals() and state(podrun) == "starting")
    time.sleep(0.5)
    process.terminate()
    assert process.wait(10) == 143
    assert "stopped by SIGTERM; undone: container main" in process.stderr.read()


def test_steps_behind_the_container_are_undone_before_it_gets_the_signal(podrun: Podrun, nothing_left: None) -> None:
    registry = podrun.run / "registry" / "web"
    seen = podrun.home / "seen"
    seen.mkdir()
    script = f"trap 'ls {registry} >/seen/records 2>&1; exit 0' TERM; while :; do sleep 0.05; done"
    path = pod(
        podrun,
        script,
        before=f'[[chain]]\nhook = "storage"\nsource = "{podrun.home}"\ntarget = "{podrun.home}"\n'
        f'[[chain]]\nhook = "storage"\nsource = "{seen}"\ntarget = "/seen"\n',
        more='[[chain]]\nhook = "register"\nservice = "web"\nport = 80\n',
    )
    process = podrun.start("up", path)
    until(lambda: registry.exists() and list(registry.iterdir()) and state(podrun) == "up")
    process.terminate()
    assert process.wait(10) == 0
    assert "No such file" in (seen / "records").read_text()


def test_nothing_of_podrun_stays_after_a_detached_start(podrun: Podrun, nothing_left: None) -> None:
    podrun("up", "-d", pod(podrun), check=True)
    told = json.loads(podrun("inspect", "web").stdout)
    assert told["state"] == "up"
    [container] = told["containers"]
    assert (container["name"], container["state"]) == ("main", "running")
    assert "podrun" not in Path(f"/proc/{parent_of(container['pid'])}/comm").read_text()
    running = subprocess.run(["pgrep", "-f", f"podrun up -d {podrun.home}"], capture_output=True).stdout
    assert running == b""
    podrun("down", "web", check=True)


def test_a_detached_container_writes_to_a_file_that_logs_prints(podrun: Podrun, nothing_left: None) -> None:
    podrun("up", "-d", pod(podrun, f"echo one; echo two >&2; {WAITS}"), check=True)
    until(lambda: podrun("logs", "web").stdout == "one\ntwo\n")
    podrun("down", "web", check=True)


def test_a_payload_that_has_ended_makes_the_pod_dead_until_up_or_gc(podrun: Podrun, nothing_left: None) -> None:
    path = pod(podrun, "sleep 0.2")
    podrun("up", "-d", path, check=True)
    until(lambda: state(podrun) == "dead")
    again = podrun("up", "-d", path)
    assert again.returncode == 0, again.stderr
    assert "an earlier start had left something behind" in again.stderr
    until(lambda: state(podrun) == "dead")
    assert "web: dead" in podrun("gc", "--check").stdout
    podrun("gc", check=True)
    assert state(podrun) == "absent"


def test_of_two_starts_at_once_one_wins_and_the_other_says_busy(podrun: Podrun, nothing_left: None) -> None:
    path = pod(podrun)
    racers = [podrun.start("up", "-d", path, stderr=subprocess.PIPE) for _ in range(4)]
    codes = sorted(racer.wait(30) for racer in racers)
    assert codes == [0, 75, 75, 75]
    assert state(podrun) == "up"
    assert podrun("exec", "web", "true").returncode == 0
    podrun("down", "web", check=True)


def test_down_of_what_is_not_there_succeeds(podrun: Podrun, nothing_left: None) -> None:
    assert podrun("down", "web").returncode == 0
    podrun("up", "-d", pod(podrun), check=True)
    assert podrun("down", "web").returncode == 0
    assert podrun("down", "web").returncode == 0


def test_down_waits_for_a_start_that_is_at_work(podrun: Podrun, nothing_left: None) -> None:
    path = pod(podrun, more='ready = { exec = ["sh", "-c", "sleep 1"] }\n')
    process = podrun.start("up", "-d", path)
    until(lambda: podrun.journals() and state(podrun) == "starting")
    done = podrun("down", "web")
    assert done.returncode == 0
    assert "waiting for another podrun" in done.stderr
    process.wait()
    assert state(podrun) == "absent"


def test_down_of_another_invocation_leaves_the_pod_alone(podrun: Podrun, nothing_left: None) -> None:
    podrun("up", "-d", pod(podrun), check=True, INVOCATION_ID="a" * 32)
    assert podrun("down", "--invocation", "b" * 32, "web").returncode == 0
    assert state(podrun) == "up"
    assert podrun("down", "--invocation", "a" * 32, "web").returncode == 0
    assert state(podrun) == "absent"


def test_down_by_name_works_when_the_file_is_gone(podrun: Podrun, nothing_left: None) -> None:
    path = pod(podrun)
    podrun("up", "-d", path, check=True)
    os.unlink(path)
    podrun("down", "web", check=True)
    assert state(podrun) == "absent"


def test_a_chain_without_a_container_is_up_until_it_is_undone(podrun: Podrun, nothing_left: None) -> None:
    path = podrun.file("net", 'chain = [ { hook = "network" } ]')
    assert podrun("up", path).returncode == 0
    assert state(podrun, "net") == "up"
    assert podrun("up", path).returncode == 75
    podrun("down", "net", check=True)


@pytest.mark.parametrize(
    ("command", "status", "what"),
    [
        (["no-such-command"], 127, "no-such-command"),
        (["/etc/passwd"], 126, "/etc/passwd"),
        (["/etc"], 126, "/etc"),
    ],
)
def test_a_command_that_cannot_run_is_told_and_leaves_nothing(
    podrun: Podrun, nothing_left: None, command: Any, status: int, what: str
) -> None:
    done = podrun("run", "--rm", "--name", "x", "host:", *command)
    assert done.returncode == status
    assert what in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_several_containers_share_the_network_and_stop_in_reverse(podrun: Podrun, nothing_left: None) -> None:
    serve = '["python3", "-I", "-c", "import socket; s = socket.create_server((\\"127.0.0.1\\", 7)); s.accept()[0].send(b\\"hi\\")"]'
    ask = '["python3", "-I", "-c", "import socket; print(socket.create_connection((\\"127.0.0.1\\", 7)).recv(9))"]'
    path = podrun.file(
        "two",
        'chain = [ { hook = "image", ref = "host:" }, { hook = "network" },\n'
        f'{{ hook = "container", name = "db", command = {serve}, ready = {{ exec = ["sleep", "0.3"] }} }},\n'
        f'{{ hook = "container", name = "app", command = {ask} }} ]',
    )
    done = podrun("up", path)
    assert (done.returncode, done.stdout) == (0, "b'hi'\n"), done.stderr


class Supervisor:
    """Listens where NOTIFY_SOCKET points, as systemd does: remembers messages, lets go of the barrier's descriptor."""

    def __init__(self, path: str) -> None:
        self.messages: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path.replace("@", "\0", 1))
        self.path = path
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        while True:
            text, fds, _, _ = socket.recv_fds(self.socket, 4096, 4)
            self.messages.append(text.decode())
            for fd in fds:
                os.close(fd)

    def start(self, podrun: Podrun, *words: Any) -> Any:
        words = ["sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh", *podrun.argv(*words)]  # type: ignore[assignment]
        # The container keeps standard output open, as it keeps the journal's stream in a unit: a pipe would not end.
        with (podrun.home / "output").open("w") as out:
            return subprocess.run(
                words, env={**podrun.environ, "NOTIFY_SOCKET": self.path}, stdout=out, stderr=out, timeout=60
            )


@pytest.fixture
def supervisor(home: Path, request: pytest.FixtureRequest) -> Any:
    return Supervisor(f"@{home}/notify" if getattr(request, "param", "") == "abstract" else f"{home}/notify")


@pytest.mark.parametrize("supervisor", ["file", "abstract"], indirect=True)
def test_the_hand_off_names_the_containers_init_before_it_starts_and_is_ready_last(
    podrun: Podrun, nothing_left: None, supervisor: str
) -> None:
    path = pod(podrun, more='ready = { exec = ["true"] }\n[[chain]]\nhook = "register"\nservice = "web"\nport = 80\n')
    done = supervisor.start(podrun, "up", path)
    assert done.returncode == 0, (podrun.home / "output").read_text()
    told = json.loads(podrun("inspect", "web").stdout)
    assert told["state"] == "up"
    pid = told["containers"][0]["pid"]
    heard = "\n".join(supervisor.messages).splitlines()
    assert f"MAINPID={pid}" in heard
    assert heard.index(f"MAINPID={pid}") < heard.index("READY=1")
    assert heard[-1] == "BARRIER=1"
    assert "podrun" not in Path(f"/proc/{parent_of(pid)}/comm").read_text()
    podrun("down", "web", check=True)


def test_a_start_that_fails_after_the_hand_off_never_says_ready(
    podrun: Podrun, nothing_left: None, supervisor: Any
) -> None:
    path = pod(podrun, more='ready = { exec = ["false"], timeout = "300ms" }\n')
    assert supervisor.start(podrun, "up", path).returncode == 76
    assert any("MAINPID=" in message for message in supervisor.messages)
    assert not any("READY=1" in message for message in supervisor.messages)


def test_a_descendant_of_another_service_does_not_take_over_its_main_process(
    podrun: Podrun, nothing_left: None, supervisor: Any
) -> None:
    done = podrun("up", pod(podrun, "exit 4"), NOTIFY_SOCKET=supervisor.path, SYSTEMD_EXEC_PID="1")
    assert done.returncode == 4, "it stays in the foreground"
    assert not supervisor.messages


def test_the_container_does_not_see_the_notify_socket(podrun: Podrun, nothing_left: None, supervisor: Any) -> None:
    out = podrun.home / "out"
    out.mkdir()
    mount = f'[[chain]]\nhook = "storage"\nsource = "{out}"\ntarget = "/out"\n'
    supervisor.start(podrun, "up", pod(podrun, f"env >/out/env; {WAITS}", before=mount))
    until(lambda: (out / "env").exists() and (out / "env").read_text())
    assert "NOTIFY" not in (out / "env").read_text()
    podrun("down", "web", check=True)


def test_a_container_that_fails_while_the_chain_starts_ends_the_start_with_its_own_status(
    podrun: Podrun, nothing_left: None
) -> None:
    slow = '[[chain]]\nhook = "container"\nname = "app"\ncommand = ["sleep", "60"]\nready = { exec = ["sleep", "1"] }\n'
    later = '[[chain]]\nhook = "register"\nservice = "web"\nport = 80\n'
    done = podrun("up", pod(podrun, "sleep 0.3; exit 3", more=slow + later))
    assert done.returncode == 3
    assert "container main: it ended with 3 before the pod was up" in done.stderr


def test_a_container_that_has_done_its_work_lets_the_chain_go_on(podrun: Podrun, nothing_left: None) -> None:
    app = '[[chain]]\nhook = "container"\nname = "app"\ncommand = ["sh", "-c", "exit 4"]\nready = { exec = ["true"] }\n'
    done = podrun(
        "up",
        pod(
            podrun,
            "exit 0",
            more='[[chain]]\nhook = "register"\nservice = "a"\nport = 1\n'
            + app.replace('ready = { exec = ["true"] }\n', ""),
        ),
    )
    assert done.returncode == 4, done.stderr


def test_restart_starts_a_pod_from_its_file_as_it_is_now(podrun: Podrun, nothing_left: None) -> None:
    path = pod(podrun, f"echo one; {WAITS}")
    podrun("up", "-d", path, check=True)
    pod(podrun, f"echo two; {WAITS}")
    podrun("restart", "web", check=True)
    until(lambda: podrun("logs", "web").stdout == "two\n")
    podrun("down", "web", check=True)


def test_restart_of_a_pod_without_a_file_runs_it_again_as_it_was(podrun: Podrun, nothing_left: None) -> None:
    podrun("run", "-d", "--name", "web", "-e", "X=$${1}", "host:", "sh", "-c", f"echo $X; {WAITS}", check=True)
    podrun("restart", "web", check=True)
    until(lambda: podrun("logs", "web").stdout == "$${1}\n")
    podrun("down", "web", check=True)


def test_gc_leaves_a_running_pod_alone(podrun: Podrun, nothing_left: None) -> None:
    podrun("up", "-d", pod(podrun), check=True)
    podrun("gc", check=True)
    assert state(podrun) == "up"
    podrun("down", "web", check=True)
