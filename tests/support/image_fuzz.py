"""Mutates images and unpacks them: whatever comes in, nothing outside is touched and only a Failure comes out.

By hand: ``python tests/support/image_fuzz.py ROUNDS [SEED]`` as root; a round that breaks a rule prints its seed and its bytes.
"""

from __future__ import annotations

import gzip
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from podrun.errors import CANNOT_CREATE, MALFORMED, UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks.image import commands
from podrun_hooks.image.store.scratch import remove
from support import image_builder as build
from support import image_samples as samples

#: What a mutated image may end with, apart from success.
CODES = {MALFORMED, UNAVAILABLE, WRONG_FILE, CANNOT_CREATE}

PARTS = [
    samples.BASE[:-1024],
    samples.CHANGE[:-1024],
    samples.IMPLICIT[:-1024],
    build.pax({b"path": b"long/" * 30 + b"name", b"mtime": b"1.5", b"SCHILY.xattr.user.a": b"1"})
    + build.file("x", b"1" * 700),
    build.pax({b"GNU.sparse.map": b"0,4,100,4", b"GNU.sparse.size": b"200"}) + build.file("sparse", b"12345678"),
    build.header(b"././@LongLink", b"L", 120) + build.padded(b"n" * 119 + b"\0") + build.file("short", b"1"),
    build.symlink("out", "../../outside") + build.file("out/file", b"evil") + build.symlink("abs", "/tmp"),
    build.file("out/.wh..wh..opq") + build.file(".wh.etc") + build.hardlink("h", "out/file"),
    build.header(b"dev", b"3", device=(1, 3)) + build.header(b"blk", b"4", device=(7, 0)),
]
#: Words that a mutation puts in: what the formats and the kernel treat in a special way.
WORDS = [
    b"..", b"../", b"/", b"//", b".wh.", b".wh..wh..opq", b"\0", b"\xff", b"-1", b"9" * 21, b"\x80" + b"\xff" * 11,
    b"/proc/self/root", b"/etc/passwd", b"trusted.overlay.opaque", b"security.capability", b"path=", b"linkpath=",
    b"size=", b"GNU.sparse.major", b"0", b"1", b"2", b"3", b"5", b"x", b"L", b"S", b"\n", b" ", b"=",
]  # fmt: skip


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The same bytes, changed in a few places."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randrange(len(data)) if data else 0
        how = chance.randrange(7)
        if how == 0 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif how == 1 and data:
            data[at] = chance.randrange(256)
        elif how == 2:
            word = chance.choice(WORDS)
            data[at : at + len(word)] = word
        elif how == 3:
            data[at:at] = chance.choice(WORDS)
        elif how == 4:
            del data[at : at + chance.choice((1, 100, 512))]
        elif how == 5:
            other = chance.randrange(len(data)) if data else 0
            size = chance.choice((1, 12, 512))
            data[at : at + size] = data[other : other + size]
        else:
            del data[at:]
    return bytes(data)


def _summed(content: bytes) -> bytes:
    """Corrects the checksum of what could be headers: else nearly every mutation ends there."""
    data = bytearray(content)
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def layer_round(place: Path, chance: random.Random) -> None:
    """Unpacks one mutated layer and looks whether it kept the rules."""
    content = build.tar(*chance.sample(PARTS, chance.randrange(1, len(PARTS))))
    how = chance.randrange(4)
    if how == 0:
        blob = mutated(gzip.compress(content, 1, mtime=0), chance)
    elif how == 1:
        blob = mutated(content, chance)
    else:
        blob = _summed(mutated(content, chance))
    target, scratch = place / "layer", place / "scratch"
    target.mkdir()
    scratch.mkdir()
    untouched = samples.outside(place)
    try:
        samples.unpack(place, blob, chance.choice((1, 2, 64)))
    except Failure as failure:
        assert failure.code in CODES, failure
        assert "\n" not in failure.what
    finally:
        assert samples.outside(place) == untouched
        _keeps_the_rules(target)
        remove(str(target))
        remove(str(scratch))


def _keeps_the_rules(target: Path) -> None:
    device = os.stat(target).st_dev
    for directory, _, names in os.walk(target):
        assert os.lstat(directory).st_dev == device
        for name in names:
            path = os.path.join(directory, name)
            for key in os.listxattr(path, follow_symlinks=False):
                assert not key.startswith(("trusted.overlay.", "user.overlay.")), path


def document_round(place: Path, chance: random.Random) -> None:
    """Imports a layout whose index, manifest or configuration is mutated, with the digests made to fit."""
    built = build.image(build.tar(PARTS[2]), Cmd=["/a"], Env=["A=1"])
    which = chance.randrange(3)
    path = str(place / "layout")
    if which == 0:
        build.layout(path, {"v1": built})
        index = Path(path, "index.json")
        index.write_bytes(mutated(index.read_bytes(), chance))
    else:
        config = mutated(built.config, chance) if which == 1 else built.config
        manifest = built.manifest.replace(build.digest(built.config).encode(), build.digest(config).encode())
        manifest = manifest.replace(b'"size": %d' % len(built.config), b'"size": %d' % len(config))
        manifest = mutated(manifest, chance) if which == 2 else manifest
        blobs = {**built.blobs, build.digest(config): config, build.digest(manifest): manifest}
        build.layout(path, {"v1": build.Built(blobs, manifest, config)})
    root = place / "root"
    try:
        commands.pull(str(root), f"oci:{path}:v1")
    except Failure as failure:
        assert failure.code in CODES, failure
        assert "\n" not in failure.what
        assert not {name for name in samples.visible(root) if name.startswith(("refs/", "tmp/", "locks/"))}
    finally:
        remove(path)
        remove(str(root))


def rounds(place: Path, count: int, seed: int, seconds: float = float("inf")) -> int:
    """Does up to ``count`` rounds, for ``seconds`` at most; returns how many. A broken rule is an AssertionError."""
    (place / "outside").mkdir(exist_ok=True)
    (place / "outside/file").write_text("untouched")
    until = time.monotonic() + seconds
    for number in range(count):
        if time.monotonic() > until:
            return number
        chance = random.Random(f"{seed}/{number}")
        try:
            (document_round if number % 8 == 0 else layer_round)(place, chance)
        except BaseException as error:
            error.add_note(f"round {number} of seed {seed}")
            raise
    return count


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
        print(f"seed {seed}")
        started = time.monotonic()
        done = rounds(Path(home), int(sys.argv[1]), seed)
        print(f"{done} rounds in {time.monotonic() - started:.1f} s, nothing broken")
