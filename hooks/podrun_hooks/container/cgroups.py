"""A container's cgroups: which it gets and what is enforced there, counting, freezing, its members, their removal."""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure
from podrun.record import NamedTuple
from podrun_hooks.container import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from podrun.hook import Step
    from podrun_hooks.container.paths import Place

TOP = "/sys/fs/cgroup"
#: Where v2 is mounted beside v1.
HYBRID = f"{TOP}/unified"
_CAP_SYS_RESOURCE = 24


class Isolation(NamedTuple):
    """What the host can do for a container; :func:`isolation` finds it out."""

    #: The container's own cgroup, or "": it stays in podrun's.
    cgroup: str
    #: Something enforces device rules: the runtime in that cgroup, or systemd's DevicePolicy= around it.
    devices_ruled: bool
    #: The runtime can be given device rules.
    device_rules: bool
    #: cgroup v2 alone is mounted.
    unified: bool
    #: Processes can be counted there: a host, or whoever delegates, may have no pids controller to give.
    counted: bool = True


def isolation(step: Step, place: Place, runtime: str, *, timers: bool = False) -> Isolation:
    """Which cgroup the container gets and who enforces device rules there; ``runtime``: its name.

    A container has a cgroup of its own where systemd delegated one, for limits, for ``timers`` (an ambassador's), and
    where it has the host's processes, among which nothing else tells which are its own; runc cannot do without.
    Raises Failure for a unit of cgroup v2 that delegates none.
    """
    options = step.options
    unified = os.path.exists(f"{TOP}/cgroup.controllers")
    # On v2 device rules are a BPF program; loading it makes crun raise RLIMIT_MEMLOCK. On v1 they are a file.
    able = not unified or _has_capability(_CAP_SYS_RESOURCE)
    if step.pod.cgroup:
        return Isolation(place.cgroup, True, able, unified, _counted(step.pod.cgroup, unified=unified))
    if limits.has_any(options) or options.pid == "host" or runtime == "runc":
        if step.pod.unit and unified:
            # Outside of the unit's cgroup neither systemd nor the journal would know whose the container is.
            what = f"{'runc' if runtime == 'runc' else 'a limit'} needs a cgroup that systemd delegates"
            hint = f"Delegate=cpu memory pids io in the [Service] section of {step.pod.unit}"
            raise Failure(what, code=WRONG_FILE, hint=hint)
        return Isolation(place.cgroup, able, able, unified, _counted("", unified=unified))
    if timers and unified and not step.pod.unit:
        return Isolation(place.cgroup, able, able, unified, _counted("", unified=unified))
    return Isolation("", False, False, unified)


def _counted(cgroup: str, *, unified: bool) -> bool:
    """Whether the cgroups below ``cgroup`` can have a limit of processes."""
    if not unified:
        return os.path.isdir(f"{TOP}/pids")
    try:
        with open(f"{TOP}/{cgroup.strip('/')}/cgroup.controllers", "rb", buffering=0) as file:
            return b"pids" in file.read().split()
    except OSError:
        return False


def _has_capability(number: int) -> bool:
    with open("/proc/self/status", "rb", buffering=0) as file:
        effective = file.read().partition(b"CapEff:")[2].split(None, 1)[0]
    return bool(int(effective, 16) >> number & 1)


def shorten_timers(step: Step, place: Place, isolation: Isolation, pid: int, timers: Mapping[str, Any]) -> str:
    """Has the connections of a created container to its ambassadors try again soon; "", or why that cannot be.

    The program belongs to a cgroup (v2): in podrun's own it would be for whoever called podrun, too.
    """
    from podrun_hooks.ambassador import syn_timer

    if isolation.unified:
        if not isolation.cgroup:
            return "the container has no cgroup of its own: its unit delegates none"
        return syn_timer.attach(f"{TOP}{isolation.cgroup}", timers)
    if step.pod.unit:
        return "with cgroup v1 a unit's processes share one cgroup of v2"
    own = f"{HYBRID}{place.cgroup}"
    try:
        os.makedirs(own, exist_ok=True)
        with open(f"{own}/cgroup.procs", "w", encoding="utf-8") as file:
            file.write(str(pid))
    except OSError as error:
        return f"{own}: {error.strerror}"
    return syn_timer.attach(own, timers)


