"""What the tests of the image hook share: an image of three layers, steps, and a look into the store."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import MALFORMED, Failure
from podrun.hook import Pod, Step
from podrun_hooks import image as hook
from podrun_hooks.image.layer import extract, stream
from podrun_hooks.image.layer.extract import Summary
from podrun_hooks.image.layer.small_files import SmallFiles
from podrun_hooks.image.store.scratch import remove
from podrun_hooks.support import syscalls
from support import image_builder as build


def step(root: Path, ref: str, **options: Any) -> Step:
    pod = Pod(name="t", root=str(root), run=str(root.parent / "run"))
    return Step(
        pod, "image", "image", hook.Options(ref=ref, **{"pull": "missing", "platform": "", "verify": None, **options})
    )


def nothing() -> set[str]:
    return set()


def visible(root: Path) -> set[str]:
    """Every file of the store but locks and those within layers."""
    found: set[str] = set()
    for directory in ("blobs/sha256", "layers", "refs", "tmp", "locks"):
        if (root / "images" / directory).is_dir():
            found |= {f"{directory}/{name}" for name in os.listdir(root / "images" / directory)}
    return found


BASE = build.tar(
    build.directory("etc/"),
    build.file("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
    build.file("etc/gone", b"gone"),
    build.directory("tmp/", 0o1777),
    build.directory("opt/", 0o750, uid=5, gid=6),
    build.file("opt/old", b"old"),
    build.directory("usr/"),
    build.directory("usr/lib/"),
    build.file("usr/lib/lib.so", b"\x7fELF" * 1000, mode=0o755),
    build.hardlink("usr/lib/lib.so.1", "usr/lib/lib.so"),
    build.symlink("lib", "usr/lib"),
    build.directory("swap/"),
    build.file("swap/inner", b"x"),
    build.header(b"fifo", b"6", mode=0o644),
)
CHANGE = build.tar(
    build.directory("etc/"),
    build.file("etc/.wh.gone"),
    build.file("etc/new", b"new", mode=0o640, uid=1, gid=2),
    build.directory("opt/", 0o755),
    build.file("opt/.wh..wh..opq"),
    build.file("opt/fresh", b"fresh"),
    build.symlink("swap", "opt"),
    build.file("usr/lib/setuid", b"s", mode=0o4755),
)
IMPLICIT = build.tar(build.file("tmp/added", b"1"), build.file("opt/sub/added", b"2"), build.file("etc/a/b/c", b"3"))


def layered_image(place: Path) -> tuple[str, build.Built]:
    """An image of three layers, "v1" in the layout whose path is returned."""
    built = build.image(BASE, CHANGE, IMPLICIT, Cmd=["/bin/app"], Env=["A=1"])
    return build.layout(str(place / "layout"), {"v1": built}), built


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A layer directory, a scratch one, and beside them what must not be touched."""
    (tmp_path / "layer").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("untouched")
    yield tmp_path
    remove(str(tmp_path / "layer"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for very little."""
    path = tmp_path / "disk"
    path.mkdir()
    syscalls.mount("tmpfs", str(path), "tmpfs", 0, "size=256k")
    yield path
    syscalls.umount(str(path))


def unpack(place: Path, content: bytes, most: int = 2) -> Summary:
    """Unpacks a layer with a second process, which makes ``most`` files at once; without one it comes out the same."""
    alone = place / "scratch/alone"
    (alone / "scratch").mkdir(parents=True)
    (alone / "layer").mkdir()
    fresh = not os.listdir(place / "layer")
    try:
        expected = _outcome(alone, content, None)
        with closing(SmallFiles(most)) as small:
            found = _outcome(place, content, small)
        if isinstance(expected, Failure) or isinstance(found, Failure):
            assert str(getattr(found, "code", found)) == str(getattr(expected, "code", expected))
        elif fresh:
            assert found == expected
            try:
                assert build.tree(str(place / "layer")) == build.tree(str(alone / "layer"))
            except OSError as error:
                # Some are nested deeper than a path can name.
                if error.errno != errno.ENAMETOOLONG:
                    raise
    finally:
        remove(str(alone))
    if isinstance(found, Failure):
        raise found
    return found


def _outcome(place: Path, content: bytes, small: SmallFiles | None) -> Summary | Failure:
    chunks = iter([content[at : at + 1000] for at in range(0, len(content), 1000)])
    reader = stream.Reader(stream.decompressed(chunks, "layer"), "layer")
    try:
        found = extract.extract(reader, str(place / "layer"), str(place / "scratch"), small)
        reader.drain()
        return found
    except Failure as failure:
        return failure


def refused(place: Path, content: bytes) -> str:
    with pytest.raises(Failure) as caught:
        unpack(place, content)
    assert caught.value.code == MALFORMED, caught.value
    assert "\n" not in caught.value.what
    return caught.value.what


def outside(place: Path) -> dict[str, tuple[object, ...]]:
    """All that a layer could have touched: what is beside it, and the names that hostile archives aim at."""
    found = {f"outside/{name}": what for name, what in build.tree(str(place / "outside")).items()}
    for name in ("/podrun-escaped", "/tmp/podrun-escaped", "/etc/podrun-escaped"):
        found[name] = (os.path.lexists(name),)
    found["beside"] = tuple(sorted(os.listdir(place)))
    return found
