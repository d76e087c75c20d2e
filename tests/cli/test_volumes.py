"""Volumes with labels and options, listed by filters and templates, standing for directories and memory."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.launcher import Podrun

pytestmark = pytest.mark.root
Printed = Callable[..., list[str]]


@pytest.fixture
def printed(podrun: Podrun) -> Printed:
    return lambda *words: podrun("volume", *words, check=True).stdout.splitlines()


def test_volumes_are_found_by_their_labels_names_and_use(podrun: Podrun, printed: Printed) -> None:
    printed("create", "--label", "tier=db", "--label", "keep", "data")
    printed("create", "-l", "tier=web", "cache")
    [random] = printed("create")
    assert len(random) == 64
    podrun("run", "-d", "--name", "web", "--network", "none", "-v", "cache:/c", "host:", "sleep", "1000", check=True)
    table = {
        "name=^da": ["data"], "name=a": ["cache", "data"], "label=tier": ["cache", "data"], "label=tier=db": ["data"],
        "label=keep": ["data"], "dangling=false": ["cache"], "driver=local": ["cache", "data"], "driver=nfs": [],
        "until=2020-01-01": [],
    }  # fmt: skip
    found = {text: [name for name in printed("ls", "-q", "--filter", text) if name != random] for text in table}
    assert found == table
    assert printed(
        "ls", "--filter", "name=data", "--format", '{{.Name}} {{.Driver}} {{.Labels.tier}} {{.Label "keep"}}'
    ) == ["data local db "]
    assert printed("inspect", "-f", "{{.Mountpoint}}", "data", "cache") == [
        str(podrun.root / "volumes" / name / "data") for name in ("data", "cache")
    ]
    assert json.loads("".join(printed("inspect", "data")))["labels"] == {"tier": "db", "keep": ""}
    assert [podrun("volume", "exists", name).returncode for name in ("data", "nosuch")] == [0, 1]
    assert printed("ls", "--quiet=true", "--noheading=false", "-f", "label=keep") == ["data"]
    assert printed("ls", "--format", "table {{.Driver}}\\t{{.Name}}", "-f", "name=data") == [
        "DRIVER   VOLUME NAME", "local    data",
    ]  # fmt: skip
    assert podrun("volume", "rm", "cache").returncode == 75
    podrun("down", "-t", "0", "web", check=True)
    assert printed("prune", "--all", "--force", "--filter", "label=tier=web") == ["removed cache"]
    assert printed("rm", "--force", "nosuch", "data") == ["removed data"]
    assert printed("rm", "--all") == [f"removed {random}"]


@pytest.mark.parametrize("detached", [False, True], ids=["foreground", "detached"])
def test_a_volume_may_stand_for_a_directory_or_for_memory(
    podrun: Podrun, printed: Printed, tmp_path: Path, detached: bool
) -> None:
    printed("create", "-o", "type=none", "-o", "o=bind,noexec", "-o", f"device={tmp_path}", "shown")
    printed("create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=3M,mode=0700", "memory")
    script = "echo there >/s/file; grep -E ' /(s|m) ' /proc/self/mounts"
    volumes = ["-v", "shown:/s", "-v", "memory:/m"]
    way = ["-d"] if detached else ["--rm"]
    done = podrun("run", *way, "--name", "a", "--network", "none", *volumes, "host:", "sh", "-c", script, check=True)
    if detached:
        podrun("wait", "a")
        done = podrun("logs", "a", check=True)
    [shown, memory] = done.stdout.splitlines()
    assert "noexec" in shown
    assert "tmpfs /m tmpfs" in memory
    assert "size=3072k,mode=700" in memory
    podrun("down", "a", check=True)
    assert (tmp_path / "file").read_text() == "there\n"
    assert printed("inspect", "-f", "{{.Mountpoint}} {{.Options.type}}", "shown") == [f"{tmp_path} bind"]
    assert podrun("volume", "import", "shown", "/dev/null").returncode == 75
    printed("rm", "shown", "memory")
    assert (tmp_path / "file").exists()


def test_a_place_has_one_mount(podrun: Podrun, tmp_path: Path) -> None:
    words = ["--network", "none", "-v", "a:/x", "-v", f"{tmp_path}:/x/", "host:", "true"]
    done = podrun("run", "--rm", *words)
    assert (done.returncode, "/x has two mounts" in done.stderr) == (78, True)
    podrun("run", "--rm", "--network", "none", *["-v", f"{tmp_path}:/x"] * 2, "host:", "true", check=True)
    podrun("run", "--save", str(tmp_path / "a.toml"), *words, check=True)
    done = podrun("check", str(tmp_path / "a.toml"))
    assert (done.returncode, "/x has two mounts" in done.stdout + done.stderr) == (78, True)


@pytest.mark.parametrize(("answer", "kept"), [("y\n", ""), ("N\n", "data\n"), ("", "data\n")])
def test_a_pipe_answers_what_prune_asks(podrun: Podrun, answer: str, kept: str) -> None:
    podrun("volume", "create", "data", check=True)
    words = podrun.argv("volume", "prune", "--all")
    done = subprocess.run(words, env=podrun.environ, input=answer, text=True, capture_output=True)
    assert done.returncode == (0 if answer else 78)
    assert podrun("volume", "ls", "-q").stdout == kept


def test_a_payload_keeps_its_own_words_with_values(podrun: Podrun) -> None:
    podrun("run", "-d", "--name", "a", "--network", "none", "host:", "sleep", "1000", check=True)
    assert (
        podrun("exec", "--privileged=false", "a", "echo", "--privileged=true", check=True).stdout
        == "--privileged=true\n"
    )
    podrun("down", "-t", "0", "a", check=True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["create", "-o", "type=nfs", "-o", "device=:/x", "a"], "a storage step"),
        (["create", "-o", "type=bind", "-o", "device=/no/such", "a"], "no such directory"),
        (["create", "-o", "type=none", "-o", "device=/tmp", "a"], "stands for a directory"),
        (["create", "-o", "size=3", "a"], "unknown option 'size'"),
        (["create", "-o", "type=tmpfs", "-o", "o=sise=3", "a"], "'sise=3'"),
        (["create", "--label", "=x", "a"], "expected KEY"),
        (["create", "-d", "nfs", "a"], "local"),
        (["ls", "--filter", "nmae=a"], "did you mean 'name'"),
        (["ls", "--format", "{{.Nmae}}"], ""),
        (["inspect"], "use --all"),
        (["rm"], "use --all"),
        (["rm", "--all", "a"], "use --all"),
    ],
)
def test_what_a_volume_cannot_be_is_told(podrun: Podrun, words: list[str], told: str) -> None:
    done = podrun("volume", *words)
    assert told in done.stderr
    assert done.returncode == (78 if told else 0)
    assert podrun("volume", "ls", "-q").stdout == ""
