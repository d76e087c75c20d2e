"""Devices by CDI's names: what their specifications bring, from files that nobody but root can change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import Failure
from podrun_hooks.container import cdi
from support.launcher import Podrun
from support.pods import until

pytestmark = pytest.mark.root

KIND = f"vendor.example/thing{os.getpid()}"
EDITS = {
    "env": ["THING=here"],
    "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/null", "permissions": "rw"}],
    "mounts": [{"hostPath": "/usr/share", "containerPath": "/thing", "options": ["ro", "rbind"]}],
}


def spec(**more: Any) -> dict[str, Any]:
    first = {"name": "one", "containerEdits": EDITS}
    return {"cdiVersion": "0.6.0", "kind": KIND, "devices": [first, {"name": "all", "containerEdits": {}}], **more}


@pytest.fixture
def host() -> Iterator[Path]:
    """The host's specifications, with one of the test's."""
    place = Path("/etc/cdi")
    there = place.exists()
    place.mkdir(mode=0o755, exist_ok=True)
    file = place / f"podrun-test-{os.getpid()}.json"
    file.write_text(json.dumps(spec(containerEdits={"env": ["COMMON=yes"]})))
    yield file
    file.unlink(missing_ok=True)
    if not there:
        place.rmdir()


@pytest.mark.parametrize("detached", [False, True], ids=["foreground", "detached"])
def test_a_device_brings_nodes_mounts_and_variables(
    podrun: Podrun, nothing_left: None, host: Path, detached: bool
) -> None:
    script = (
        "echo $THING $COMMON; test -c /dev/thing && echo node; test -d /thing/zoneinfo -o -d /thing/doc && echo mount"
    )
    words = ["--name", "one", "--network", "none", "--device", f"{KIND}=one", "host:", "sh", "-c"]
    if detached:
        podrun("run", "-d", *words, f"{script}; sleep 1000", check=True)
        until(lambda: "mount" in podrun("logs", "one").stdout)
        printed = podrun("logs", "one").stdout
        podrun("down", "-t", "0", "one", check=True)
    else:
        printed = podrun("run", *words, script, check=True).stdout
    assert printed == "here yes\nnode\nmount\n"


def test_what_is_not_there_is_told_with_what_is(podrun: Podrun, host: Path) -> None:
    done = podrun("run", "--device", f"{KIND}=two", "host:", "true")
    assert done.returncode == 69
    assert f"{KIND}=all, {KIND}=one" in done.stderr
    done = podrun("run", "--gpus", "all", "host:", "true")
    assert (done.returncode, "no device nvidia.com/gpu=all" in done.stderr) == (69, True)
    host.chmod(0o666)
    assert podrun("run", "--device", f"{KIND}=one", "host:", "true").returncode == 77


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", "{", "a.json"),
        ("a.json", "[]", "a table with a kind"),
        ("a.yaml", "kind: [", "YAML was expected"),
        ("a.json", json.dumps(spec(containerEdits={"netDevices": []})), "netDevices, which podrun does not know"),
        ("a.json", json.dumps(spec(containerEdits={"env": "A=b"})), "env is not a list"),
    ],
)
def test_what_is_wrong_with_a_specification_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, told: str
) -> None:
    monkeypatch.setattr(cdi, "PLACES", (str(tmp_path),))
    monkeypatch.setattr(cdi.trusted, "text", lambda path, good: Path(path).read_text())
    (tmp_path / name).write_text(text)
    with pytest.raises(Failure, match=told.replace("[", r"\[")):
        cdi.edits([f"{KIND}=one"])


def test_yaml_is_read_and_the_later_place_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = tmp_path / "etc", tmp_path / "run"
    monkeypatch.setattr(cdi, "PLACES", tuple(map(str, places)))
    monkeypatch.setattr(cdi.trusted, "text", lambda path, good: Path(path).read_text())
    for place, word in zip(places, ("first", "second"), strict=True):
        place.mkdir()
        text = f"kind: a.b/c\ndevices:\n- name: '0'\n  containerEdits:\n    env: [WORD={word}]\n"
        (place / "a.yaml").write_text(text)
    assert cdi.edits(["a.b/c=0"]) == {"env": ["WORD=second"]}
