"""Pods as units of a real systemd: the table of docs/reference/systemd.md, each row a test."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from support.systemd_case import (
    IMAGE,
    NETWORK,
    PATIENT,
    Pods,
    container,
    ended,
    main_pid,
    sh,
    show,
    systemctl,
    until,
    words,
)

pytestmark = pytest.mark.systemd


# --- the hand-off ---------------------------------------------------------------------------------------------------


def test_the_main_process_is_the_containers_init_and_its_parent_is_process_1(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT))
    assert systemctl("start", "web").returncode == 0, words("web")
    pid = main_pid("web")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "\nPPid:\t1\n" in status
    assert status.partition("NSpid:")[2].splitlines()[0].split()[-1] == "1", "it is process 1 of its own namespace"
    assert Path(f"/proc/{pid}/cgroup").read_text().strip().endswith("/system.slice/web.service/main")
    until(lambda: sh("pgrep", "-af", "bin/podrun").stdout == "")


def test_beside_the_payload_nothing_is_resident(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container("exec sleep 1000"))
    systemctl("start", "web")
    cgroups = Path("/sys/fs/cgroup/system.slice/web.service")
    # podrun itself ends a moment after its READY=1.
    until(
        lambda: (
            [pid for path in cgroups.rglob("cgroup.procs") for pid in path.read_text().split()]
            == [str(main_pid("web"))]
        )
    )


def test_the_command_sees_the_mount_namespace_of_process_1(pods: Pods) -> None:
    pods.install(
        "web",
        IMAGE,
        NETWORK,
        container(PATIENT),
        service="ExecStartPre = '/bin/sh -c \"readlink /proc/self/ns/mnt >/run/seen\"'",
    )
    systemctl("start", "web")
    assert Path("/run/seen").read_text().strip() == os.readlink("/proc/1/ns/mnt")
    assert os.path.exists("/run/netns/podrun-web"), "and what it pins is seen by everybody"
    assert sh("ip", "netns", "exec", "podrun-web", "true").returncode == 0


def test_after_stop_nothing_is_left(pods: Pods) -> None:
    pods.install(
        "web", IMAGE, NETWORK, container(PATIENT), '[[chain]]\nhook = "register"\nservice = "web"\nport = 80\n'
    )
    systemctl("start", "web")
    assert systemctl("stop", "web").returncode == 0
    assert ended("web")[0] == "success"
    assert "bye" in words("web")
    pods.nothing_left()


def test_the_status_line_tells_the_progress_and_then_the_number_of_steps(pods: Pods) -> None:
    pods.install(
        "web", IMAGE, NETWORK, container(PATIENT, ready='{ exec = ["test", "-e", "/tmp/never"], timeout = "20s" }')
    )
    systemctl("start", "--no-block", "web")
    until(lambda: "waiting until main is ready" in show("web", "StatusText")[0])
    assert show("web", "ActiveState") == ["activating"]
    sh("podrun", "exec", "web", "touch", "/tmp/never")
    until(lambda: show("web", "ActiveState", "StatusText") == ["active", "up, 3 steps"])


# --- how a payload ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "result", "state"),
    [(0, "success", "inactive"), (7, "exit-code", "failed"), (143, "success", "inactive")],
)
def test_the_payloads_own_status_is_the_units(pods: Pods, status: int, result: str, state: str) -> None:
    pods.install("web", IMAGE, NETWORK, container(f"sleep 0.5; exit {status}"))
    assert systemctl("start", "web").returncode == 0
    assert ended("web") == (result, "exited", str(status))
    assert show("web", "ActiveState") == [state]
    pods.nothing_left()


def test_a_sigkill_of_the_payload_shows_as_a_signal(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT))
    systemctl("start", "web")
    os.kill(main_pid("web"), signal.SIGKILL)
    assert ended("web") == ("signal", "killed", "9")
    pods.nothing_left()


@pytest.mark.parametrize("status", [0, 3])
def test_a_payload_that_ends_at_once_is_not_lost(pods: Pods, status: int) -> None:
    pods.install("web", IMAGE, NETWORK, container(f"exit {status}"))
    systemctl("start", "web")
    result, code, number = ended("web")
    assert (code, number) == ("exited", str(status))
    # One that has ended before podrun could say READY=1 was never active, which systemd calls a breach of the protocol.
    started, active = map(int, show("web", "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"))
    assert result == ("exit-code" if status else "success" if active >= started else "protocol")
    pods.nothing_left()


def test_restart_on_failure_starts_it_again_until_the_start_limit(pods: Pods) -> None:
    pods.install(
        "web",
        IMAGE,
        container("sleep 0.2; exit 7"),
        '[unit]\nStartLimitBurst = 3\nStartLimitIntervalSec = "60"\n',
        service='Restart = "on-failure"\nRestartSec = "100ms"',
    )
    systemctl("start", "web")
    until(lambda: show("web", "ActiveState") == ["failed"], 20)
    assert int(show("web", "NRestarts")[0]) == 3
    assert "Start request repeated too quickly" in words("web")
    pods.nothing_left()


def test_an_exit_status_survives_the_re_execution_of_systemd(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container("while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 7"))
    systemctl("start", "web")
    pid = main_pid("web")
    assert systemctl("daemon-reexec").returncode == 0
    assert main_pid("web") == pid
    sh("podrun", "exec", "web", "touch", "/tmp/go")
    assert ended("web") == ("exit-code", "exited", "7")
    pods.nothing_left()


# --- stops ----------------------------------------------------------------------------------------------------------


def test_a_stop_right_after_the_start_is_not_lost(pods: Pods) -> None:
    slow = "sleep 0.4; " + PATIENT
    pods.install("web", IMAGE, NETWORK, container(slow), stop_timeout="10s")
    systemctl("start", "web")
    began = time.monotonic()
    systemctl("stop", "web")
    assert time.monotonic() - began < 9, "it waited for the handler, and then the signal was heard"
    assert ended("web")[0] == "success"
    pods.nothing_left()


def test_a_stop_while_activating_undoes_what_is_there(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT, ready='{ exec = ["false"], timeout = "60s" }'))
    systemctl("start", "--no-block", "web")
    until(lambda: "waiting" in show("web", "StatusText")[0])
    began = time.monotonic()
    systemctl("stop", "web")
    assert time.monotonic() - began < 10
    assert show("web", "ActiveState") == ["inactive"] or ended("web")[0] in ("success", "signal")
    pods.nothing_left()


def test_after_kill_9_of_everything_nothing_is_left(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT))
    systemctl("start", "web")
    systemctl("kill", "--signal=KILL", "--kill-who=all", "web")
    assert ended("web") == ("signal", "killed", "9")
    pods.nothing_left()


def test_kill_9_of_podrun_in_the_middle_of_a_start_leaves_nothing(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT, ready='{ exec = ["false"], timeout = "60s" }'))
    systemctl("start", "--no-block", "web")
    until(lambda: "waiting" in show("web", "StatusText")[0])
    systemctl("kill", "--signal=KILL", "--kill-who=all", "web")
    assert ended("web")[0] in ("signal", "protocol")
    pods.nothing_left()


# --- starts that fail -----------------------------------------------------------------------------------------------


def test_a_losing_second_start_leaves_the_winner_alone(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT))
    systemctl("start", "web")
    pid = main_pid("web")
    unit = Path("/etc/systemd/system/web.service").read_text()
    pods.write("rival.service", unit)
    assert systemctl("start", "rival").returncode != 0
    assert ended("rival") == ("exit-code", "exited", "75")
    assert "already up" in words("rival")
    assert main_pid("web") == pid
    assert show("web", "ActiveState") == ["active"]


def test_a_step_that_fails_after_the_hand_off_fails_the_unit(pods: Pods) -> None:
    Path("/opt/no").write_text("#!/bin/sh\n[ $PODRUN_VERB = up ] && exit 69\nexit 0\n")
    os.chmod("/opt/no", 0o755)
    pods.install("web", IMAGE, NETWORK, container(PATIENT), '[[chain]]\nhook = "exec:/opt/no"\n')
    assert systemctl("start", "web").returncode != 0
    assert ended("web") == ("exit-code", "exited", "69")
    assert "undone: exec:/opt/no no, container main, network, image" in words("web"), words("web")
    assert show("web", "ActiveState") == ["failed"]
    pods.nothing_left()


def test_a_wrong_pod_file_ends_with_78_and_is_not_started_again(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT), service='Restart = "on-failure"\nRestartSec = "100ms"')
    pods.file("web", 'chain = [ { hook = "container", comand = ["true"] } ]')
    assert systemctl("start", "web").returncode != 0
    assert ended("web") == ("exit-code", "exited", "78")
    assert show("web", "NRestarts") == ["0"]
    assert "did you mean 'command'" in words("web")


def test_a_command_that_is_not_in_the_image_ends_with_127(pods: Pods) -> None:
    pods.install("web", IMAGE, '[[chain]]\nhook = "container"\ncommand = ["/no/such"]\n')
    assert systemctl("start", "web").returncode != 0
    assert ended("web") == ("exit-code", "exited", "127")
    pods.nothing_left()


# --- jobs and chains without a container ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 7])
def test_a_job_is_done_when_its_payload_is_and_has_its_status(pods: Pods, status: int) -> None:
    pods.install("task", IMAGE, container(f"echo working; exit {status}"), pod='type = "job"')
    assert systemctl("start", "task").returncode == (1 if status else 0)
    assert ended("task")[1:] == ("exited", str(status))
    assert "working" in words("task")
    pods.nothing_left()


def test_a_chain_without_a_container_stays_up_without_a_process(pods: Pods) -> None:
    pods.install("net", NETWORK)
    assert systemctl("start", "net").returncode == 0, words("net")
    assert show("net", "ActiveState", "SubState", "MainPID") == ["active", "exited", "0"]
    assert os.path.exists("/run/netns/podrun-net")
    systemctl("stop", "net")
    pods.nothing_left()


# --- several containers ---------------------------------------------------------------------------------------------


def test_two_containers_are_two_units_that_start_in_order_and_stop_in_reverse(pods: Pods) -> None:
    made = pods.install("duo", IMAGE, NETWORK, container(PATIENT, "app"), container(PATIENT, "side"))
    assert made == ["duo.service", "duo.app.service", "duo.side.service"]
    assert systemctl("start", *made).returncode == 0, words("duo.app")
    first, second = main_pid("duo.app"), main_pid("duo.side")
    assert os.readlink(f"/proc/{first}/ns/net") == os.readlink(f"/proc/{second}/ns/net")
    assert show("duo", "ActiveState", "MainPID") == ["active", "0"]
    systemctl("stop", "duo")
    until(lambda: show("duo", "ActiveState") == ["inactive"])
    at = [int(show(unit, "InactiveEnterTimestampMonotonic")[0]) for unit in ("duo.side", "duo.app", "duo")]
    assert at == sorted(at)
    pods.nothing_left()


def test_starting_the_pods_unit_starts_its_containers(pods: Pods) -> None:
    pods.install("duo", IMAGE, NETWORK, container(PATIENT, "app"), container(PATIENT, "side"))
    systemctl("start", "duo")
    until(lambda: show("duo.side", "ActiveState") == ["active"])
    assert show("duo.app", "ActiveState") == ["active"]


def test_one_of_two_containers_is_restarted_alone(pods: Pods) -> None:
    pods.install("duo", IMAGE, NETWORK, container(PATIENT, "app"), container(PATIENT, "side"))
    systemctl("start", "duo.app", "duo.side")
    app, side = main_pid("duo.app"), main_pid("duo.side")
    assert systemctl("restart", "duo.app").returncode == 0, words("duo.app")
    assert main_pid("duo.app") != app
    assert main_pid("duo.side") == side
    assert sh("podrun", "ps", "--format", "json").stdout.count('"up"') == 1


def test_a_sidecar_that_dies_is_seen_and_the_pod_goes_on(pods: Pods) -> None:
    pods.install("duo", IMAGE, NETWORK, container(PATIENT, "app"), container(PATIENT, "side"))
    systemctl("start", "duo.app", "duo.side")
    os.kill(main_pid("duo.side"), signal.SIGKILL)
    assert ended("duo.side") == ("signal", "killed", "9")
    assert show("duo.app", "ActiveState") == ["active"]


def test_a_sidecar_that_dies_stops_the_pod_where_the_pod_file_says_so(pods: Pods) -> None:
    pods.install(
        "duo", IMAGE, NETWORK, container(PATIENT, "app"), container(PATIENT, "side"), pod='on_failure = "stop"'
    )
    systemctl("start", "duo.app", "duo.side")
    os.kill(main_pid("duo.side"), signal.SIGKILL)
    until(lambda: show("duo", "ActiveState") == ["inactive"])
    until(lambda: show("duo.app", "ActiveState") == ["inactive"])
    pods.nothing_left()
