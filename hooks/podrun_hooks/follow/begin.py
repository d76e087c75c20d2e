"""Makes sure that a follower runs: a unit where systemd runs, else a child of podrun, or a process of its own."""

from __future__ import annotations

import fcntl
import os

from podrun.identity import of_run
from podrun_hooks.registry import wishes
from podrun_hooks.support import syscalls
from podrun_hooks.support.subprocesses import program, silent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Step

#: What ``[defaults]``, tests and people without systemd say: "no".
_VARIABLE = "PODRUN_SYSTEMD"
#: Seconds (WatchdogSec=): the follower makes them fewer where a record has a short TTL.
WATCHDOG = 8.0
#: The run directories that this process follows already: several steps of a pod need one child.
_own: set[tuple[int, str]] = set()


def ensure(step: Step) -> None:
    """Starts the follower of the step's run directory unless a lasting one runs.

    In the foreground it is a child of podrun's, which waits until no other follows, and ends with podrun.
    """
    run = step.pod.run
    kind = running(run)
    if kind in ("unit", "sidekick"):
        return
    booted = os.path.isdir("/run/systemd/system") and os.environ.get(_VARIABLE) != "no" and not os.geteuid()
    if booted and _unit(run):
        return
    if step.pod.attached:
        if (os.getpid(), run) not in _own:
            _start(run, "foreground")
            _own.add((os.getpid(), run))
        return
    pid = _start(run, "sidekick")
    why = f"process {pid} stays and follows the registry: systemd does not run here"
    os.write(2, f"podrun: {step.pod.name}: {step.label}: {why}\n".encode())


def running(run: str) -> str:
    """What kind of follower runs: "unit", "sidekick", "foreground", or "" when none is."""
    try:
        fd = os.open(lock_of(run), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 32, 0).decode().strip() or "foreground"
    finally:
        os.close(fd)
    return ""


def lock_of(run: str) -> str:
    """The lock that the follower holds; the file's content is its kind."""
    return wishes.lock_of(run, "follower")


def unit_of(run: str) -> str:
    """The unit's name; other run directories have units of their own."""
    return f"{of_run('podrun-follow', run)}.service"


def command(run: str, kind: str) -> list[str]:
    """The follower's command line: an interpreter without site, to which everything it imports is given."""
    python, *words = program("podrun_hooks.follow.process")
    # Without the columns of each instruction, which only tracebacks show, it is 0.2 MB smaller.
    return [python, "-Xno_debug_ranges", *words, run, kind]


def _unit(run: str) -> bool:
    """Has systemd start the unit, as the installed one or as a transient one; False when it does not."""
    name = unit_of(run)
    if os.path.exists(f"/etc/systemd/system/{name}") or os.path.exists(f"/run/systemd/generator/{name}"):
        argv = ["/bin/systemctl", "start", "--no-block", name]
    else:
        settings = ["Type=notify", "Restart=always", "RestartSec=100ms", "OOMScoreAdjust=-500"]
        settings += [f"WatchdogSec={WATCHDOG:g}s", "WatchdogSignal=SIGKILL"]
        # The same as podrun/systemd/following.py has in the installed unit.
        settings += ["CapabilityBoundingSet=CAP_NET_ADMIN CAP_SYS_ADMIN CAP_DAC_OVERRIDE", "NoNewPrivileges=yes"]
        settings += ["LockPersonality=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "RestrictNamespaces=net"]
        settings += ["RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK", "SystemCallArchitectures=native"]
        settings += ["SystemCallFilter=@system-service setns", "SystemCallErrorNumber=EPERM", "UMask=0077"]
        argv = ["/usr/bin/systemd-run", "--quiet", "--no-block", "--collect", f"--unit={name}"]
        argv += ["--description=podrun: records and services of this host", *(f"--property={one}" for one in settings)]
        argv += ["--", *command(run, "unit")]
    try:
        status = silent(argv)
    except OSError:
        return False
    # Another pod may have been quicker: then the unit is there, and all is well.
    return status == 0 or running(run) == "unit" or os.path.exists(f"/run/systemd/transient/{name}")


def _start(run: str, kind: str) -> int:
    """Starts the follower as a process; returns its pid. A child in the foreground ends with podrun."""
    os.makedirs(wishes.directory(run), mode=0o700, exist_ok=True)
    parent = os.getpid()
    argv = command(run, kind)
    child = syscalls.fork()
    if child:
        return child
    try:
        if kind == "foreground":
            syscalls.die_with_parent(parent, 15)
        # Ctrl-C in the terminal is for podrun, which ends in its own time.
        os.setsid()
        syscalls.heed_signals()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1) if kind == "foreground" else (0, 1, 2):
            os.dup2(null, fd)
        syscalls.close_on_exec_from(3)
        os.execve(argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    finally:
        os._exit(125)
