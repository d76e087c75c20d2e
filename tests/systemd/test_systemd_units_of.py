"""podrun unit, the generator, and what systemd itself thinks of the units."""

from __future__ import annotations

import ast
import os
import time
from pathlib import Path
from typing import Any

import pytest

from support.systemd_case import (
    ETC,
    IMAGE,
    NETWORK,
    PATIENT,
    RUN,
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


def test_systemd_finds_nothing_wrong_with_the_units(pods: Pods) -> None:
    pods.install("solo", IMAGE, NETWORK, container(PATIENT), '[install]\nWantedBy = "multi-user.target"\n')
    pods.install(
        "duo", IMAGE, NETWORK, container(PATIENT, "app"), container(PATIENT, "side"), pod='on_failure = "stop"'
    )
    pods.install("task", IMAGE, container("true"), pod='type = "job"\nreload = "HUP"')
    pods.install(
        "inet", IMAGE, container(PATIENT), '[socket]\nListenStream = "127.0.0.1:9999"\n', pod="pull_unit = true"
    )
    done = sh("systemd-analyze", "verify", *(f"/etc/systemd/system/{unit}" for unit in pods.units))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_exposure_that_systemd_sees_is_bounded(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT))
    done = sh("systemd-analyze", "security", "--no-pager", "web.service")
    print(done.stdout)
    overall = next(line for line in done.stdout.splitlines() if "Overall exposure" in line)
    assert float(overall.split(":")[1].split()[0]) < 8.0, overall


def test_what_ordinary_images_do_works_in_a_generated_unit(pods: Pods) -> None:
    script = "; ".join(
        [
            "set -e",
            "touch /tmp/data; chown 1000:1000 /tmp/data; chmod 4755 /tmp/data",
            "echo as $(setpriv --reuid 33 --regid 33 --clear-groups id -u)",
            'python3 -c "import socket; s = socket.socket(); s.bind((str(), 80)); s.listen()"',
            'python3 -c "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)"',
            'python3 -c "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"',
            "mknod /tmp/null c 1 3; chroot / true; nice -n 5 true; setsid true",
            "echo all of it",
            PATIENT,
        ]
    )
    pods.install("web", IMAGE, NETWORK, container(script))
    assert systemctl("start", "web").returncode == 0, words("web")
    until(lambda: "all of it" in words("web"), why=lambda: words("web"))
    assert "as 33\n" in words("web")


def test_install_enables_what_the_pod_file_wants_enabled(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT), '[install]\nWantedBy = "multi-user.target"\n')
    assert systemctl("is-enabled", "web").stdout.strip() == "enabled"


def test_a_foreign_unit_is_not_overwritten(pods: Pods) -> None:
    pods.write("web.service", "[Service]\nExecStart=/bin/true\n")
    pods.file("web", IMAGE + container(PATIENT))
    done = sh("podrun", "unit", "--install", "web")
    assert done.returncode == 77
    assert "is not podrun's" in done.stderr


def test_the_generator_makes_the_units_at_daemon_reload(pods: Pods, generator: Any) -> None:
    pods.file("web", IMAGE + NETWORK + container(PATIENT) + '[install]\nWantedBy = "multi-user.target"\n')
    systemctl("daemon-reload")
    assert show("web", "FragmentPath", "SourcePath") == ["/run/systemd/generator/web.service", "/etc/podrun/web.toml"]
    assert os.path.islink("/run/systemd/generator/multi-user.target.wants/web.service")
    assert systemctl("start", "web").returncode == 0, words("web")
    systemctl("stop", "web")


