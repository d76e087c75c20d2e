"""Commands for one of several containers: -c names it, and without it the last one is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.launcher import Podrun
from support.waiting import until

pytestmark = pytest.mark.root

PATIENT = "trap 'exit 0' TERM; echo from $WHO; while :; do sleep 0.05; done"


@pytest.fixture
def two(podrun: Podrun) -> Podrun:
    """A pod "web" of two containers, "one" and "two"."""
    containers = [
        f'{{ hook = "container", name = "{name}", env = {{ WHO = "{name}" }}, command = ["sh", "-c", {json.dumps(PATIENT)}] }}'
        for name in ("one", "two")
    ]
    chain = ", ".join(['{ hook = "image", ref = "host:" }', '{ hook = "network", mode = "none" }', *containers])
    podrun("up", "-d", podrun.file("web", f"chain = [ {chain} ]"), check=True)
    return podrun


def test_each_command_takes_the_named_container_or_the_last_one(two: Podrun, home: Path) -> None:
    first, last = ["-c", "one"], list[str]()
    for words, name in ((first, "one"), (["--container", "two"], "two"), (last, "two")):
        assert two("exec", *words, "web", "printenv", "WHO").stdout == f"{name}\n"
        until(lambda words=words, name=name: f"from {name}" in two("logs", *words, "web").stdout)  # type: ignore[misc]
    two("exec", "-d", *first, "web", "sleep", "777", check=True)
    until(lambda: "sleep 777" in two("top", *first, "web", check=True).stdout)
    assert "sleep 777" not in two("top", "web", check=True).stdout
    two("exec", *first, "web", "sh", "-c", "echo x > /tmp/of-one", check=True)
    assert two("diff", *first, "web", check=True).stdout.splitlines().count("A /tmp/of-one") == 1
    assert "/tmp/of-one" not in two("diff", "web", check=True).stdout
    two("cp", *first, "web:/tmp/of-one", str(home / "copy"), check=True)
    assert (home / "copy").read_text() == "x\n"
    assert two("cp", "web:/tmp/of-one", str(home / "other")).returncode == 69
    two("kill", "-s", "TERM", *first, "web", check=True)
    until(lambda: two("exec", *first, "web", "true").returncode == 75)
    assert two("exec", "web", "true").returncode == 0, "the other one goes on"
    for command in (
        ["exec", "-c", "three", "web", "true"],
        ["top", "-c", "three", "web"],
        ["diff", "-c", "three", "web"],
    ):
        done = two(*command)
        assert (done.returncode, "there is no such container" in done.stderr) == (69, True), command


def test_volumes_are_listed_and_described(podrun: Podrun) -> None:
    assert podrun("volume", "ls", "-q", check=True).stdout == ""
    podrun("volume", "create", "data", "more", check=True)
    assert podrun("volume", "ls", "-q", check=True).stdout.splitlines() == ["data", "more"]
    rows = [json.loads(line) for line in podrun("volume", "ls", "--format", "json", check=True).stdout.splitlines()]
    assert [row["name"] for row in rows] == ["data", "more"]
    told = json.loads(podrun("volume", "inspect", "data", check=True).stdout)
    assert str(podrun.root / "volumes/data") in json.dumps(told)
    done = podrun("volume", "inspect", "none")
    assert (done.returncode, "there is no volume none" in done.stderr) == (69, True)
