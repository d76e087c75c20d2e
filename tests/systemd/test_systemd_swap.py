"""systemctl reload with [pod] reload = "swap": the unit stays active, its main process is the next generation's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from support.busy import SERVER, Busy
from support.systemd_case import IMAGE, Pods, ended, main_pid, sh, show, systemctl, until, words

pytestmark = pytest.mark.systemd

_PORT = 7480
_POD = 'reload = "swap"'


def _chain(version: str, *, env: str = "", server: str = SERVER, patience: str = "20s") -> str:
    return f"""
[[chain]]
hook = "network"
publish = ["127.0.0.1:{_PORT}:80"]
[[chain]]
hook = "container"
command = ["/usr/bin/python3", "-c", '''{server.replace("${", "$${")}''']
env = {{ VERSION = "{version}" {env} }}
ready = {{ http = ":80/", timeout = "{patience}" }}
[[chain]]
hook = "register"
service = "web"
port = 80
"""


def _write(pods: Pods, version: str, **more: str) -> None:
    Path("/etc/podrun/web.toml").write_text(f'[pod]\nstop_timeout = "3s"\n{_POD}\n{IMAGE}{_chain(version, **more)}')


def _get() -> str:
    argv = ["curl", "-s", "-m", "5", f"http://127.0.0.1:{_PORT}/"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def web(pods: Pods) -> Pods:
    pods.install("web", IMAGE, _chain("1"), pod=_POD)
    assert systemctl("start", "web").returncode == 0, words("web")
    return pods


def _processes() -> int:
    """How many processes there are in the unit's cgroup."""
    return sum(
        len(path.read_text().split()) for path in Path("/sys/fs/cgroup/system.slice/web.service").rglob("cgroup.procs")
    )


def test_a_reload_moves_supervision_to_the_next_generation_and_no_request_fails(web: Pods) -> None:
    first, count = main_pid("web"), Busy("127.0.0.1", _PORT, keep=True)
    seen = set()
    for version in "234":
        _write(web, version)
        reloading = subprocess.Popen(["systemctl", "reload", "web"])
        while reloading.poll() is None:
            seen.add(show("web", "ActiveState")[0])
            time.sleep(0.02)
        assert reloading.returncode == 0, words("web")
        assert _get() == version
    assert seen <= {"active", "reloading"}
    told = count.stop()
    assert told.failed == 0, told
    assert main_pid("web") != first
    assert Path(f"/proc/{main_pid('web')}/environ").read_bytes().count(b"VERSION=4")
    assert show("web", "ActiveState", "NRestarts") == ["active", "0"]
    assert _processes() == 1
    # systemd supervises the new one: it sees how it ends.
    os.kill(main_pid("web"), signal.SIGKILL)
    assert ended("web")[:2] == ("signal", "killed")
    web.nothing_left()


def test_a_version_that_fails_leaves_the_unit_as_it_was(web: Pods) -> None:
    pid = main_pid("web")
    _write(web, "2", patience="300ms", env=', PORT = "81"')
    assert systemctl("reload", "web").returncode != 0
    assert (_get(), main_pid("web"), show("web", "ActiveState")[0]) == ("1", pid, "active")
    assert "not ready after 0.3 s" in words("web")
    systemctl("stop", "web")
    web.nothing_left()


def test_what_nobody_has_taken_is_not_left_for_the_next_reload(pods: Pods) -> None:
    pods.install("web", IMAGE, _chain("1"))
    assert systemctl("start", "web").returncode == 0, words("web")
    _write(pods, "2")
    ended = sh("podrun", "reload", "web")
    assert (ended.returncode, _get()) == (76, "1")
    assert "podrun unit --install web" in ended.stderr
    assert not [*Path("/run/podrun/requests").glob("*")]


def test_podrun_reload_has_systemd_reload_the_unit(web: Pods) -> None:
    _write(web, "2")
    assert sh("podrun", "reload", "web").returncode == 0
    assert _get() == "2"
    systemctl("stop", "web")
    assert ended("web")[0] == "success"
    web.nothing_left()


@pytest.mark.parametrize("then", ["reload", "stop", "crash"])
def test_a_reload_that_is_killed_leaves_one_generation_and_the_next_command_cleans_up(web: Pods, then: str) -> None:
    for delay in (0.15, 0.4):
        _write(web, f"2 {delay}")
        reloading = subprocess.Popen(["systemctl", "reload", "web"], stderr=subprocess.DEVNULL)
        until(lambda: show("web", "ControlPID")[0] != "0", 10)
        time.sleep(delay)
        if control := int(show("web", "ControlPID")[0]):
            os.kill(control, signal.SIGKILL)
        reloading.wait(20)
        assert _get() in ("1", f"2 {delay}")
    if then == "reload":
        _write(web, "3")
        assert systemctl("reload", "web").returncode == 0, words("web")
        assert _get() == "3"
    elif then == "crash":
        os.kill(main_pid("web"), signal.SIGKILL)
        assert ended("web")[0] == "signal"
        web.nothing_left()
    systemctl("stop", "web")
    web.nothing_left()