def test_the_generator_makes_the_same_unit_as_podrun_unit(pods: Pods, generator: Any) -> None:
    pods.file("web", IMAGE + NETWORK + container(PATIENT))
    systemctl("daemon-reload")
    shown = sh("podrun", "unit", "web").stdout
    assert shown == "# web.service\n" + Path("/run/systemd/generator/web.service").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chain = [", "broken.toml:1:10: Invalid value"),
        ("chain = 7", "chain: expected an array"),
        ('[pod]\nname = "No"\n' + IMAGE, "expected a pod's name"),
        ('[[chain]]\nhook = "container"\n', "no step above it gives images"),
        ('[[chain]]\nhook = "nothing"\n', "unknown hook 'nothing'"),
    ],
)
def test_a_broken_pod_file_is_a_unit_that_fails_with_its_error_and_hides_no_other(
    pods: Pods, generator: Any, text: Any, message: str
) -> None:
    pods.file("broken", text)
    pods.file("sound", IMAGE + container(PATIENT))
    systemctl("daemon-reload")
    assert systemctl("start", "sound").returncode == 0, words("sound")
    systemctl("stop", "sound")
    assert systemctl("start", "broken").returncode != 0
    assert ended("broken") == ("exit-code", "exited", "78")
    assert message in words("broken")


def test_a_pod_file_that_others_can_write_says_nothing_to_the_generator(pods: Pods, generator: Any) -> None:
    path = pods.file("open", IMAGE + container(PATIENT) + '[service]\nExecStartPre = "/bin/touch /run/taken"\n')
    path.chmod(0o666)
    systemctl("daemon-reload")
    assert systemctl("start", "open").returncode != 0
    assert "can be changed by everybody (mode 0666)" in words("open")
    assert not os.path.exists("/run/taken")


def test_a_generated_unit_never_hides_one_of_the_system(pods: Pods, generator: Any) -> None:
    pods.file("dbus", IMAGE + container(PATIENT))
    systemctl("daemon-reload")
    assert show("dbus", "FragmentPath") == ["/lib/systemd/system/dbus.service"]


def test_a_template_has_an_instance_each(pods: Pods, generator: Any) -> None:
    ETC.mkdir(exist_ok=True)
    pods.file("web@", IMAGE + NETWORK + container("echo I am %i; " + PATIENT))
    pods.units += ["web@blue.service", "web@green-2.service"]
    systemctl("daemon-reload")
    for instance in ("blue", "green-2"):
        assert systemctl("start", f"web@{instance}").returncode == 0, words(f"web@{instance}")
        assert f"I am {instance}" in words(f"web@{instance}")
    assert main_pid("web@blue") != main_pid("web@green-2")
    systemctl("stop", "web@blue", "web@green-2")
    pods.nothing_left()


def test_reload_sends_the_signal_that_the_pod_file_names(pods: Pods) -> None:
    script = "trap 'echo again' HUP; trap 'exit 0' TERM; while :; do sleep 0.05; done"
    pods.install("web", IMAGE, container(script), pod='reload = "SIGHUP"')
    systemctl("start", "web")
    time.sleep(0.3)
    assert systemctl("reload", "web").returncode == 0
    until(lambda: "again" in words("web"))


def test_reload_runs_the_command_that_the_pod_file_names(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT), pod='reload = ["touch", "/tmp/reloaded"]')
    systemctl("start", "web")
    assert systemctl("reload", "web").returncode == 0, words("web")
    assert sh("podrun", "exec", "web", "test", "-e", "/tmp/reloaded").returncode == 0


def test_a_payload_that_says_itself_when_it_is_ready(pods: Pods) -> None:
    Path("/opt/say.py").write_text(
        "import os, socket, time; time.sleep(0.5)\n"
        "socket.socket(1, 2).sendto(b'STATUS=warm\\nREADY=1\\nMAINPID=1', os.environ['NOTIFY_SOCKET'])\n"
    )
    volumes = '["/opt/say.py:/say.py:ro"]'
    pods.install("web", IMAGE, container(f"python3 /say.py; {PATIENT}", ready="{ notify = true }", volumes=volumes))
    began = time.monotonic()
    assert systemctl("start", "web").returncode == 0, words("web")
    assert time.monotonic() - began > 0.5
    assert main_pid("web") != 1, "what else it says is not passed on"


# --- sockets --------------------------------------------------------------------------------------------------------

