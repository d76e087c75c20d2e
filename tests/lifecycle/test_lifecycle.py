"""What must not disturb a pod's life: signals at any moment, full disks, missing descriptors, others at work on it."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from podrun.engine import journal as journals
from podrun.errors import CANNOT_CREATE, Failure
from podrun_hooks.support import subprocesses
from support.launcher import HERE, Podrun
from support.objects import listing, settled
from support.pods import WAITS, pod, state, until

#: Seconds and rounds of the tests that grow with patience.
PATIENCE = float(os.environ.get("PODRUN_STRESS_SECONDS", "4"))
STATUSES = range(0, 256, 1 if PATIENCE > 30 else 13)

NETWORK = '[[chain]]\nhook = "network"\n'
REGISTER = '[[chain]]\nhook = "register"\nservice = "web"\nport = 80\n'


def hook(podrun: Podrun, script: Any) -> Any:
    """An executable hook; returns its step."""
    path = podrun.home / "hook"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f'[[chain]]\nhook = "exec:{path}"\n'


def shell(podrun: Podrun, script: Any, **more: Any) -> Any:
    """Runs a shell script in which "$@" is podrun."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *podrun.argv()],
        env={**podrun.environ, **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_start_that_is_interrupted_while_a_command_runs_in_the_container_is_undone(
    podrun: Podrun, nothing_left: None
) -> None:
    # The runtime's exec dies with the probe, and the command becomes podrun's to reap: the container's init waits for it.
    path = pod(podrun, more='ready = { exec = ["sleep", "100"], timeout = "60s" }\n')
    process = podrun.start("up", "-d", path, stderr=subprocess.PIPE)
    until(lambda: state(podrun) == "starting")
    time.sleep(0.5)
    process.terminate()
    assert process.wait(10) == 143
    assert "stopped by SIGTERM; undone: container main" in process.stderr.read()


@pytest.mark.root
@pytest.mark.parametrize("words", [["up"], ["up", "-d"]], ids=" ".join)
def test_a_container_that_is_killed_while_commands_run_in_it_ends_the_start(
    podrun: Podrun, nothing_left: None, words: Any
) -> None:
    path = pod(podrun, more='ready = { exec = ["false"], timeout = "60s" }\n')
    for _ in range(3):
        process = podrun.start(*words, path, stderr=subprocess.PIPE)
        pid = int(until(lambda: _content(podrun.run / "pods/web/main/created/pid")))
        time.sleep(random.uniform(0.1, 0.3))
        os.kill(pid, signal.SIGKILL)
        assert process.wait(10) == 76
        assert "before it was" in process.stderr.read()


def _content(path: Any) -> Any:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def test_a_signal_that_comes_between_the_start_and_the_waiting_is_not_lost() -> None:
    script = (
        "import os, subprocess; from podrun.launcher import foreground; from podrun.errors import Interrupted\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "foreground.interruptible(); foreground.hold(); os.kill(os.getpid(), 15)\n"
        "try: foreground.wait([foreground.Resident(0, 'x', child.pid, 0)])\n"
        "except Interrupted as told: print(told.signal)\n"
        "child.kill()"
    )
    path = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}"}
    done = subprocess.run([sys.executable, "-c", script], env=path, capture_output=True, text=True, timeout=10)
    assert done.stdout == "15\n", done.stderr


def test_an_interruption_ends_the_program_that_podrun_waits_for() -> None:
    class Late(BaseException):
        pass

    def late(*_: Any) -> None:
        raise Late

    children = Path(f"/proc/self/task/{os.getpid()}/children")
    others = children.read_text().split()
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Late):
            subprocesses.run(["/bin/sleep", "98765"])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert children.read_text().split() == others


@pytest.mark.root
def test_an_interruption_ends_a_step_in_the_background(podrun: Podrun, nothing_left: None) -> None:
    step = hook(podrun, "sleep 98765") + "background = true\n"
    process = podrun.start("up", "-d", pod(podrun, before=step), stderr=subprocess.PIPE)
    until(lambda: state(podrun) == "starting")
    time.sleep(0.5)
    process.terminate()
    # The hook's own down sleeps as well.
    process.kill()
    process.wait(10)
    (podrun.home / "hook").write_text("#!/bin/sh\ncat >/dev/null\n")
    podrun("down", "web", check=True)


