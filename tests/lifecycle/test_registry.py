"""Registration as whole pods do it: in the foreground and detached, told to end and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks.follow import begin
from podrun_hooks.registry import connect
from podrun_hooks.registry import source as sources
from support.launcher import HERE, Podrun
from support.registry_servers import etcd, free_port
from support.waiting import gone, until

pytestmark = [pytest.mark.root, pytest.mark.server]

POD = """
[[chain]]
hook = "image"
ref = "host:"

[[chain]]
hook = "network"

[[chain]]
hook = "container"
command = ["sleep", "100"]

[[chain]]
hook = "register"
service = "web"
port = 80
registry = "{url}"
advertise = "192.0.2.1"
ttl = "2s"
"""


@pytest.fixture
def registry() -> Iterator[Any]:
    server = etcd()
    yield server
    server.close()


def records(server: Any) -> Any:
    return [record.unit for record in connect(sources.parse(server.url)).records("web", seconds=2)]


def stays(server: Any, seconds: float = 3.5) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert records(server) == ["web"]
        time.sleep(0.1)


def followers(podrun: Podrun) -> Any:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(str(podrun.run)) in words and b"podrun_hooks.follow" in b" ".join(words):
            found.append(int(path.parent.name))
    return found


def test_in_the_foreground_podrun_keeps_the_record_itself(podrun: Podrun, registry: Any) -> None:
    ambassador = '[[chain]]\nhook = "ambassador"\nservice = "db"\nport = 5432\nregistry = "{url}"\n\n'
    before, container, after = POD.partition('[[chain]]\nhook = "container"')
    file = podrun.file("web", (before + ambassador + container + after).format(url=registry.url))
    process = podrun.start("up", file, stderr=subprocess.PIPE)
    until(lambda: records(registry) == ["web"])
    stays(registry)
    [follower] = followers(podrun)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (143, 137)
    assert records(registry) == []
    until(lambda: gone(follower))


def test_a_foreground_that_is_killed_takes_the_follower_along_and_the_lease_ends_the_record(
    podrun: Podrun, registry: Any
) -> None:
    file = podrun.file("web", POD.format(url=registry.url))
    process = podrun.start("up", file, stderr=subprocess.PIPE)
    until(lambda: records(registry) == ["web"])
    process.kill()
    process.wait()
    until(lambda: not followers(podrun))
    until(lambda: records(registry) == [])
    podrun("down", "web", check=True)
    assert not list((podrun.run / "follow").glob("web.*"))


def test_detached_one_process_stays_and_says_so_until_nobody_needs_it(podrun: Podrun, registry: Any) -> None:
    file = podrun.file("web", POD.format(url=registry.url))
    said = podrun("up", "-d", file, check=True).stderr
    told = re.search(r"podrun: web: register: process (\d+) stays and follows the registry", said)
    assert told
    stays(registry)
    assert begin.running(str(podrun.run)) == "sidekick"
    assert followers(podrun) == [int(told[1])]
    # A second pod needs no second one.
    other = podrun.file("other", POD.format(url=registry.url).replace('"web"', '"other"'))
    assert "stays" not in podrun("up", "-d", other, check=True).stderr
    assert len(followers(podrun)) == 1
    podrun("down", "web", check=True)
    podrun("down", "other", check=True)
    until(lambda: not followers(podrun))


def test_what_a_killed_pod_left_is_named_by_doctor_and_removed_by_gc(podrun: Podrun) -> None:
    file = podrun.file("web", POD.format(url="file:"))
    podrun("up", "-d", file, check=True)
    assert json.loads(podrun("registry", "ls", "--format", "json", check=True).stdout)["pod"] == "web"
    assert podrun("registry", "get", "web").returncode == 0
    # Somebody has removed the pod's directory by hand.
    pid = json.loads(podrun("inspect", "web").stdout)["containers"][0]["pid"]
    os.kill(pid, 9)
    until(lambda: gone(pid))
    podrun("down", "web", check=True)
    directory = podrun.run / "registry/web"
    directory.mkdir()
    record = {"v": 1, "id": "w", "service": "web", "addr": "192.0.2.1", "port": 80, "ready": True}
    (directory / "w.json").write_text(json.dumps({**record, "host": os.uname().nodename, "unit": "lost"}))
    # And somebody who was writing a lease or a wish was killed.
    unfinished = podrun.run / "follow/.0123"
    unfinished.write_text("")
    os.utime(unfinished, (1, 1))
    assert "register: record w of web" in podrun("doctor").stdout
    assert "register: record w of web" in podrun("gc", check=True).stdout
    assert not unfinished.exists()
    assert podrun("registry", "get", "web").returncode == 69


def test_people_ask_wait_watch_and_remove(podrun: Podrun) -> None:
    watching = podrun.start("registry", "watch", "web", stdout=subprocess.PIPE)
    waiting = podrun.start("registry", "wait", "web")
    time.sleep(0.5)
    podrun("up", "-d", podrun.file("web", POD.format(url="file:")), check=True)
    assert waiting.wait(20) == 0
    line = json.loads(watching.stdout.readline())
    assert (line["service"], line["records"][0]["place"]) == ("web", "192.0.2.1:80/tcp")
    identity = line["records"][0]["id"]
    podrun("registry", "rm", "web", identity, check=True)
    assert json.loads(watching.stdout.readline())["records"] == []
    assert podrun("registry", "rm", "web", identity).returncode == 69
    watching.kill()
    watching.communicate()
    assert podrun("registry", "wait", "web", "--timeout", "100ms").returncode == 69
    for words in (["rm", "../../etc", "x"], ["rm", "web", "../../../etc/passwd"], ["get", ".."], ["get", "a\nb"]):
        assert podrun("registry", *words).returncode == 78
    assert podrun("registry", "ls", "--registry", "zookeeper://x").returncode == 78
    assert podrun("registry", "ls", "--registry", "etcd://127.0.0.1:1").returncode == 69
    podrun("down", "web", check=True)


@pytest.mark.slow
def test_the_three_tier_example_moves_its_database_without_a_failed_request(tmp_path: Path) -> None:
    example = HERE.parent / "examples/three-tier/demo.py"
    command = tmp_path / "podrun"
    paths = f"PYTHONPATH={HERE.parent}:{HERE.parent / 'hooks'}"
    command.write_text(f'#!/bin/sh\n{paths} exec {sys.executable} -m podrun "$@"\n')
    command.chmod(0o755)
    done = subprocess.run([sys.executable, example, command, "1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
    assert "application, database 2" in done.stdout


@pytest.mark.slow
def test_varnish_in_a_container_follows_a_service_and_answers_while_it_moves(podrun: Podrun) -> None:
    example = HERE.parent / "examples/varnish"
    podrun.environ["VARNISH_EXAMPLE"] = str(example)
    port = str(free_port())
    url = f"http://127.0.0.1:{port}/"

    def page() -> str:
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert "varnish" in answer.headers["Via"]
            return str(answer.read().decode().strip())

    one, two = (podrun.file(f"page@{n}", (example / "page@.toml").read_text()) for n in (1, 2))
    podrun("up", "-d", one, check=True)
    cache = (example / "cache.toml").read_text().replace("18081", port)
    podrun("up", "-d", podrun.file("cache", cache), check=True)
    until(lambda: page() == "page 1")
    podrun("up", "-d", two, check=True)
    podrun("down", "page@1", check=True)
    until(lambda: page() == "page 2")
    # Without a backend it goes on from its cache.
    podrun("down", "page@2", check=True)
    assert podrun("exec", "cache", "cat", "/run/backends/page", check=True).stdout == ""
    assert {page() for _ in range(20)} == {"page 2"}
    podrun("down", "cache", check=True)
