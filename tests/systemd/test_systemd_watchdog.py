"""The watchdog: the payload's own, and the live probe that answers it for a payload that does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
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

#: Alive as long as the file is there.
SOUND = "touch /tmp/sound; " + PATIENT
LIVE = '{ exec = ["test", "-e", "/tmp/sound"], interval = "100ms", timeout = "5s", retries = 2 }'
READY = '{ exec = ["test", "-e", "/tmp/sound"] }'

#: Speaks to systemd itself until it is told to fall silent.
SPEAKER = """
import os, signal, socket, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
def say(words):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(words.encode(), os.environ["NOTIFY_SOCKET"])
        except OSError:
            pass  # nobody listens, as sd_notify(3) has it
print("asked for", os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID"), os.getpid(), flush=True)
say("READY=1")
while not os.path.exists("/tmp/silent"):
    say("WATCHDOG=1\\nSTATUS=all is well")
    time.sleep(0.1)
time.sleep(1000)
"""


def processes(unit: str) -> list[str]:
    """The programs in a unit's cgroup, with the cgroup below it that they are in."""
    top = Path(f"/sys/fs/cgroup/system.slice/{unit}")
    return sorted(
        f"{path.parent.name}: {Path(f'/proc/{pid}/cmdline').read_bytes().split(bytes(1))[0].decode().rpartition('/')[2]}"
        for path in top.rglob("cgroup.procs")
        for pid in path.read_text().split()
    )


def speaker(pods: Pods, service: str = "", **more: str) -> None:
    Path("/opt/speaker.py").write_text(SPEAKER)
    keys = {"user": '"1000"', "ready": '{ notify = "direct" }', **more}
    table = '[[chain]]\nhook = "container"\ncommand = ["python3", "/speaker.py"]\nvolumes = ["/opt/speaker.py:/speaker.py:ro"]\n'
    pods.install("web", IMAGE, table + "".join(f"{key} = {value}\n" for key, value in keys.items()), service=service)


# --- the live probe -------------------------------------------------------------------------------------------------


def test_a_container_that_fails_its_live_probe_is_killed_by_systemd_and_started_again(pods: Pods) -> None:
    service = 'Restart = "on-failure"\nRestartSec = "100ms"'
    pods.install("web", IMAGE, NETWORK, container(SOUND, live=LIVE, ready=READY), service=service)
    assert systemctl("start", "web").returncode == 0, words("web")
    pid = main_pid("web")
    sh("podrun", "exec", "web", "rm", "/tmp/sound")
    until(lambda: show("web", "NRestarts", "ActiveState") == ["1", "active"], 20)
    assert main_pid("web") not in (0, pid)
    told = words("web")
    assert "web: container main: the live probe failed, 2 of 2: status 1" in told
    assert "Watchdog request (last status: the live probe failed: status 1" in told
    assert "Failed with result 'watchdog'" in told


def test_a_live_probe_is_one_process_beside_the_container_and_ends_before_it(pods: Pods) -> None:
    pods.install("web", IMAGE, NETWORK, container(SOUND, live=LIVE.replace("100ms", "10s"), ready=READY))
    systemctl("start", "web")
    until(lambda: [word for word in processes("web.service") if "sleep" not in word] == ["main: sh", "podrun: python3"])
    systemctl("stop", "web")
    assert ended("web")[0] == "success"
    assert "bye" in words("web")
    pods.nothing_left()


def test_a_live_probe_that_is_gone_is_noticed(pods: Pods) -> None:
    live = LIVE.replace("5s", "200ms")
    pods.install("web", IMAGE, container(SOUND, live=live, ready=READY))
    systemctl("start", "web")
    for path in Path("/sys/fs/cgroup/system.slice/web.service/podrun").glob("cgroup.procs"):
        until(lambda path=path: len(path.read_text().split()) == 1)  # type: ignore[misc]
        os.kill(int(path.read_text()), signal.SIGKILL)
    assert ended("web") == ("watchdog", "killed", "9"), words("web")
    pods.nothing_left()


def test_each_of_two_containers_has_the_watchdog_that_it_asks_for(pods: Pods) -> None:
    pods.install("duo", IMAGE, container(SOUND, "app", live=LIVE, ready=READY), container(PATIENT, "side"))
    systemctl("start", "duo.app", "duo.side")
    assert show("duo.app", "WatchdogUSec") == ["10.200000s"]
    assert show("duo.side", "WatchdogUSec") in (["0"], ["infinity"])
    sh("podrun", "exec", "-c", "app", "duo", "rm", "/tmp/sound")
    assert ended("duo.app")[0] == "watchdog"
    assert show("duo.side", "ActiveState") == ["active"]


def test_a_server_is_asked_in_the_pods_network(pods: Pods) -> None:
    serve = "import http.server as h; h.HTTPServer(('', 80), h.SimpleHTTPRequestHandler).serve_forever()"
    live = '{ http = ":80/", interval = "100ms", timeout = "2s" }'
    pods.install("web", IMAGE, NETWORK, container(f'exec python3 -c "{serve}"', live=live, ready='{ tcp = ":80" }'))
    assert systemctl("start", "web").returncode == 0, words("web")
    until(lambda: words("web").count("GET / HTTP/1.1") > 5)
    os.kill(main_pid("web"), signal.SIGSTOP)
    assert ended("web")[0] == "watchdog"
    assert "no answer within" in words("web")


def test_up_d_has_the_watchdog_as_well(pods: Pods) -> None:
    path = pods.file("web", IMAGE + container(SOUND, live=LIVE, ready=READY))
    assert sh("podrun", "up", "-d", str(path)).returncode == 0
    sh("podrun", "exec", "web", "rm", "/tmp/sound")
    assert ended("podrun-web")[0] == "watchdog"
    systemctl("reset-failed")


def by_hand(pods: Pods, service: str) -> None:
    pods.file("web", IMAGE + container(SOUND, live=LIVE, ready=READY))
    down = "-/usr/local/bin/podrun down --invocation=${INVOCATION_ID} web"
    lines = ["Type=notify", "NotifyAccess=all", "Delegate=yes", "KillMode=process", service]
    lines += ["ExecStart=/usr/local/bin/podrun up /etc/podrun/web.toml", f"ExecStop={down}", f"ExecStopPost={down}"]
    pods.write("web.service", "\n".join(["[Service]", *lines, ""]))


def test_in_a_unit_without_watchdogsec_the_probe_kills_the_container_itself(pods: Pods) -> None:
    by_hand(pods, "")
    assert systemctl("start", "web").returncode == 0, words("web")
    sh("podrun", "exec", "web", "rm", "/tmp/sound")
    assert ended("web") == ("signal", "killed", "9")
    assert "killed, because it failed the live probe 2 times in a row" in words("web")
    pods.nothing_left()


def test_a_watchdogsec_that_the_probe_cannot_keep_is_refused_with_the_line_that_it_can(pods: Pods) -> None:
    by_hand(pods, "WatchdogSec=1")
    assert systemctl("start", "web").returncode != 0
    assert ended("web") == ("exit-code", "exited", "78")
    assert "WatchdogSec=10.2s in its [Service] section" in words("web")
    pods.nothing_left()


# --- the payload's own ----------------------------------------------------------------------------------------------


def test_a_payload_answers_the_watchdog_itself_and_its_silence_is_noticed(pods: Pods) -> None:
    speaker(pods, 'WatchdogSec = "2s"\nWatchdogSignal = "SIGKILL"')
    assert systemctl("start", "web").returncode == 0, words("web")
    until(lambda: show("web", "StatusText") == ["all is well"])
    assert "asked for 2000000 1 1" in words("web")
    before = show("web", "WatchdogTimestampMonotonic")
    until(lambda: show("web", "WatchdogTimestampMonotonic") != before)
    assert processes("web.service") == ["main: python3"]
    sh("podrun", "exec", "web", "touch", "/tmp/silent")
    assert ended("web") == ("watchdog", "killed", "9"), words("web")
    pods.nothing_left()


def test_without_watchdogsec_a_payload_is_not_asked(pods: Pods) -> None:
    speaker(pods)
    assert systemctl("start", "web").returncode == 0, words("web")
    until(lambda: "asked for None None" in words("web"))
    systemctl("stop", "web")
    assert ended("web")[0] == "success"
    pods.nothing_left()


def test_ready_comes_last_although_the_payload_speaks_to_systemd(pods: Pods) -> None:
    Path("/opt/slow").write_text(
        "#!/bin/sh\n[ $PODRUN_VERB = up ] && while [ ! -e /run/go ]; do sleep 0.05; done\nexit 0\n"
    )
    os.chmod("/opt/slow", 0o755)
    Path("/run/go").unlink(missing_ok=True)
    speaker(pods)
    path = pods.files[0]
    path.write_text(path.read_text() + '[[chain]]\nhook = "exec:/opt/slow"\n')
    systemctl("start", "--no-block", "web")
    until(lambda: show("web", "StatusText") == ["all is well"])
    assert show("web", "ActiveState") == ["activating"]
    Path("/run/go").touch()
    until(lambda: show("web", "ActiveState") == ["active"])


def test_root_in_a_container_does_not_get_systemds_own_socket(pods: Pods) -> None:
    speaker(pods, user='"0"')
    assert systemctl("start", "web").returncode != 0
    assert ended("web") == ("exit-code", "exited", "78")
    assert "give the container a user that is not root" in words("web")
    pods.nothing_left()


def test_in_the_foreground_the_same_pod_file_gets_podruns_socket(pods: Pods) -> None:
    speaker(pods)
    systemctl("stop", "web")
    output = Path("/srv/output")
    with output.open("w") as file:
        process = subprocess.Popen(["podrun", "up", "web"], stdout=file, stderr=file)
        until(lambda: json.loads(sh("podrun", "inspect", "web").stdout or "{}").get("state") == "up")
        process.terminate()
        assert process.wait(20) == 0, output.read_text()
    assert "asked for None None" in output.read_text()
    output.unlink()
    pods.nothing_left()
