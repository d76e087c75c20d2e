"""What containers use: from a cgroup of their own where they have one (v1, v2, hybrid), else from their processes."""

from __future__ import annotations

import itertools
import os
from time import monotonic, sleep
from typing import Any

import psutil
from cgroupspy.controllers import Controller, CpuAcctController, MemoryController
from cgroupspy.interfaces import DictFile, IntegerFile
from cgroupspy.nodes import Node

from podrun.engine import journal as journals
from podrun.engine.processes import alive

CGROUPS = "/sys/fs/cgroup"


class _Unified(Controller):  # type: ignore[misc]  # cgroupspy has no types
    """A cgroup of v2, whose files cgroupspy has no controller for."""

    memory = IntegerFile("memory.current", readonly=True)
    cpu = DictFile("cpu.stat", readonly=True)


def rows(run: str, names: list[str], seconds: float = 0.2) -> list[dict[str, Any]]:
    """One row for each running container of these pods; the processor's share is taken over ``seconds``."""
    found = [row for name in names for row in _containers(run, name)]
    before = [(monotonic(), _cpu_time(row["pid"], row["name"])) for row in found]
    if found:
        sleep(seconds)
    for row, (then, used) in zip(found, before, strict=True):
        now = _cpu_time(row["pid"], row["name"])
        row["cpu"] = f"{max(0.0, now - used) / (monotonic() - then) * 100:.1f}%"
        row["seconds"] = round(now, 2)
        row["memory"] = _memory(row["pid"], row["name"])
        row["limit"] = _limit(row["pid"], row["name"])
        row["used"] = f"{100 * row['memory'] / (row['limit'] or psutil.virtual_memory().total):.1f}%"
        row["network"] = _network(row["pid"])
        row["block"] = _block(row["pid"], row["name"])
        row["processes"] = len(_processes(row["pid"]))
    return found


def _containers(run: str, name: str) -> list[dict[str, Any]]:
    return [
        {"pod": name, "name": entry.step["name"], "unit": journal.header.pod.unit, "pid": process["pid"]}
        for journal in journals.journals(run, name)
        for entry in journal.entries
        if journal.header and (process := entry.facts.get("process")) and alive(process["pid"], process["start"])
    ]


def _cgroup(pid: int, name: str, controller: str) -> tuple[str, bool]:
    """The directory of the container's own cgroup and whether it is v2's; "": it shares one with others."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return "", False
    for number, controllers, path in sorted(lines, key=lambda line: line[0] == "0"):
        if os.path.basename(path) != name and not path.startswith("/podrun/"):
            continue
        if controller in controllers.split(","):
            return f"{CGROUPS}/{controller}{path}", False
        if number == "0":
            top = CGROUPS if os.path.exists(f"{CGROUPS}/cgroup.controllers") else f"{CGROUPS}/unified"
            return top + path, True
    return "", False


def _memory(pid: int, name: str) -> int:
    """Bytes: what the kernel charges to the cgroup, else the sum of the processes' proportional set sizes."""
    path, unified = _cgroup(pid, name, "memory")
    try:
        if path:
            node = Node(path)
            return int(_Unified(node).memory if unified else MemoryController(node).usage_in_bytes)
    except OSError:
        pass  # the controller is not there: a unit without Delegate=memory, or a host of both versions
    return int(sum(_of(process, lambda one: one.memory_full_info().pss) for process in _processes(pid)))


def _limit(pid: int, name: str) -> int | None:
    """Bytes of memory that it may have; None: as many as there are."""
    path, unified = _cgroup(pid, name, "memory")
    try:
        with open(f"{path}/{'memory.max' if unified else 'memory.limit_in_bytes'}", encoding="ascii") as file:
            word = file.read().strip()
    except OSError:
        return None
    # v1 spells "no limit" as the largest number of whole pages.
    return int(word) if word.isdigit() and int(word) < 1 << 62 else None


def _network(pid: int) -> list[int] | None:
    """Bytes received and sent through all interfaces but lo; None for a container in the host's network."""
    try:
        if os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
            return None
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            lines = [line.partition(":") for line in file if ":" in line]
    except OSError:
        return None
    counts = [words.split() for name, _, words in lines if name.strip() != "lo"]
    return [sum(int(words[column]) for words in counts) for column in (0, 8)]


def _block(pid: int, name: str) -> list[int] | None:
    """Bytes read from disks and written to them: by the cgroup (io.stat, blkio), else by the processes there are."""
    path, unified = _cgroup(pid, name, "blkio")
    file = "io.stat" if unified else "blkio.throttle.io_service_bytes"
    try:
        with open(f"{path}/{file}", encoding="ascii") as lines:
            words = [word for line in lines for word in line.split()[1:]] if unified else lines.read().split()
    except OSError:
        found = [_of(process, lambda one: one.io_counters()) for process in _processes(pid)]
        return [sum(one[column] for one in found if one) for column in (2, 3)]
    if unified:
        pairs = [word.partition("=") for word in words]
        return [sum(int(count) for key, _, count in pairs if key == wanted) for wanted in ("rbytes", "wbytes")]
    return [
        sum(int(count) for key, count in itertools.pairwise(words) if key == wanted) for wanted in ("Read", "Write")
    ]


def _cpu_time(pid: int, name: str) -> float:
    """Seconds of processor time."""
    path, unified = _cgroup(pid, name, "cpuacct")
    try:
        if path:
            node = Node(path)
            return float(_Unified(node).cpu["usage_usec"] / 1e6 if unified else CpuAcctController(node).usage / 1e9)
    except OSError:
        pass
    return float(sum(_of(process, lambda one: sum(one.cpu_times()[:2])) for process in _processes(pid)))


def _processes(pid: int) -> list[psutil.Process]:
    """The container's processes: its init, and what descends from it."""
    try:
        init = psutil.Process(pid)
        return [init, *init.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _of(process: psutil.Process, read: Any) -> Any:
    try:
        return read(process)
    except psutil.NoSuchProcess:
        return 0