@pytest.mark.root
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_down_that_is_interrupted_says_how_to_go_on(
    podrun: Podrun, nothing_left: None, number: Any, code: int
) -> None:
    podrun("up", "-d", pod(podrun, more=REGISTER + 'drain = "60s"\n'), check=True)
    process = podrun.start("down", "web", stderr=subprocess.PIPE)
    until(lambda: state(podrun) == "stopping")
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(10) == code
    assert process.stderr.read().strip().endswith("'podrun down web' goes on from here")
    podrun("down", "web", check=True)


@pytest.mark.root
def test_signals_at_random_moments_leave_no_half_of_a_pod(podrun: Podrun, nothing_left: None) -> None:
    path = pod(podrun, before=NETWORK, more='ready = { exec = ["true"] }\n' + REGISTER)
    before = listing(podrun.run, podrun.root)
    dice, end = random.Random(os.environ.get("PODRUN_KILL_SEED")), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        number, moment = dice.choice([signal.SIGTERM, signal.SIGINT]), dice.uniform(0.05, 0.4)
        process = podrun.start("up", path, stderr=subprocess.PIPE)
        time.sleep(moment)
        process.send_signal(number)
        told = f"signal {number} after {moment:.3f} s"
        # Before podrun runs, it is Python that a signal ends. The payload has a handler for SIGTERM, which exits 0.
        status, said = process.wait(20), process.stderr.read()
        assert status in (0, 128 + number, -number, 137), f"{told}: {status}: {said}"
        assert len(said.splitlines()) < 2, f"{told}: {said}"
        assert not settled(podrun.run, podrun.root, before), told


# --- statuses and zombies ------------------------------------------------------------------------------------------