def test_what_cannot_run_twice_is_stopped_and_started(web: Pods) -> None:
    _write(web, "2")
    path = Path("/etc/podrun/web.toml")
    path.write_text(path.read_text().replace('hook = "container"', 'hook = "container"\npersist = true'))
    systemctl("reload", "web")
    until(lambda: _get() == "2", 20, lambda: words("web"))
    assert show("web", "ActiveState")[0] == "active"
    systemctl("stop", "web")
    sh("rm", "-rf", "/var/lib/podrun/pods/web")
    web.nothing_left()


#: The unit's watchdog acts after 1.2 s.
_LIVE = 'live = { http = ":80/", interval = "300ms", timeout = "300ms", retries = 2 }\nready ='


def _write_live(version: str, pod: str = "") -> None:
    chain = _chain(version).replace("ready =", _LIVE)
    Path("/etc/podrun/web.toml").write_text(f'[pod]\nstop_timeout = "3s"\n{_POD}\n{pod}\n{IMAGE}{chain}')


def test_after_a_swap_the_live_probe_of_the_new_generation_answers_the_watchdog(pods: Pods) -> None:
    pods.install("web", IMAGE, _chain("1").replace("ready =", _LIVE), pod=_POD)
    assert systemctl("start", "web").returncode == 0, words("web")
    for version in "23":
        _write_live(version)
        assert systemctl("reload", "web").returncode == 0, words("web")
        assert _get() == version
    pid, told = main_pid("web"), show("web", "WatchdogTimestampMonotonic")
    assert _processes() == 2, "the payload and its probe"
    time.sleep(2.5)
    assert (main_pid("web"), show("web", "ActiveState", "NRestarts")) == (pid, ["active", "0"]), words("web")
    assert show("web", "WatchdogTimestampMonotonic") != told
    os.kill(pid, signal.SIGSTOP)
    assert ended("web")[0] == "watchdog", words("web")
    pods.nothing_left()


def test_a_replaced_generation_that_hangs_while_it_drains_is_killed_and_the_unit_goes_on(pods: Pods) -> None:
    pods.install("web", IMAGE, _chain("1").replace("ready =", _LIVE), pod=f'{_POD}\ndrain = "60s"')
    assert systemctl("start", "web").returncode == 0, words("web")
    first = main_pid("web")
    with socket.create_connection(("127.0.0.1", _PORT), timeout=5) as kept:
        kept.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert kept.recv(1000).endswith(b"1")
        _write_live("2", 'drain = "60s"')
        reloading = subprocess.Popen(["systemctl", "reload", "web"])
        until(lambda: main_pid("web") != first, 20, lambda: words("web"))
        os.kill(first, signal.SIGSTOP)
        assert reloading.wait(20) == 0, words("web")
    assert (_get(), show("web", "ActiveState", "NRestarts")) == ("2", ["active", "0"]), words("web")
    systemctl("stop", "web")
    pods.nothing_left()


#: Answers the watchdog itself, and says that it stops, which systemd takes for the unit's end when nobody says otherwise.
_SPEAKER = """
import os, signal, socket, time
def say(words):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(words.encode(), os.environ["NOTIFY_SOCKET"])
def end(*_):
    say("STOPPING=1")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
say("READY=1")
while True:
    time.sleep(0.2)
    say("WATCHDOG=1")
"""


def test_a_payload_that_speaks_to_systemd_itself_is_swapped_as_well(pods: Pods) -> None:
    chain = f"""
[[chain]]
hook = "container"
command = ["/usr/bin/python3", "-c", '''{_SPEAKER}''']
user = "1000"
env = {{ VERSION = "1" }}
ready = {{ notify = "direct" }}
"""
    pods.install("web", IMAGE, chain, pod=_POD, service='WatchdogSec = "1s"\nWatchdogSignal = "SIGKILL"')
    assert systemctl("start", "web").returncode == 0, words("web")
    path = Path("/etc/podrun/web.toml")
    path.write_text(path.read_text().replace('VERSION = "1"', 'VERSION = "2"'))
    assert systemctl("reload", "web").returncode == 0, words("web")
    path.write_text(path.read_text().replace('say("READY=1")', "end()"))
    assert systemctl("reload", "web").returncode != 0
    time.sleep(1.5)
    assert show("web", "ActiveState", "NRestarts", "StatusText") == ["active", "0", "up, generation 2"], words("web")
    variables = Path(f"/proc/{main_pid('web')}/environ").read_bytes()
    assert b"VERSION=2" in variables
    assert b"WATCHDOG_USEC=1000000" in variables
    systemctl("stop", "web")
    pods.nothing_left()


