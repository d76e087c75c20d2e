"""Pods that the version before has started, and this one lists, stops and undoes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import registry_servers
from support.busy import SERVER, Busy
from support.launcher import HERE, Podrun
from support.objects import listing, settled

pytestmark = pytest.mark.root

RELEASE = HERE.parent / "release"

CHAIN = """
[pod]
stop_timeout = "5s"

[[chain]]
hook = "image"
ref = "host:"

[[chain]]
hook = "storage"
source = "volume:data"
target = "/data"

[[chain]]
hook = "storage"
name = "scratch"
source = "tmpfs"
type = "tmpfs"
target = "/scratch"

[[chain]]
hook = "network"
publish = ["{port}:80"]

[[chain]]
hook = "exec:{hook}"
name = "metrics"

[[chain]]
hook = "container"
name = "app"
command = ["sh", "-c", "trap 'exit 3' TERM; echo started; while :; do sleep 0.05; done"]

[[chain]]
hook = "register"
service = "web"
port = 80
drain = "100ms"
"""
SECOND = """
[[chain]]
hook = "container"
name = "side"
command = ["sleep", "100"]
init = true
"""


#: The version before, and one after it that knew swaps and registries with servers already ("" is release/before.py's).
FIRST = pytest.param("", id="before")
LATER = pytest.param("a9009f7", id="with swaps", marks=pytest.mark.prove)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a version, unpacked; a checkout without its history cannot build it."""

    @functools.cache
    def built(commit: str) -> Path:
        place = tmp_path_factory.mktemp("before")
        script = [sys.executable, str(RELEASE / "before.py"), str(place), *([commit] if commit else [])]
        done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
        if "history of this checkout" in done.stderr and not os.environ.get("CI"):
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        with zipfile.ZipFile(done.stdout.strip()) as archive:
            archive.extractall(place / "podrun")
        return place / "podrun"

    return built


