"""The ledger of a network step: notes each resource before taking it, so that ``down`` finds all after a kill -9.

The file is append-only, and every note is one write(2): a kill leaves a whole line or none. The lease of an address is
a hard link to the ledger (lease.py), so comparing inodes tells whether a lease is the step's own.
"""

from __future__ import annotations

import os

from podrun.record import NamedTuple
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun.hook import Step


class Ledger(NamedTuple):
    """The notes of one step, in the order in which they were written."""

    path: str
    notes: Sequence[tuple[str, str]] = ()

    def all(self, key: str) -> list[str]:
        """The values noted under ``key``: pod, boot, bridge, address, netns, link, plug, inside, cni, name, publish,
        holds."""
        return [value for noted, value in self.notes if noted == key]

    def last(self, key: str) -> str:
        """The latest value of ``key``, or ""."""
        return next((value for noted, value in reversed(self.notes) if noted == key), "")


def path_of(step: Step) -> str:
    """The path of a step's ledger."""
    return f"{step.pod.directory}/{step.name}.network"


def begin(step: Step) -> int:
    """Creates the step's ledger, notes its owner, and returns a descriptor that appends. It must not exist yet."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if link := _link(step):
        try:
            os.symlink(f"+{step.pod.generation}/{os.path.basename(path_of(step))}", link)
        except FileExistsError:
            pass  # of a start that was killed
    fd = os.open(path_of(step), flags, 0o600)
    pod = step.pod
    with syscalls.Naming(path_of(step)):
        os.write(fd, f"pod {pod.key}\ntag {pod.tag}\ninvocation {pod.invocation}\nboot {boot_id()}\n".encode())
    return fd


def end(step: Step) -> None:
    """Removes the step's ledger, if there is one."""
    for path in (path_of(step), _link(step)):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _link(step: Step) -> str:
    """The path of a link to a later generation's ledger; "" for the first generation.

    Versions without swaps look for ledgers there: their ``gc`` takes what is in none for a dead pod's.
    """
    pod = step.pod
    return f"{pod.run}/pods/{pod.name}/+{pod.generation}.{step.name}.network" if pod.generation > 1 else ""


def further(path: str) -> int:
    """A descriptor that appends to the ledger at ``path``. Raises FileNotFoundError."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def note(fd: int, key: str, value: str) -> None:
    """Appends one line."""
    try:
        os.write(fd, f"{key} {value}\n".encode())
    except OSError as error:
        error.filename = os.readlink(f"/proc/self/fd/{fd}")
        raise


def read(path: str) -> Ledger:
    """The ledger at ``path``; an empty one if there is no file."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return Ledger(path)
    pairs = (line.partition(" ") for line in lines)
    return Ledger(path, [(key, value) for key, _, value in pairs])


def alive(run: str, ledger: Ledger) -> bool:
    """True while the ledger's pod has a journal of this boot."""
    if ledger.last("boot") != boot_id():
        return False
    try:
        return any(name.endswith(".journal") for name in os.listdir(f"{run}/pods/{ledger.last('pod')}"))
    except FileNotFoundError:
        return False


def boot_id() -> str:
    """The kernel's id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def of(run: str, pod: str) -> list[Ledger]:
    """The ledgers of a pod's network steps, from its earliest to its latest generation."""
    where = f"{run}/pods/{pod}"
    try:
        names = sorted(os.listdir(where))
    except (FileNotFoundError, NotADirectoryError):
        return []
    later = sorted((name for name in names if name[0] == "+" and name[1:].isdecimal()), key=lambda name: int(name[1:]))
    own = [read(f"{where}/{name}") for name in names if name.endswith(".network") and name[0] != "+"]
    return [*own, *(ledger for name in later for ledger in of(run, f"{pod}/{name}"))]


def is_up_without(run: str, pod: str) -> bool:
    """True for a pod that is up, or was, and has no ledger: its network is the host's."""
    where = f"{run}/pods/{pod}"
    journals = [name for _, _, names in os.walk(where) for name in names if name.endswith(".journal")]
    return bool(journals) and not of(run, pod)


def holds_ports(ledger: Ledger) -> bool:
    """False if another generation has the ledger's ports: not taken over yet, or handed over already."""
    return ledger.last("holds") != "no"


def pod_of(ledger: Ledger) -> str:
    """The name of a ledger's pod, whichever its generation."""
    return ledger.last("pod").partition("/")[0]


def everywhere(run: str) -> list[Ledger]:
    """The ledgers of all pods of a run directory."""
    try:
        pods = sorted(os.listdir(f"{run}/pods"))
    except FileNotFoundError:
        return []
    return [ledger for pod in pods for ledger in of(run, pod)]
