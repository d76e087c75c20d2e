"""What podrun adds to Python's system calls: forked children and signals, errors that name their file."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from podrun_hooks.support import syscalls


def test_a_handler_that_raises_is_the_parents_alone() -> None:
    """A child that unwound the parent's stack would undo the pod a second time."""

    def interrupt(number: int, _frame: object) -> None:
        raise AssertionError(f"signal {number}")

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = syscalls.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGINT)  # ignored before, as under nohup(1)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) is interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, ignored)


def test_an_error_that_names_no_file_gets_the_name() -> None:
    with pytest.raises(OSError, match="No space") as caught, syscalls.Naming("/run/x"), open("/dev/full", "w") as file:
        file.write("x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/run/x")
    with pytest.raises(FileNotFoundError) as missing, syscalls.Naming("/run/x"):
        os.unlink("/nowhere/y")
    assert missing.value.filename == "/nowhere/y"
