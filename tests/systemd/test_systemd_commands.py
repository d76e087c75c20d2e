"""podrun's commands on a host that systemd runs: up -d and down of a pod that has a unit, ps, readiness, log files."""

from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import time
from pathlib import Path
from typing import Any

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

SERVE = "import http.server as h; h.HTTPServer(('', 80), h.SimpleHTTPRequestHandler).serve_forever()"


# --- a pod that has a unit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["installed", "generated", "template"])
def test_up_d_starts_the_unit_that_podrun_has_made_of_the_file(pods: Pods, generator: Any, how: str) -> None:
    name = "web@blue" if how == "template" else "web"
    if how == "installed":
        pods.install("web", IMAGE, container(PATIENT))
    else:
        pods.file(name.replace("blue", ""), IMAGE + container(PATIENT))
        pods.units.append("web@blue.service" if how == "template" else "web.service")
        systemctl("daemon-reload")
    for word in (name, f"/etc/podrun/{name}.toml"):
        done = sh("podrun", "up", "-d", word)
        assert done.returncode == 0, done.stderr
        assert f"starting {name}.service" in done.stderr
        assert show(name, "ActiveState", "Transient") == ["active", "no"]
        assert sh("podrun", "up", "-d", word).returncode == 75
        assert sh("podrun", "down", name).returncode == 0
        assert show(name, "ActiveState") == ["inactive"]
    systemctl("stop", f"{name}.service")


def test_up_d_returns_when_every_container_with_a_unit_is_ready(pods: Pods) -> None:
    pods.install("duo", IMAGE, NETWORK, container(PATIENT, "app"), container(PATIENT, "side"))
    assert sh("podrun", "up", "-d", "duo").returncode == 0
    assert show("duo.app", "ActiveState") == show("duo.side", "ActiveState") == ["active"]
    assert sh("podrun", "down", "duo").returncode == 0
    pods.nothing_left()


def test_up_d_of_a_unit_that_fails_tells_why_and_has_its_code(pods: Pods) -> None:
    pods.install("web", IMAGE, '[[chain]]\nhook = "container"\ncommand = ["/no/such"]\n')
    done = sh("podrun", "up", "-d", "web")
    assert done.returncode == 127
    assert "/no/such" in done.stderr
    assert show("web", "ActiveState") == ["failed"]


def test_up_d_of_another_file_of_the_same_name_is_refused(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT))
    other = Path("/opt/web.toml")
    other.write_text(IMAGE + container(PATIENT))
    done = sh("podrun", "up", "-d", str(other))
    assert done.returncode == 73
    assert "web.service is made of /etc/podrun/web.toml, not of /opt/web.toml" in done.stderr
    assert show("podrun-web", "ActiveState") == ["inactive"]


def test_down_ends_a_unit_that_is_between_two_starts(pods: Pods) -> None:
    pods.install("web", IMAGE, container("sleep 0.3; exit 1"), service='Restart = "always"\nRestartSec = "1h"')
    systemctl("start", "web")
    until(lambda: show("web", "SubState") == ["auto-restart"])
    assert sh("podrun", "down", "web").returncode == 0
    assert show("web", "SubState") in (["dead"], ["failed"])


def test_ps_and_inspect_tell_the_unit(pods: Pods) -> None:
    pods.install("web", IMAGE, container(PATIENT))
    systemctl("start", "web")
    [row] = [json.loads(line) for line in sh("podrun", "ps", "--format", "json").stdout.splitlines()]
    assert (row["name"], row["unit"], row["pid"]) == ("web", "web.service", main_pid("web"))
    assert json.loads(sh("podrun", "inspect", "web").stdout)["unit"] == "web.service"
    assert sh("podrun", "ps", "-q", "--filter", "unit=web.service").stdout == "web\n"


# --- readiness and logs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ['http = ":80/"', 'tcp = ":80"'])
@pytest.mark.parametrize("network", [NETWORK, ""], ids=["bridge", "own"])
def test_a_unit_is_active_when_its_server_answers(pods: Pods, probe: str, network: Any) -> None:
    script = f'while [ ! -e /tmp/go ]; do sleep 0.05; done; exec python3 -c "{SERVE}"'
    pods.install("web", IMAGE, network, container(script, ready=f'{{ {probe}, timeout = "20s" }}'))
    systemctl("start", "--no-block", "web")
    until(lambda: "waiting until main is ready" in show("web", "StatusText")[0])
    time.sleep(0.2)
    assert show("web", "ActiveState") == ["activating"]
    sh("podrun", "exec", "web", "touch", "/tmp/go")
    until(lambda: show("web", "ActiveState") == ["active"])


