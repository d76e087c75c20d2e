"""``podrun attach``: the terminal of a container that was started without one attached; else the output."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import termios
import time
import tty
from typing import Any

import click

from podrun.cli import completion, logs, pods
from podrun.cli.output import Guarded, say
from podrun.cli.payload import Running
from podrun.engine import hook_loader
from podrun.engine import state as states
from podrun.errors import WRONG_FILE, Failure
from podrun.hook_extras import HasTerminal, offers
from podrun.host import Host
from podrun.launcher import foreground
from podrun.launcher.commands import host_of
from podrun.systemd import events, exit_records

_MOST = 4000
#: The status of a pod that 'podrun rm -f' removed while somebody was waiting for it: docker's, 128 and SIGKILL.
_REMOVED = 137


@click.command(cls=Guarded)
@click.option("-c", "--container", default="", metavar="NAME", help="Which container; default: the last.")
@click.option("--detach-keys", "keys", default="ctrl-p,ctrl-q", metavar="KEYS", help="The keys that detach; '': none.")
@click.option("--no-stdin", is_flag=True, help="Only look.")
@click.option(
    "--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to the container; at a terminal keys do that."
)
@click.argument("word", metavar="FILE|NAME", shell_complete=completion.words)
@click.pass_context
def attach(ctx: click.Context, word: str, container: str, keys: str, no_stdin: bool, sig_proxy: bool) -> int:
    """Attach to a container's terminal (run -dt, tty = true); without one, show its output.

    Returns when the container ends, with its status, or when the keys Ctrl-P Ctrl-Q are pressed.
    """
    host = host_of(ctx.obj)
    leaving = sequence(keys)
    running = Running(host, word, container)
    events.note(host.run, "pod", "attach", running.name)
    hook = offers(hook_loader.load(running.entry.step["hook"]), HasTerminal)
    sock = hook.terminal_of(running.step()) if hook else None
    if sig_proxy:
        _pass_on(running)
    if sock is None:
        say("it has no terminal: its output follows, its input stays closed", err=True)
        _show(host, running.name, container, past=False)
    elif _at_terminal(sock, leaving, no_stdin):
        return 0
    return pods.waited(host, running.name, ignore=True)


def sequence(keys: str) -> bytes:
    """The bytes of "ctrl-p,ctrl-q" or "a,b". Raises Failure (WRONG_FILE)."""
    found = b""
    for word in keys.split(",") if keys else ():
        letter = word.lower().removeprefix("ctrl-")
        if len(letter) != 1 or not letter.isascii() or not (letter.isalnum() or letter in "@[\\]^_"):
            raise Failure(
                f"--detach-keys {keys!r}: {word!r} is not a key", code=WRONG_FILE, hint="such as ctrl-p,ctrl-q"
            )
        found += bytes([ord(letter.upper()) & 31]) if word.lower().startswith("ctrl-") else letter.encode()
    return found


def _pass_on(running: Running) -> None:
    for number in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2"):
        signal.signal(getattr(signal, f"SIG{number}"), lambda n, _: foreground.send(running.resident, n))


def follow(host: Host, name: str) -> int:
    """Shows what a pod's last container has written and writes, passes signals on, and returns its status."""
    with contextlib.suppress(Failure):  # it may have ended already
        _pass_on(Running(host, name))
    try:
        _show(host, name, "", past=True)
        return pods.waited(host, name, ignore=False)
    except Failure:
        if states.state(host.run, name) != "absent" or exit_records.last(host.run, name):
            raise
        return _REMOVED


def _show(host: Host, name: str, container: str, *, past: bool) -> None:
    source = logs.source_of(host, name, container, logs.Wanted(None, 0.0, 0.0, False))
    try:
        for _, block in source.past():
            if past:
                sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        while (lines := source.more()) is not None:
            sys.stdout.buffer.writelines(block for _, block in lines)
            sys.stdout.buffer.flush()
            time.sleep(0.05)
    finally:
        source.close()


def _at_terminal(sock: socket.socket, leaving: bytes, no_stdin: bool) -> bool:
    """Copies both ways; True when the user has detached, False when the container has ended."""
    import select

    def resized(*_: object) -> None:
        import fcntl

        if os.isatty(0):
            sock.send(b"s" + fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))

    before: list[Any] | None = None
    if os.isatty(0) and not no_stdin:
        before = termios.tcgetattr(0)
        tty.setraw(0)
    signal.signal(signal.SIGWINCH, resized)
    held = b""
    try:
        resized()
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if not no_stdin:
            poll.register(0, select.POLLIN)
        while True:
            happened = {fd for fd, _ in poll.poll()}
            if sock.fileno() in happened:
                data = sock.recv(65536)
                if not data:
                    return False
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            if 0 in happened:
                data = os.read(0, _MOST)
                if not data:
                    poll.unregister(0)
                    sock.send(b"i\x04")  # what Ctrl-D is to a terminal
                    continue
                data, held = held + data, b""
                if leaving and leaving in data:
                    sock.send(b"i" + data[: data.index(leaving)])
                    return True
                # Bytes that may begin the detach keys are held back until more come.
                held = next((leaving[:n] for n in range(len(leaving) - 1, 0, -1) if data.endswith(leaving[:n])), b"")
                data = data.removesuffix(held)
                if data:
                    sock.send(b"i" + data)
    except (BrokenPipeError, ConnectionResetError):
        return False
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        sock.close()


COMMANDS = (attach,)
