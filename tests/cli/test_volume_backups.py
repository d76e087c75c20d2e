"""Volumes are made by hand, written as tar archives and filled from them, owners and links included."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from support.launcher import Podrun

pytestmark = pytest.mark.root


@pytest.fixture
def data(podrun: Podrun) -> Path:
    """A volume with a file of somebody else's, a hard link, a symbolic link and an attribute."""
    podrun("volume", "create", "data", check=True)
    place = podrun.root / "volumes" / "data" / "data"
    (place / "file").write_text("content")
    os.chown(place / "file", 1000, 1001)
    (place / "file").chmod(0o640)
    os.link(place / "file", place / "again")
    (place / "link").symlink_to("/etc/passwd")
    os.setxattr(place / "file", "user.colour", b"blue")
    return place


def test_what_is_exported_can_be_imported_as_it_was(podrun: Podrun, data: Path, home: Path) -> None:
    podrun("volume", "export", "-o", str(home / "x.tar"), "data", check=True)
    assert podrun("volume", "import", "copy", str(home / "x.tar")).stdout == "copy\n"
    copy = podrun.root / "volumes" / "copy" / "data"
    status = os.stat(copy / "file")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_nlink) == (1000, 1001, 0o640, 2)
    assert os.readlink(copy / "link") == "/etc/passwd"
    assert os.getxattr(copy / "file", "user.colour") == b"blue"


def test_through_a_pipe(podrun: Podrun, data: Path) -> None:
    out = subprocess.run(podrun.argv("volume", "export", "data"), env=podrun.environ, capture_output=True, check=True)
    subprocess.run(podrun.argv("volume", "import", "copy", "-"), env=podrun.environ, input=out.stdout, check=True)
    assert (podrun.root / "volumes" / "copy" / "data" / "file").read_text() == "content"


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["create", "data"], 75, "already exists"),
        (["create", "../x"], 78, "expected a volume's name"),
        (["export", "nosuch"], 69, "there is no volume"),
        (["export", "-o", "/dev/null", "data"], 78, "is not a plain file"),
        (["import", "data", "/dev/null"], 75, "is not empty"),
        (["import", "new", "/etc/passwd"], 65, "tar"),
        (["import", "new", "/no/such"], 69, "No such file"),
        (["import", "../../x", "/dev/null"], 78, "expected a volume's name"),
    ],
)
def test_what_cannot_be_done_is_told(podrun: Podrun, data: Path, words: list[str], code: int, what: str) -> None:
    done = podrun("volume", *words)
    assert done.returncode == code, done.stderr
    assert what in done.stderr
    assert os.listdir(podrun.root / "volumes") == ["data"]


def test_an_export_that_fails_leaves_no_file(podrun: Podrun, data: Path, home: Path) -> None:
    done = podrun("volume", "export", "-o", str(home / "no" / "x.tar"), "data")
    assert done.returncode == 73
    assert not list(home.glob("*x.tar*"))
