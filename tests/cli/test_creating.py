"""create, start, stop and rm: docker's life of a container, without systemd."""

from __future__ import annotations

import json
import os
import stat

import pytest

from support.launcher import Podrun

pytestmark = pytest.mark.root


def rows(podrun: Podrun) -> list[tuple[str, str]]:
    """(name, state) of all pods."""
    found = [json.loads(line) for line in podrun("ps", "-a", "--format", "json").stdout.splitlines()]
    return [(row["name"], row["state"]) for row in found]


def test_what_was_created_is_started_stopped_started_again_and_removed(podrun: Podrun) -> None:
    assert podrun("create", "--name", "web", "-e", "A=secret", "host:", "sleep", "60", check=True).stdout == "web\n"
    kept = podrun.root / "created" / "web.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert rows(podrun) == [("web", "created")]
    assert podrun("ps", "-q").stdout == ""
    assert podrun("inspect", "-f", "{state} {containers[0].image}", "web").stdout == "created host:\n"
    podrun("gc", check=True)
    for _ in range(2):
        assert podrun("start", "web", check=True).stdout == "web\n"
        assert podrun("start", "web", check=True).stdout == "web\n", "what is up is left alone"
        assert podrun("exec", "web", "sh", "-c", "echo $A").stdout == "secret\n"
        refused = podrun("rm", "web")
        assert refused.returncode == 75
        assert "it is up; 'podrun stop web' first" in refused.stderr
        assert podrun("stop", "-t", "0", "web", check=True).stdout == "web\n"
        assert rows(podrun) == [("web", "created")]
    podrun("start", "--all", check=True)
    assert podrun("rm", "-f", "-t", "0", "web", check=True).stdout == "web\n"
    assert rows(podrun) == []
    assert os.listdir(podrun.root / "created") == []


def test_what_it_writes_is_there_at_the_next_start_and_goes_with_rm(podrun: Podrun) -> None:
    script = "echo x >>/opt/log; wc -l </opt/log; exit 3"
    podrun("create", "--name", "web", "host:", "sh", "-c", script, check=True)
    for line in ("1", "2"):
        done = podrun("start", "-a", "web")
        assert (done.stdout.strip(), done.returncode) == (line, 3), done.stderr
    assert (podrun.root / "pods" / "web").exists()
    podrun("rm", "web", check=True)
    assert not (podrun.root / "pods" / "web").exists()
    podrun("create", "--name", "web", "host:", "sh", "-c", script, check=True)
    assert podrun("start", "-a", "web").stdout.strip() == "1"
    podrun("rm", "web", check=True)


def test_what_it_needs_is_not_pruned(podrun: Podrun) -> None:
    podrun("volume", "create", "data", "spare", check=True)
    podrun("create", "--name", "web", "-v", "data:/data", "host:", "true", check=True)
    podrun("volume", "prune", "--all", "--force", check=True)
    assert podrun("volume", "ls", "-q").stdout == "data\n"
    podrun("rm", "web", check=True)
    podrun("volume", "prune", "--all", "--force", check=True)
    assert podrun("volume", "ls", "-q").stdout == ""


def test_a_name_that_was_created_is_taken(podrun: Podrun) -> None:
    podrun("create", "--name", "web", "host:", "true", check=True)
    assert podrun("create", "--name", "web", "host:", "true").returncode == 75
    assert podrun("run", "-d", "--name", "web", "host:", "true").returncode == 75
    assert podrun("create", "--name", "web", "--replace", "host:", "true").returncode == 0
    podrun("rm", "--all", check=True)


def test_start_a_stays_and_returns_the_status(podrun: Podrun) -> None:
    podrun("create", "--name", "job", "host:", "sh", "-c", "echo words; exit 3", check=True)
    done = podrun("start", "-a", "job")
    assert (done.stdout, done.returncode) == ("words\n", 3), done.stderr
    assert podrun("start", "-a", "job").returncode == 3
    podrun("rm", "job", check=True)


@pytest.mark.parametrize("words", [["stop"], ["rm"]])
def test_a_pod_that_is_not_there_is_named(podrun: Podrun, words: list[str]) -> None:
    done = podrun(*words, "nosuch")
    assert (done.returncode, done.stdout) == (69, "")
    assert "nosuch: there is no such pod" in done.stderr
    assert podrun(*words, "-i", "nosuch").returncode == 0