@pytest.fixture(params=[FIRST, LATER])
def before(
    podrun: Podrun, home: Path, wheel: Callable[[str], Path], request: pytest.FixtureRequest
) -> Iterator[Podrun]:
    """An earlier version, with this one's directories."""
    old, path = Podrun(home), str(wheel(request.param))
    # Not the checkout that the tests are run in.
    old.environ.update(PYTHONPATH=path, PYTHONSAFEPATH="1")
    where = subprocess.run(
        [sys.executable, "-c", "import podrun, podrun_hooks; print(podrun.__file__, podrun_hooks.__file__)"],
        env=old.environ, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.count(path) == 2
    old("run", "--rm", "--name", "warm", "host:", "true", check=True)
    found = listing(podrun.run, podrun.root)
    yield old
    left = settled(podrun.run, podrun.root, found)
    # This version's table knows which bridges are apart: such an element is the bridge's, like the bridge itself. And it
    # writes down what has happened.
    # A lease of the registry is gc's after a minute.
    fine = r'"concat": \["(podrun-\w+)", "\1"\]|/run/events$|/run/follow/[^/]*\.lease$'
    assert not {item for item in left if not re.search(fine, item)}


def written(podrun: Podrun, home: Path, more: str = "") -> str:
    hook = home / "hook"
    hook.write_text('#!/bin/sh\ncat >/dev/null\n[ $PODRUN_VERB != up ] || echo \'{"env": ["A=1"]}\'\n')
    hook.chmod(0o755)
    return podrun.file("web", CHAIN.format(port=random.randint(20000, 30000), hook=hook) + more)


def seen(podrun: Podrun) -> Any:
    return json.loads(podrun("inspect", "web", check=True).stdout)


@pytest.mark.parametrize("more", ["", SECOND], ids=["one container", "two containers"])
def test_a_pod_is_listed_entered_and_undone(podrun: Podrun, before: Any, home: Path, more: Any) -> None:
    before("up", "-d", written(podrun, home, more), check=True)
    [row] = [json.loads(line) for line in podrun("ps", "--format", "json", check=True).stdout.splitlines()]
    assert (row["name"], row["state"]) == ("web", "up")
    known = seen(podrun)
    assert [step["state"] for step in known["steps"]] == ["up"] * len(known["steps"])
    assert [container["state"] for container in known["containers"]] == ["running"] * (2 if more else 1)
    assert known["addresses"] and os.path.exists(known["netns"])
    assert podrun("exec", "-c", "app", "web", "sh", "-c", "echo $A; touch /data/kept").stdout == "1\n"
    assert podrun("logs", "-c", "app", "web", check=True).stdout == "started\n"
    assert podrun("up", "-d", f"{home}/web.toml").returncode == 75
    podrun("down", "web", check=True)
    assert podrun("ps", "-q").stdout == ""
    assert (podrun.root / "volumes/data/data/kept").exists()


def test_a_pod_whose_payload_was_killed_is_dead_and_collected(podrun: Podrun, before: Any, home: Path) -> None:
    before("up", "-d", written(podrun, home), check=True)
    [container] = seen(podrun)["containers"]
    os.kill(container["pid"], signal.SIGKILL)
    assert podrun("wait", "web").returncode in (0, 137)
    assert seen(podrun)["state"] == "dead"
    assert "web: dead" in podrun("gc", check=True).stdout


def test_a_start_that_was_killed_in_the_middle_is_undone(podrun: Podrun, before: Any, home: Path) -> None:
    path = written(podrun, home)
    text = Path(path).read_text().replace('name = "app"\n', 'name = "app"\nready = { exec = ["false"] }\n')
    Path(path).write_text(text)
    starting = before.start("up", "-d", path)
    deadline = time.monotonic() + 20
    while not (podrun.run / "pods/web/app").exists() or not list((podrun.run / "pods/web/app").glob("created/pid")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    starting.kill()
    starting.wait()
    assert seen(podrun)["state"] == "failed"
    podrun("down", "web", check=True)


def test_a_pod_is_started_anew_by_this_version(podrun: Podrun, before: Any, home: Path) -> None:
    before("up", "-d", written(podrun, home), check=True)
    podrun("restart", "web", check=True)
    assert seen(podrun)["state"] == "up"
    podrun("down", "web", check=True)


def test_a_pod_of_a_command_line_is_stopped(podrun: Podrun, before: Any) -> None:
    before("run", "-d", "--name", "web", "host:", "sleep", "100", check=True)
    assert seen(podrun)["state"] == "up"
    podrun("down", "web", check=True)


# --- swaps and registrations, forwards and backwards ----------------------------------------------------------------

SERVING = """
[pod]
stop_timeout = "5s"
{pod}
[[chain]]
hook = "image"
ref = "host:"
[[chain]]
hook = "network"
publish = ["127.0.0.1:{port}:80"]
[[chain]]
hook = "container"
command = ["/usr/bin/python3", "-c", '''{server}''']
env = {{ VERSION = "{version}" }}
ready = {{ tcp = ":80", timeout = "20s" }}
[[chain]]
hook = "register"
service = "web"
port = 80
"""


class Serving:
    """A registered pod that answers, in its versions."""

    def __init__(self, podrun: Podrun) -> None:
        self.podrun, self.port, self.path = podrun, random.randint(20000, 30000), ""

    def write(self, version: str, pod: str = "") -> str:
        server = SERVER.replace("${", "$${")
        self.path = self.podrun.file("web", SERVING.format(pod=pod, port=self.port, server=server, version=version))
        return self.path

    def get(self) -> str:
        argv = ["curl", "-s", "-m", "5", f"http://127.0.0.1:{self.port}/"]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def address(self) -> str:
        record = json.loads(self.podrun("registry", "get", "web", "--format", "json", check=True).stdout)
        return str(record["place"])


def test_a_pod_of_the_version_before_is_swapped_for_one_of_this(podrun: Podrun, before: Any) -> None:
    web = Serving(podrun)
    before("up", "-d", web.write("1"), check=True)
    first, client = web.address(), Busy("127.0.0.1", web.port, 4, keep=False)
    web.write("2", 'reload = "swap"')
    podrun("reload", "web", check=True)
    count = client.stop()
    assert (count.failed, web.get()) == (0, "2"), count
    assert web.address() not in ("", first)
    podrun("down", "web", check=True)
    assert podrun("registry", "get", "web").returncode == 69


def test_what_this_version_has_started_is_stopped_by_the_one_before(podrun: Podrun, before: Any) -> None:
    web = Serving(podrun)
    podrun("up", "-d", web.write("1"), check=True)
    assert web.address()
    assert '"up"' in before("ps", "--format", "json", check=True).stdout
    assert before("exec", "web", "printenv", "VERSION", check=True).stdout == "1\n"
    before("down", "web", check=True)
    assert not web.get()
    # Small files that it does not know go with the pod's next end.
    podrun("up", "-d", web.path, check=True)
    podrun("down", "web", check=True)


@pytest.mark.parametrize("before", [FIRST], indirect=True)
def test_a_pod_that_was_swapped_is_left_alone_by_a_version_without_swaps(podrun: Podrun, before: Any) -> None:
    web = Serving(podrun)
    podrun("up", "-d", web.write("1", 'reload = "swap"'), check=True)
    web.write("2", 'reload = "swap"')
    podrun("reload", "web", check=True)
    for words in (["ps"], ["gc"], ["doctor"], ["down", "web"]):
        before(*words)
        assert web.get() == "2", words
    podrun("down", "web", check=True)


@pytest.mark.prove
@pytest.mark.parametrize("before", [LATER], indirect=True)
@pytest.mark.parametrize("forwards", [True, False], ids=["forwards", "backwards"])
def test_versions_with_swaps_take_turns_on_one_pod(podrun: Podrun, before: Any, forwards: bool) -> None:
    """Each swaps what the other has swapped; nobody who asks notices, and either can undo it."""
    first, second = (before, podrun) if forwards else (podrun, before)
    web = Serving(podrun)
    first("up", "-d", web.write("1", 'reload = "swap"'), check=True)
    client = Busy("127.0.0.1", web.port, 4, keep=False)
    for number, version in enumerate((first, second, first, second), 2):
        web.write(str(number), 'reload = "swap"')
        version("reload", "web", check=True)
        assert web.get() == str(number)
        assert seen(second)["state"] == "up"
        for words in (["ps"], ["gc"]):
            second(*words, check=True)
    count = client.stop()
    assert (count.failed, web.get()) == (0, "5"), count
    second("down", "web", check=True)
    # On the disk the earlier version has left what it did not know of a generation that it has undone.
    podrun("gc", check=True)
    assert not (podrun.run / "pods/web").exists()
    assert podrun("registry", "get", "web").returncode == 69


@pytest.mark.prove
@pytest.mark.parametrize("before", [LATER], indirect=True)
@pytest.mark.parametrize("forwards", [True, False], ids=["forwards", "backwards"])
def test_a_record_in_etcd_is_kept_alive_and_withdrawn_by_the_other_version(
    podrun: Podrun, before: Any, forwards: bool
) -> None:
    first, second = (before, podrun) if forwards else (podrun, before)
    with contextlib.closing(registry_servers.etcd()) as server:
        web = Serving(podrun)
        path = Path(web.write("1"))
        path.write_text(
            path.read_text().replace(
                "service = ", f'registry = "{server.url}"\nadvertise = "pod"\nttl = "3s"\nservice = '
            )
        )

        def asked() -> int:
            return int(podrun("registry", "get", "--registry", server.url, "web").returncode)

        said = first("up", "-d", str(path), check=True).stderr
        [follower] = re.findall(r"process (\d+) stays and follows", said)
        os.kill(int(follower), signal.SIGTERM)
        # The other version's follows from here on, for both pods.
        other = Serving(podrun)
        text = Path(other.write("1")).read_text()
        more = podrun.file(
            "more", text.replace("service = ", f'registry = "{server.url}"\nadvertise = "pod"\nservice = ')
        )
        second("up", "-d", more, check=True)
        time.sleep(7)  # longer than the lease
        assert asked() == 0
        assert '"up"' in second("ps", "--format", "json", check=True).stdout
        second("down", "more", check=True)
        second("down", "web", check=True)
        assert asked() == 69
        # Small files that the earlier version does not know go with the pod's next end.
        for name, file in (("web", str(path)), ("more", more)):
            podrun("up", "-d", file, check=True)
            podrun("down", name, check=True)
