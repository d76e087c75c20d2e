"""The entry point: what podrun.launcher.arguments knows goes straight to the launcher, everything else to click."""

from __future__ import annotations

import gc
import os
import sys

from podrun import bundle as bundles

#: So many more objects made than freed have the collector look for cycles: more than a start makes. At Python's 700 it
#: took 1 ms of every start. A podrun that stays in the foreground still has a collector.
_COLLECT_AT = 50_000

_PR_SET_DUMPABLE = 4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Runs podrun with the given arguments; returns the exit code."""
    os.umask(0o022)
    gc.set_threshold(_COLLECT_AT)
    bundle = bundles.install()
    _leave_no_core()
    from podrun.launcher.arguments import plain

    if [*arguments] == ["ps"] and not os.geteuid():
        return _ps(bundle)
    recognised = plain(arguments)
    if recognised is None:
        _hear_interrupts()
        from podrun.host import add_site_packages

        add_site_packages()
        from podrun.cli import main as cli

        return cli.main(arguments)
    from podrun.launcher.commands import act

    try:
        return act(*recognised)
    finally:
        bundles.keep(bundle)


def _ps(bundle: bundles.Bundle) -> int:
    from podrun.cli import pod_table
    from podrun.launcher.commands import guarded, host_of

    given = {"debug": False}
    try:
        return guarded(lambda: pod_table.show(host_of(given)), given)
    finally:
        bundles.keep(bundle)


def main() -> None:
    """Runs podrun with the arguments of the process, and ends it.

    Nothing is left to finalise: taking the interpreter apart in order would cost 4 ms of every start.
    """
    _have_standard_streams()
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130  # before there was anything to report
    except (OSError, ImportError) as error:
        if "--debug" in sys.argv:
            raise
        # A module could not be read (no descriptors, no memory, not allowed): what reports is not there yet.
        sys.stderr.write(f"podrun: its modules cannot be loaded: {error}; nothing was done\n")
        code = 125
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass  # the reader of a pipe has gone
    os._exit(code)


def _hear_interrupts() -> None:
    """Makes Ctrl-C an exception again, which commands report; bin/podrun had it end the process."""
    import signal

    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave_no_core() -> None:
    """A crash leaves no core dump: podrun's memory holds passwords of registries, variables and contents of files.

    It is inherited by forked children and ends with execve(2): the payload's core dumps are its own business.
    """
    from podrun import libc

    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _have_standard_streams() -> None:
    """Opens those of the descriptors 0, 1 and 2 that are closed, so that no lock and no journal gets such a number."""
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))


if __name__ == "__main__":
    main()
