"""The live probe: what it does to a container that does not answer, what ends it, and what it costs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.options import Wrong, read
from podrun_hooks.container import options as containers
from podrun_hooks.container.probes import prober
from support.launcher import Podrun
from support.pods import WAITS, pod, state, until

pytestmark = pytest.mark.root

#: Alive as long as the file is there.
SOUND = 'live = { exec = ["test", "-e", "/tmp/sound"], interval = "50ms", timeout = "5s", retries = 2 }\n'


def probers(podrun: Podrun) -> list[int]:
    """The probes of this podrun's containers."""
    wanted = f"{podrun.home}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            if any(b"prober" in word for word in words[2:3]) and wanted in (path.parent / "environ").read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def sound(podrun: Podrun) -> Path:
    """The file that the payload's life hangs on; the pod file mounts its directory."""
    directory = podrun.home / "tmp"
    directory.mkdir()
    (directory / "sound").touch()
    return directory / "sound"


def watched(podrun: Podrun, sound: Path, script: str = WAITS, live: str = SOUND) -> str:
    return pod(podrun, script, more=f'volumes = ["{sound.parent}:/tmp"]\n{live}')


def test_a_container_that_fails_its_probe_is_killed_and_the_foreground_tells_why(
    podrun: Podrun, nothing_left: None, sound: Any
) -> None:
    process = podrun.start("up", watched(podrun, sound), stderr=subprocess.PIPE)
    until(lambda: state(podrun) == "up")
    sound.unlink()
    _, told = process.communicate(timeout=20)
    assert process.returncode == 137
    assert "web: container main: the live probe failed, 2 of 2: status 1" in told
    assert "killed, because it failed the live probe 2 times in a row" in told


def test_failures_do_not_count_in_the_start_period_until_it_has_succeeded_once(
    podrun: Podrun, nothing_left: None, sound: Any
) -> None:
    sound.unlink()
    live = SOUND.replace("retries = 2", 'retries = 2, start_period = "1h"')
    process = podrun.start("up", watched(podrun, sound, live=live), stderr=subprocess.PIPE)
    until(lambda: state(podrun) == "up")
    time.sleep(0.5)  # ten attempts
    assert state(podrun) == "up"
    sound.touch()
    until(lambda: "(healthy)" in podrun("ps").stdout)
    sound.unlink()
    _, told = process.communicate(timeout=20)
    assert process.returncode == 137
    lines = [line for line in told.splitlines() if "live probe" in line]
    first, then, *rest = (line.partition("the live probe ")[2] for line in lines)
    assert (first, then) == ("failed, which does not count in its start_period: status 1", "succeeds")
    assert rest[-2:] == ["failed, 2 of 2: status 1", "2 times in a row"]


def test_with_on_failure_none_a_container_that_fails_is_unhealthy_and_lives(
    podrun: Podrun, nothing_left: None, sound: Any
) -> None:
    podrun("up", "-d", watched(podrun, sound, live=SOUND.replace("}", ', on_failure = "none" }')), check=True)
    sound.unlink()
    until(lambda: podrun("ps", "--format", "{health}").stdout.strip() == "unhealthy")
    time.sleep(0.3)
    assert state(podrun) == "up"
    sound.touch()
    until(lambda: podrun("ps", "--format", "{health}").stdout.strip() == "healthy")
    podrun("down", "web", check=True)


def test_a_detached_container_that_fails_its_probe_is_dead_and_its_log_says_why(
    podrun: Podrun, nothing_left: None, sound: Any
) -> None:
    podrun("up", "-d", watched(podrun, sound), check=True)
    assert len(until(lambda: probers(podrun))) == 1
    sound.unlink()
    until(lambda: state(podrun) == "dead")
    until(lambda: not probers(podrun))
    assert "2 of 2: status 1" in podrun("logs", "web").stdout
    podrun("down", "web", check=True)


def test_a_failure_between_successes_kills_nobody(podrun: Podrun, nothing_left: None, sound: Any) -> None:
    patient = SOUND.replace("retries = 2", "retries = 1000")
    podrun("up", "-d", watched(podrun, sound, live=patient), check=True)
    sound.unlink()
    until(lambda: "the live probe failed" in podrun("logs", "web").stdout)
    sound.touch()
    until(lambda: "the live probe succeeds again" in podrun("logs", "web").stdout)
    assert state(podrun) == "up"
    podrun("down", "web", check=True)


@pytest.mark.parametrize("network", ["", '[[chain]]\nhook = "network"\n'], ids=["own", "bridge"])
@pytest.mark.parametrize("probe", ['http = ":80/"', 'tcp = ":80"'])
def test_a_server_is_asked_from_inside_its_network(
    podrun: Podrun, nothing_left: None, probe: str, network: str
) -> None:
    serve = "import http.server as h; h.HTTPServer(('', 80), h.SimpleHTTPRequestHandler).serve_forever()"
    live = f'live = {{ {probe}, interval = "50ms", timeout = "5s", retries = 1 }}\n'
    path = pod(
        podrun, f'exec python3 -c "{serve}"', before=network, more=f'ready = {{ tcp = ":80" }}\n{live}init = true\n'
    )
    podrun("up", "-d", path, check=True)
    if "http" in probe:
        until(lambda: podrun("logs", "web").stdout.count("GET / HTTP/1.1") > 3)
    assert state(podrun) == "up"
    [one] = probers(podrun)
    assert os.readlink(f"/proc/{one}/ns/net") != os.readlink("/proc/self/ns/net")
    podrun("down", "web", check=True)
    assert not probers(podrun)


