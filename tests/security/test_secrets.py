"""Where a secret is not: on no command line, in no file that somebody else reads or that outlives the pod."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from podrun.host import Host
from podrun.launcher import transient
from podrun.podfile import unit_environment
from podrun.podfile.loader import PodText, StepText
from support.launcher import Podrun

pytestmark = pytest.mark.root

SECRET = "s3cret-Ä-of-this-test"


def holding(directory: Path) -> dict[str, int]:
    """The files below a directory that hold the secret, and who may read them (mode of the file and those above)."""
    found = {}
    for place, below, names in os.walk(directory):
        # Not the layers of images, nor what is mounted.
        below[:] = [name for name in below if name != "layers" and not os.path.ismount(f"{place}/{name}")]
        for path in (Path(place, name) for name in names):
            if not path.is_file() or path.is_symlink() or path.stat().st_size > 1 << 20:
                continue
            if SECRET.encode() not in path.read_bytes():
                continue
            open_to = 0o777
            for above in (path, *path.parents):
                open_to &= stat.S_IMODE(above.stat().st_mode) | (0o700 if above != path else 0)
                if above == directory:
                    break
            found[str(path.relative_to(directory))] = open_to & 0o077
    return found


@pytest.mark.parametrize(
    "more",
    [
        f'[[chain]]\nhook = "storage"\nsource = "file:"\ntarget = "/secret"\ncontent = "{SECRET}"\n',
        "",
    ],
    ids=["a file's content", "a variable"],
)
def test_a_secret_of_a_pod_that_is_up_is_roots_alone_and_gone_after_down(podrun: Podrun, more: str) -> None:
    env = "" if more else f'env = {{ PASSWORD = "{SECRET}" }}\n'
    path = podrun.file(
        "web",
        f'[pod]\nstop_timeout = "1s"\n[[chain]]\nhook = "image"\nref = "host:"\n{more}[[chain]]\nhook = "container"\ncommand = ["sleep", "60"]\n{env}',
    )
    stop, seen = threading.Event(), set()

    def watch() -> None:
        while not stop.wait(0.005):
            for entry in os.listdir("/proc"):
                try:
                    words = Path(f"/proc/{entry}/cmdline").read_bytes() if entry.isdigit() else b""
                except OSError:
                    continue
                if SECRET.encode() in words:
                    seen.add(words)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        podrun("up", "-d", path, check=True)
        for directory in (podrun.run, podrun.root):
            assert not {file for file, others in holding(directory).items() if others}
        assert SECRET not in podrun("ps", "--format", "json").stdout + podrun("logs", "web").stdout
        podrun("down", "web", check=True)
    finally:
        stop.set()
        watcher.join()
    assert not seen
    left = {**holding(podrun.run), **holding(podrun.root)}
    assert not {file for file in left if more}, "a file's content is kept nowhere"
    assert not any(left.values())


def test_a_transient_unit_gets_variables_and_credentials_by_files_of_roots(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv: list[list[str]] = []
    monkeypatch.setattr(transient, "_run", lambda words, quiet=False: argv.append(words) or 0)
    monkeypatch.setattr(transient, "_program", lambda: "/opt/podrun")
    service = {"Environment": [f'"A={SECRET} $x `y\\"" B=1'], "SetCredential": f"key:{SECRET}\\n%%"}
    step = StepText("container", "main", False, False, (), None, {"command": ["true"]})
    given = {
        "name": "web",
        "file": "",
        "steps": (step,),
        "type": "service",
        "stop_timeout": 5.0,
        "sections": {"service": service},
    }
    text = PodText(**{**PodText._field_defaults, **given})
    assert transient.start(text, Host(str(home / "root"), str(home / "run"))) == 0
    assert SECRET not in json.dumps(argv, ensure_ascii=False)
    files = {path.name: path for path in (home / "run/units").iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
    assert unit_environment._file(str(files["web.env"])) == {"A": f'{SECRET} $x `y"', "B": "1"}
    assert files["web.key.credential"].read_text() == f"{SECRET}\n%"
