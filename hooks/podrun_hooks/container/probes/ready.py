"""The ready probe: a connection, a GET or a command, tried from inside until it succeeds or the payload ends."""

from __future__ import annotations

import os
import time

from podrun.errors import STEP_FAILED, Failure
from podrun_hooks.container import processes, streams
from podrun_hooks.container.probes import notify, prober
from podrun_hooks.container.probes.targets import target
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from podrun.hook import Facts, Step
    from podrun_hooks.container.paths import Place
    from podrun_hooks.container.processes import Process
    from podrun_hooks.container.streams import Streams

#: Seconds: the first pause between two attempts, how it grows, and what one attempt may take.
_FIRST_PAUSE, _GROWTH, _ATTEMPT = 0.005, 1.5, 5.0


def await_payload(step: Step, facts: Facts, place: Place, process: Process, output: Streams, sock: Any) -> None:
    """Waits for a started container as its option ``ready`` says; ``sock``: where it notifies, or None."""

    def tail() -> str:
        return streams.last_words(output)

    probe = step.options.ready
    if sock is not None:
        wait_for_notification(probe, process, sock, step.notify, tail)
        notify.hand_over(sock, place)
        return

    def command(argv: Sequence[str]) -> tuple[int, str]:
        from podrun_hooks.container import exec

        ended = exec.run(step, process, argv)
        return ended.status, ended.errors or ended.output

    netns = facts.get("netns") or f"/proc/{process.pid}/ns/net"
    wait(probe, process, netns, facts.get("addresses", ()), command, tail)


def wait(
    probe: Any,
    process: Process,
    netns: str,
    addresses: Sequence[str],
    command: Callable[[Sequence[str]], tuple[int, str]],
    tail: Callable[[], str],
) -> None:
    """Returns when ``probe`` (options.Ready: http, tcp or exec) has succeeded.

    ``netns``: a path, or "host". ``command`` runs exec's and returns its status and words. Raises Failure (76) naming
    the last error when the time is over, or at once, with ``tail``, when the process has ended.
    """
    pidfd = processes.opened(process)
    if pidfd is None:
        raise _over(process, tail)
    errors = os.memfd_create("probe", os.MFD_CLOEXEC)
    parent = os.getpid()
    # A forked child, because entering a network namespace changes who enters, and because an attempt may hang.
    child = syscalls.fork()
    if not child:
        try:
            syscalls.die_with_parent(parent)
            _probe(probe, netns, addresses, command, errors)
        finally:
            os._exit(0)
    try:
        child_fd = os.pidfd_open(child)
        happened = processes.polled((pidfd, child_fd), probe.timeout)
        os.close(child_fd)
        if pidfd in happened:
            raise _over(process, tail)
        last = os.pread(errors, 1000, 0).decode(errors="replace").strip("\0\n ")
        if not happened:
            raise Failure(
                f"not ready after {probe.timeout:g} s: {last or 'the first attempt has not ended'}",
                code=STEP_FAILED,
                hint=tail(),
            )
        if last:
            raise Failure(f"the ready probe failed: {last}", code=STEP_FAILED)
    finally:
        os.close(pidfd)
        os.close(errors)
        syscalls.end(child)


def wait_for_notification(
    probe: Any, process: Process, sock: Any, tell: Callable[[str], None], tail: Callable[[], str]
) -> None:
    """Returns when READY=1 has come in at ``sock``; STATUS= and EXTEND_TIMEOUT_USEC= are passed to ``tell``.

    Nothing else is: a payload that could say MAINPID= would have systemd kill a process of its choice.
    """
    pidfd = processes.opened(process)
    if pidfd is None:
        raise _over(process, tail)
    deadline = time.monotonic() + probe.timeout
    try:
        while True:
            happened = processes.polled((sock.fileno(), pidfd), deadline - time.monotonic())
            if not happened:
                what = f"not ready after {probe.timeout:g} s: READY=1 has not come"
                raise Failure(what, code=STEP_FAILED, hint=tail())
            if sock.fileno() in happened:
                lines = sock.recv(8192).decode(errors="replace").splitlines()
                for line in lines:
                    if line.startswith(("STATUS=", "EXTEND_TIMEOUT_USEC=")):
                        tell(line)
                if "READY=1" in lines:
                    return
            elif pidfd in happened:
                raise _over(process, tail)
    finally:
        os.close(pidfd)


def _over(process: Process, tail: Callable[[], str]) -> Failure:
    status = processes.exit_status(process)
    how = "" if status is None else f" with status {status}"
    return Failure(f"the payload ended{how} before it was ready", code=STEP_FAILED, hint=tail())


def _probe(
    probe: Any, netns: str, addresses: Sequence[str], command: Callable[[Sequence[str]], tuple[int, str]], errors: int
) -> None:
    """The child's half: attempts until one succeeds, the latest error always in ``errors``."""
    try:
        if not probe.exec and netns != "host":
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
            os.close(fd)
        pause = _FIRST_PAUSE
        while True:
            error = _attempt(probe, addresses, command)
            os.ftruncate(errors, 0)
            os.pwrite(errors, error.encode()[:1000], 0)
            if not error:
                return
            time.sleep(min(pause, probe.interval))
            pause *= _GROWTH
    except BaseException as error:  # the child of a fork must never return into the parent's code
        os.pwrite(errors, f"{error}".encode()[:1000], 0)


def _attempt(probe: Any, addresses: Sequence[str], command: Callable[[Sequence[str]], tuple[int, str]]) -> str:
    """One attempt; returns what went wrong, "" for success."""
    if probe.exec:
        status, words = command(probe.exec)
        return (
            f"{probe.exec[0]} ended with status {status}{f' ({words.splitlines()[-1]})' if words else ''}"
            if status
            else ""
        )
    wanted = target(probe.http or probe.tcp)
    first = ""
    for host in wanted.hosts(addresses):
        error = prober.connect(host, wanted.port, wanted.path if probe.http else "", _ATTEMPT)
        if not error:
            return ""
        first = first or error
    return first
