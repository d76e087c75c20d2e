"""podrun attach, and the terminal of a container that nobody is at: run -dt, run -dit, tty = true."""

from __future__ import annotations

import fcntl
import os
import pty
import stat
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from podrun.cli import attach
from podrun.errors import Failure
from support.launcher import Podrun
from support.pods import pod, until

pytestmark = pytest.mark.root

SHELL = ["run", "-dit", "--name", "one", "--network", "none", "host:", "sh"]


def relays(podrun: Podrun) -> list[str]:
    """The readers of terminals of this podrun's containers: those that have a socket in its run directory."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [line for line in lines if line.endswith("/attach")]


def typed(podrun: Podrun, *lines: tuple[str, str]) -> tuple[int, str]:
    """Attaches with pipes, types lines, each once what the one before it has to bring is there."""
    argv = podrun.argv("attach", "one")
    with subprocess.Popen(argv, env=podrun.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        seen = ""
        for line, awaited in lines:
            attached.stdin.write(line.encode())
            attached.stdin.flush()
            while awaited not in seen:
                data = os.read(attached.stdout.fileno(), 4096)
                assert data, seen
                seen += data.decode()
        seen += attached.stdout.read().decode()
        return attached.wait(20), seen


LEAVE = ("\x10\x11", "")


def test_a_detached_terminal_is_attached_to_left_and_attached_to_again(podrun: Podrun, nothing_left: None) -> None:
    podrun(*SHELL, check=True)
    found = list((podrun.run / "pods/one").rglob("attach"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in found] == [0o600]
    code, seen = typed(podrun, ("tty; stty size; echo $((6*7))\n", "42\r\n"), LEAVE)
    assert code == 0
    assert "/dev/pts/0\r\n24 80\r\n" in seen
    # The log has what was shown; one key of the two that leave is the payload's.
    until(lambda: "42" in podrun("logs", "one").stdout)
    assert "^P" in typed(podrun, ("cat\n", "cat"), ("\x10b\n", "b\r\n"), ("\x04", ""), ("exit\n", "exit"))[1]
    until(lambda: not relays(podrun))
    podrun("down", "one", check=True)


def test_a_terminal_that_nobody_attaches_to_keeps_no_payload_waiting(podrun: Podrun, nothing_left: None) -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo done; while :; do echo z; sleep 0.2; done"
    podrun("run", "-dt", "--name", "one", "--network", "none", "host:", "sh", "-c", script, check=True)
    until(lambda: "done" in podrun("logs", "-n", "100", "one").stdout)
    # Without -i what is typed goes nowhere.
    assert "y" not in typed(podrun, ("y\n", "z\r\nz\r\n"), LEAVE)[1]
    podrun("down", "-t", "0", "one", check=True)
    until(lambda: not relays(podrun))


def test_the_size_follows_who_is_attached(podrun: Podrun, nothing_left: None) -> None:
    podrun(*SHELL, check=True)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 33, 0, 0))
    process = subprocess.Popen(
        podrun.argv("attach", "one"), env=podrun.environ, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    until(lambda: not termios.tcgetattr(master)[3] & termios.ICANON)
    os.write(master, b"stty size\n")
    seen = b""
    while b"11 33" not in seen:
        seen += os.read(master, 1000)
    os.write(master, b"\x10\x11")
    assert process.wait(10) == 0
    os.close(master)
    podrun("down", "-t", "0", "one", check=True)


def test_a_pod_file_asks_for_it_in_the_foreground_too(podrun: Podrun, nothing_left: None) -> None:
    done = podrun("up", pod(podrun, "tty; exit 3", more="tty = true\n"))
    assert (done.returncode, done.stdout) == (3, "/dev/pts/0\n")


def test_without_a_terminal_the_output_is_shown(podrun: Podrun, nothing_left: None) -> None:
    script = "sleep 2; echo here; sleep 0.3"
    podrun("run", "-d", "--name", "one", "--network", "none", "host:", "sh", "-c", script, check=True)
    done = podrun("attach", "one")
    assert (done.stdout, "has no terminal" in done.stderr) == ("here\n", True)
    podrun("down", "one", check=True)


@pytest.mark.parametrize(
    ("keys", "found"), [("ctrl-p,ctrl-q", b"\x10\x11"), ("ctrl-]", b"\x1d"), ("a,b", b"ab"), ("", b"")]
)
def test_keys(keys: str, found: bytes) -> None:
    assert attach.sequence(keys) == found


@pytest.mark.parametrize("keys", ["ctrl-", "meta-x", "ctrl-p,,"])
def test_what_is_no_key(keys: str) -> None:
    with pytest.raises(Failure, match="is not a key"):
        attach.sequence(keys)
