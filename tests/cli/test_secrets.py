"""podrun secret: kept encrypted, handed over in memory, told to nobody."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from podrun_hooks.storage import secrets
from support.launcher import Podrun
from support.pods import until

pytestmark = pytest.mark.root

WORD = "w0rd-of-the-day"


def create(podrun: Podrun, name: str, content: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = podrun.argv("secret", "create", *words, name)
    return subprocess.run(argv, env=podrun.environ, input=content, capture_output=True, text=True)


def everything_below(path: Path) -> bytes:
    """What is on the disk; mnt is where memory is mounted."""
    files = [one for one in path.rglob("*") if one.is_file() and not {"layers", "mnt"} & {*one.parts}]
    return b"".join(file.read_bytes() for file in files)


@pytest.mark.parametrize("detached", [False, True], ids=["foreground", "detached"])
def test_a_secret_is_a_file_in_memory_and_nowhere_else(podrun: Podrun, nothing_left: None, detached: bool) -> None:
    assert create(podrun, "db", WORD + "\n").stdout == "db\n"
    script = "cat /run/secrets/db; stat -c '%a %u' /run/secrets/db /run/secrets/mine; stat -f -c %T /run/secrets/db"
    words = ["--secret", "db", "--secret", "db,target=mine,mode=0440,uid=7", "--network", "none", "--name", "one"]
    if detached:
        podrun("run", "-d", *words, "host:", "sh", "-c", f"{script}; sleep 1000", check=True)
        until(lambda: "ramfs" in podrun("logs", "one").stdout)
        printed = podrun("logs", "one").stdout
        found = everything_below(podrun.run) + podrun("inspect", "one").stdout.encode()
        assert WORD.encode() not in found
        podrun("down", "-t", "0", "one", check=True)
    else:
        printed = podrun("run", *words, "host:", "sh", "-c", script, check=True).stdout
    assert printed.splitlines() == [WORD, "400 0", "440 7", "ramfs"]
    saved = str(podrun.home / "saved.toml")
    podrun("run", *words, "--save", saved, "host:", "true", check=True)
    assert 'secret = "db"' in Path(saved).read_text()
    kept = b"".join(path.read_bytes() for path in (podrun.root / "secrets").iterdir())
    assert WORD.encode() not in kept
    [row] = [json.loads(line) for line in podrun("secret", "ls", "--format", "json").stdout.splitlines()]
    assert (row["name"], row["encrypted"]) == ("db", True)
    podrun("secret", "rm", "db", check=True)
    assert oct(os.stat(podrun.root / "secrets").st_mode & 0o777) == "0o700"


def test_what_is_wrong_with_a_secret_is_told(podrun: Podrun) -> None:
    assert create(podrun, "a", "x").returncode == 0
    cases = [
        (create(podrun, "a", "y"), 73, "there already|already"),
        (create(podrun, "../a", "y"), 78, "cannot be a secret's name"),
        (create(podrun, "b", ""), 78, "expected 1 to"),
        (create(podrun, "b", "x" * 600_000), 78, "expected 1 to"),
        (podrun("secret", "create", "b", "/no/such"), 69, "/no/such"),
        (podrun("secret", "rm", "b"), 69, "there is no secret b"),
        (podrun("secret", "rm"), 78, "--all"),
        (podrun("run", "--secret", "b", "host:", "true"), 69, "podrun secret create b"),
    ]
    for done, code, told in cases:
        assert done.returncode == code, (done.args, done.stderr)
        assert any(word in done.stderr for word in told.split("|")), done.stderr
    assert create(podrun, "a", "z", "--replace").returncode == 0
    assert secrets.read(str(podrun.root), "a") == b"z"
    # One that was made for another name, or for another host, is not taken.
    shutil.copy(podrun.root / "secrets/a.credential", podrun.root / "secrets/c.credential")
    assert podrun("run", "--secret", "c", "host:", "true").returncode == 77
    assert podrun("secret", "rm", "--all").stdout == "a\nc\n"


def test_a_host_without_systemd_creds_is_told_that_nothing_is_encrypted(
    podrun: Podrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "_PATH", ())
    assert not secrets.create(str(podrun.root), "plain", b"\0\xff").encrypted
    assert secrets.read(str(podrun.root), "plain") == b"\0\xff"
    assert "no" in podrun("secret", "ls").stdout.split()
