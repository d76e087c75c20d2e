"""Limits of a container in docker's spelling, and what they are in the OCI configuration: resources and rlimits."""

from __future__ import annotations

import os

from podrun.options import INTEGER, SIZE, TEXT, Kind, Wrong, checked, list_of, table_of, unknown, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: setrlimit(2); the names that docker takes, in lower case and without RLIMIT_.
RLIMITS = (
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
)  # fmt: skip
#: podman's default: it stops a fork bomb, and ordinary servers stay far below it.
PIDS = 2048
#: RLIM_INFINITY, as the OCI runtime specification spells it.
UNLIMITED = 2**64 - 1

CGROUPS = "/sys/fs/cgroup"
#: Sysctls of the container's own IPC namespace (ipc_namespaces(7)); those of the network are the network step's.
_SYSCTLS = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")


def ulimit(value: Any) -> tuple[int, int]:
    """Soft and hard limit of "1024", "1024:2048", 1024, -1 or "unlimited"; raises Wrong."""
    words = str(value).split(":") if type(value) in (int, str) else []
    numbers = []
    for word in words:
        if word in ("-1", "unlimited", "infinity"):
            numbers.append(UNLIMITED)
        elif (number := whole(word, UNLIMITED)) is not None:
            numbers.append(number)
    if len(numbers) != len(words) or len(words) not in (1, 2) or numbers[0] > numbers[-1]:
        raise Wrong(f"expected a limit such as 1024, '1024:2048' or 'unlimited', not {value!r}")
    return numbers[0], numbers[-1]


def _names(table: dict[str, Any]) -> dict[str, Any]:
    for name in table:
        if name not in RLIMITS:
            raise Wrong(unknown(name, RLIMITS, "limit"), (name,))
    return table


def _sysctls(table: dict[str, str]) -> dict[str, str]:
    for key in table:
        if key.startswith("net."):
            raise Wrong(f"{key!r} belongs to the network step's sysctls", (key,))
        if not key.startswith(_SYSCTLS) or not key.replace(".", "a").replace("_", "a").isalnum():
            what = f"{key!r} is not a sysctl of the IPC namespace: kernel.shm*, kernel.msg*, fs.mqueue.*"
            raise Wrong(what, (key,))
    return table


def _cpu_list(text: str) -> str:
    for part in text.split(","):
        one, dash, other = part.partition("-")
        first, last = whole(one), whole(other if dash else one)
        if first is None or last is None or last < first:
            raise Wrong(f"expected processors such as '0-2,4', not {text!r}")
    return text


def _between(low: int, high: int) -> Kind[int]:
    def parse(value: int) -> int:
        if not low <= value <= high:
            raise Wrong(f"expected a number from {low} to {high}, not {value}")
        return value

    return checked(INTEGER, parse, {"minimum": low, "maximum": high})


def _swap(value: Any) -> int:
    return -1 if value in (-1, "-1", "unlimited") else int(SIZE.parse(value))


def _umask(text: str) -> str:
    if not text.isascii() or not 0 < len(text) <= 4 or text.strip("01234567"):
        raise Wrong(f"expected an octal umask such as '0027', not {text!r}")
    return text


ULIMITS: Kind[dict[str, tuple[int, int]]] = checked(
    table_of(Kind(ulimit, {"type": ["string", "integer"], "examples": ["1024:2048"]})),
    _names,
    {"propertyNames": {"enum": list(RLIMITS)}},
)
SYSCTLS: Kind[dict[str, str]] = checked(table_of(TEXT), _sysctls)
CPU_LIST: Kind[str] = checked(TEXT, _cpu_list, {"examples": ["0-2,4"]})
#: Weights of cgroups(7), as docker counts them: 1024 is the usual share.
SHARES: Kind[int] = _between(2, 262144)
#: proc_pid_oom_score_adj(5).
OOM_SCORE: Kind[int] = _between(-1000, 1000)
SWAP: Kind[int] = Kind(_swap, {"type": ["string", "integer"], "examples": ["512M", -1]})
UMASK: Kind[str] = checked(TEXT, _umask, {"examples": ["0027"]})
GROUPS: Kind[list[str]] = list_of(
    Kind(lambda value: str(value) if type(value) is int else TEXT.parse(value), {"type": ["string", "integer"]})
)


def missing_controllers(names: Sequence[str]) -> list[str]:
    """The cgroup controllers among ``names`` that this machine does not have."""
    try:
        with open(f"{CGROUPS}/cgroup.controllers", encoding="utf-8") as file:
            there = set(file.read().split())
    except FileNotFoundError:
        there = {name for name in names if os.path.isdir(f"{CGROUPS}/{name}")}
    return [name for name in names if name not in there]


def has_any(options: Any) -> bool:
    """Whether a limit is set that only a cgroup can enforce."""
    return bool(
        options.memory
        or options.memory_swap
        or options.memory_reservation
        or options.cpus
        or options.cpu_shares
        or options.cpuset
        or options.pids > 0
    )


def processes(options: Any) -> int:
    """How many processes and threads there may be; -1: as many as the host has room for."""
    return int(options.pids) or PIDS


def resources(options: Any) -> dict[str, Any]:
    """``linux.resources`` of a container with a cgroup of its own, without devices."""
    memory: dict[str, int] = {}
    if options.memory:
        memory["limit"] = options.memory
    if options.memory_reservation:
        memory["reservation"] = options.memory_reservation
    if options.memory_swap:
        # As docker: memory and swap together; -1: as much swap as there is.
        memory["swap"] = options.memory_swap
    cpu: dict[str, Any] = {}
    if options.cpus:
        cpu.update(quota=int(options.cpus * 100_000), period=100_000)
    if options.cpu_shares:
        cpu["shares"] = options.cpu_shares
    if options.cpuset:
        cpu["cpus"] = options.cpuset
    found: dict[str, Any] = {"memory": memory, "cpu": cpu}
    # The default limit must not prevent a start on a host that cannot count processes.
    if options.pids or not missing_controllers(["pids"]):
        found["pids"] = {"limit": processes(options)}
    return {key: value for key, value in found.items() if value}


def rlimits(limits: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """``process.rlimits``."""
    return [
        {"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard} for name, (soft, hard) in sorted(limits.items())
    ]


def problems(options: Any) -> list[tuple[str, str, str]]:
    """Options that contradict each other: (key, what, hint)."""
    found = []
    if options.memory_swap and not options.memory:
        found.append(("memory_swap", "memory_swap is memory and swap together, and memory is not set", "set memory"))
    elif 0 < options.memory_swap < options.memory:
        found.append(("memory_swap", "memory_swap is smaller than memory: it limits memory and swap together", ""))
    if options.memory_reservation and options.memory and options.memory_reservation > options.memory:
        found.append(("memory_reservation", "memory_reservation is larger than memory", ""))
    return found
