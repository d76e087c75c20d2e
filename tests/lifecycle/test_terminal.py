"""``podrun run -it``: a terminal for the payload, seen from another one."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from podrun.engine.locks import Lock
from support.launcher import Podrun
from support.objects import listing, settled

pytestmark = pytest.mark.root


class Screen:
    """A person at a terminal: types, and reads until something appears."""

    def __init__(self, podrun: Podrun, *words: Any) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            podrun.argv(*words), env={**podrun.environ, "TERM": "vt220"}, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        self.text = ""

    def until(self, word: Any, patience: int = 15) -> None:
        deadline = time.monotonic() + patience
        while word not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 4096).decode()

    def type(self, text: Any) -> None:
        os.write(self.master, text.encode())

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screen(podrun: Podrun) -> Iterator[Any]:
    podrun("run", "--rm", "--name", "warm", "host:", "true", check=True)
    before = listing(podrun.run, podrun.root)
    opened = []

    def open_one(*words: Any) -> Any:
        opened.append(Screen(podrun, *words))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
    assert not settled(podrun.run, podrun.root, before)


def test_a_shell_has_a_terminal_of_its_own_size_and_its_status_is_returned(screen: Any) -> None:
    terminal = screen("run", "-it", "--name", "web", "host:", "sh")
    terminal.until("#")
    terminal.type("test -t 0 && test -t 1 && echo is-a-$((1+1))-tty; stty size; echo $TERM\n")
    terminal.until("is-a-2-tty")
    terminal.until("33 101")
    terminal.until("vt220")
    terminal.type("exit 5\n")
    assert terminal.process.wait(10) == 5
    assert termios.tcgetattr(terminal.slave) == terminal.before, "our terminal is as it was"


def test_ctrl_c_is_for_the_payload(screen: Any) -> None:
    terminal = screen(
        "run",
        "-it",
        "--name",
        "web",
        "host:",
        "sh",
        "-c",
        "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.1; done",
    )
    terminal.until("ready")
    terminal.type("\x03")
    terminal.until("interrupted")
    assert terminal.process.wait(10) == 3


def test_a_window_that_changes_its_size_tells_the_payload(screen: Any) -> None:
    terminal = screen("run", "-it", "--name", "web", "host:", "sh")
    terminal.until("#")
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
    os.killpg(terminal.process.pid, 28)
    terminal.type("stty size\n")
    terminal.until("44 111")
    terminal.type("exit\n")
    assert terminal.process.wait(10) == 0


def test_a_killed_podrun_leaves_nothing_after_down(podrun: Podrun, screen: Any) -> None:
    before = listing(podrun.run, podrun.root)
    # The terminal goes with podrun, and what does not ignore that (SIGHUP) ends by itself.
    terminal = screen("run", "-it", "--name", "web", "host:", "sh", "-c", "trap '' HUP; echo '#'; exec sleep 60")
    terminal.until("#")
    terminal.process.kill()
    terminal.process.wait()
    left = listing(podrun.run, podrun.root) - before
    assert {"file", "link", "netns", "process"} <= {item.partition(" ")[0] for item in left}, "what down has to remove"
    assert f"file {podrun.run}/pods/web/console" in left
    podrun("down", "web", check=True)
    assert not settled(podrun.run, podrun.root, before)


def test_a_second_start_leaves_the_terminal_of_the_first_one_alone(podrun: Podrun, screen: Any) -> None:
    console = podrun.run / "pods/web/console"
    console.parent.mkdir(parents=True)
    console.touch()
    with Lock(str(podrun.run), "web", wait=False):
        assert screen("run", "-it", "--name", "web", "host:", "true").process.wait(10) == 75
    assert console.exists()
    podrun("down", "web", check=True)


def test_a_start_is_undone_when_the_runtime_sends_no_terminal(podrun: Podrun) -> None:
    script = """if True:
        import sys
        from podrun.__main__ import main
        from podrun.launcher.terminal import Terminal
        Terminal.__init__.__globals__["socket"].recv_fds = lambda *_: (b"", [], 0, None)
        main()
        """
    words = [sys.executable, "-c", script, "run", "-it", "--name", "web", "host:", "sleep", "60"]
    done = subprocess.run(
        words, env=podrun.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    assert "the runtime sent no terminal; undone: container" in done.stderr
    assert not (podrun.run / "pods/web").exists()


def test_input_that_is_no_terminal_is_passed_with_i(podrun: Podrun) -> None:
    words = podrun.argv("run", "-i", "--rm", "--network", "none", "host:", "cat")
    done = subprocess.run(words, env=podrun.environ, input="hello\n", capture_output=True, text=True, timeout=30)
    assert done.stdout == "hello\n"


# --- exec ----------------------------------------------------------------------------------------------------------

WAITS = 'trap "exit 0" TERM; while :; do sleep 0.05; done'


@pytest.fixture
def web(podrun: Podrun, screen: Any) -> Iterator[Any]:
    podrun("run", "-d", "--name", "web", "host:", "sh", "-c", WAITS, check=True)
    yield
    podrun("down", "web", check=True)


def test_a_command_in_a_container_follows_the_size_of_the_terminal(screen: Any, web: Any) -> None:
    terminal = screen(
        "exec", "-it", "web", "bash", "-c", 'trap "stty size" WINCH; stty size; while :; do sleep 0.05; done'
    )
    terminal.until("33 101")
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 77, 0, 0))
    os.kill(terminal.process.pid, signal.SIGWINCH)
    terminal.until("44 77")
    # A Ctrl-C that comes just as a child of bash's ends is not bash's end.
    deadline = time.monotonic() + 10
    while terminal.process.poll() is None and time.monotonic() < deadline:
        terminal.type("\x03")
        time.sleep(0.1)
    terminal.process.wait(0.1)
    assert termios.tcgetattr(terminal.slave) == terminal.before


@pytest.mark.parametrize("words", [("exec", "-t"), ("exec",)], ids=["terminal", "pipes"])
@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1"])
def test_signals_to_exec_are_the_commands(screen: Any, web: Any, words: Any, name: str) -> None:
    script = f"trap 'echo got-{name}; exit 9' {name}; echo ready; while :; do sleep 0.05; done"
    terminal = screen(*words, "web", "sh", "-c", script)
    terminal.until("ready")
    terminal.process.send_signal(getattr(signal, f"SIG{name}"))
    assert terminal.process.wait(10) == 9
    terminal.until(f"got-{name}")


@pytest.mark.parametrize(
    "words", [("run", "-it", "--name", "app", "host:"), ("exec", "-it", "web")], ids=["run", "exec"]
)
def test_a_long_paste_while_the_payload_writes_keeps_nobody_waiting(screen: Any, web: Any, words: Any) -> None:
    terminal = screen(*words, "sh", "-c", "stty raw -echo; echo ready; head -c 200000 | tee /dev/stderr | wc -c")
    terminal.until("ready")
    rest = b"x" * 200_000
    os.set_blocking(terminal.master, False)
    deadline = time.monotonic() + 20
    while "200000" not in terminal.text[-20:]:
        assert time.monotonic() < deadline, terminal.text[-100:]
        reading, writing, _ = select.select([terminal.master], [terminal.master] if rest else [], [], 0.1)
        if reading:
            terminal.text += os.read(terminal.master, 65536).decode()
        if writing:
            rest = rest[os.write(terminal.master, rest[:4096]) :]
    assert terminal.process.wait(10) == 0


def test_a_terminal_that_goes_away_ends_exec_without_an_internal_error(podrun: Podrun, web: Any) -> None:
    terminal = Screen(podrun, "exec", "-it", "web", "sh", "-c", "echo ready; cat")
    terminal.until("ready")
    terminal.close()
    os.kill(terminal.process.pid, signal.SIGHUP)
    assert terminal.process.wait(10) in (0, 129)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["/no/such"], 127, "is not in the image"),
        (["/etc/hosts"], 126, "is not executable"),
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
    ],
)
def test_exec_has_the_status_of_the_command_or_says_why_there_is_none(
    podrun: Podrun, web: Any, command: Any, code: int, words: str
) -> None:
    done = podrun("exec", "web", *command)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_what_exec_writes_into_a_file_is_not_emptied_by_the_command(podrun: Podrun, web: Any) -> None:
    path = podrun.home / "script.log"
    path.write_text("before\n")
    script = "echo out; echo more >/dev/stderr; echo last"
    with path.open("a") as file:
        assert podrun.start("exec", "web", "sh", "-c", script, stdout=file, stderr=file).wait(10) == 0
    assert path.read_text() == "before\nout\nmore\nlast\n"
