"""The resource agent on a booted host: what the cluster is told of a pod's units, and that each call is bounded."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from podrun.cluster import agent
from support.systemd_case import IMAGE, PATIENT, Pods, container, show, systemctl, until

SUCCESS, GENERIC, ARGS, UNIMPLEMENTED, INSTALLED, CONFIGURED, NOT_RUNNING = 0, 1, 2, 3, 5, 6, 7
STUBBORN = "trap '' TERM; while :; do sleep 0.05; done"


def call(verb: Any, pod: Any = None, seconds: float = 40.0, **parameters: Any) -> Any:
    """Asks the agent as Pacemaker does."""
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OCF_RESKEY_CRM_meta_timeout": str(int(seconds * 1000))}
    environ |= {f"OCF_RESKEY_{key}": value for key, value in {"pod": pod, **parameters}.items() if value is not None}
    argv = ["sh", agent.SOURCE, *([verb] if verb else [])]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120)


def code(verb: Any, pod: Any = None, **more: Any) -> Any:
    return call(verb, pod, **more).returncode


def test_the_meta_data_names_every_action_and_parameter() -> None:
    root = ElementTree.fromstring(call("meta-data").stdout)
    assert {action.get("name") for action in root.iter("action")} == {
        *("start", "stop", "monitor", "status", "validate-all", "meta-data")
    }
    assert [one.get("name") for one in root.iter("parameter") if one.get("required") == "1"] == ["pod"]
    for parameter in root.iter("parameter"):
        assert all(parameter.findtext(part, "").strip() for part in ("longdesc", "shortdesc"))


@pytest.mark.systemd
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("",), ARGS),
        (("promote", "web"), UNIMPLEMENTED),
        (("monitor",), CONFIGURED),
        (("monitor", "a;b"), CONFIGURED),
        (("start", "../web"), CONFIGURED),
        (("stop", "-web"), CONFIGURED),
        (("monitor", "nowhere"), NOT_RUNNING),
        (("stop", "nowhere"), SUCCESS),
        (("start", "nowhere"), INSTALLED),
        (("validate-all", "nowhere"), INSTALLED),
    ],
)
def test_what_it_says_without_a_pod(words: Any, status: Any) -> None:
    assert code(*words) == status


@pytest.mark.systemd
def test_a_pod_of_two_containers_from_start_to_stop(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT, "one"), container(PATIENT, "two"))
    assert code("validate-all", "web") == SUCCESS
    assert code("monitor", "web") == NOT_RUNNING
    assert code("start", "web") == SUCCESS
    assert code("start", "web") == SUCCESS
    until(lambda: systemctl("is-active", "--quiet", "web.one", "web.two").returncode == 0)
    assert code("monitor", "web") == SUCCESS
    assert code("stop", "web") == SUCCESS
    assert code("monitor", "web") == NOT_RUNNING
    assert code("stop", "web") == SUCCESS
    pods.nothing_left()


@pytest.mark.systemd
def test_start_does_not_wait_for_a_chain_that_waits(pods: Pods) -> None:
    waiting = container(PATIENT, ready='{ exec = ["test", "-e", "/dev/shm/never"], timeout = "60s" }')
    pods.install("web", IMAGE, waiting)
    began = time.monotonic()
    assert code("start", "web") == SUCCESS
    assert time.monotonic() - began < 5
    assert systemctl("is-active", "web").stdout.strip() == "activating"
    assert code("monitor", "web") == SUCCESS
    assert code("stop", "web") == SUCCESS
    pods.nothing_left()


@pytest.mark.systemd
def test_a_container_that_systemd_has_given_up_on_is_a_failure_and_start_begins_anew(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT, "one"), container(PATIENT, "two"))
    assert code("start", "web") == SUCCESS
    until(lambda: systemctl("is-active", "--quiet", "web.one", "web.two").returncode == 0)
    systemctl("kill", "--signal=KILL", "web.two")
    until(lambda: systemctl("is-failed", "--quiet", "web.two").returncode == 0)
    told = call("monitor", "web")
    assert (told.returncode, "ocf-exit-reason:systemd has given up on web.two.service" in told.stderr) == (
        GENERIC,
        True,
    )
    assert code("start", "web") == SUCCESS
    until(lambda: systemctl("is-active", "--quiet", "web.one", "web.two").returncode == 0)
    assert code("monitor", "web") == SUCCESS


@pytest.mark.systemd
def test_a_restart_by_systemd_is_nothing_to_the_cluster(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT), service='Restart = "on-failure"\nRestartSec = "2s"')
    assert code("start", "web") == SUCCESS
    until(lambda: systemctl("is-active", "--quiet", "web").returncode == 0)
    systemctl("kill", "--signal=KILL", "web")
    until(lambda: systemctl("is-active", "web").stdout.strip() == "activating")
    assert code("monitor", "web") == SUCCESS


@pytest.mark.systemd
def test_containers_that_have_all_ended_are_a_pod_that_does_not_run(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT, "one"), container(PATIENT, "two"))
    assert code("start", "web") == SUCCESS
    for name in ("web.one", "web.two"):
        until(lambda name=name: systemctl("is-active", "--quiet", name).returncode == 0)  # type: ignore[misc]
        systemctl("kill", "--kill-whom=main", "--signal=TERM", name)
        until(lambda name=name: show(name, "ActiveState") == ["inactive"])  # type: ignore[misc]
        assert code("monitor", "web") == (SUCCESS if name == "web.one" else NOT_RUNNING)
    assert code("stop", "web") == SUCCESS


@pytest.mark.systemd
def test_a_start_that_fails_at_once_says_so(pods: Pods) -> None:
    pods.install("web", IMAGE, '[[chain]]\nhook = "container"\ncommand = ["/not/there"]\n')
    assert code("start", "web", settle="5") == GENERIC
    assert code("stop", "web") == SUCCESS
    assert code("monitor", "web") == NOT_RUNNING


@pytest.mark.systemd
def test_stop_ends_in_time_whatever_the_payload_does(pods: Pods) -> None:
    pods.install("web", IMAGE, container(STUBBORN), stop_timeout="300s")
    assert code("start", "web") == SUCCESS
    until(lambda: systemctl("is-active", "--quiet", "web").returncode == 0)
    began = time.monotonic()
    assert code("stop", "web", seconds=10) == SUCCESS
    assert time.monotonic() - began < 15
    assert code("monitor", "web") == NOT_RUNNING
    pods.nothing_left()


@pytest.mark.systemd
def test_pods_are_stopped_in_order_while_pacemaker_itself_is_being_stopped(pods: Pods) -> None:
    """systemd has jobs for both then, and the pod's units are ordered before pacemaker.service."""
    stop = f"OCF_RESKEY_pod=web OCF_RESKEY_CRM_meta_timeout=40000 exec sh {agent.SOURCE} stop"
    service = f"[Service]\nExecStart=/bin/sleep infinity\nExecStop=/bin/sh -c '{stop}'\nTimeoutStopSec=60\n"
    pods.write("pacemaker.service", f"[Unit]\nDescription=A stand-in\n{service}[Install]\nWantedBy=multi-user.target\n")
    slow = "trap 'sleep 0.5; echo bye; exit 0' TERM; while :; do sleep 0.05; done"
    text = IMAGE + "".join(container(slow, name) for name in ("one", "two", "three"))
    pods.install("web", text, "[placement]\npriority = 1\n")
    systemctl("start", "pacemaker")
    assert code("start", "web") == SUCCESS
    until(lambda: systemctl("is-active", "--quiet", "web.one", "web.two", "web.three").returncode == 0)
    began = time.monotonic()
    # As a shutdown does: both in one transaction.
    systemctl("stop", "pacemaker", "web", "web.one", "web.two", "web.three")
    assert time.monotonic() - began < 15
    assert show("pacemaker", "Result") == ["success"]
    ends = [float(show(f"web.{name}", "InactiveEnterTimestampMonotonic")[0]) for name in ("three", "two", "one")]
    assert ends == sorted(ends)
    pods.nothing_left()