SERVER = """import os, socket
assert os.environ["LISTEN_FDS"] == "1" and os.environ["LISTEN_PID"] == str(os.getpid()), dict(os.environ)
server = socket.socket(fileno=3)
while True:
    client, _ = server.accept()
    client.sendall(str(os.getpid()).encode() + b" " + os.environ["LISTEN_FDNAMES"].encode() + b"\\n")
    client.close()
"""


@pytest.mark.parametrize("network", [NETWORK, ""])
def test_the_first_connection_starts_the_pod_and_a_restart_loses_none(pods: Pods, network: Any) -> None:
    Path("/opt/server.py").write_text(SERVER)
    table = '[[chain]]\nhook = "container"\ncommand = ["python3", "/server.py"]\nvolumes = ["/opt/server.py:/server.py:ro"]\n'
    socket = '[socket]\nListenStream = "127.0.0.1:9999"\nFileDescriptorName = "front"\n'
    pods.install("inet", IMAGE, network, table, socket)
    assert systemctl("start", "inet.socket").returncode == 0, words("inet.socket")
    assert show("inet", "ActiveState") == ["inactive"]
    fetch = [
        "python3",
        "-c",
        "import socket; s = socket.create_connection(('127.0.0.1', 9999), 20); print(s.makefile().read())",
    ]
    assert sh(*fetch).stdout.split() == ["1", "front"], words("inet")
    systemctl("restart", "--no-block", "inet")
    for _ in range(5):
        assert sh(*fetch).stdout.split() == ["1", "front"]
    systemctl("stop", "inet.socket", "inet.service")


def test_several_sockets_reach_the_payload_under_their_names(pods: Pods) -> None:
    program = (
        "import os, socket\n"
        "names = os.environ['LISTEN_FDNAMES'].split(':')\n"
        "servers = [socket.socket(fileno=3 + n) for n in range(int(os.environ['LISTEN_FDS']))]\n"
        "told = {name: server.getsockname()[1] for name, server in zip(names, servers, strict=True)}\n"
        "while True:\n"
        "    for server in servers:\n"
        "        server.settimeout(0.05)\n"
        "        try: client = server.accept()[0]\n"
        "        except TimeoutError: continue\n"
        "        client.sendall(repr(told).encode()); client.close()\n"
    )
    Path("/opt/several.py").write_text(program)
    table = '[[chain]]\nhook = "container"\ncommand = ["python3", "/several.py"]\nvolumes = ["/opt/several.py:/several.py:ro"]\n'
    sockets = "".join(
        f'[[socket]]\nFileDescriptorName = "{name}"\nListenStream = "127.0.0.1:{port}"\n'
        for name, port in (("front", 9998), ("admin", 9997))
    )
    made = pods.install("inet", IMAGE, NETWORK, table, sockets)
    assert made == ["inet.service", "inet.front.socket", "inet.admin.socket"]
    done = sh("systemd-analyze", "verify", *(f"/etc/systemd/system/{unit}" for unit in made))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert systemctl("start", "inet.front.socket", "inet.admin.socket").returncode == 0
    assert show("inet", "ActiveState") == ["inactive"]
    for port in (9997, 9998, 9998):
        fetch = f"import socket; s = socket.create_connection(('127.0.0.1', {port}), 20); print(s.makefile().read())"
        assert ast.literal_eval(sh("python3", "-c", fetch).stdout) == {"front": 9998, "admin": 9997}, words("inet")
    systemctl("stop", "inet.front.socket", "inet.admin.socket", "inet.service")


# --- transient units ------------------------------------------------------------------------------------------------


def test_up_d_is_a_transient_unit_that_systemd_undoes(pods: Pods) -> None:
    path = pods.file("web", IMAGE + NETWORK + container("echo ${WORD}; " + PATIENT))
    start = ("env", "WORD=injected", "podrun", "up", "-d", str(path))
    done = sh(*start)
    assert done.returncode == 0, done.stderr
    assert show("podrun-web", "ActiveState", "Transient") == ["active", "yes"]
    assert "injected" in words("podrun-web")
    assert "injected" not in sh("systemctl", "show", "podrun-web").stdout
    again = sh(*start)
    assert (again.returncode, "already up" in again.stderr) == (75, True), again.stderr
    assert sh("podrun", "down", "web").returncode == 0
    assert show("podrun-web", "ActiveState") == ["inactive"]
    pods.nothing_left()


