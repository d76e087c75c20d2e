"""The example hooks at work in real pods, and in the conformance kit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.host import tag
from support.hook_kit import Server, passes
from support.launcher import HERE, Podrun
from support.objects import listing, settled

pytestmark = pytest.mark.root

EXAMPLES = HERE.parent / "examples" / "hooks"
WAITS = """["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.02; done"]"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The one that is written in C."""
    program = tmp_path_factory.mktemp("built") / "drain"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, EXAMPLES / "drain.c"], check=True)
    return program


@pytest.fixture
def hooks(home: Path, podrun: Podrun, built: Any) -> Any:
    """The examples where only root can change them, found by their names."""
    place = home / "hooks"
    place.mkdir()
    for path in (*EXAMPLES.iterdir(), built):
        if os.access(path, os.X_OK):
            shutil.copy(path, place / path.name)
    podrun.environ["PODRUN_HOOKS"] = str(place)
    return place


@pytest.fixture
def nothing_left(podrun: Podrun, hooks: Any) -> Iterator[Any]:
    podrun("run", "--rm", "--name", "warm", "host:", "true", check=True)
    before = listing(podrun.run, podrun.root)
    yield
    # Other tests may be at work on this machine: only what is this podrun's own counts.
    own = (str(podrun.home), tag("", str(podrun.run)))
    assert not {item for item in settled(podrun.run, podrun.root, before) if any(mark in item for mark in own)}


def pod(
    podrun: Podrun,
    hook: str = "",
    command: Any = WAITS,
    after: str = "",
    network: str = '{ hook = "network", mode = "none" },',
) -> Any:
    return podrun.file(
        "web",
        f'chain = [ {{ hook = "image", ref = "host:" }}, {network} {hook}'
        f' {{ hook = "container", command = {command} }}, {after} ]',
    )


# --- nfs -----------------------------------------------------------------------------------------------------------


def test_nfs_mounts_on_the_host_and_shows_it_to_the_containers(podrun: Podrun, nothing_left: None) -> None:
    hook = '{ hook = "nfs", type = "tmpfs", source = "x", target = "/data", options = "size=1m" },'
    done = podrun("up", pod(podrun, hook, '["sh", "-c", "echo hello >/data/x; stat -f -c %T /data"]'))
    assert (done.stdout, done.returncode) == ("tmpfs\n", 0), done.stderr


def test_nfs_says_what_is_missing_before_anything_is_started(podrun: Podrun, nothing_left: None) -> None:
    if shutil.which("mount.nfs"):
        pytest.skip("mount.nfs is installed here")
    path = pod(podrun, '{ hook = "nfs", source = "files.example:/export", target = "/data" },')
    assert "mount.nfs is not installed" in podrun("check", path).stdout
    done = podrun("up", path)
    assert done.returncode == 69
    assert "nfs: mount.nfs is not installed; apt install nfs-common" in done.stderr


def test_nfs_that_is_busy_says_who_holds_it_and_goes_on_when_it_is_free(podrun: Podrun, nothing_left: None) -> None:
    hook = '{ hook = "nfs", type = "tmpfs", source = "x", target = "/data" },'
    podrun("up", "-d", pod(podrun, hook), check=True)
    holder = subprocess.Popen(["sleep", "60"], cwd=podrun.run / "pods/web/mnt/nfs")
    done = podrun("down", "web")
    holder.kill()
    holder.wait()
    assert done.returncode == 75
    assert f"process {holder.pid} holds it" in done.stderr
    podrun("down", "web", check=True)


# --- wireguard -----------------------------------------------------------------------------------------------------


def test_wireguard_connects_or_says_what_is_missing(podrun: Podrun, home: Path, nothing_left: None) -> None:
    config = home / "wg.conf"
    config.write_text("[Interface]\nPrivateKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=\n")
    hook = f'{{ hook = "wireguard", config = "{config}", addresses = ["10.7.0.2/24"], routes = ["10.8.0.0/16"] }},'
    done = podrun("up", pod(podrun, hook, '["ip", "-brief", "address", "show", "wg0"]'))
    if done.returncode == 0:
        assert "10.7.0.2/24" in done.stdout
    else:
        assert done.returncode == 69
        assert "wg is not installed; apt install wireguard-tools" in done.stderr or "has no WireGuard" in done.stderr


