"""Two processes that unpack one layer: what comes out is what one process would have made."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from podrun.errors import CANNOT_CREATE, MALFORMED, Failure
from podrun_hooks.image.layer import extract, small_files
from podrun_hooks.image.layer.small_files import UNCHANGED, SmallFiles
from podrun_hooks.image.layer.stream import Reader
from support import image_builder as build
from support.image_samples import place, small_disk, unpack
from support.waiting import gone, until

__all__ = ["place", "small_disk"]

pytestmark = pytest.mark.root


@pytest.fixture
def both() -> Iterator[SmallFiles]:
    with closing(SmallFiles(2)) as made:
        yield made


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def make(both: SmallFiles, parent: int, name: bytes, content: bytes = b"x") -> None:
    both.make(parent, (1, name), content, 0o644, UNCHANGED, UNCHANGED, UNCHANGED, 0)


#: Names that lead to one another: the same file under several paths, directories behind symlinks.
NAMES = ["a", "b", "d/a", "d/b", "l/a", "l/b", "d/e/a", "l/e/a", "m/a", "d", "l", "m", "d/e", "a/x", "b/"]


def archive(chance: random.Random) -> bytes:
    """An archive that says different things about a few names, in any order."""
    parts = []
    for number in range(chance.randrange(3, 40)):
        name = chance.choice(NAMES)
        head, _, last = name.rpartition("/")
        kind = chance.randrange(12)
        if kind < 6:
            content = b"%d" % number * chance.choice((0, 1, 1000, 40_000))
            mode = chance.choice((0o644, 0o644, 0o4755, 0o600))
            parts.append(build.file(name, content, mode=mode, uid=chance.choice((0, 0, 7)), mtime=number))
        elif kind < 8:
            mode = chance.choice((0o755, 0o755, 0o2775, 0o700))
            parts.append(build.directory(name, mode, gid=chance.choice((0, 0, 9))))
        elif kind == 8:
            parts.append(build.symlink(name, chance.choice(("d", "../d", "/d/e", "a", "nowhere"))))
        elif kind == 9:
            parts.append(build.hardlink(name, chance.choice(NAMES)))
        elif kind == 10:
            parts.append(build.file(f"{head}/.wh.{last}".lstrip("/") if last else ".wh.b"))
        else:
            parts.append(build.header(name.encode(), b"6"))
    return build.tar(build.directory("d"), build.symlink("l", "d"), *parts)


@pytest.mark.parametrize("known", [3, small_files._KNOWN])
def test_names_that_are_used_again_come_out_as_from_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    monkeypatch.setattr(small_files, "_KNOWN", known)
    whole = 0
    for seed in range(400):
        chance = random.Random(seed)
        home = tmp_path / str(seed)
        for name in ("layer", "scratch"):
            (home / name).mkdir(parents=True)
        try:
            # It unpacks with one process too, and compares.
            unpack(home, archive(chance), chance.choice((1, 2, 5, 64)))
            whole += 1
        except Failure as failure:
            assert failure.code == MALFORMED
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
    assert whole > 50


FIRST = build.file("d/a", b"first", mode=0o600)


@pytest.mark.parametrize(
    "after",
    [
        build.file("d/a", b"second"),
        build.file("l/a", b"second"),
        build.file("d/a", b"x" * 100_000),
        build.hardlink("hard", "d/a"),
        build.hardlink("hard", "l/a"),
        build.hardlink("d/a", "before"),
        build.symlink("d/a", "before"),
        build.directory("l/a"),
        build.header(b"d/a", b"6"),
        build.file("d/.wh.a"),
    ],
)
def test_what_is_said_after_a_file_finds_it_made(place: Path, after: bytes) -> None:
    # None of them fills a batch: the first file is made when somebody needs it.
    parts = [build.directory("d"), build.symlink("l", "d"), build.header(b"before", b"6"), FIRST, after]
    unpack(place, build.tar(*parts), most=64)


@pytest.mark.parametrize("size", [256, 100_000, 150_000])
@pytest.mark.parametrize("before", [0, 40])
def test_a_name_that_no_file_system_takes_is_told_as_that(place: Path, size: int, before: int) -> None:
    files = [build.file(f"f{number}", b"x" * 900) for number in range(before)]
    long = build.pax({b"path": b"n" * size}) + build.file("x", b"1")
    with pytest.raises(Failure, match="File name too long") as caught:
        unpack(place, build.tar(*files, long), most=64)
    assert caught.value.code == MALFORMED


def test_a_file_that_cannot_be_made_below_a_path_too_long_to_say_is_told(tmp_path: Path, both: SmallFiles) -> None:
    parent = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=parent)
        below = os.open("d" * 200, os.O_PATH | os.O_DIRECTORY, dir_fd=parent)
        os.close(parent)
        parent = below
    os.mkdir("there", dir_fd=parent)
    make(both, parent, b"there")
    with pytest.raises(FileExistsError) as caught:
        both.wait()
    os.close(parent)
    assert caught.value.filename == "there"


@pytest.mark.parametrize("after", [build.file("d/a/x"), build.hardlink("l/a/x", "before"), build.directory("d/a/b/c")])
def test_a_file_that_is_still_to_be_made_is_no_directory(place: Path, after: bytes) -> None:
    with pytest.raises(Failure) as caught:
        unpack(place, build.tar(build.symlink("l", "d"), build.file("before"), FIRST, after), most=64)
    assert caught.value.code == MALFORMED


def test_a_directory_that_gets_a_group_later_hands_it_to_no_file_that_came_before(place: Path) -> None:
    files = [build.file(f"d/f{number}", b"x" * 5000, mode=0o640) for number in range(40)]
    unpack(place, build.tar(*files, build.directory("d", 0o2775, gid=50), build.file("d/after", b"x")), most=8)
    groups = {status.name: status.stat().st_gid for status in os.scandir(place / "layer/d")}
    assert set(groups.values()) == {0}
    assert len(groups) == 41


def test_most_files_are_the_second_processs_when_it_has_time(place: Path) -> None:
    content = build.tar(*[build.file(f"d{number % 7}/f{number}", b"x" * 900) for number in range(3000)])
    before = os.times()
    with closing(SmallFiles()) as both:
        extract.extract(Reader(iter([content]), "layer"), str(place / "layer"), str(place / "scratch"), both)
    assert os.times().children_system > before.children_system
    assert len(build.tree(str(place / "layer"))) == 3007


# --- what goes wrong


@pytest.mark.parametrize("stopped", [False, True])
def test_a_file_that_the_second_process_cannot_make_is_named(
    tmp_path: Path, parent: int, both: SmallFiles, stopped: bool
) -> None:
    (tmp_path / "there").write_text("mine")
    # It has more to read when it fails, or less.
    os.kill(both.child, signal.SIGSTOP if stopped else signal.SIGCONT)
    make(both, parent, b"new")
    make(both, parent, b"there")
    with pytest.raises(FileExistsError) as caught:
        for number in range(10):
            make(both, parent, b"more%d" % number)
        os.kill(both.child, signal.SIGCONT)
        until(lambda: gone(both.child))
        both.wait()
    assert caught.value.filename == str(tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"
    assert (tmp_path / "new").read_text() == "x"


@pytest.mark.parametrize("size", [3000, 30_000])
def test_a_full_disk_is_told_with_the_file_that_did_not_fit(place: Path, small_disk: Path, size: int) -> None:
    for name in ("layer", "scratch"):
        (small_disk / name).mkdir()
    content = build.tar(*[build.file(f"some/file{number}", os.urandom(size)) for number in range(400)])
    with closing(SmallFiles()) as both, pytest.raises(Failure, match=r"unpacking some/file\d+: ") as caught:
        extract.extract(Reader(iter([content]), "layer"), str(small_disk / "layer"), str(small_disk / "scratch"), both)
    assert caught.value.code == CANNOT_CREATE
    assert os.strerror(errno.ENOSPC) in caught.value.what


def test_a_second_process_that_somebody_kills_is_told_as_that(tmp_path: Path, parent: int, both: SmallFiles) -> None:
    make(both, parent, b"a")
    both.wait()
    os.kill(both.child, signal.SIGKILL)
    until(lambda: gone(both.child))
    with pytest.raises(Failure, match="was killed") as caught:
        for number in range(1000):
            make(both, parent, b"f%d" % number)
        both.wait()
    assert "memory" in caught.value.hint


def test_the_second_process_ends_with_the_first_one(tmp_path: Path) -> None:
    told, tell = os.pipe()
    first = os.fork()
    if not first:
        try:
            os.write(tell, b"%d" % SmallFiles().child)
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    second = int(os.read(told, 100))
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    # It had the pipe open too.
    assert os.read(told, 1) == b""
    os.close(told)
    assert not Path(f"/proc/{second}/exe").exists()


def test_what_does_not_fit_into_a_message_any_more_is_made_by_the_first_process(
    tmp_path: Path, parent: int, both: SmallFiles
) -> None:
    os.kill(both.child, signal.SIGSTOP)
    try:
        for number in range(2000):
            make(both, parent, b"f%d" % number, b"x" * 3000)
        made = len(os.listdir(tmp_path))
        assert 1000 < made < 2000
    finally:
        os.kill(both.child, signal.SIGCONT)
    both.wait()
    assert len(os.listdir(tmp_path)) == 2000
