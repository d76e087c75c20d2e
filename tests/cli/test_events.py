"""podrun events: what has happened, by kind, time and label, and what happens meanwhile."""

from __future__ import annotations

import json
import subprocess

import pytest

from podrun.cli import events as reading
from podrun.systemd import events
from support.launcher import Podrun

pytestmark = pytest.mark.root


def told(podrun: Podrun, *words: str) -> list[str]:
    """Those of the test: the fixture has warmed its podrun up with a pod."""
    lines = podrun("events", "--format", "{type} {event} {name} {exit}", *words, check=True).stdout.splitlines()
    return [line for line in lines if " warm " not in line]


def test_events_of_a_pods_life(podrun: Podrun, nothing_left: None) -> None:
    following = podrun.start("events", "-f", "--format", "json", stdout=subprocess.PIPE)
    try:
        podrun(
            "run", "-d", "--name", "one", "--label", "a=b", "--network", "none", "host:", "sleep", "1000", check=True
        )
        podrun("exec", "one", "true", check=True)
        podrun("kill", "one", check=True)
        podrun("down", "one", check=True)
        assert podrun("run", "--name", "two", "--network", "none", "host:", "sh", "-c", "exit 3").returncode == 3
        podrun("volume", "create", "data", check=True)
        podrun("volume", "rm", "data", check=True)
        everything = [
            "pod start one ", "pod exec one ", "pod kill one ", "pod stop one ",
            "pod start two ", "pod died two 3", "pod stop two ",
            "volume create data ", "volume rm data ",
        ]  # fmt: skip
        assert told(podrun) == everything
        assert following.stdout is not None
        lines = []
        while len(lines) < len(everything):
            lines += [line for line in [json.loads(following.stdout.readline())] if line["name"] != "warm"]
        assert [line["event"] for line in lines] == [line.split()[1] for line in everything]
        middle = str(lines[4]["time"])
    finally:
        following.terminate()
        following.wait()
    assert told(podrun, "--filter", "label=a=b") == everything[:1]
    assert told(podrun, "--filter", "event=died", "--filter", "event=kill") == ["pod kill one ", "pod died two 3"]
    assert told(podrun, "--filter", "type=volume", "--filter", "name=data") == everything[-2:]
    assert told(podrun, "--since", middle) == everything[4:]
    assert told(podrun, "--until", middle) == everything[:5]
    assert told(podrun, "--filter", "id=" + lines[0]["id"][:12]) == ["pod start one ", "pod stop one "]
    assert "pod died two (id=" in podrun("events").stdout


def test_a_full_file_is_begun_anew_and_nothing_is_read_twice(podrun: Podrun) -> None:
    run = str(podrun.run)
    podrun.run.mkdir(parents=True, exist_ok=True)
    (podrun.run / "events").write_text("")
    reader = reading._Reader(run)
    for n in range(3000):
        events.note(run, "image", "pull", f"{n:0500d}")
    found = [line["name"] for line in reader.past()]
    assert len(found) == len(set(found)) == int(found[-1]) - int(found[0]) + 1
    for n in range(3000, 5000):
        events.note(run, "image", "pull", f"{n:0500d}")
        if n % 500 == 0:
            found += [line["name"] for line in reader.more()]
    found += [line["name"] for line in reader.more()]
    assert int(found[-1]) == 4999
    assert [int(name) for name in found] == list(range(int(found[0]), 5000))
    (podrun.run / "events").write_bytes(b"\xff{\n[]\n{}\n")
    assert podrun("events", "--since", "0", check=True).stdout.count("\n") > 1000
