"""Power cuts: what is on the disk at any moment of a pull is, after the journal's replay, a store without a lie in it.

The store is on an ext4 whose disk is a file. A clone of that file (FICLONE is atomic) is what the disk would hold if the
power went at this moment: what had been written back, and nothing of what was still in memory.

By hand, in a mount namespace of its own: unshare -m python tests/support/image_power.py DIRECTORY CUTS
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from podrun_hooks.image import commands, reference
from podrun_hooks.image.store import layout
from support import image_builder as build
from support.image_samples import visible

HERE = Path(__file__).parents[1]
_FICLONE = 0x40049409
PULL = """
import sys
from podrun_hooks.image import commands
commands.pull(sys.argv[1], sys.argv[2])
"""


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", "-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        # The kernel gives up the loop device of a file system within this one a little after its umount.
        end = time.monotonic() + 20
        while subprocess.run(["umount", str(place)], capture_output=True).returncode and time.monotonic() < end:
            time.sleep(0.05)
        assert not place.is_mount()


class Expected(NamedTuple):
    """What a whole store of the image has: a tree for every layer."""

    ref: str
    digest: str
    layers: dict[str, dict[str, tuple[object, ...]]]


def sample(tmp_path: Path) -> Expected:
    chance = random.Random(5)
    layers = [
        build.tar(
            *[
                build.file(f"l{layer}/d{n % 20}/f{n}", chance.randbytes(chance.choice((0, 700, 9000))))
                for n in range(400)
            ],
            build.file(f"l{layer}/large", chance.randbytes(3 << 20)),
        )
        for layer in range(4)
    ]
    built = build.image(*layers)
    ref = f"oci:{build.layout(str(tmp_path / 'layout'), {'v1': built})}:v1"
    found = commands.pull(str(tmp_path / "whole"), ref)
    return Expected(ref, built.digest, {os.path.basename(path): build.tree(path) for path in found.layers})


def cuts_of_a_pull(disk: Path, place: Path, expected: Expected, chance: random.Random) -> Iterator[Path]:
    """Pulls, and clones the disk meanwhile and a little afterwards."""
    with mounted(disk, place):
        run("sync", "-f", str(place))
        environ = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}"}
        argv = [sys.executable, "-c", PULL, str(place / "root"), expected.ref]
        process = subprocess.Popen(argv, env=environ, stderr=subprocess.PIPE, text=True)
        number = after = 0
        while after < 2:
            after += process.poll() is not None
            time.sleep(chance.uniform(0, 0.06))
            cut = disk.with_name(f"cut-{number}.img")
            with open(disk, "rb") as source, open(cut, "wb") as target:
                fcntl.ioctl(target, _FICLONE, source.fileno())
            number += 1
        assert process.communicate()[1] == ""
    yield from (disk.with_name(f"cut-{n}.img") for n in range(number))


def check(root: Path, expected: Expected) -> str:
    """Everything visible is whole; returns how far the pull had come."""
    names = visible(root)
    for name in names:
        path = root / "images" / name
        if name.startswith("blobs/"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        elif name.startswith("layers/") and not name.endswith(".json") and f"{name}.json" in names:
            json.loads(Path(f"{path}.json").read_text())
            assert build.tree(str(path)) == expected.layers[path.name], f"{name} is not what it should be"
    if (root / "images/index.json").exists():
        for item in json.loads((root / "images/index.json").read_text())["manifests"]:
            assert f"blobs/sha256/{item['digest'][7:]}" in names
    named = reference.parse(expected.ref)
    stored = layout.stored(str(root), named.text)
    if stored:
        assert stored.digest == expected.digest
        assert len([name for name in names if name.startswith("blobs/")]) == 6
        return "stored"
    layers = [name for name in names if name.startswith("layers/") and not name.endswith(".json")]
    return f"{len(layers)} layers" if layers else "no layer"


def rounds(place: Path, count: int) -> dict[str, int]:
    """Looks at ``count`` cuts at least; how many of them came how far."""
    chance = random.Random(8)
    expected = sample(place)
    run("truncate", "-s", "2G", str(place / "outer.img"))
    run("mkfs.btrfs", "-q", str(place / "outer.img"))
    seen: dict[str, int] = {}
    with mounted(place / "outer.img", place / "outer") as outer:
        disk = outer / "disk.img"
        while sum(seen.values()) < count:
            run("truncate", "-s", "0", str(disk))
            run("truncate", "-s", "160M", str(disk))
            run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(disk))
            cuts = list(cuts_of_a_pull(disk, place / "disk", expected, chance))
            for cut in chance.sample(cuts, min(len(cuts), count)):
                with mounted(cut, place / "after") as after:
                    state = check(after / "root", expected)
                    seen[state] = seen.get(state, 0) + 1
                    assert commands.pull(str(after / "root"), expected.ref).digest == expected.digest
                    assert check(after / "root", expected) == "stored"
                    left = {name for name in visible(after / "root") if name.startswith(("tmp/", "locks/"))}
                    assert not left
            for cut in cuts:
                cut.unlink()
    return seen


if __name__ == "__main__":
    for state, number in sorted(rounds(Path(sys.argv[1]), int(sys.argv[2])).items()):
        print(f"{number} cuts with {state}")
