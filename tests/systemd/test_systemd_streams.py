"""What a unit's payload writes, to the last byte; what is known of it when it has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.systemd_case import IMAGE, Pods, container, ended, sh, show, systemctl, until, words

pytestmark = pytest.mark.systemd


def test_the_lines_that_tell_why_a_payload_failed_arrive_each_time(pods: Pods) -> None:
    pods.install("web", IMAGE, container("seq 1 200 >/dev/stderr; echo LAST >/dev/stderr; exit 3"))
    for _ in range(10):
        systemctl("start", "web")
        assert ended("web")[0] == "exit-code"
        until(lambda: show("web", "ActiveState") == ["failed"])
        assert sh("podrun", "logs", "web").stdout.splitlines()[-1] == "LAST"
        systemctl("reset-failed", "web")


def test_a_unit_that_has_ended_is_still_known(pods: Pods) -> None:
    pods.install("web", IMAGE, container("echo words; printf '%070000d\\n' 7; echo '<3>end'; exit 7"))
    systemctl("start", "web")
    assert ended("web") == ("exit-code", "exited", "7")
    until(lambda: show("web", "ActiveState") == ["failed"])
    assert sh("podrun", "logs", "web").stdout.splitlines() == ["words", f"{7:070000d}", "<3>end"]
    whole = json.loads(sh("podrun", "inspect", "web").stdout)
    assert (whole["state"], whole["status"], whole["containers"][0]["name"]) == ("ended", 7, "main")
    rows = [json.loads(line) for line in sh("podrun", "ps", "-a", "--format", "json").stdout.splitlines()]
    assert [(row["state"], row["exit"]) for row in rows if row["name"] == "web"] == [("ended", 7)]
    assert sh("podrun", "wait", "web").returncode == 7


def test_with_on_failure_stop_the_failures_status_is_the_pods(pods: Pods) -> None:
    side = container("trap 'exit 0' TERM; while :; do sleep 0.05; done", "side")
    pods.install("duo", IMAGE, container("sleep 1; exit 5", "app"), side, pod='on_failure = "stop"')
    systemctl("start", "duo.app", "duo.side")
    until(lambda: show("duo", "ActiveState") == ["inactive"], 20)
    until(lambda: show("duo.side", "ActiveState") == ["inactive"], 20)
    assert sh("podrun", "wait", "duo").returncode == 5


def test_a_payload_that_cannot_open_the_journals_socket_is_told_of_the_pipe(pods: Pods) -> None:
    # Nothing can be seen of it: the name is put together.
    script = "a=/dev; echo x >$a/stderr || { echo cannot: No such device or address; exit 4; }"
    pods.install("web", IMAGE, container(script))
    systemctl("start", "web")
    assert ended("web")[0] == "exit-code"
    until(lambda: 'log = "pipe"' in words("web"), 10, lambda: words("web"))


def test_a_correct_client_of_the_notify_socket_does_not_fail(pods: Pods) -> None:
    script = (
        "for n in 1 2 3 4 5; do systemd-notify --ready || exit 3; systemd-notify --status=$n || exit 4; done; "
        "systemd-notify STOPPING=1 && echo notified; sleep 0.3"
    )
    pods.install("web", IMAGE, container(script, ready="{ notify = true }"))
    assert systemctl("start", "web").returncode == 0, words("web")
    assert ended("web") == ("success", "exited", "0")
    assert "notified" in words("web")


@pytest.mark.parametrize(
    ("script", "outcome", "told"),
    [
        ("trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done", ("success", "exited", "0"), False),
        ("trap 'exit 143' TERM; while :; do sleep 0.05; done", ("success", "exited", "143"), False),
        ("exec sleep 1000", ("signal", "killed", "9"), True),
    ],
)
def test_a_stop_is_a_success_when_the_payload_ended_and_a_failure_when_it_was_killed(
    pods: Pods, script: str, outcome: Any, told: bool
) -> None:
    pods.install("web", IMAGE, container(script), stop_timeout="2s")
    systemctl("start", "web")
    systemctl("stop", "web")
    assert ended("web") == outcome
    assert ("it did not end within 2 s of SIGTERM: killed" in words("web")) == told


def test_a_host_mounted_configuration_that_names_stderr_gets_a_pipe(pods: Pods) -> None:
    Path("/srv/conf").mkdir(exist_ok=True)
    Path("/srv/conf/app.conf").write_text("error_log /dev/stderr;\n")
    script = "f=$(sed 's/error_log //; s/;//' /etc/app/app.conf); echo opened >$f && sleep 0.2"
    pods.install("web", IMAGE, container(script, volumes='["/srv/conf:/etc/app:ro"]'))
    systemctl("start", "web")
    assert ended("web") == ("success", "exited", "0")
    assert "opened" in words("web")