def test_wireguard_is_refused_without_a_network_of_the_pods_own(podrun: Podrun, home: Path, nothing_left: None) -> None:
    (home / "wg.conf").write_text("[Interface]\n")
    hook = f'{{ hook = "wireguard", config = "{home}/wg.conf" }},'
    done = podrun("up", pod(podrun, hook, network='{ hook = "network", mode = "host" },'))
    assert (done.returncode, "a network step goes before" in done.stderr) == (78, True)


# --- cdi -----------------------------------------------------------------------------------------------------------

SPECIFICATION = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.example/random",
    "containerEdits": {"env": ["RANDOM_VENDOR=yes"]},
    "devices": [
        {
            "name": "0",
            "containerEdits": {
                "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/urandom", "permissions": "r"}],
                "mounts": [
                    {
                        "hostPath": "/usr/share/common-licenses",
                        "containerPath": "/opt/vendor",
                        "options": ["ro", "bind"],
                    }
                ],
            },
        }
    ],
}


def test_a_cdi_device_is_in_the_container(podrun: Podrun, home: Path, nothing_left: None) -> None:
    (home / "cdi").mkdir()
    (home / "cdi/vendor.json").write_text(json.dumps(SPECIFICATION))
    hook = f'{{ hook = "cdi", devices = ["vendor.example/random=0"], directories = ["{home}/cdi"] }},'
    script = "head -c 4 /dev/vendor0 | wc -c; echo $RANDOM_VENDOR; ls /opt/vendor | grep ^GPL-3"
    done = podrun("up", pod(podrun, hook, json.dumps(["sh", "-c", script])))
    assert done.stdout.split() == ["4", "yes", "GPL-3"], done.stderr
    passes(podrun, "cdi", "-o", 'devices=["vendor.example/random=0"]', "-o", f'directories=["{home}/cdi"]')


NVIDIA_CTK = """---
cdiVersion: 0.5.0
kind: vendor.example/random
containerEdits:
  env:
  - RANDOM_VENDOR=yes
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/vendor0
      hostPath: /dev/urandom
"""


def test_a_cdi_specification_may_be_yaml(podrun: Podrun, home: Path, hooks: Any) -> None:
    (home / "cdi").mkdir()
    (home / "cdi/vendor.yaml").write_text(NVIDIA_CTK)
    # PyYAML is among what the tests need; where the machine's own Python has it nobody knows.
    text = (hooks / "cdi").read_text().partition("\n")[2]
    (hooks / "cdi").write_text(f"#!{sys.executable}\n{text}")
    hook = f'{{ hook = "cdi", devices = ["vendor.example/random=0"], directories = ["{home}/cdi"] }},'
    done = podrun("up", pod(podrun, hook, '["sh", "-c", "head -c 4 /dev/vendor0 | wc -c; echo $RANDOM_VENDOR"]'))
    assert done.stdout.split() == ["4", "yes"], done.stderr
    (home / "cdi/vendor.yaml").write_text("kind: [")
    done = podrun("check", pod(podrun, hook))
    assert (done.returncode, "vendor.yaml is no CDI specification: " in done.stdout) == (78, True), done.stdout


def test_yaml_without_pyyaml_is_told_only_when_it_is_needed(podrun: Podrun, home: Path, hooks: Any) -> None:
    (home / "cdi").mkdir()
    (home / "cdi/vendor.yaml").write_text(NVIDIA_CTK)
    (home / "cdi/vendor.json").write_text(json.dumps({**SPECIFICATION, "kind": "vendor.example/other"}))
    (hooks / "yaml.py").write_text("raise ImportError")
    path = pod(podrun, f'{{ hook = "cdi", devices = ["vendor.example/random=0"], directories = ["{home}/cdi"] }},')
    done = podrun("check", path)
    assert done.returncode == 69
    assert (
        f"no CDI device vendor.example/random=0; {home}/cdi/vendor.yaml is YAML: apt install python3-yaml"
        in done.stdout
    )
    path = pod(podrun, f'{{ hook = "cdi", devices = ["vendor.example/other=0"], directories = ["{home}/cdi"] }},')
    assert podrun("check", path).returncode == 0