def test_a_detached_pod_is_swapped_in_its_transient_unit(pods: Pods) -> None:
    path = pods.file("web", f'[pod]\nstop_timeout = "3s"\n{_POD}\n{IMAGE}{_chain("1")}')
    assert sh("podrun", "up", "-d", str(path)).returncode == 0
    _write(pods, "2")
    done = sh("podrun", "reload", "web")
    assert done.returncode == 0, done.stderr + words("podrun-web")
    assert _get() == "2"
    assert sh("podrun", "down", "web").returncode == 0
    pods.nothing_left()


def _image(path: str, version: str, ends: float) -> None:
    from support.image_builder import directory, docker_archive, file, image, symlink, tar

    parts = [directory("usr"), directory("etc"), *(symlink(name, f"usr/{name}") for name in ("bin", "lib", "lib64"))]
    parts += [file("version", version.encode()), file("ends", str(ends).encode())]
    docker_archive(path, {"web:1": image(tar(*parts))})


def test_a_version_that_ends_while_it_is_watched_is_left_for_the_one_before(pods: Pods, tmp_path: Path) -> None:
    archive, program = (
        str(tmp_path / "web.tar"),
        (
            'import os, threading; os.environ["VERSION"] = open("/version").read()\n'
            'timer = threading.Timer(float(open("/ends").read()), lambda: os._exit(9)); timer.daemon = True; timer.start()\n'
        ),
    )
    _image(archive, "1", 1e6)
    chain = _chain("0", server=program + SERVER).replace("ready =", 'volumes = ["/usr:/usr:ro"]\nready =')
    image = (
        f'[[chain]]\nhook = "image"\nref = "docker-archive:{archive}:web:1"\n[update]\nfrom = "local"\nwatch = "5s"\n'
    )
    pods.install("web", image, chain, pod=_POD)
    assert systemctl("start", "web").returncode == 0, words("web")
    pid, client = main_pid("web"), Busy("127.0.0.1", _PORT, keep=False)
    _image(archive, "2", 2.0)
    assert sh("podrun", "image", "pull", "-q", f"docker-archive:{archive}:web:1").returncode == 0
    updated = sh("podrun", "update", "web")
    assert updated.returncode == 76, updated.stderr
    assert (_get(), main_pid("web"), show("web", "ActiveState", "NRestarts")) == ("1", pid, ["active", "0"])
    count = client.stop()
    # What the new version had not answered when it ended is lost; nobody is refused for long.
    assert count.gap < 1000, count
    assert {*count.versions} == {"1", "2"}
    os.kill(main_pid("web"), signal.SIGKILL)
    assert ended("web")[0] == "signal"
    pods.nothing_left()


def test_a_rollback_of_a_unit_that_has_to_be_restarted_starts_the_generation_and_not_today_s_file(
    pods: Pods, tmp_path: Path
) -> None:
    archive = str(tmp_path / "web.tar")
    _image(archive, "1", 1e6)
    image = f'[[chain]]\nhook = "image"\nref = "docker-archive:{archive}:web:1"\n'
    rules = '[update]\nfrom = "local"\nmode = "restart"\nwatch = "0s"\n'
    shown = 'volumes = ["/usr:/usr:ro"]\nenv = { SHOWN = "%s" }\n'
    chain = '[[chain]]\nhook = "container"\ncommand = ["sleep", "1000"]\ninit = true\n' + shown
    file = pods.install("web", image, '[[chain]]\nhook = "network"\nmode = "none"\n', chain % "old", rules) and (
        Path("/etc/podrun/web.toml")
    )
    assert systemctl("start", "web").returncode == 0, words("web")

    def shows() -> str:
        return sh("podrun", "exec", "web", "sh", "-c", "echo $SHOWN; cat /version").stdout.replace("\n", " ").strip()

    assert shows() == "old 1"
    file.write_text(file.read_text().replace('"old"', '"new"'))
    _image(archive, "2", 1e6)
    assert sh("podrun", "image", "pull", "-q", f"docker-archive:{archive}:web:1").returncode == 0
    done = sh("podrun", "update", "web")
    assert (done.returncode, shows()) == (0, "new 2"), done.stderr
    file.write_text("broken = ")  # what is wrong with it is no reason to stay
    done = sh("podrun", "rollback", "web")
    assert (done.returncode, shows()) == (0, "old 1"), done.stderr + words("web")
    assert show("web", "ActiveState") == ["active"]
    told = json.loads(sh("podrun", "history", "web", "--format", "json").stdout)
    # Other tests' pods of this name have a history, too.
    assert [line["how"] for line in told][-3:] == ["up", "update", "rollback"]
    assert not list(Path("/run/podrun/requests").iterdir())
    systemctl("stop", "web")
    pods.nothing_left()
