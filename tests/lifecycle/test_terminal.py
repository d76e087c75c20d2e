"""``podrun run -it``: a terminal for the payload, seen from another one."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pytest

from support.objects import listing, settled

pytestmark = pytest.mark.root


class Screen:
    """A person at a terminal: types, and reads until something appears."""

    def __init__(self, podrun, *words):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            podrun.argv(*words), env={**podrun.environ, "TERM": "vt220"}, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        self.text = ""

    def until(self, word, patience=15):
        deadline = time.monotonic() + patience
        while word not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 4096).decode()

    def type(self, text):
        os.write(self.master, text.encode())

    def close(self):
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screen(podrun):
    before = listing(podrun.run, podrun.root)
    podrun("run", "--rm", "--name", "warm", "host:", "true", check=True)
    before = listing(podrun.run, podrun.root)
    opened = []

    def open_one(*words):
        opened.append(Screen(podrun, *words))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
    assert not settled(podrun.run, podrun.root, before)


def test_a_shell_has_a_terminal_of_its_own_size_and_its_status_is_returned(screen):
    terminal = screen("run", "-it", "--name", "web", "host:", "sh")
    terminal.until("#")
    terminal.type("test -t 0 && test -t 1 && echo is-a-$((1+1))-tty; stty size; echo $TERM\n")
    terminal.until("is-a-2-tty")
    terminal.until("33 101")
    terminal.until("vt220")
    terminal.type("exit 5\n")
    assert terminal.process.wait(10) == 5
    assert termios.tcgetattr(terminal.slave) == terminal.before, "our terminal is as it was"


def test_ctrl_c_is_for_the_payload(screen):
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


def test_a_window_that_changes_its_size_tells_the_payload(screen):
    terminal = screen("run", "-it", "--name", "web", "host:", "sh")
    terminal.until("#")
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
    os.killpg(terminal.process.pid, 28)
    terminal.type("stty size\n")
    terminal.until("44 111")
    terminal.type("exit\n")
    assert terminal.process.wait(10) == 0


def test_a_killed_podrun_leaves_nothing_after_down(podrun, screen):
    terminal = screen("run", "-it", "--name", "web", "host:", "sh")
    terminal.until("#")
    terminal.process.kill()
    terminal.process.wait()
    podrun("down", "web", check=True)


def test_detached_there_is_nobody_at_the_terminal(podrun):
    assert podrun("run", "-d", "-t", "host:", "sh").returncode == 78


def test_input_that_is_no_terminal_is_passed_with_i(podrun):
    words = podrun.argv("run", "-i", "--rm", "--network", "none", "host:", "cat")
    done = subprocess.run(words, env=podrun.environ, input="hello\n", capture_output=True, text=True, timeout=30)
    assert done.stdout == "hello\n"