@pytest.mark.systemd
def test_a_chain_that_is_not_undone_is_a_stop_that_failed(pods: Pods) -> None:
    hook = "/etc/podrun/hooks.d/keeps"
    os.makedirs(os.path.dirname(hook), exist_ok=True)
    with open(hook, "w") as file:
        file.write("#!/bin/sh\n[ $PODRUN_VERB != down ] || [ ! -e /run/keep ] || exit 75\necho '{}'\n")
    os.chmod(hook, 0o755)
    pods.files.append(Path(hook))
    pods.install("web", IMAGE, f'[[chain]]\nhook = "exec:{hook}"\n', container(PATIENT))
    assert code("start", "web") == SUCCESS
    with open("/run/keep", "w"):
        pass
    # A cluster that forgets the stop that has failed asks again, and must not take it for undone.
    for verb in ("stop", "monitor"):
        told = call(verb, "web")
        assert (told.returncode, "the chain of web is not undone" in told.stderr) == (GENERIC, True)
    os.unlink("/run/keep")
    assert code("stop", "web") == SUCCESS
    pods.nothing_left()


@pytest.mark.systemd
def test_an_instance_is_its_own_pod(pods: Pods) -> None:
    pods.install("web@", IMAGE, container(PATIENT, "one"), container(PATIENT, "two"))
    assert code("start", "web@blue") == SUCCESS
    until(lambda: systemctl("is-active", "--quiet", "web.two@blue").returncode == 0)
    assert (code("monitor", "web@blue"), code("monitor", "web@red")) == (SUCCESS, NOT_RUNNING)
    assert code("stop", "web@blue") == SUCCESS
    pods.nothing_left()
