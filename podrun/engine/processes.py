"""Which process is meant: pid, start time and boot; whether it still runs and how it ended."""

from __future__ import annotations

import os


def alive(pid: int, start: int) -> bool:
    """True while the process that had this pid and start time runs; a zombie has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return int(fields[19]) == start and fields[0] not in (b"Z", b"X")


#: This boot's id, once it has been read: a process does not outlive its boot.
_BOOT: list[str] = []


def exit_status(pid: int) -> int | None:
    """How a child of podrun ended, 128+n by signal n; None while it runs or when it is not a child. Reaps nothing."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def boot_id() -> str:
    """This boot's id (random(4)): what tells a journal of an earlier boot from today's."""
    if not _BOOT:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            _BOOT.append(file.read().strip())
    return _BOOT[0]


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5) stat, field 22); 0 when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the command's name in parentheses and may hold anything: count from the last one.
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0