def test_a_server_that_does_not_answer_fails_the_unit_with_the_probes_last_error(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(PATIENT, ready='{ tcp = ":80", timeout = "300ms" }'))
    assert systemctl("start", "web").returncode != 0
    assert ended("web") == ("exit-code", "exited", "76")
    assert "not ready after 0.3 s: 127.0.0.1:80: Connection refused" in words("web")
    pods.nothing_left()


def test_a_log_file_has_what_the_journal_then_has_not(pods: Pods) -> None:
    log = Path("/srv/web.log")
    pods.install("web", IMAGE, container(PATIENT, log=f'"file:{log}"'))
    systemctl("start", "web")
    until(lambda: log.read_text() == "hello\n")
    assert "hello" not in words("web")
    assert sh("podrun", "logs", "web").stdout == "hello\n"
    systemctl("stop", "web")
    assert log.read_text() == "hello\nbye\n"
    log.unlink()


def test_up_d_shows_the_pull_before_the_unit_starts(pods: Pods, tmp_path: Path) -> None:
    from support.image_builder import directory, docker_archive, image, tar

    archive, name = tmp_path / "web.tar", "registry.example/web:1"
    docker_archive(archive, {name: image(tar(directory("usr")))})
    ref = f"docker-archive:{archive}:{name}"
    file = tmp_path / "web.toml"
    file.write_text(f'chain = [ {{ hook = "image", ref = "{ref}" }} ]')
    for told in (True, False):
        done = sh("podrun", "up", "-d", str(file))
        assert (done.returncode, f"Pulling {ref}\n" in done.stderr) == (0, told), done.stderr
        assert sh("podrun", "down", "web").returncode == 0
    assert sh("podrun", "image", "rm", ref).returncode == 0
    archive.unlink()
    done = sh("podrun", "up", "-d", str(file))
    assert done.returncode == 78
    assert "nothing was started" in done.stderr
    assert show("web.service", "LoadState") == ["not-found"]


# --- plugins and warnings -------------------------------------------------------------------------------------------


def test_the_generator_knows_the_resident_hooks_of_installed_packages(pods: Pods) -> None:
    packages = Path(site.getsitepackages()[0])
    metadata = packages / "sleeper-1.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sleeper\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[podrun.hooks]\nsleeper = sleeper\n")
    (packages / "sleeper.py").write_text(
        "import os, signal\nOptions, resident, takes, gives, default_name = None, True, (), ('process',), ''\n"
        "def up(step, facts):\n"
        "    pid = os.posix_spawn('/bin/sleep', ['sleep', '1000'], {})\n"
        "    start = int(open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[19])\n"
        "    step.notify(f'MAINPID={pid}')\n"
        "    return {'process': {'pid': pid, 'start': start}}\n"
        "def down(step, own):\n"
        "    if own:\n"
        "        try: os.kill(own['process']['pid'], signal.SIGTERM)\n"
        "        except ProcessLookupError: pass\n"
        "def check(step): return ()\n"
    )
    try:
        done = sh("podrun", "unit", "--install-generator")
        assert done.returncode == 0, done.stderr
        pods.file("nap", '[[chain]]\nhook = "sleeper"\n')
        systemctl("daemon-reload")
        assert (
            sh("podrun", "unit", "nap").stdout.partition("\n")[2]
            == Path("/run/systemd/generator/nap.service").read_text()
        )
        assert systemctl("start", "nap").returncode == 0, words("nap")
        assert Path(f"/proc/{main_pid('nap')}/comm").read_text() == "sleep\n"
        systemctl("stop", "nap")
        pods.nothing_left()
    finally:
        os.unlink("/etc/systemd/system-generators/podrun-generator")
        for path in (*metadata.iterdir(), packages / "sleeper.py"):
            path.unlink()
        metadata.rmdir()


def test_a_watchdogsec_that_nobody_will_answer_is_told_of(pods: Pods) -> None:
    pods.file("web", IMAGE + container(PATIENT) + '[service]\nWatchdogSec = "5s"\n')
    done = sh("podrun", "unit", "web")
    assert "nothing answers WatchdogSec=5s" in done.stderr


def sees(pod: str, name: str, text: str) -> None:
    def shown() -> str:
        return sh("podrun", "exec", pod, "cat", f"/etc/{name}").stdout

    until(lambda: shown() == text, why=lambda: shown() + systemctl("status", "podrun-host-files*").stdout)


