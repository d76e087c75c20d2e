"""What podrun and systemd tell each other: sd_notify(3), the hand-off of MAINPID, the delegated cgroup."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CGROUPS = "/sys/fs/cgroup"
#: Where podrun puts units, in systemd's order (systemd.unit(5)).
UNITS = ("/etc/systemd/system", "/run/systemd/generator")
#: The launcher's own cgroup below the unit's: no container may have its name.
LAUNCHER = "podrun"


def takes_over(environ: Mapping[str, str]) -> bool:
    """True when podrun is itself the process that a notify unit started.

    A descendant of some other notify service also sees NOTIFY_SOCKET, and must not take over that service's main
    process: SYSTEMD_EXEC_PID (systemd 248) tells the two apart.
    """
    return bool(environ.get("NOTIFY_SOCKET")) and environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def notify(environ: Mapping[str, str], assignments: str) -> None:
    """Sends assignments to $NOTIFY_SOCKET, if there is one: a path, or "@name" for an abstract socket."""
    address = environ.get("NOTIFY_SOCKET")
    if address:
        _send(address, assignments, [])


def barrier(environ: Mapping[str, str]) -> None:
    """Returns when systemd has read what was sent before (BARRIER=1, systemd 246), at the latest after 5 s.

    Without it the sender may be gone before systemd looks up which unit it belongs to, and the message is dropped.
    """
    address = environ.get("NOTIFY_SOCKET")
    if address:
        import select

        here, there = os.pipe2(os.O_CLOEXEC)
        _send(address, "BARRIER=1", [there])
        os.close(there)
        poll = select.poll()
        poll.register(here, 0)  # POLLHUP comes unasked, when systemd has closed its copy
        poll.poll(5000)
        os.close(here)


def _send(address: str, assignments: str, fds: list[int]) -> None:
    import _socket

    target = "\0" + address[1:] if address.startswith("@") else address
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, "little") for fd in fds))] if fds else []
    try:
        sock.sendmsg([assignments.encode()], rights, 0, target)
    except OSError:
        # Progress is a courtesy: a supervisor that went away must not stop a teardown.
        pass
    finally:
        sock.close()


def delegated_cgroup(cgroups: str = CGROUPS) -> str:
    """The caller's cgroup below ``cgroups`` ("/system.slice/web.service") if systemd delegated it, else "".

    systemd marks a delegated cgroup with the extended attribute trusted.delegate (user.delegate since 251).
    Only cgroup v2: a v1 hierarchy has no safe delegation (systemd's CGROUP_DELEGATION document).
    """
    if not os.path.exists(f"{cgroups}/cgroup.controllers"):
        return ""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        own = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), "")
    for attribute in ("trusted.delegate", "user.delegate"):
        try:
            if own and os.getxattr(cgroups + own, attribute) == b"1":
                return own
        except OSError:
            continue
    return ""


def own_unit() -> str:
    """The unit whose cgroup podrun is in ("web.service"), or ""."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    # v2, or systemd's own hierarchy beside v1's.
    paths = [path for number, names, path in lines if number == "0" or names == "name=systemd"]
    words = [word for path in paths for word in reversed(path.split("/"))]
    return next((word for word in words if word.endswith(".service")), "")


def booted() -> bool:
    """True where systemd runs the machine (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def ask(verb: str, units: Sequence[str], *, wait: bool = True) -> int:
    """Has systemd "stop", "restart" or "reload" units, and waits for it with ``wait``; returns systemctl's status."""
    argv = ["systemctl", *([] if wait else ["--no-block"]), verb, *dict.fromkeys(units)]
    pid = os.posix_spawn("/bin/systemctl", argv, os.environ)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def learn_watchdog(unit: str) -> None:
    """Makes the environment of podrun in ExecReload= what that of ExecStart= is: with the watchdog that the unit has.

    systemd gives WATCHDOG_USEC to ExecStart= only (EXEC_SET_WATCHDOG in src/core/service.c).
    """
    import subprocess

    from podrun.options import DURATION, Wrong

    argv = ["systemctl", "show", "--value", "--property=WatchdogUSec", unit]
    span = subprocess.run(argv, check=False, capture_output=True, text=True).stdout.strip()
    try:
        seconds = DURATION.parse(span or "0")
    except Wrong:
        return
    if 0 < seconds < float("inf"):
        os.environ["WATCHDOG_USEC"] = str(int(seconds * 1e6))


def made_of(pod: str) -> str:
    """The pod file that podrun made a pod's unit of, by ``podrun unit --install`` or as a generator; "": there is none.

    ``pod``: its name; the unit of "web@blue" is an instance of "web@.service".
    """
    stem, at, _ = pod.partition("@")
    for place in UNITS:
        try:
            with open(f"{place}/{stem}{at}.service", encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        made = bool(lines) and lines[0].startswith("# Made by podrun ")
        source = next((line for line in lines if line.startswith("SourcePath=")), "")
        # The first one hides those after it.
        return source.partition("=")[2].replace("%%", "%") if made else ""
    return ""


def is_transient(unit: str) -> bool:
    """True for a unit that systemd-run has made: it is gone once it has been stopped."""
    return os.path.exists(f"/run/systemd/transient/{unit}")


def leave_room(cgroup: str, cgroups: str = CGROUPS) -> None:
    """Moves podrun from the unit's cgroup into a child of it and enables the controllers for its children.

    cgroup v2 allows controllers in subtree_control only while no process is in the cgroup itself (cgroups(7), "no
    internal processes"), and a container in the unit's own cgroup would take ExecStopPost= with it when it is killed.
    """
    unit = cgroups + cgroup
    os.makedirs(f"{unit}/{LAUNCHER}", exist_ok=True)
    _write(f"{unit}/{LAUNCHER}/cgroup.procs", str(os.getpid()))
    with open(f"{unit}/cgroup.controllers", encoding="utf-8") as file:
        for controller in file.read().split():
            try:
                _write(f"{unit}/cgroup.subtree_control", f"+{controller}")
            except OSError:
                # Another process is still in the unit's own cgroup (an ExecStartPre's child): go on without limits.
                continue


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
