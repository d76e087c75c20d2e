"""Which system calls of a command change something, and the same command with one of them failing, or killing it.

strace(1) does it: ``-e inject=CALL:signal=KILL:when=N`` and ``:error=ERRNO:when=N``. It counts the calls of each name
for each process on its own; a signal comes before the call, and a call that is made to fail is not carried out.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_FILES = """openat mkdir mkdirat mknod mknodat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
    truncate ftruncate fallocate write pwrite64 writev copy_file_range sendfile chmod fchmod fchmodat chown fchown lchown
    fchownat utimensat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr flock"""
_MOUNTS = """mount umount2 move_mount open_tree fsopen fsconfig fsmount mount_setattr pivot_root chroot"""
_PROCESSES = (
    "setns unshare clone clone3 fork vfork execve kill tgkill pidfd_send_signal setsid setresuid setresgid prctl"
)
_SOCKETS = "sendto sendmsg connect bind listen bpf ioctl"

#: Calls that change something outside the process: between two of them a kill finds the same state.
CHANGING = frozenset(f"{_FILES} {_MOUNTS} {_PROCESSES} {_SOCKETS}".split())
#: What can fail besides: it makes descriptors, waits for a process or has data written to the disk.
FAILING = CHANGING | frozenset(
    "socket pipe2 memfd_create pidfd_open inotify_init1 fsync fdatasync syncfs wait4 waitid".split()
)
_OPENING = "openat socket pipe2 memfd_create pidfd_open inotify_init1 open_tree fsopen fsmount"
_WAITING = "openat write writev connect sendto sendmsg wait4 waitid flock fsync mount"
_GROWING = (
    "openat mkdir mkdirat mknod mknodat rename renameat renameat2 link linkat symlink symlinkat ftruncate fallocate"
)
#: Which calls can fail how: what a full disk, a broken one, no memory, no descriptors, a security module or a signal does.
ERRORS = {
    "ENOSPC": frozenset(f"{_GROWING} write pwrite64 writev copy_file_range sendfile setxattr lsetxattr fsetxattr fsync"
                        " fdatasync syncfs mount unshare clone clone3".split()),
    "EIO": frozenset(f"{_FILES} {_MOUNTS} fsync fdatasync syncfs execve".split()) - {"flock"},
    "ENOMEM": FAILING - {"kill", "tgkill", "setsid", "wait4", "waitid", "bind", "listen"},
    "EMFILE": frozenset(_OPENING.split()),
    "EPERM": frozenset(f"{_FILES} {_MOUNTS} {_PROCESSES} {_SOCKETS} socket".split()) - {"write", "writev", "flock"},
    "EINTR": frozenset(_WAITING.split()),
}  # fmt: skip
#: Asked of a terminal, or of the descriptor alone.
_HARMLESS = re.compile(
    r"ioctl\(.*(TCGETS|TIOCGWINSZ|FIONBIO|FIOCLEX|FIONCLEX)|prctl\((PR_GET_|PR_CAPBSET_READ|PR_SET_VMA)"
    r"|openat\(.*(\.(py|pyc|so[.0-9]*|cnf|pth)\b|__pycache__)|openat\([^,]*, \"(/proc/|/usr/lib|/etc/ld)[^,]*, O_RDONLY"
)
_WRITES = re.compile(r"O_(WRONLY|RDWR|CREAT|TMPFILE)")
_LINE = re.compile(r"(\d+ +)?(\w+)\((.*)")


class Call(NamedTuple):
    """A call of one run: its name, the how many-th of that name in its process, and how it was traced that time."""

    name: str
    n: int
    words: str


class Ended(NamedTuple):
    """How a run ended. ``hit``: the call that failed, as traced; "" when none did or the run was to be killed."""

    code: int
    stdout: str
    stderr: str
    hit: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Tracer:
    """Runs one command line below strace, as often as it takes. ``follow``: its children count, and are hit, as well."""

    def __init__(
        self, argv: Sequence[str], environ: Mapping[str, str], place: Path, *, follow: bool = False, timeout: float = 60
    ) -> None:
        self.argv = argv
        self.environ = environ
        self.follow = follow
        self.timeout = timeout
        self.trace = place / "trace"
        self.output = (place / "stdout", place / "stderr")

    def calls(self, mark: str, names: frozenset[str] = CHANGING, until: str = "") -> list[Call]:
        """The calls of one whole run from the first that names ``mark`` on: before it there is only the interpreter.

        With ``until``, to the next one that names this.
        """
        ended = self._run("-y", "-s", "200", "-e", f"trace={_known(names)}")
        assert ended.code == 0, ended.stderr
        counts: dict[str, Counter[str]] = {}
        found: dict[tuple[str, int], Call] = {}
        at_work = False
        for line in self._traced():
            if at_work and until and until in line:
                break
            at_work = at_work or mark in line
            parts = _LINE.match(line)
            if not parts or parts[2] not in names:
                continue
            count = counts.setdefault(parts[1] or "", Counter())
            count[parts[2]] += 1
            if not at_work or _HARMLESS.search(line):
                continue
            if parts[2] == "openat" and names is CHANGING and not _WRITES.search(line):
                continue
            call = Call(parts[2], count[parts[2]], line[len(parts[1] or "") :][:200])
            found.setdefault(call[:2], call)
        return list(found.values())

    def killed_at(self, call: Call) -> Ended:
        """The run in which the process that makes this call is killed before it."""
        return self._run("-e", f"inject={call.name}:signal=KILL:when={call.n}", "-e", f"trace={call.name}")

    def failing_at(self, call: Call, error: str, *, onward: bool = False) -> Ended:
        """The run in which this call fails; ``onward``: and every later one of its name."""
        when = f"{call.n}+" if onward else str(call.n)
        ended = self._run(
            "-y", "-s", "200", "-e", f"trace={call.name}", "-e", f"inject={call.name}:error={error}:when={when}"
        )
        deadline = time.monotonic() + 0.5
        hit = ""
        while not hit and time.monotonic() < deadline:
            hit = next((line for line in self._traced() if "INJECTED" in line), "")
            # With -D strace writes on after its tracee has ended.
            if not hit:
                time.sleep(0.02)
        return ended._replace(hit=hit)

    def _traced(self) -> list[str]:
        return self.trace.read_text(errors="replace").splitlines()

    def _run(self, *options: str) -> Ended:
        # -D: the command is our own child, and strace, which stays with the containers that it follows, is nobody's.
        argv = ["strace", "-D", "-o", str(self.trace), *(["-f"] if self.follow else []), *options, *self.argv]
        # Into files: a container inherits a pipe, and would keep it open.
        with self.output[0].open("wb") as out, self.output[1].open("wb") as err:
            code = subprocess.run(
                argv, env=self.environ, timeout=self.timeout, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            ).returncode
        texts = [path.read_text(errors="replace") for path in self.output]
        return Ended(code, texts[0], texts[1], "")


def _known(names: frozenset[str]) -> str:
    """The names as strace takes them; "?" lets those pass that this machine has not."""
    return ",".join(f"?{name}" for name in sorted(names))