def test_run_d_is_a_transient_unit_and_wait_returns_the_payloads_status(pods: Pods) -> None:
    assert sh("podrun", "run", "-d", "--name", "task", "host:", "sh", "-c", "sleep 1; exit 7").returncode == 0
    assert sh("podrun", "wait", "task").returncode == 7
    until(lambda: show("podrun-task", "ActiveState") == ["failed"])
    pods.nothing_left()
    assert sh("podrun", "wait", "task").returncode == 7, "afterwards too"
    assert sh("podrun", "rm", "task").returncode == 0
    assert show("podrun-task", "LoadState") == ["not-found"], "rm forgets the failed unit, too"


def test_wait_returns_128_and_the_signal_that_killed_the_payload(pods: Pods) -> None:
    assert (
        sh(
            "podrun",
            "run",
            "-d",
            "--name",
            "task",
            "host:",
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do sleep 0.1; done",
        ).returncode
        == 0
    )
    os.kill(main_pid("podrun-task"), 9)
    assert sh("podrun", "wait", "task").returncode == 137
    systemctl("reset-failed")


def test_podrun_restart_of_a_pod_with_units_is_systemds(pods: Pods) -> None:
    pods.install("duo", IMAGE, NETWORK, container(PATIENT, "app"), container(PATIENT, "side"))
    systemctl("start", "duo.app", "duo.side")
    before = main_pid("duo.app"), main_pid("duo.side")
    done = sh("podrun", "restart", "duo")
    assert done.returncode == 0, done.stderr
    assert show("duo.app", "ActiveState") == show("duo.side", "ActiveState") == ["active"]
    assert not {main_pid("duo.app"), main_pid("duo.side")} & {*before}


def test_podrun_down_stops_the_units_of_a_pod(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT), service='Restart = "always"\nRestartSec = "100ms"')
    systemctl("start", "web")
    assert sh("podrun", "down", "web").returncode == 0
    assert ended("web")[0] == "success"
    pods.nothing_left()


def test_a_start_that_fails_in_a_transient_unit_tells_why_and_has_its_code(pods: Pods) -> None:
    done = sh("podrun", "run", "-d", "--name", "task", "host:", "/no/such")
    assert done.returncode == 127
    assert "/no/such" in done.stderr
    assert done.stderr.count("podrun: task:") == 1
    pods.nothing_left()


def test_run_d_restart_is_systemds_restart_with_its_limit(pods: Pods) -> None:
    done = sh(
        "podrun", "run", "-d", "--name", "task", "--restart", "on-failure:2", "host:", "sh", "-c", "sleep 0.3; exit 7"
    )
    assert done.returncode == 0, done.stderr
    until(lambda: show("podrun-task", "ActiveState", "NRestarts") == ["failed", "3"], 20)
    assert words("podrun-task").count("Started podrun-task.service") == 3
    systemctl("reset-failed")


def test_restart_of_a_transient_unit_is_systemds_and_a_gc_before_it_takes_nothing_away(pods: Pods) -> None:
    path = pods.file("web", IMAGE + container(PATIENT) + '[service]\nRestart = "always"\nRestartSec = "2s"\n')
    assert sh("podrun", "up", "-d", str(path)).returncode == 0
    [file] = (RUN / "units").glob("web.json")
    os.utime(file, (0, 0))
    pid = main_pid("podrun-web")
    os.kill(pid, 9)
    until(lambda: show("podrun-web", "SubState") == ["auto-restart"])
    assert sh("podrun", "gc").returncode == 0
    until(lambda: show("podrun-web", "ActiveState") == ["active"] and main_pid("podrun-web") not in (0, pid))
    sh("podrun", "down", "web")
    pods.nothing_left()
