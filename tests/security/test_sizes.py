"""Nothing foreign keeps podrun waiting without end, or fills its memory: each has a deadline and a size."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks.container.probes import prober
from podrun_hooks.image import commands, reference
from podrun_hooks.image.registry import head, http
from podrun_hooks.image.trust import signatures
from podrun_hooks.support import subprocesses
from support import image_builder as build

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", ["oci:", "oci-archive:", "docker-archive:", "a blob", "import of a layout"])
def test_a_fifo_in_the_place_of_a_file_is_told_at_once(tmp_path: Path, kind: str) -> None:
    image = build.image(build.tar(build.file("a", os.urandom(9))))
    layout = tmp_path / "layout"
    build.layout(str(layout), {"web": image})
    fifo = layout / "index.json" if "layout" in kind or kind == "oci:" else tmp_path / "fifo"
    if kind == "a blob":
        [fifo] = [
            layout / "blobs/sha256" / digest[7:]
            for digest in image.blobs
            if digest not in (image.digest, build.digest(image.config))
        ]
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    began = time.monotonic()
    with pytest.raises(Failure, match="not a plain file") as caught:
        if kind.startswith("import"):
            commands.import_(str(tmp_path / "root"), str(layout))
        else:
            ref = f"oci:{layout}:web" if kind in ("oci:", "a blob") else f"{kind}{fifo}"
            commands.pull(str(tmp_path / "root"), ref)
    assert caught.value.code == WRONG_FILE
    assert time.monotonic() - began < 10


def test_a_pipe_that_brings_nothing_is_waited_for_so_long_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_SILENCE", 0.3)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Failure, match="nothing has come"):
        commands.import_(str(tmp_path / "root"), str(tmp_path / "fifo"))


def test_a_fifo_in_the_place_of_a_signature_is_no_signature(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "signature-1")
    assert signatures._read(f"file://{tmp_path}/signature-1", reference.parse("a.example/web")) == b""


@pytest.fixture
def dripping() -> Iterator[str]:
    """A registry that sends a byte of a header's line now and then, and never ends it."""
    server = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not stop.wait(0.05):
                connection.sendall(b"x")
        except OSError:
            pass

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    stop.set()
    server.close()


def test_a_registry_that_drips_keeps_nobody_waiting(
    tmp_path: Path, dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_TIMEOUT", 0.5)
    monkeypatch.setattr(http, "SILENCE", 0.5)
    began = time.monotonic()
    assert head.digest(reference.parse(f"{dripping}/web")) == ""
    assert time.monotonic() - began < 3
    with pytest.raises(Failure) as caught:
        commands.pull(str(tmp_path / "root"), f"{dripping}/web")
    assert caught.value.code == UNAVAILABLE
    assert time.monotonic() - began < 30


FLOOD = ["/bin/sh", "-c", "timeout 1.5 yes; echo the end >&2; exit 3"]


def shared_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Shmem:"))) >> 10


@pytest.mark.parametrize("who", ["a live probe", "a program"])
def test_what_a_command_writes_without_end_is_forgotten_but_its_last_words(who: str) -> None:
    most, done, before = [0], threading.Event(), shared_memory()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], shared_memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        if who == "a program":
            ended = subprocesses.run(FLOOD)
            assert (ended.status, ended.errors) == (3, "the end")
        else:
            life = os.pidfd_open(os.getpid())
            assert prober.run(FLOOD, 20, life) == "status 3 (the end)"
            os.close(life)
    finally:
        done.set()
        watcher.join()
    assert most[0] < 1000, f"{most[0]} MiB"


def test_a_program_that_is_quiet_is_heard_whole() -> None:
    ended = subprocesses.run(["/bin/sh", "-c", "head -c 900000 /dev/zero | tr '\\0' x; sleep 0.3; echo; echo y"])
    assert ended.output == "x" * 900_000 + "\ny"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