def test_a_running_pod_sees_what_the_host_changes_in_its_resolver_and_hosts(pods: Pods) -> None:
    host = '[[chain]]\nhook = "network"\nmode = "host"\n'
    pods.install("unit", IMAGE, host, container(PATIENT))
    file = pods.file("hand", IMAGE + NETWORK + container(PATIENT))
    before = {path: path.read_bytes() for path in (Path("/etc/resolv.conf"), Path("/etc/hosts"))}
    assert systemctl("start", "unit.service").returncode == 0
    assert sh("podrun", "up", "-d", str(file)).returncode == 0
    try:
        for number in (1, 2):
            for path, line in ((Path("/etc/resolv.conf"), "nameserver"), (Path("/etc/hosts"), "printer")):
                new = path.with_name(f"{path.name}.new")
                new.write_text(f"{line} 192.0.2.{number}\n" if line == "nameserver" else f"192.0.2.{number} {line}\n")
                new.rename(path)
            for pod, name, text in (
                ("unit", "resolv.conf", f"nameserver 192.0.2.{number}\n"),
                ("unit", "hosts", f"192.0.2.{number} printer\n"),
                ("hand", "resolv.conf", f"nameserver 192.0.2.{number}\n"),
            ):
                sees(pod, name, text)
    finally:
        for path, content in before.items():
            path.unlink()
            path.write_bytes(content)
        sh("podrun", "down", "hand")
        systemctl("stop", "unit.service", "podrun-host-files.path")


# --- docker's life of a container -----------------------------------------------------------------------------------


def test_what_was_created_is_started_stopped_and_started_again_in_its_unit(pods: Pods) -> None:
    script = "echo begins; trap 'echo asked; exit 4' TERM; while :; do sleep 0.1; done"
    assert (
        sh("podrun", "create", "--name", "box", "--log-driver", "journald", "host:", "sh", "-c", script).returncode == 0
    )
    try:
        assert show("podrun-box", "ActiveState") == ["inactive"]
        for _ in range(2):
            assert sh("podrun", "start", "box").stdout == "box\n"
            assert sh("podrun", "wait", "--condition", "running", "box").returncode == 0
            until(lambda: sh("podrun", "logs", "-n", "1", "box").stdout == "begins\n")
            assert sh("podrun", "rm", "box").returncode == 75
            assert sh("podrun", "stop", "box").stdout == "box\n"
            assert sh("podrun", "wait", "box").returncode == 4
        until(lambda: sh("podrun", "logs", "box").stdout == "begins\nasked\n" * 2)
        assert sh("podrun", "ps", "-a", "--filter", "name=^box$", "--format", "name,exit").stdout.split() == [
            "box",
            "4",
        ]
        staying = sh("podrun", "create", "--name", "job", "host:", "sh", "-c", "echo hi; exit 3")
        assert staying.returncode == 0, staying.stderr
        assert (sh("podrun", "start", "-a", "job").stdout, sh("podrun", "wait", "job").returncode) == ("hi\n", 3)
        assert sh("podrun", "rm", "box", "job").stdout == "box\njob\n"
        assert not {"box", "job"} & {*sh("podrun", "ps", "-aq").stdout.split()}
    finally:
        sh("podrun", "rm", "-f", "box")


def test_the_output_of_a_pod_in_the_foreground_is_kept_by_the_journal(pods: Pods) -> None:
    script = "echo one; echo two >&2; trap 'echo asked; exit 6' USR1; echo waits; while :; do sleep 0.1; done"
    argv = ["podrun", "run", "--log-driver", "journald", "--name", "box", "host:", "sh", "-c", script]
    running = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: "waits" in sh("podrun", "logs", "box").stdout)
        running.send_signal(signal.SIGUSR1)
        assert running.communicate(timeout=20)[0] == "one\ntwo\nwaits\nasked\n"
        assert running.returncode == 6
        assert sh("podrun", "logs", "box").stdout == "one\ntwo\nwaits\nasked\n"
        assert sh("podrun", "logs", "--until", "1h", "box").stdout == ""
        assert sh("podrun", "ps", "-a", "--filter", "name=^box$", "--format", "name,exit").stdout.split() == [
            "box",
            "6",
        ]
        quick = sh(
            "podrun", "run", "--rm", "--log-driver=journald", "--name", "quick", "host:", "sh", "-c", "echo hi; exit 3"
        )
        assert (quick.stdout, quick.returncode) == ("hi\n", 3), quick.stderr
        assert "quick" not in sh("podrun", "ps", "-aq").stdout.split()
    finally:
        running.kill()
        sh("podrun", "rm", "-f", "box")
