"""What a power cut leaves on the disk: /run is empty afterwards, and gc still knows what belongs to nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support.launcher import Podrun
from support.waiting import until

pytestmark = pytest.mark.root

CHAIN = """chain = [
    { hook = "image", ref = "host:" },
    { hook = "storage", source = "SOURCE", target = "/data", options = ["O"] },
    { hook = "container", command = ["sh", "-c", "echo x >/x; echo said; sleep 1000"], stop_signal = "KILL", MORE },
]"""


def pod(podrun: Podrun, name: str, more: str = "") -> None:
    (podrun.home / "source").mkdir(exist_ok=True)
    text = CHAIN.replace("SOURCE", str(podrun.home / "source")).replace("MORE", more or "read_only = false")
    podrun("up", "-d", podrun.file(name, text), check=True)


def on_disk(podrun: Podrun) -> list[str]:
    """What there is of pods below the root, but for what is in their writable layers."""
    found = sorted(str(path.relative_to(podrun.root / "pods")) for path in (podrun.root / "pods").rglob("*"))
    return [path for path in found if "/upper" not in path and "/work" not in path and not path.endswith("/of")]


def cut(podrun: Podrun) -> None:
    """The power goes: processes, mounts and /run are gone."""
    for place in (podrun.run / "pods").iterdir():
        told = json.loads(podrun("inspect", place.name).stdout)
        for container in told["containers"]:
            os.kill(container["pid"], signal.SIGKILL)
        for mount in (place / "mnt").iterdir() if (place / "mnt").exists() else ():
            subprocess.run(["umount", mount], check=True)
    until(lambda: not any(podrun("ps", "-q", "--filter", "state=up").stdout.split()))
    shutil.rmtree(podrun.run)


def test_gc_removes_what_ended_with_its_pod_and_nothing_that_persists(podrun: Podrun) -> None:
    pod(podrun, "web", 'name = "app"')
    pod(podrun, "keep", 'name = "app", persist = true')
    cut(podrun)
    assert {"web/app", "web/storage.overlay", "keep/app"} <= {*on_disk(podrun)}
    told = [f"storage: overlay of storage of {name}" for name in ("keep", "web")]
    told.append("container: writable layer of app of web")
    assert podrun("gc", "--check").stdout.splitlines() == told
    assert "web/app" in on_disk(podrun)
    assert podrun("gc", check=True).stdout.splitlines() == told
    assert on_disk(podrun) == ["keep", "keep/app", "keep/app.log"]
    assert (podrun.root / "pods/keep/app/upper/x").read_text() == "x\n"
    assert podrun("gc", "--check").returncode == 0


def test_gc_leaves_alone_what_lives(podrun: Podrun) -> None:
    other = Podrun(podrun.home)
    other.run = podrun.home / "other"
    other.environ["PODRUN_RUN"] = str(other.run)
    pod(other, "elsewhere")
    pod(podrun, "web")
    pod(podrun, "lost")
    before = on_disk(podrun)
    assert {"elsewhere/main", "web/main", "lost/main"} <= {*before}
    # Somebody has removed a pod's state while its container runs.
    pid = json.loads(podrun("inspect", "lost").stdout)["containers"][0]["pid"]
    (podrun.run / "pods/lost").rename(podrun.home / "aside")
    try:
        podrun("gc", check=True)
        assert on_disk(podrun) == before
    finally:
        (podrun.home / "aside").rename(podrun.run / "pods/lost")
        os.kill(pid, 0)
        for owner, name in ((other, "elsewhere"), (podrun, "web"), (podrun, "lost")):
            owner("down", name, check=True)
        other("gc", check=True)
    assert on_disk(podrun) == []


def test_a_pod_that_is_being_started_is_not_swept_and_one_that_persists_now_keeps_its_layer(podrun: Podrun) -> None:
    pod(podrun, "web", 'name = "app"')
    cut(podrun)
    pod(podrun, "web", 'name = "app", persist = true')
    podrun("down", "web", check=True)
    podrun("gc", check=True)
    assert on_disk(podrun) == ["web", "web/app"]
    assert not os.path.lexists(podrun.root / "pods/web/app/of")


def test_a_volume_removed_by_half_is_removed(podrun: Podrun) -> None:
    half = podrun.root / "volumes/.data.gone/data"
    half.mkdir(parents=True)
    (half / "x").touch()
    podrun("volume", "create", "data", check=True)
    assert podrun("gc", check=True).stdout == "storage: volume data, removed by half\n"
    assert [path.name for path in Path(podrun.root / "volumes").iterdir()] == ["data"]
