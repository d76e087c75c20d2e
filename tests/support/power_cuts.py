"""Power cuts while pods, images, volumes and records are made: after the journal's replay nothing is half visible.

The disk of a podrun is a file on btrfs. A clone of that file (FICLONE is atomic) is what the disk would hold if the power
went at this moment: what had been written back, and nothing of what was still in memory. Of each clone: everything is
whole, the pod starts again, and once it is down nothing is left of it.

By hand, in a mount namespace of its own: unshare -m python tests/support/power_cuts.py DIRECTORY CUTS [ext4|xfs|btrfs]...
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from podrun_hooks.image import commands
from support import image_builder as build
from support.image_power import Expected, check, mounted, run
from support.launcher import AsInstalled, Podrun

_FICLONE = 0x40049409
APPLETS = ("sh", "sleep", "cat", "true")
#: What makes a file system, with everything written at once; 300 MB is the least that XFS takes.
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}

POD = """
[pod]
reload = "swap"

[[chain]]
hook = "image"
ref = "{ref}"

[[chain]]
hook = "storage"
source = "volume:site"
target = "/www"

[[chain]]
hook = "network"

[[chain]]
hook = "container"
command = ["sh", "-c", "echo x >/x; exec sleep 1000"]
stop_signal = "KILL"

[[chain]]
hook = "register"
service = "web"
port = 80
registry = "file:{registry}"
"""


def sample(home: Path) -> Expected:
    """An image with a shell, files for a volume, and some more."""
    chance = random.Random(5)
    busybox = build.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    links = [build.symlink(f"bin/{name}", "busybox") for name in APPLETS]
    layers = [
        build.tar(build.directory("bin"), build.directory("tmp"), busybox, *links),
        build.tar(*[build.file(f"www/{n}", SITE[str(n)].encode()) for n in range(len(SITE))]),
        build.tar(*[build.file(f"more/{n}", chance.randbytes(chance.choice((0, 700, 9000)))) for n in range(300)]),
        build.tar(build.file("large", chance.randbytes(3 << 20))),
    ]
    built = build.image(*layers)
    ref = f"oci:{build.layout(str(home / 'layout'), {'v1': built})}:v1"
    found = commands.pull(str(home / "whole"), ref)
    return Expected(ref, built.digest, {os.path.basename(path): build.tree(path) for path in found.layers})


#: What the image has in /www.
SITE = {str(n): f"page {n}\n" * (n % 50) for n in range(200)}


def podrun_of(home: Path, disk: Path) -> Podrun:
    """A podrun with its store on the disk and its state in memory, as on a host."""
    own = AsInstalled(home)
    own.root = disk / "root"
    own.environ |= {"PODRUN_ROOT": str(own.root)}
    return own


def work(own: Podrun, disk: Path, expected: Expected) -> None:
    """Everything that writes to the disk, one after the other."""
    path = own.file("web", POD.format(ref=expected.ref, registry=disk / "registry"))
    (disk / "registry").mkdir(exist_ok=True, mode=0o755)
    own("image", "pull", expected.ref, check=True)
    own("volume", "create", "data", check=True)
    own("up", "-d", path, check=True)
    for _ in range(2):
        own("reload", path, check=True)
    own("down", "web", check=True)
    own("volume", "rm", "data", check=True)
    own("up", "-d", path, check=True)


def cuts(disk: Path, place: Path, own: Podrun, expected: Expected, count: int, chance: random.Random) -> Iterator[Path]:
    """Clones the disk at random moments of the work, which takes ``seconds`` the first time."""
    number = 0
    with mounted(disk, place):
        run("sync", "-f", str(place))
        child = os.fork()
        if child == 0:
            try:
                work(own, place, expected)
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(chance.uniform(0, 0.3))
            with open(disk, "rb") as source, open(disk.with_name(f"cut-{number}.img"), "wb") as target:
                fcntl.ioctl(target, _FICLONE, source.fileno())
            number += 1
        own("down", "--force", "web")
        own("gc", check=True)
    yield from (disk.with_name(f"cut-{n}.img") for n in chance.sample(range(number), min(number, count)))


def state_of(disk: Path, own: Podrun, expected: Expected) -> str:
    """Looks at what a power cut has left, and goes on from there; how far it had come."""
    root = disk / "root"
    state = check(root, expected) if (root / "images").exists() else "no store"
    volume = root / "volumes/site"
    if (volume / "data").exists() and not (volume / "new").exists():
        found = {path.name: path.read_text() for path in (volume / "data").iterdir()}
        assert found == SITE, f"the volume has {len(found)} of {len(SITE)} files and counts as filled"
        state += ", volume"
    records = [path for path in disk.glob("registry/**/*") if path.is_file() and not path.name.startswith(".")]
    for record in records:
        json.loads(record.read_text() or "{}") if record.suffix == ".json" else None
    state += ", record" if records else ""
    state += ", layer" if list(root.glob("pods/*/*/of")) else ""
    own("gc", check=True)
    assert not list(root.glob("pods/*")), [str(path) for path in root.glob("pods/*/*")]
    path = own.file("web", POD.format(ref=expected.ref, registry=disk / "registry"))
    (disk / "registry").mkdir(exist_ok=True, mode=0o755)
    own("up", "-d", path, check=True)
    pages = own("exec", "web", "cat", "/www/199", check=True).stdout
    assert pages == SITE["199"]
    told = own("registry", "get", "--registry", f"file:{disk}/registry", "web", "--format", "json", check=True).stdout
    assert len(told.splitlines()) == 1, told
    own("down", "web", check=True)
    own("gc", check=True)
    assert check(root, expected) == "stored"
    assert not list(root.glob("pods/*")) and not list(root.glob("volumes/.*"))
    return state


def rounds(home: Path, kind: str, count: int) -> dict[str, int]:
    """Looks at ``count`` cuts; how many of them came how far."""
    chance = random.Random(8)
    expected = sample(home)
    run("truncate", "-s", "6G", str(home / "outer.img"))
    run("mkfs.btrfs", "-q", str(home / "outer.img"))
    seen: dict[str, int] = {}
    with mounted(home / "outer.img", home / "outer") as outer:
        disk = outer / "disk.img"
        while sum(seen.values()) < count:
            disk.unlink(missing_ok=True)
            run("truncate", "-s", "400M", str(disk))
            run(*MAKE[kind], str(disk))
            before = podrun_of(home, home / "disk")
            made = list(cuts(disk, home / "disk", before, expected, count - sum(seen.values()), chance))
            shutil.rmtree(home / "run")
            for cut in made:
                with mounted(cut, home / "after") as after:
                    # /run is empty after a power cut, and has the name that it had.
                    state = state_of(after, podrun_of(home, after), expected)
                shutil.rmtree(home / "run")
                seen[state] = seen.get(state, 0) + 1
            for cut in outer.glob("cut-*.img"):
                cut.unlink()
    return seen


def main() -> None:
    home, count = Path(sys.argv[1]), int(sys.argv[2])
    for kind in sys.argv[3:] or list(MAKE):
        place = home / kind
        place.mkdir()
        began = time.monotonic()
        seen = rounds(place, kind, count)
        words = ", ".join(f"{number} with {state}" for state, number in sorted(seen.items()))
        print(f"{kind}: {sum(seen.values())} cuts in {time.monotonic() - began:.0f} s: {words}", flush=True)


if __name__ == "__main__":
    main()