def test_a_slow_server_has_the_whole_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                client, _ = server.accept()
                with client:
                    client.recv(1000)
                    time.sleep(0.6)
                    client.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        hosts = [str(server.getsockname()[1]), "/", "127.0.0.1", "127.0.0.2", "127.0.0.3"]
        assert prober.anywhere(hosts, 20, -1) == ""
        assert prober.anywhere(hosts, 0.1, -1) == f"127.0.0.1:{hosts[0]}: no answer within 0.1 s"


@pytest.mark.parametrize(
    "command", ['["sleep", "1234"]', '["sh", "-c", "sleep 1234 & (sleep 1234; true); true"]'], ids=["alone", "family"]
)
def test_a_command_that_does_not_end_is_killed_inside_the_container_too(
    podrun: Podrun, nothing_left: None, sound: Any, command: str
) -> None:
    live = f'live = {{ exec = {command}, interval = "50ms", timeout = "100ms", retries = 1000 }}\n'
    podrun("up", "-d", watched(podrun, sound, live=live), check=True)
    until(lambda: podrun("logs", "web").stdout.count("timed out after 0.1 s") > 2)
    [one] = probers(podrun)
    os.kill(one, signal.SIGSTOP)
    count = podrun("exec", "web", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c ^1234").stdout
    assert int(count) <= 2
    podrun("down", "web", check=True)


@pytest.mark.parametrize("words", [["up"], ["up", "-d"]], ids=" ".join)
def test_a_payload_that_takes_its_time_to_end_is_not_killed_for_it(
    podrun: Podrun, nothing_left: None, sound: Any, words: Any
) -> None:
    slow = "trap 'rm /tmp/sound; sleep 1; echo ended in peace >>/tmp/last; exit 0' TERM; while :; do sleep 0.05; done"
    process = podrun.start(*words, watched(podrun, sound, slow), stderr=subprocess.DEVNULL)
    until(lambda: state(podrun) == "up")
    if words == ["up"]:
        process.terminate()
        assert process.wait(20) == 0
    else:
        podrun("down", "web", check=True)
    assert (sound.parent / "last").read_text() == "ended in peace\n"


def test_the_probe_of_a_start_that_was_killed_is_ended(podrun: Podrun, nothing_left: None, sound: Any) -> None:
    path = pod(podrun, more=f'volumes = ["{sound.parent}:/tmp"]\n{SOUND}' + '[[chain]]\nhook = "exec:/bin/sleep"\n')
    slow = podrun.home / "slow"
    slow.write_text("#!/bin/sh\n[ $PODRUN_VERB = up ] && sleep 60\nexit 0\n")
    slow.chmod(0o755)
    Path(path).write_text(Path(path).read_text().replace("/bin/sleep", str(slow)))
    process = podrun.start("up", "-d", path, stderr=subprocess.DEVNULL)
    until(lambda: probers(podrun))
    process.kill()
    process.wait()
    podrun("down", "web", check=True)
    assert not probers(podrun)


def test_the_probe_imports_what_the_interpreter_has_built_in_alone() -> None:
    script = f"import sys; sys.argv[1:] = []; exec(open({prober.__file__!r}).read().replace('__main__', '')); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True, check=True).stdout
    assert not {"os", "re", "socket", "ctypes", "json", "podrun"} & {*loaded.split()}


def test_what_the_probe_costs(podrun: Podrun, nothing_left: None, sound: Any) -> None:
    live = 'live = { tcp = ":1", interval = "10ms", timeout = "1s", retries = 100000 }\n'
    podrun("up", "-d", watched(podrun, sound, live=live), check=True)
    [one] = until(lambda: probers(podrun))

    def used() -> tuple[int, int]:
        ran, attempts = (
            Path(f"/proc/{one}/schedstat").read_text().split()[0],
            podrun("logs", "web").stdout.count("failed"),
        )
        return int(ran), attempts

    ran, attempts = used()
    time.sleep(1)
    later, more = used()
    memory = dict(line.split(":") for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:])
    print(f"PSS {memory['Pss'].strip()}, {(later - ran) / 1e3 / (more - attempts):.0f} us of processor time an attempt")
    assert int(memory["Private_Dirty"].split()[0]) < 8000
    podrun("down", "web", check=True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "exactly one of http, tcp and exec"),
        ({"tcp": ":80", "http": ":80"}, "exactly one of http, tcp and exec"),
        ({"tcp": "80"}, "expected HOST:PORT"),
        ({"tcp": ":80", "interval": 0}, "a time from 10ms"),
        ({"tcp": ":80", "retries": 0}, "a number from 1"),
        ({"notify": True}, "unknown key 'notify'"),
    ],
)
def test_a_probe_that_makes_no_sense_is_refused(table: Any, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        read(containers.Options, {"live": table})
