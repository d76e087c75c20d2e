"""Where a secret is not: on no command line, in no file that somebody else reads or that outlives the pod."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from podrun.host import Host
from podrun.launcher import transient
from podrun.podfile import unit_environment
from podrun.podfile.loader import PodText, StepText
from support.launcher import Podrun

pytestmark = pytest.mark.root

SECRET = "s3cret-of-this-test"


def holding(directory: Path) -> dict[str, int]:
    """The files below a directory that hold the secret, and who may read them (mode of the file and those above)."""
    found = {}
    for place, below, names in os.walk(directory):
        # Not the layers of images, nor what is mounted.
        below[:] = [name for name in below if name != "layers" and not os.path.ismount(f"{place}/{name}")]
        for path in (Path(place, name) for name in names):
            if not path.is_file() or path.is_symlink() or path.stat().st_size > 1 << 20:
                continue
            if SECRET.encode() not in path.read_bytes():
                continue
            open_to = 0o777
            for above in (path, *path.parents):
                open_to &= stat.S_IMODE(above.stat().st_mode) | (0o700 if above != path else 0)
                if above == directory:
                    break
            found[str(path.relative_to(directory))] = open_to & 0o077
    return found


#: Every way in which a secret comes into a pod, each with one of its own; health checks run "sh -c".
SECRETS = {
    kind: f"{SECRET}-{kind}"
    for kind in ("content", "env", "environment", "env_file", "credential", "live", "ready", "label", "auth")
}
POD = """
[pod]
stop_timeout = "1s"
[[chain]]
hook = "image"
ref = "host:"
[[chain]]
hook = "storage"
source = "file:"
target = "/content"
content = "{content}"
[[chain]]
hook = "storage"
name = "credential"
source = "file:"
target = "/credential"
credential = "key"
[[chain]]
hook = "container"
command = ["sleep", "60"]
stop_signal = "KILL"
env = {{ PASSWORD = "{env}", OTHER = "${{OF_THE_ENVIRONMENT}}" }}
env_files = ["{home}/variables"]
ready = {{ exec = ["sh", "-c", "test {ready} && sleep 0.2"] }}
live = {{ exec = ["sh", "-c", "test {live}"], interval = "100ms" }}
"""


def secrets_in(content: bytes) -> set[str]:
    return {kind for kind, secret in SECRETS.items() if secret.encode() in content}


class CommandLines:
    """Looks at the command lines of all processes of the host while a test does something."""

    def __init__(self) -> None:
        self.stop, self.seen = threading.Event(), set[tuple[str, ...]]()
        self.watcher = threading.Thread(target=self.watch)

    def watch(self) -> None:
        own = os.stat("/proc/self/ns/pid").st_ino
        while not self.stop.wait(0.005):
            for entry in filter(str.isdigit, os.listdir("/proc")):
                try:
                    kinds = secrets_in(Path(f"/proc/{entry}/cmdline").read_bytes())
                    # What runs in the container has the arguments that it has: only its own are anybody's to see.
                    if kinds and os.stat(f"/proc/{entry}/ns/pid").st_ino == own:
                        self.seen.add((*sorted(kinds), Path(f"/proc/{entry}/comm").read_text().strip()))
                except OSError:
                    continue

    def __enter__(self) -> CommandLines:
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.watcher.join()


def up(podrun: Podrun, home: Path, *, detached: bool) -> tuple[subprocess.Popen[str], str]:
    """Starts a pod with every kind of secret, in a directory where a crash may leave its core."""
    (home / "variables").write_text(f"FROM_FILE={SECRETS['env_file']}\n")
    (home / "credentials").mkdir(exist_ok=True)
    (home / "credentials/key").write_text(SECRETS["credential"])
    for path in (home / "variables", home / "credentials/key"):
        path.chmod(0o600)
    podrun.environ["CREDENTIALS_DIRECTORY"] = str(home / "credentials")
    podrun.environ["OF_THE_ENVIRONMENT"] = SECRETS["environment"]
    file = podrun.file("web", POD.format(home=home, **SECRETS))
    (home / "cores").mkdir(exist_ok=True)
    words = podrun.argv("up", *(["-d"] if detached else []), file)
    argv = ["sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh", *words]
    log = (home / "log").open("w")
    return subprocess.Popen(argv, env=podrun.environ, cwd=home / "cores", stdout=log, stderr=log, text=True), file


def test_no_kind_of_secret_is_where_others_look_or_outlives_the_pod(podrun: Podrun, home: Path) -> None:
    with CommandLines() as lines:
        start, file = up(podrun, home, detached=True)
        assert start.wait(60) == 0, (home / "log").read_text()
        for directory in (podrun.run, podrun.root):
            assert not {file for file, others in holding(directory).items() if others}
        for words in (["ps", "--format", "json"], ["logs", "web"], ["inspect", "web"], ["plan", file], ["check", file]):
            told = secrets_in(podrun(*words).stdout.encode())
            # The pod file, and what stands in it as it is, are shown to whoever can read it.
            assert told <= ({"live", "ready", "env", "environment"} if words[0] in ("inspect", "plan") else set()), (
                words
            )
        podrun("down", "web", check=True)
    assert not lines.seen
    left = {**holding(podrun.run), **holding(podrun.root)}
    assert not any(left.values())
    kept = {
        kind
        for base in (podrun.run, podrun.root)
        for file in holding(base)
        for kind in secrets_in((base / file).read_bytes())
    }
    assert not kept & {"content", "credential", "env_file", "environment"}, (
        "what is not in the pod file is kept nowhere"
    )
    assert not secrets_in((home / "log").read_bytes())


def test_a_crash_of_podrun_leaves_no_core_dump(podrun: Podrun, home: Path) -> None:
    def cores() -> list[Path]:
        return sorted((home / "cores").iterdir())

    (home / "cores").mkdir()
    crash = "ulimit -c unlimited; exec python3 -c 'import os; os.abort()'"
    subprocess.run(["sh", "-c", crash], cwd=home / "cores", stderr=subprocess.DEVNULL, check=False)
    if not cores():
        pytest.skip("this host's core_pattern has core dumps go elsewhere")
    for core in cores():
        core.unlink()
    start, _ = up(podrun, home, detached=False)
    deadline = time.monotonic() + 30
    while '"up"' not in podrun("ps", "--format", "json").stdout:
        assert time.monotonic() < deadline and start.poll() is None, (home / "log").read_text()
        time.sleep(0.05)
    os.kill(start.pid, signal.SIGABRT)
    assert start.wait(10) == -signal.SIGABRT
    assert cores() == []
    podrun("down", "web", check=True)
    # In the middle of a pull, with a password in hand: a registry that never answers.
    with socket.create_server(("127.0.0.1", 0)) as registry:
        host = f"127.0.0.1:{registry.getsockname()[1]}"
        auths = {"auths": {host: {"auth": base64.b64encode(f"me:{SECRETS['auth']}".encode()).decode()}}}
        (home / "auth.json").write_text(json.dumps(auths))
        (home / "auth.json").chmod(0o600)
        podrun.environ["REGISTRY_AUTH_FILE"] = str(home / "auth.json")
        argv = ["sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh", *podrun.argv("image", "pull", f"{host}/web:1")]
        log = (home / "log").open("w")
        pull = subprocess.Popen(argv, env=podrun.environ, cwd=home / "cores", stdout=log, stderr=log)
        registry.settimeout(30)
        registry.accept()
        time.sleep(0.1)
        os.kill(pull.pid, signal.SIGABRT)
        assert pull.wait(10) == -signal.SIGABRT
    assert cores() == []


def test_a_transient_unit_gets_variables_and_credentials_by_files_of_roots(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv: list[list[str]] = []
    monkeypatch.setattr(transient, "_run", lambda words, quiet=False: argv.append(words) or 0)
    monkeypatch.setattr(transient, "_program", lambda: "/opt/podrun")
    service = {"Environment": [f'"A={SECRET} $x `y\\"" B=1'], "SetCredential": f"key:{SECRET}\\n%%"}
    step = StepText("container", "main", False, False, (), None, {"command": ["true"]})
    given = {
        "name": "web",
        "file": "",
        "steps": (step,),
        "type": "service",
        "stop_timeout": 5.0,
        "sections": {"service": service},
    }
    text = PodText(**{**PodText._field_defaults, **given})
    assert transient.start(text, Host(str(home / "root"), str(home / "run"))) == 0
    assert SECRET not in json.dumps(argv, ensure_ascii=False)
    files = {path.name: path for path in (home / "run/units").iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
    assert unit_environment._file(str(files["web.env"])) == {"A": f'{SECRET} $x `y"', "B": "1"}
    assert files["web.key.credential"].read_text() == f"{SECRET}\n%"