@pytest.mark.root
def test_every_status_of_a_payload_is_told(podrun: Podrun, nothing_left: None) -> None:
    for status in STATUSES:
        assert podrun("run", "--rm", "host:", "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.root
def test_the_foreground_keeps_no_zombies(podrun: Podrun, nothing_left: None) -> None:
    ready = 'ready = { exec = ["sh", "-c", "test -e /tmp/ready || { touch /tmp/ready; exit 1; }"] }\n'
    # Through a pipe: of a file there would be a copier.
    process = podrun.start(
        "up", pod(podrun, before=NETWORK, more=ready), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until(lambda: state(podrun) == "up")

    def children() -> Any:
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    # The container, and for a moment the child that watches its links settle.
    until(lambda: len(children()) == 1)
    assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 1
    process.terminate()
    assert process.wait(10) == 0


def test_a_reload_of_another_terminals_pod_sends_its_signal_or_says_what_is_wrong(podrun: Podrun) -> None:
    path = Path(pod(podrun, f"trap 'echo again' USR1; {WAITS}"))
    path.write_text(path.read_text().replace("[pod]", '[pod]\nreload = "USR1"'))
    process = podrun.start("up", str(path), stdout=subprocess.PIPE)
    until(lambda: state(podrun) == "up")
    time.sleep(0.2)  # sh has its trap
    podrun("reload", "web", check=True, timeout=10)
    assert process.stdout
    assert process.stdout.readline() == "again\n"
    path.write_text(path.read_text().replace("USR1", "USR1\noops"))
    assert podrun("reload", "web", timeout=10).returncode == 78
    process.terminate()
    assert process.wait(10) == 0


# --- full disks, missing descriptors, strange circumstances --------------------------------------------------------


@contextmanager
def tiny(place: Any, *options: Any) -> Iterator[Any]:
    """A tmpfs at ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([*options, "mode=0755"]), "podrun-test", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
@pytest.mark.parametrize("options", ["size=4k", "size=16k", "size=24k", "nr_inodes=5", "nr_inodes=9", "nr_inodes=12"])
def test_a_full_run_directory_is_told_and_leaves_nothing(podrun: Podrun, options: str) -> None:
    path = pod(podrun, more=REGISTER)
    with tiny(podrun.run, options):
        done = podrun("up", "-d", path)
        assert (done.returncode, done.stderr.count("\n")) == (73, 1), done.stderr
        assert os.strerror(errno.ENOSPC) in done.stderr
        assert f"{podrun.run}/" in done.stderr, "which file there is no room for"
        podrun("down", "web", check=True)
        assert not [name for name in listing(podrun.run, podrun.root) if "/pods/" in name or "netns" in name]
        podrun("gc", check=True)


@pytest.mark.root
@pytest.mark.parametrize("options", ["size=16k", "nr_inodes=4", "nr_inodes=16"])
def test_a_full_root_directory_is_told_and_leaves_nothing(podrun: Podrun, options: str) -> None:
    with tiny(podrun.root, options):
        done = podrun("up", "-d", pod(podrun))
        assert (done.returncode, done.stderr.count("\n")) == (73, 1), done.stderr
        podrun("down", "web", check=True)
        assert not (podrun.run / "pods" / "web").exists()


@pytest.mark.root
@pytest.mark.parametrize("full", ["run", "root"])
def test_a_pod_is_undone_on_a_full_disk(podrun: Podrun, full: str) -> None:
    place = getattr(podrun, full)
    # The root has an inode for each name of the host's image.
    with tiny(place, "size=4m", *(["nr_inodes=300"] if full == "run" else [])):
        podrun("up", "-d", pod(podrun, before=NETWORK, more=REGISTER), check=True)
        with pytest.raises(OSError, match="No space"), (place / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for n in range(300 if full == "run" else 0):
            try:
                (place / f"filler{n}").touch()
            except OSError:
                break
        podrun("down", "web", check=True)
        assert not [name for name in listing(podrun.run, podrun.root) if "/pods/" in name or "netns" in name]
        podrun("gc", check=True)


@pytest.mark.root
@pytest.mark.parametrize("place", ["run", "root"])
def test_a_read_only_directory_is_told(podrun: Podrun, place: str) -> None:
    with tiny(getattr(podrun, place), "size=1m", "ro"):
        done = podrun("up", "-d", pod(podrun))
        assert done.returncode == 73
        assert "Read-only file system" in done.stderr


def test_a_line_that_the_disk_took_half_of_does_not_spoil_the_next(tmp_path: Path) -> None:
    with journals.Writer(str(tmp_path / "a.journal")) as writer:
        writer.ready()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
        try:
            with pytest.raises(Failure) as caught:
                writer.failed(0, "x" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.code == CANNOT_CREATE
        writer.down(0)
    assert [json.loads(line)["at"] for line in (tmp_path / "a.journal").read_text().splitlines()] == ["ready", "down"]


@pytest.mark.root
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(podrun: Podrun, nothing_left: None, closed: str) -> None:
    assert shell(podrun, f'"$@" up -d {pod(podrun)} {closed}').returncode == 0
    assert state(podrun) == "up"
    assert shell(podrun, f'"$@" down web {closed}').returncode == 0
    assert shell(podrun, f"\"$@\" run --rm host: sh -c 'echo x; exit 5' {closed}").returncode == 5


@pytest.mark.root
def test_that_nobody_reads_what_podrun_and_its_hooks_say_stops_nothing(podrun: Podrun, nothing_left: None) -> None:
    path = pod(podrun, before=hook(podrun, "cat >/dev/null; echo something >&2"))
    podrun("up", "-d", path, check=True)
    os.kill(json.loads(podrun("inspect", "web").stdout)["containers"][0]["pid"], signal.SIGKILL)
    until(lambda: state(podrun) == "dead")
    # podrun says that it undoes the dead pod.
    assert shell(podrun, f'exec 2> >(exec true); sleep 0.3; "$@" up -d {path}').returncode == 0
    assert state(podrun) == "up"
    assert shell(podrun, f'exec 2> >(exec true); sleep 0.3; "$@" up -d {path}').returncode == 75
    podrun("down", "web", check=True)


@pytest.mark.root
@pytest.mark.parametrize("number", [10, 12, 14, 16])
def test_too_few_descriptors_are_told_as_such(podrun: Podrun, nothing_left: None, number: int) -> None:
    done = shell(podrun, f'ulimit -n {number}; "$@" up -d {pod(podrun)}')
    assert done.returncode == 76
    assert "Too many open files" in done.stderr


@pytest.mark.root
def test_a_command_line_that_is_not_text_is_refused(podrun: Podrun, nothing_left: None) -> None:
    done = shell(podrun, "\"$@\" run --rm host: printf %s $'\\xff'", LC_ALL="C")
    assert done.returncode == 78
    assert "is not UTF-8" in done.stderr


@pytest.mark.root
def test_a_working_directory_that_is_gone_does_not_matter(podrun: Podrun, nothing_left: None) -> None:
    gone = podrun.home / "gone"
    assert shell(podrun, f'mkdir {gone}; cd {gone}; rmdir {gone}; "$@" run --rm host: true').returncode == 0


@pytest.mark.root
def test_long_names_and_a_long_run_directory_fit_everywhere(podrun: Podrun) -> None:
    podrun.run = podrun.home / "run" / ("x" * 180)
    podrun.environ["PODRUN_RUN"] = str(podrun.run)
    name, container = "p" * 63, "c" * 63
    path = pod(podrun, name=f"{name}@", before=NETWORK, more=f'name = "{container}"\nready = {{ exec = ["true"] }}\n')
    word = path.replace("@.toml", f"@{'i' * 63}.toml")
    podrun("up", "-d", word, check=True)
    assert podrun("exec", f"{name}@{'i' * 63}", "true").returncode == 0
    podrun("down", f"{name}@{'i' * 63}", check=True)
    assert not [entry for entry in settled(podrun.run, podrun.root, set(), 1) if "/pods/" in entry or "netns" in entry]


# --- payloads that behave badly ------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize(
    "script",
    [
        "trap '' TERM; while :; do sleep 1; done",
        "sleep 100 & kill -STOP $!; trap 'exit 0' TERM; wait",
        "(setsid sleep 100 &); exec sleep 100",
        "for i in $(seq 100); do sleep 100 & done; wait",
        "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done",
        "exit 3",
        "setsid sleep 100 & sleep 0.1",
    ],
    ids=["ignores-TERM", "stopped-child", "leaves-a-session", "many", "fills-the-log", "ends-at-once", "daemonises"],
)
def test_a_payload_that_behaves_badly_is_gone_after_down(podrun: Podrun, nothing_left: None, script: str) -> None:
    path = pod(podrun, script)
    text = Path(path).read_text().replace('"5s"', '"0.3s"')
    Path(path).write_text(text)
    podrun("up", "-d", path, check=True)
    time.sleep(0.2)
    podrun("down", "web", check=True)


# --- others at work ------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_twenty_pods_start_and_stop_eight_at_a_time(podrun: Podrun, nothing_left: None) -> None:
    files = [pod(podrun, name=f"p{n}", before=NETWORK, more=REGISTER) for n in range(20)]

    def live(file: Any) -> Any:
        return podrun("up", "-d", file).returncode, podrun("down", Path(file).stem).returncode

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(live, files)) == {(0, 0)}


@pytest.mark.root
def test_many_starts_and_stops_of_one_pod_at_once_end_with_0_or_75(podrun: Podrun, nothing_left: None) -> None:
    path = pod(podrun, before=NETWORK, more=REGISTER)
    podrun("up", "-d", path, check=True)
    podrun("down", "web", check=True)
    end = time.monotonic() + PATIENCE

    def again(words: Any, over: Any) -> Any:
        told = {}
        while not over():
            done = podrun(*words)
            told[done.returncode] = done.stderr
        return told

    with ThreadPoolExecutor(8) as pool:
        words = [["up", "-d", path]] * 3 + [["up", path]]
        up = [pool.submit(again, one, lambda: time.monotonic() > end) for one in words]
        # The one in the foreground waits for its payload: what was started last has to be stopped as well.
        words = [["down", "web"], ["down", "web"], ["ps"], ["gc"]]
        others = [pool.submit(again, one, lambda: all(start.done() for start in up)) for one in words]
        starts = [one.result() for one in up]
        assert all(set(told) <= {0, 75, 143} for told in starts), starts
        rest = [one.result() for one in others]
        assert [set(told) for told in rest] == [{0}] * 4, rest
    podrun("down", "web", check=True)


@pytest.mark.root
def test_several_downs_of_a_pod_whose_foreground_waits_all_succeed(podrun: Podrun, nothing_left: None) -> None:
    process = podrun.start("up", pod(podrun, WAITS, more=REGISTER))
    until(lambda: state(podrun) == "up")
    downs = [podrun.start("down", "web", stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [down.wait(20) for down in downs] == [0, 0, 0]
    assert process.wait(20) == 0


@pytest.mark.parametrize(("words", "status"), [(("up", "x.toml"), -signal.SIGINT), (("ps", "--sort", "name"), 130)])
def test_an_early_interrupt_shows_no_traceback(podrun: Podrun, home: Path, words: Any, status: Any) -> None:
    # The signal comes while podrun's own modules are imported, or those of its command line.
    (home / "early").mkdir()
    for name in ("tomllib", "click"):
        (home / f"early/{name}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (home / "x.toml").write_text('chain = [ { hook = "image", ref = "host:" } ]')
    environ = {**podrun.environ, "PYTHONPATH": f"{home}/early:{podrun.environ['PYTHONPATH']}"}
    argv = [sys.executable, str(HERE.parent / "bin/podrun"), *words]
    done = subprocess.run(argv, cwd=home, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")


def test_an_interrupt_that_is_ignored_stays_ignored(podrun: Podrun) -> None:
    script = f"trap '' INT; exec {sys.executable} {HERE.parent / 'bin/podrun'} ps"
    done = subprocess.run(["sh", "-c", script], env=podrun.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
