"""Wrong input through the whole command line: exit 78, one clear line, and nothing created."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from support.launcher import Podrun

pytestmark = pytest.mark.root

IMAGE = '[[chain]]\nhook = "image"\nref = "host:"\n'
CONTAINER = '[[chain]]\nhook = "container"\ncommand = ["true"]\n'

WRONG = {
    "a TOML error": ("[pod\n", "1:5"),
    "a key twice": ('[pod]\nname = "a"\nname = "b"\n', ":3:"),
    "a byte order mark": ("\ufeff[pod]\n", "byte order mark"),
    "an unknown key": (IMAGE.replace("ref", "reff"), ":3: "),
    "an unknown hook": ('[[chain]]\nhook = "imag"\n', "did you mean 'image'"),
    "an unknown table": ("[pods]\n" + IMAGE, ":1: "),
    "a wrong type": (IMAGE + '[[chain]]\nhook = "network"\npublish = "8080:80"\n', ":6: "),
    "an empty file": ("", "chain"),
    "a name with a slash": ('[pod]\nname = "a/b"\n' + IMAGE, ":2: "),
    "a name with dots": ('[pod]\nname = ".."\n' + IMAGE, ":2: "),
    "a relative target": (IMAGE + '[[chain]]\nhook = "storage"\nsource = "/etc"\ntarget = "data"\n', ":7: "),
    "a target with ..": (IMAGE + '[[chain]]\nhook = "storage"\nsource = "/etc"\ntarget = "/a/../b"\n', ":7: "),
    "a missing source": (IMAGE + '[[chain]]\nhook = "storage"\nsource = "/none"\ntarget = "/data"\n', "/none"),
    "a relative source": (
        IMAGE + '[[chain]]\nhook = "storage"\nsource = "etc"\ntarget = "/data"\n',
        "expected an absolute path",
    ),
    "port 0": (IMAGE + '[[chain]]\nhook = "network"\npublish = ["0:80"]\n', ":6: "),
    "port 70000": (IMAGE + '[[chain]]\nhook = "network"\npublish = ["8080:70000"]\n', ":6: "),
    "a port published twice": (IMAGE + '[[chain]]\nhook = "network"\npublish = ["81:80", "81:80"]\n', "twice"),
    "two containers of a name": (IMAGE + CONTAINER + CONTAINER, "main"),
    "a container called podrun": (IMAGE + CONTAINER + 'name = "podrun"\n', "podrun"),
    "a user of 2^32": (IMAGE + CONTAINER + 'user = "4294967296"\n', "user"),
    "an unset variable": (
        IMAGE + '[[chain]]\nhook = "storage"\nsource = "${NOBODY_SET_THIS}"\ntarget = "/x"\n',
        ":6: ",
    ),
    "no image for the container": (CONTAINER, "image"),
    "an image that is nowhere": (IMAGE + CONTAINER + 'image = "db"\n', "db"),
    "a reference that is none": ('[[chain]]\nhook = "image"\nref = "UPPER CASE"\n', "UPPER CASE"),
    "a directory that is not there": ('[[chain]]\nhook = "image"\nref = "dir:/none"\n' + CONTAINER, "/none"),
    "volumes with ..": (IMAGE + CONTAINER + 'volumes = ["/etc:/a/../b"]\n', "volumes"),
    "a relative executable": ('[[chain]]\nhook = "exec:hook"\n', ":2: "),
    "a missing executable": ('[[chain]]\nhook = "exec:/none"\n', "/none"),
}


def created(podrun: Podrun) -> Any:
    """What is there after a refusal: the lock's directory at most."""
    found = []
    for place in (podrun.run, podrun.root):
        for directory, _, files in os.walk(place):
            found += [f"{directory}/{name}" for name in files if not directory.endswith(("/locks", "/parsed"))]
    return found


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_pod_file_is_refused_in_one_line_before_anything_is_created(podrun: Podrun, case: Any) -> None:
    text, expected = WRONG[case]
    done = podrun("up", "-d", podrun.file("web", text))
    assert done.returncode == 78, done.stderr
    assert expected in done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("podrun: web: ")
    assert created(podrun) == []


@pytest.mark.parametrize("case", ["missing", "directory", "fifo", "invalid", "huge"])
def test_what_is_no_pod_file_at_all_is_refused_at_once(podrun: Podrun, home: Path, case: str) -> None:
    path = home / "web.toml"
    if case == "directory":
        path.mkdir()
    elif case == "fifo":
        os.mkfifo(path)
    elif case == "invalid":
        path.write_bytes(b'[pod]\nname = "\xff"\n')
    elif case == "huge":
        with path.open("wb") as file:
            file.truncate(100 << 20)
    done = podrun("up", "-d", str(path), timeout=10)
    assert done.returncode == 78
    assert len(done.stderr.strip().splitlines()) == 1
    assert created(podrun) == []


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--network", "bridgee", "host:", "true"],
        ["run", "-p", "x:80", "host:", "true"],
        ["run", "-v", "relative/path:/x", "host:", "true"],
        ["run", "-v", "/none:/x", "host:", "true"],
        ["run", "--name", "a/b", "host:", "true"],
        ["run", "-e", "=x", "host:", "true"],
        ["run", "-u", "4294967296", "host:", "true"],
        ["run", "-m", "lots", "host:", "true"],
        ["run", "--no-such-option", "host:", "true"],
        ["up"],
        ["frobnicate"],
    ],
)
def test_wrong_options_are_refused_before_anything_is_created(podrun: Podrun, words: Any) -> None:
    done = podrun(*words)
    assert done.returncode == 78, done.stderr
    assert created(podrun) == []


def test_a_missing_runtime_is_told_with_its_package_before_anything_is_created(podrun: Podrun, home: Path) -> None:
    path = podrun.file("web", IMAGE + CONTAINER)
    words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind /dev/null /usr/bin/crun; mount --bind /dev/null /usr/bin/runc; mount --bind /dev/null /usr/sbin/runc 2>/dev/null; exec "$@"',
        "sh",
    ]
    import subprocess

    done = subprocess.run([*words, *podrun.argv("up", "-d", path)], env=podrun.environ, capture_output=True, text=True)
    assert done.returncode == 69
    assert "apt install crun" in done.stderr
    assert created(podrun) == []


def test_run_saves_the_pod_file_of_a_command_line(podrun: Podrun, home: Path) -> None:
    path = home / "saved.toml"
    text = "say \"${HOME}\" and 'x'\ttoo"
    podrun(
        "run",
        "--name",
        "saved",
        "-e",
        f"TEXT={text}",
        "--save",
        str(path),
        "host:",
        "sh",
        "-c",
        'printf %s "$TEXT"',
        check=True,
    )
    done = podrun("up", str(path))
    assert (done.returncode, done.stdout) == (0, text), done.stderr
    assert podrun("run", "--save", str(path), "host:", "true").returncode == 78, "an existing file is not overwritten"
