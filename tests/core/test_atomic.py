"""Files that are replaced: seen whole at every moment, and nothing left beside them by a writer that fails or is killed."""

from __future__ import annotations

import errno
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun import atomic
from podrun.podfile import cache
from podrun.systemd import exit_records
from podrun_hooks.registry import file as registry
from podrun_hooks.registry import wishes
from podrun_hooks.storage import secrets
from support.launcher import Podrun


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0o027)
    yield tmp_path
    os.umask(before)


@pytest.mark.parametrize("dir_fd", [False, True], ids=["by path", "by descriptor"])
@pytest.mark.parametrize(
    ("content", "mode", "sync", "wanted"),
    [
        ("text é", 0o600, False, 0o600),
        (b"\0bytes", 0o644, True, 0o644),
        ("", 0o755, False, 0o755),
        (lambda fd: os.write(fd, b"written"), None, True, 0o640),
    ],
    ids=["text", "bytes", "nothing", "a callable"],
)
@pytest.mark.parametrize("left", [None, b"longer than what is written now"], ids=["alone", "after a kill"])
def test_a_file_has_its_new_content_and_mode_and_nothing_is_beside_it(
    directory: Path, content: Any, mode: int | None, sync: bool, wanted: int, left: bytes | None, dir_fd: bool
) -> None:
    (directory / "file").write_text("before")
    if left:
        (directory / ".file.new").write_bytes(left)
        (directory / ".file.new").chmod(0o666)
    if dir_fd:
        fd = os.open(directory, os.O_RDONLY)
        atomic.replace("file", content, mode, dir_fd=fd, sync=sync)
        os.close(fd)
    else:
        atomic.replace(f"{directory}/file", content, mode, sync=sync)
    expected = b"written" if callable(content) else content.encode() if isinstance(content, str) else content
    assert (directory / "file").read_bytes() == expected
    assert (directory / "file").stat().st_mode & 0o7777 == wanted
    assert os.listdir(directory) == ["file"]


def test_a_directory_that_others_remove_meanwhile_is_made_again(directory: Path) -> None:
    """As of a service in the file registry: whoever takes its last record away removes the directory, too."""
    path = f"{directory}/service/record"

    def remove_all_the_time() -> None:
        while True:
            try:
                os.rmdir(f"{directory}/service")
            except OSError:
                time.sleep(0.0002)

    child = forked(remove_all_the_time)
    try:
        for number in range(200):
            atomic.replace(path, f"{number}", parents=0o755)
            assert atomic.remove(path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _full(fd: int) -> None:
    os.write(fd, b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _elsewhere(fd: int) -> None:
    raise FileNotFoundError(errno.ENOENT, "not there", "/elsewhere")


def _stopped(fd: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("write", "kind", "about"),
    [
        (_full, OSError, "{directory}/file"),
        (_elsewhere, FileNotFoundError, "/elsewhere"),
        (_stopped, KeyboardInterrupt, None),
    ],
)
def test_what_fails_leaves_the_file_as_it_was_and_the_error_names_it(
    directory: Path, write: Callable[[int], None], kind: type[BaseException], about: str | None
) -> None:
    (directory / "file").write_text("before")
    with pytest.raises(kind) as failed:
        atomic.replace(f"{directory}/file", write)
    assert getattr(failed.value, "filename", None) == (about and about.format(directory=directory))
    assert (directory / "file").read_text() == "before"
    assert os.listdir(directory) == ["file"]


@pytest.mark.parametrize(
    ("path", "number"),
    [("no/file", errno.ENOENT), ("directory", errno.EISDIR), ("linked", errno.ELOOP)],
)
def test_an_error_of_the_kernel_names_the_file(directory: Path, path: str, number: int) -> None:
    (directory / "directory/inner").mkdir(parents=True)
    (directory / "victim").write_text("theirs")
    (directory / ".linked.new").symlink_to("victim")
    with pytest.raises(OSError) as failed:
        atomic.replace(f"{directory}/{path}", "text")
    assert (failed.value.errno, failed.value.filename) == (number, f"{directory}/{path}")
    assert (directory / "victim").read_text() == "theirs"
    assert not (directory / ".directory.new").exists()


def forked(work: Callable[[], object]) -> int:
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_several_writers_of_a_file_each_write_all_of_it(directory: Path) -> None:
    path = f"{directory}/file"
    contents = {bytes([65 + number]) * 70_000 for number in range(4)}
    atomic.replace(path, min(contents))

    def write(content: bytes) -> None:
        for _ in range(40):
            atomic.replace(path, content)

    left = {forked(functools.partial(write, content)) for content in contents}
    while left:
        assert Path(path).read_bytes() in contents
        left -= {child for child in left if os.waitpid(child, os.WNOHANG)[0]}
    assert os.listdir(directory) == ["file"]


def test_what_is_being_written_is_neither_swept_nor_written_by_another(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_ATTEMPTS", 3)
    child = forked(lambda: atomic.replace(f"{directory}/file", lambda fd: (os.write(fd, b"x"), time.sleep(60))))
    try:
        while not (directory / ".file.new").exists() or not (directory / ".file.new").stat().st_size:
            time.sleep(0.01)
        assert atomic.sweep(str(directory)) == []
        with pytest.raises(OSError, match="another process is writing it") as failed:
            atomic.replace(f"{directory}/file", "mine")
        assert failed.value.errno == errno.EBUSY
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.listdir(directory) == [".file.new"]
    assert atomic.sweep(str(directory)) == [f"{directory}/.file.new"]
    assert os.listdir(directory) == []


#: Where a killed podrun may leave an unfinished file, and what takes it away; ``gc`` does it for all of them.
UNDONE: dict[str, Callable[[str], object]] = {
    "run/units/web.json": lambda top: exit_records.forget_start(f"{top}/run", "web"),
    "run/units/web.key.credential": lambda top: exit_records.forget_start(f"{top}/run", "web"),
    "run/ended/web.app": lambda top: exit_records.drop(f"{top}/run", "web", "app"),
    "run/requests/web.json": lambda top: atomic.sweep(f"{top}/run/requests"),
    "run/parsed/0123": lambda top: cache.forget(f"{top}/run/parsed"),
    "run/follow/web.db.json": lambda top: wishes.remove(f"{top}/run", "web", "db"),
    "run/registry/web/web@host.json": lambda top: registry.delete(f"{top}/run/registry", "web", "web@host"),
    "root/secrets/key.plain": lambda top: secrets.create(f"{top}/root", "key", b"x", replace=True),
    "root/seccomp/0123.bpf": lambda top: atomic.sweep(f"{top}/root/seccomp"),
    "root/history/web": lambda top: atomic.sweep(f"{top}/root/history"),
}


def _left(top: Path, path: str) -> Path:
    file = top / path
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.new")
    unfinished.write_text("half")
    return unfinished


@pytest.mark.parametrize("path", UNDONE)
def test_the_unfinished_file_of_a_killed_podrun_goes_when_what_it_was_for_goes(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "_PATH", ())
    unfinished = _left(tmp_path, path)
    UNDONE[path](str(tmp_path))
    assert not unfinished.exists()


@pytest.mark.root
def test_gc_removes_every_unfinished_file(podrun: Podrun) -> None:
    for name in ("root", "run"):
        (podrun.home / name).mkdir(mode=0o755, exist_ok=True)
    left = [_left(podrun.home, path) for path in (*UNDONE, "run/network/.before4", "run/network/podrun0/base")]
    podrun("gc", check=True)
    assert [path for path in left if path.exists()] == []
