"""One attempt at what a container has to answer to: what ``podrun healthcheck run`` asks."""

from __future__ import annotations

import os

from podrun_hooks.container.probes import prober
from podrun_hooks.container.probes.targets import target
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from podrun.hook import Facts, Step
    from podrun_hooks.container.processes import Process


def attempt(step: Step, process: Process, facts: Facts, probe: Any) -> str:
    """What is wrong now, "" for nothing. ``probe``: a Live, or a Ready without ``notify``; ``facts``: the pod's."""
    # A forked child, because entering a network namespace changes who enters, and because an attempt may hang.
    report = os.memfd_create("probe", os.MFD_CLOEXEC)
    parent = os.getpid()
    child = syscalls.fork()
    if not child:
        try:
            syscalls.die_with_parent(parent)
            os.pwrite(report, _wrong(step, process, facts, probe).encode(errors="replace")[:4000] or b"\n", 0)
        except BaseException as error:  # the child of a fork must never return into the parent's code
            os.pwrite(report, str(error).encode(errors="replace")[:4000], 0)
        finally:
            os._exit(0)
    try:
        os.waitpid(child, 0)
        words = os.pread(report, 4096, 0).decode(errors="replace")
        return words.strip() if words else "the attempt was ended from outside"
    finally:
        os.close(report)


def _wrong(step: Step, process: Process, facts: Facts, probe: Any) -> str:
    life = os.pidfd_open(process.pid)
    try:
        if probe.exec:
            from podrun_hooks.container import exec, runtime
            from podrun_hooks.container import paths as places

            argv, fd, chosen = exec.command(step, process, probe.exec)
            runtime.entering(chosen, places.of(step))()
            _environment(runtime.environment(places.of(step)))
            os.set_inheritable(fd, True)
            return prober.run(argv, probe.timeout, life)
        wanted = target(probe.http or probe.tcp)
        netns = facts.get("netns") or f"/proc/{process.pid}/ns/net"
        if netns != "host":
            syscalls.setns(os.open(netns, os.O_RDONLY | os.O_CLOEXEC), syscalls.CLONE_NEWNET)
        hosts = wanted.hosts(facts.get("addresses", ()))
        return prober.anywhere([str(wanted.port), wanted.path if probe.http else "", *hosts], probe.timeout, life)
    except prober.Over:
        return "the container has ended"
    finally:
        os.close(life)


def _environment(wanted: Mapping[str, str]) -> None:
    """The prober hands on the environment that it was started with: podrun's own is not the runtime's."""
    import posix

    posix.environ.clear()
    posix.environ.update({os.fsencode(name): os.fsencode(value) for name, value in wanted.items()})