def test_a_cdi_device_that_nobody_specifies_is_told_before_the_start(podrun: Podrun, home: Path, hooks: Any) -> None:
    (home / "cdi").mkdir()
    path = pod(podrun, f'{{ hook = "cdi", devices = ["vendor.example/random=1"], directories = ["{home}/cdi"] }},')
    done = podrun("check", path)
    assert done.returncode == 69
    assert f"no CDI device vendor.example/random=1; looked in {home}/cdi" in done.stdout


# --- secret --------------------------------------------------------------------------------------------------------


def vault(request: Any) -> Any:
    if request.headers.get("X-Vault-Token") != "s.token":
        return 403, b"{}"
    return 200, b'{"data": {"data": {"password": "swordfish"}}}'


def test_a_secret_is_a_file_in_memory_and_nowhere_else(podrun: Podrun, home: Path, nothing_left: None) -> None:
    (home / "token").write_text("s.token\n")
    with Server(vault) as server:
        hook = (
            f'{{ hook = "secret", url = "{server.url}/v1/secret/data/web", token_file = "{home}/token",'
            ' field = "data.data.password", target = "/run/secrets/password", uid = 1000 },'
        )
        path = pod(
            podrun,
            hook,
            '["sh", "-c", "cat /run/secrets/password; stat -c \' %a %u\' /run/secrets/password; sleep 60"]',
        )
        podrun("up", "-d", path, check=True)
    log = podrun.root / "pods/web/main.log"
    deadline = time.monotonic() + 5
    while not log.read_text().endswith("1000\n") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.read_text() == "swordfish 400 1000\n"
    log.unlink()
    for found in (*podrun.run.rglob("*.journal"), *podrun.run.rglob("config.json")):
        assert "swordfish" not in found.read_text(), found
    podrun("down", "web", check=True)


@pytest.mark.parametrize(
    ("token", "field", "code", "what"),
    [("wrong", "data.data.password", 77, "403"), ("s.token", "data.nothing", 65, "the answer has no data.nothing")],
)
def test_a_secret_that_cannot_be_had_stops_the_start(
    podrun: Podrun, home: Path, nothing_left: None, token: str, field: str, code: int, what: str
) -> None:
    (home / "token").write_text(token)
    with Server(vault) as server:
        hook = f'{{ hook = "secret", url = "{server.url}/", token_file = "{home}/token", field = "{field}" }},'
        done = podrun("up", pod(podrun, hook))
    assert (done.returncode, what in done.stderr) == (code, True), done.stderr


def test_secret_keeps_the_contract(podrun: Podrun, home: Path, hooks: Any) -> None:
    with Server(lambda _: (200, b"swordfish")) as server:
        passes(podrun, "secret", "--here", "-o", f"url={server.url}/")
    assert len(server.asked) > 10


# --- ship-logs -----------------------------------------------------------------------------------------------------


def test_logs_are_shipped_to_the_last_line(podrun: Podrun, home: Path, nothing_left: None) -> None:
    shipper = home / "shipper"
    shipper.write_text(
        f"#!/bin/sh\ntrap 'sleep 0.1; kill $!; exit 0' TERM\ntail -n +1 -s 0.02 -F $LOG >{home}/$POD.shipped &\nwait\n"
    )
    shipper.chmod(0o755)
    after = f'{{ hook = "ship-logs", command = ["{shipper}"] }},'
    script = "echo first; trap 'echo last; exit 0' TERM; while :; do sleep 0.02; done"
    podrun("up", "-d", pod(podrun, command=json.dumps(["sh", "-c", script]), after=after), check=True)
    shipped = home / "web.shipped"
    deadline = time.monotonic() + 5
    while "first" not in shipped.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    podrun("down", "web", check=True)
    assert shipped.read_text() == "first\n"  # the shipper ends before the container: in reverse order


def test_ship_logs_keeps_the_contract(podrun: Podrun, home: Path, hooks: Any) -> None:
    (home / "log").write_text("")
    facts = json.dumps({"log": {"file": str(home / "log")}})
    passes(podrun, "ship-logs", "--facts", facts, "-o", 'command=["sleep", "300"]')


# --- textfile-metrics ----------------------------------------------------------------------------------------------


def test_metrics_are_there_while_the_pod_is(podrun: Podrun, home: Path, nothing_left: None) -> None:
    metrics = home / "metrics"
    metrics.mkdir()
    podrun("up", "-d", pod(podrun, after=f'{{ hook = "textfile-metrics", directory = "{metrics}" }},'), check=True)
    [file] = metrics.iterdir()
    assert 'podrun_pod_up{pod="web"} 1\n' in file.read_text()
    podrun("down", "web", check=True)
    assert list(metrics.iterdir()) == []


