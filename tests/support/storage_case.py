"""A pod's storage steps on real file systems: its directories, what is left of it, and images of file systems."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from podrun.hook import Pod, Step
from podrun.host import tag
from podrun.options import read
from podrun_hooks import storage


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


class Place:
    """A pod's directories, and storage steps in them."""

    def __init__(self, home: Path) -> None:
        self.pod = Pod("web", str(home / "root"), str(home / "run"), tag("web", str(home / "run")))
        self.home = home
        os.makedirs(self.pod.directory, mode=0o700)

    def step(self, name: str = "storage", **table: object) -> Step:
        return Step(self.pod, "storage", name, read(storage.Options, {"target": "/data", **table}))

    def up(self, step: Step) -> Path:
        """What the containers are told to bind."""
        assert storage.check(step) == []
        return Path(storage.up(step, {})["mounts"][0]["hostPath"])

    def left(self) -> list[str]:
        """What is there of the pod: mounts, and files below its directories."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        found = [f"mount {line.split()[4]}" for line in lines if str(self.home) in line]
        for top in (self.pod.directory, self.pod.storage):
            found += [f"{where}/{name}" for where, names, files in os.walk(top) for name in (*names, *files)]
        return sorted(found)


def image_file(home: Path, kind: str) -> str:
    """A file system of one file, in a file."""
    path, content = home / f"{kind}.img", home / "content"
    content.mkdir(exist_ok=True)
    (content / "word").write_text(kind)
    make = {
        "ext4": ["mkfs.ext4", "-q", "-d", str(content), str(path), "8M"],
        "squashfs": ["mksquashfs", str(content), str(path), "-quiet", "-no-progress"],
        "erofs": ["mkfs.erofs", str(path), str(content)],
    }
    try:
        run(*make[kind])
    except FileNotFoundError:
        pytest.skip(f"{make[kind][0]} is not installed")
    return str(path)