def counting(place: Place, most: int) -> str:
    """Makes the cgroup that only counts the processes of a container without a cgroup of its own, for runtime.create().

    0.2 ms; the runtime would make cgroups in every hierarchy. "" where the host counts none, or podrun may not.
    """
    try:
        path = _counting(place)
        os.makedirs(path, exist_ok=True)
        with open(f"{path}/pids.max", "w", encoding="utf-8") as file:
            file.write(str(most))
    except OSError:
        return ""
    return path


def _counting(place: Place) -> str:
    """The cgroup that counts a container's processes. Raises OSError."""
    if os.path.isdir(f"{TOP}/pids"):
        return f"{TOP}/pids{place.cgroup}"
    top = f"{TOP}{os.path.dirname(place.cgroup)}"
    os.makedirs(top, exist_ok=True)
    with open(f"{top}/cgroup.subtree_control", "w", encoding="utf-8") as file:
        file.write("+pids")
    return f"{TOP}{place.cgroup}"


def enter_counted(place: Place) -> None:
    """In a forked child: be counted with the container, whose cgroup the runtime knows nothing of."""
    for path in (f"{TOP}/pids{place.cgroup}/tasks", f"{TOP}{place.cgroup}/cgroup.procs"):
        try:
            with open(path, "w", encoding="utf-8") as file:
                # A process that moves its only thread by "tasks" (v1) waits for nobody; every other way to move one
                # waits for a grace period of RCU, 10 ms (cgroup_procs_write_start() in kernel/cgroup/cgroup.c).
                file.write("0")
            return
        except OSError:
            continue


def remain_in_unit(pid: int) -> None:
    """Moves a created container back into podrun's cgroup where that tells which unit a process is of (cgroup v1).

    Runtimes move it in every hierarchy, systemd's own included; limits are a matter of the others.
    """
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    for number, names, path in lines:
        if number == "0" or names == "name=systemd":
            top = HYBRID if number == "0" else f"{TOP}/systemd"
            try:
                with open(f"{top}{path}/cgroup.procs", "w", encoding="utf-8") as file:
                    file.write(str(pid))
            except OSError:
                continue  # not mounted, or the container has ended


def of(place: Place) -> list[str]:
    """Where the container's own cgroup may be: below the v2 mount, or below each of v1's."""
    if os.path.exists(f"{TOP}/cgroup.controllers"):
        return [f"{TOP}{place.cgroup}"]
    try:
        with os.scandir(TOP) as entries:
            return [entry.path + place.cgroup for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def members(place: Place) -> list[int]:
    """The pids in the container's own cgroup and in those below it."""
    pids: set[int] = set()
    for path in of(place):
        for directory, _, _ in os.walk(path):
            try:
                with open(f"{directory}/cgroup.procs", encoding="utf-8") as file:
                    pids.update(map(int, file.read().split()))
            except OSError:
                continue
    return sorted(pids - {0})


def freeze(place: Place, on: bool) -> bool:
    """Stops every process of the container's cgroup, or lets it run again; False for a container without one.

    cgroups(7): cgroup.freeze of v2, freezer.state of v1. Raises OSError.
    """
    own = place.cgroup
    for path, words in (
        (f"{TOP}{own}/cgroup.freeze", ("0", "1")),
        (f"{TOP}/freezer{own}/freezer.state", ("THAWED", "FROZEN")),
        (f"{HYBRID}{own}/cgroup.freeze", ("0", "1")),
    ):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with open(fd, "w", encoding="utf-8") as file:
            file.write(words[on])
        return True
    return False


def remove(place: Place) -> None:
    """Removes the container's cgroups. The one above them, /podrun, stays: other pods may be about to make theirs."""
    for path in of(place):
        for directory, _, _ in os.walk(path, topdown=False):
            os.rmdir(directory)
