"""The processes that a pull works with: they end with it, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import CANNOT_CREATE, INTERNAL, Failure
from podrun_hooks.image import commands
from podrun_hooks.image.layer import workers
from support import image_builder as build
from support.image_samples import visible
from support.image_servers import Request, faulty
from support.waiting import gone, until

HERE = Path(__file__).parents[2]
IMAGE = build.image(*[build.tar(build.file(f"l{layer}", os.urandom(200_000))) for layer in range(4)])
PULL = "import sys; from podrun_hooks.image import commands; commands.pull(sys.argv[1], sys.argv[2])"


def children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except FileNotFoundError:
        return []


@contextmanager
def held_up(root: Path, *program: str, image: build.Built = IMAGE, count: int = 4) -> Iterator[subprocess.Popen[str]]:
    """A pull of which a layer never comes to its end, when its workers are at work. ``program`` is given the ref."""
    on = threading.Event()
    sent = threading.Event()

    def change(request: Request) -> bool:
        if "/blobs/" not in request.path or len(image.blobs[request.path.rpartition("/")[2]]) < 1000:
            return False
        content = image.blobs[request.path.rpartition("/")[2]]
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:100_000])
        request.wfile.flush()
        sent.set()
        on.wait(60)
        return True

    environ = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}"}
    with faulty(image, change) as server:
        argv = [sys.executable, *(program or ("-c", PULL, str(root))), f"{server.host}/web"]
        process = subprocess.Popen(
            argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert sent.wait(30)
            until(lambda: len(children(process.pid)) == count)
            yield process
        finally:
            on.set()
            process.kill()
            process.communicate()


@pytest.mark.root
@pytest.mark.server
def test_no_worker_outlives_a_pull_that_is_killed(tmp_path: Path) -> None:
    with held_up(tmp_path) as process:
        pids = children(process.pid)
        process.kill()
        until(lambda: all(map(gone, pids)))
        process.wait()
        # Their locks went with them: nothing keeps the sweep from what they had begun.
        commands.collect(str(tmp_path))
        assert not {name for name in visible(tmp_path) if name.startswith(("refs/", "tmp/", "locks/"))}


@pytest.mark.root
@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_with_its_number_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with held_up(tmp_path, "-m", "podrun", "--root", str(tmp_path), "image", "pull", "-q") as process:
        pids = children(process.pid)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (128 + number, f"podrun: stopped by {number.name}\n")
        assert all(map(gone, pids))
        assert not {name for name in visible(tmp_path) if name.startswith(("refs/", "tmp/", "locks/"))}


@pytest.mark.root
@pytest.mark.server
def test_an_interrupt_of_the_terminal_ends_a_pull_and_leaves_nothing(tmp_path: Path) -> None:
    with held_up(tmp_path) as process:
        pids = children(process.pid)
        # To all of them, as a terminal does.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert all(map(gone, pids))
        assert not {name for name in visible(tmp_path) if name.startswith(("refs/", "tmp/", "locks/"))}


@pytest.mark.root
@pytest.mark.server
def test_a_worker_that_somebody_kills_fails_the_pull_in_one_line(tmp_path: Path) -> None:
    with held_up(tmp_path) as process:
        os.kill(children(process.pid)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
        assert "podrun.errors.Failure: a process that unpacks layers was killed; is there enough memory" in errors
        assert not {name for name in visible(tmp_path) if name.startswith(("refs/", "tmp/", "locks/"))}


SMALL = build.image(build.tar(*[build.file(f"d/{number}", os.urandom(900)) for number in range(300)]))


@pytest.mark.root
@pytest.mark.server
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one processor there is no second process")
def test_the_second_process_of_a_layer_outlives_neither_its_worker_nor_the_pull(tmp_path: Path, whole: bool) -> None:
    with held_up(tmp_path, image=SMALL, count=2) as process:
        second = until(lambda: [below for pid in children(process.pid) for below in children(pid)])
        pids = [*children(process.pid), *second]
        os.kill(process.pid if whole else pids[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
        assert whole or "a process that unpacks layers was killed" in errors
        until(lambda: all(map(gone, pids)))
        if whole:
            commands.collect(str(tmp_path))
        assert not {name for name in visible(tmp_path) if name.startswith(("refs/", "tmp/", "locks/"))}


# --- requests and answers


@contextmanager
def one(work: Callable[[Any, workers.Tell], Any]) -> Iterator[Callable[[Any], list[tuple[str, Any]]]]:
    """A worker; asked for something, the list of what it answers up to its end."""
    running: list[workers.Worker] = []
    workers.start(running, work)
    worker = running[0]

    def ask(request: Any) -> list[tuple[str, Any]]:
        worker.ask(request)
        told: list[tuple[str, Any]] = []
        while not told or told[-1][0] == "told":
            told += [(kind, value) for _, kind, value in workers.answers(running, 30)]
        return told

    yield ask
    workers.end(running)
    assert gone(worker.pid)


def test_a_worker_answers_one_request_after_another_and_tells_how_far_it_is() -> None:
    def work(request: Any, tell: workers.Tell) -> Any:
        tell(request)
        return ["x" * request, "\udcff"]

    with one(work) as ask:
        assert ask(3) == [("told", 3), ("done", ["xxx", "\udcff"])]
        assert ask(300_000) == [("told", 300_000), ("done", ["x" * 300_000, "\udcff"])]


def test_what_goes_wrong_in_a_worker_is_raised_as_it_would_be_here_and_the_worker_goes_on() -> None:
    def work(request: Any, _tell: workers.Tell) -> Any:
        if request == "failure":
            raise Failure("too bad", code=CANNOT_CREATE, hint="do something")
        if request == "oserror":
            raise OSError(28, "No space left on device", "/x")
        return 1 // request

    with one(work) as ask:
        ((_, failure),) = ask("failure")
        assert (failure.what, failure.code, failure.hint) == ("too bad", CANNOT_CREATE, "do something")
        ((_, error),) = ask("oserror")
        assert (error.errno, error.filename) == (28, "/x")
        ((kind, bug),) = ask(0)
        assert kind == "failed"
        assert "ZeroDivisionError" in str(bug)
        assert not isinstance(bug, Failure)
        assert ask(1) == [("done", 1)]


def test_a_worker_does_not_hear_what_is_said_to_its_parent() -> None:
    def work(request: Any, _tell: workers.Tell) -> Any:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        return [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)]

    with one(work) as ask:
        assert ask(0) == [("done", [True, True])]


def test_an_error_of_podrun_itself_in_a_worker_is_told_as_one(podrun: Any, tmp_path: Path) -> None:
    # podrun.launcher.commands tells of anything but Failure and OSError as an internal error: 125.
    from podrun.launcher.commands import guarded

    def work() -> int:
        raise workers._exception("bug", "ZeroDivisionError: division by zero (layer.py:1)")

    assert guarded(work, {"debug": False, "word": ""}) == INTERNAL