# --- drain ---------------------------------------------------------------------------------------------------------

DRAINS = """
import http.server, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        time.sleep(0.3)
        open("/state/events", "a").write(f"drained by {self.path}\\n")
        self.send_response(204)
        self.end_headers()
def stop(*_):
    open("/state/events", "a").write("stopped\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
http.server.HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""


def test_the_payload_is_drained_before_it_is_stopped(podrun: Podrun, home: Path, nothing_left: None) -> None:
    (home / "state").mkdir()
    (home / "payload.py").write_text(DRAINS)
    mounts = "".join(
        f'{{ hook = "storage", source = "{home}/{name}", target = "{target}" }},'
        for name, target in (("state", "/state"), ("payload.py", "/payload.py"))
    )
    path = podrun.file(
        "web",
        f'chain = [ {{ hook = "image", ref = "host:" }}, {{ hook = "network", mode = "none" }}, {mounts}'
        '{ hook = "container", command = ["python3", "/payload.py"], ready = { tcp = ":8080" } },'
        '{ hook = "drain", port = 8080, path = "/finish" } ]',
    )
    podrun("up", "-d", path, check=True)
    done = podrun("down", "web", check=True)
    assert "drain: drained: HTTP/1.0 204 No Content" in done.stderr
    assert (home / "state/events").read_text() == "drained by /finish\nstopped\n"


def test_nobody_to_drain_is_no_failure(podrun: Podrun, nothing_left: None) -> None:
    podrun("up", "-d", pod(podrun, after='{ hook = "drain", port = 8080 },'), check=True)
    assert "nobody listens on port 8080" in podrun("down", "web", check=True).stderr


# --- migrate -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(podrun: Podrun, home: Path) -> Any:
    """podrun as a program, for a hook with a scrubbed environment."""
    path = home / "podrun"
    path.write_text(
        f'#!/bin/sh\nexport PYTHONPATH={podrun.environ["PYTHONPATH"]}\nexec {" ".join(podrun.argv())} "$@"\n'
    )
    path.chmod(0o755)
    return path


def migration(home: Path, command: Any, script: Any) -> Any:
    return (
        f'{{ hook = "migrate", podrun = "{command}", ref = "host:", command = ["sh", "-c", {json.dumps(script)}],'
        f' env = ["TO=2", "WHY=two words"], volumes = ["{home}/db:/db"] }},'
    )


def test_the_migration_is_over_before_the_app_starts(
    podrun: Podrun, home: Path, command: Any, nothing_left: None
) -> None:
    (home / "db").mkdir()
    hook = f'{{ hook = "storage", source = "{home}/db", target = "/db" }},'
    hook += migration(home, command, "sleep 0.2; echo $TO $WHY >/db/version")
    done = podrun("up", pod(podrun, hook, '["cat", "/db/version"]'))
    assert done.stdout == "2 two words\n", done.stderr


def test_a_migration_that_fails_keeps_the_app_from_starting(
    podrun: Podrun, home: Path, command: Any, nothing_left: None
) -> None:
    (home / "db").mkdir()
    done = podrun(
        "up", pod(podrun, migration(home, command, "echo no such column >&2; exit 3"), '["touch", "/db/started"]')
    )
    assert done.returncode == 76
    assert "migrate: no such column" in done.stderr
    assert "migrate: the migration ended with 3; its output is above; undone: " in done.stderr
    assert list((home / "db").iterdir()) == []


# --- all -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["nfs", "-o", "type=tmpfs", "-o", "source=x", "-o", "target=/data"],
        ["textfile-metrics", "-o", "directory={scratch}"],
        ["drain", "-o", "port=8080"],
        ["migrate", "-o", "ref=host:", "-o", 'command=["true"]', "--rounds", "3"],
    ],
    ids=lambda words: words[0],
)
def test_an_example_keeps_the_contract(podrun: Podrun, home: Path, hooks: Any, command: Any, words: Any) -> None:
    more = ["-o", f"podrun={command}"] if words[0] == "migrate" else []
    passes(podrun, *words, *more)


def test_the_table_of_the_examples_names_all_of_them() -> None:
    text = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or f"]({path.name})" in text
