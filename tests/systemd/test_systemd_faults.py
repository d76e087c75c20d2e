"""Units that people wrote by hand, and what they forgot."""

from __future__ import annotations

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

STOP = """ExecStop=-/usr/local/bin/podrun down --invocation=${INVOCATION_ID} web
ExecStopPost=-/usr/local/bin/podrun down --invocation=${INVOCATION_ID} web
"""


def by_hand(pods: Pods, *parts: str, service: str) -> None:
    pods.file("web", '[pod]\nstop_timeout = "3s"\n' + "".join(parts))
    pods.write("web.service", f"[Service]\n{service}\nExecStart=/usr/local/bin/podrun up /etc/podrun/web.toml\n{STOP}")


def test_without_delegate_the_container_stays_in_the_units_cgroup(pods: Pods) -> None:
    by_hand(pods, IMAGE, NETWORK, container(PATIENT), service="Type=notify\nNotifyAccess=all\nKillMode=process")
    assert systemctl("start", "web").returncode == 0, words("web")
    assert Path(f"/proc/{main_pid('web')}/cgroup").read_text().strip().endswith("/system.slice/web.service")
    systemctl("stop", "web")
    assert ended("web")[0] == "success"
    assert "bye" in words("web")
    pods.nothing_left()


@pytest.mark.parametrize("key", ["pids = 20", 'runtime = "runc"'])
def test_a_limit_without_delegate_is_refused_with_the_line_to_add(pods: Pods, key: str) -> None:
    more = dict([key.split(" = ")])
    by_hand(pods, IMAGE, container(PATIENT, **more), service="Type=notify\nNotifyAccess=all\nKillMode=process")
    assert systemctl("start", "web").returncode != 0
    assert ended("web") == ("exit-code", "exited", "78")
    assert "Delegate=cpu memory pids io in the [Service] section of web.service" in words("web")
    pods.nothing_left()


def test_without_notify_access_all_the_stop_names_the_line_to_add(pods: Pods) -> None:
    by_hand(pods, IMAGE, container(PATIENT), service="Type=notify\nDelegate=yes\nTimeoutStartSec=2")
    assert systemctl("start", "web").returncode != 0
    assert ended("web")[0] == "timeout"
    assert "lacks NotifyAccess=all" in words("web")
    pods.nothing_left()


def test_a_simple_unit_keeps_podrun_in_the_foreground(pods: Pods) -> None:
    by_hand(pods, IMAGE, container("sleep 0.5; exit 7"), service="Type=exec\nKillMode=process")
    assert systemctl("start", "web").returncode == 0
    assert ended("web") == ("exit-code", "exited", "7")
    pods.nothing_left()


def test_several_containers_in_one_unit_are_waited_for_by_podrun(pods: Pods) -> None:
    service = "Type=notify\nNotifyAccess=all\nDelegate=yes\nKillMode=process"
    by_hand(pods, IMAGE, container(PATIENT, "app"), container("sleep 1; exit 7", "side"), service=service)
    assert systemctl("start", "web").returncode == 0, words("web")
    assert ended("web") == ("exit-code", "exited", "7")
    pods.nothing_left()


def test_another_services_notify_socket_is_left_alone(pods: Pods) -> None:
    pods.file("web", IMAGE + container(PATIENT))
    script = "podrun up -d /etc/podrun/web.toml; systemd-notify --ready; exec sleep 100"
    pods.write("other.service", f"[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh -c '{script}'\n")
    assert systemctl("start", "other").returncode == 0, words("other")
    assert Path(f"/proc/{main_pid('other')}/comm").read_text() == "sleep\n"
    assert sh("podrun", "down", "web").returncode == 0


def test_an_image_that_logs_to_dev_stdout_gets_there(pods: Pods) -> None:
    root = Path("/srv/logging")
    if not root.exists():
        for directory in ("bin", "var/log/app"):
            (root / directory).mkdir(parents=True)
        (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (root / "bin/busybox").chmod(0o755)
        (root / "bin/sh").symlink_to("busybox")
        (root / "var/log/app/access.log").symlink_to("/dev/stdout")
    image = '[[chain]]\nhook = "image"\nref = "dir:/srv/logging"\n'
    by_hand(
        pods,
        image,
        container("echo through the link >/var/log/app/access.log; exec busybox sleep 100"),
        service="Type=notify\nNotifyAccess=all\nDelegate=yes\nKillMode=process",
    )
    assert systemctl("start", "web").returncode == 0, words("web")
    until(lambda: "through the link" in words("web"))


def test_logs_of_a_unit_come_from_the_journal(pods: Pods) -> None:
    pods.install("web", IMAGE, container("echo first; " + PATIENT))
    systemctl("start", "web")
    until(lambda: "hello" in words("web"))
    assert sh("podrun", "logs", "web").stdout.splitlines() == ["first", "hello"]
    follow = sh("timeout", "20", "sh", "-c", "(sleep 1; systemctl stop web) & exec podrun logs -f web")
    assert follow.stdout.splitlines() == ["first", "hello", "bye"]
    assert follow.returncode == 0


def test_the_output_of_each_container_can_be_told_apart(pods: Pods) -> None:
    pods.install("duo", IMAGE, container(f"echo one; {PATIENT}", "app"), container(f"echo two; {PATIENT}", "side"))
    systemctl("start", "duo.app", "duo.side")
    until(lambda: "two" in words("duo.side"))
    assert sh("podrun", "logs", "-c", "app", "duo").stdout.splitlines()[0] == "one"
    assert sh("podrun", "logs", "-c", "side", "duo").stdout.splitlines()[0] == "two"
    assert show("duo.app", "SyslogIdentifier") == ["duo.app"]
