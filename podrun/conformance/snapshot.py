"""Snapshots of the machine's state for the conformance kit, and the namespaces that it isolates itself in."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence

from podrun.conformance import snapshot_network
from podrun.errors import UNAVAILABLE, Failure
from podrun.hook import Pod

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_CHILD_SUBREAPER = 36
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_libc = ctypes.CDLL(None, use_errno=True)

#: Where programs put temporary files.
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
#: File systems without a disk: a disk that is full or read-only does not change them.
_NO_DISK = (
    "proc",
    "sysfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "nsfs",
    "cgroup",
    "cgroup2",
    "securityfs",
    "debugfs",
    "bpf",
)


# --- a corner of its own -------------------------------------------------------------------------------------------


def isolate(changes: str) -> None:
    """Gives this process mounts and a network of its own, with lo up and no named namespaces. Needs root.

    What is written to the directories for temporary files goes to ``changes``, a directory, where it is seen.
    """
    _checked(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    os.makedirs("/run/netns", exist_ok=True)
    _mount("tmpfs", "/run/netns", "tmpfs", 0)
    for number, place in enumerate(_TEMPORARY):
        upper, work = f"{changes}/{number}", f"{changes}-work/{number}"
        os.makedirs(upper)
        os.makedirs(work)
        try:
            _mount("overlay", place, "overlay", 0, f"lowerdir={place},upperdir={upper},workdir={work}")
            os.chmod(place, 0o1777)
        except OSError:
            continue  # not there, or what overlayfs cannot lie on: nothing is seen of it
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def make_netns(name: str) -> str:
    """A network namespace as ``ip netns add`` makes it; returns its path."""
    path = f"/run/netns/{name}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"no network namespace for the hook: {done.stderr.strip()}", code=UNAVAILABLE)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    return path


def remove_netns(name: str) -> None:
    """Removes what :func:`make_netns` made."""
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def make_everything_read_only() -> None:
    """In a child only: its file systems become read-only, in a mount namespace of its own."""
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    for place, kind in mounts():
        if kind not in _NO_DISK:
            try:
                _mount(None, place, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
            except OSError:
                continue  # something else is mounted over it


def unmount_below(top: str) -> bool:
    """Detaches what is mounted below a directory; False when something still is."""
    for place in reversed(_below(top)):
        _libc.umount2(os.fsencode(place), _MNT_DETACH)
    return not _below(top)


def _below(top: str) -> list[str]:
    return [place for place, _ in mounts() if place.startswith(f"{top}/")]


def adopt_orphans() -> None:
    """What descendants of this process leave running becomes its child."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    source_, kind_, data_ = (word.encode() if word else None for word in (source, kind, data))
    _checked(_libc.mount(source_, os.fsencode(target), kind_, ctypes.c_ulong(flags), data_), target)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


# --- what there is -------------------------------------------------------------------------------------------------


def listing(places: Sequence[str], tag: str, netns: str = "") -> set[str]:
    """All that a hook could leave: mounts, devices, cgroups, processes, files below ``places``, and of the network
    what witness_network sees, in the namespace called ``netns``, too.
    """
    seen = {f"mount {place} ({kind})" for place, kind in mounts()}
    seen |= snapshot_network.listing()
    if netns:
        seen |= snapshot_network.listing(netns)
    seen |= {f"device {name}" for name in _devices() if tag in name or any(top in name for top in places)}
    seen |= {f"netns {name}" for name in _names("/run/netns")}
    seen |= {f"process {pid} ({name})" for pid, name in orphans()}
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        seen |= {f"cgroup {directory}/{name}" for name in names if tag in name}
    for top in places:
        for directory, names, files in os.walk(top):
            if "locks" in names:
                names.remove("locks")
            seen |= {f"file {directory}/{name}" for name in files}
            seen |= {f"directory {directory}/{name}" for name in names}
    return seen


def recognisable(items: set[str], places: Sequence[str], tag: str) -> set[str]:
    """Those that can only be the hook's own, on a machine on which others are at work, too."""
    own = ("process ", "in ")
    return {item for item in items if item.startswith(own) or tag in item or any(top in item for top in places)}


def is_a_pods(item: str, pod: Pod) -> bool:
    """True for what has to go with a pod, temporary files included; False for what pods share, such as an unpacked
    image.
    """
    own = item.startswith(("mount ", "device ", "process ", "cgroup ", "in "))
    return own or pod.name in item or pod.tag in item or "/temporary/" in item


def mounts() -> list[tuple[str, str]]:
    """(mount point, type of file system) of this process's mounts."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            place = before.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            found.append((place, after.split()[0]))
    return found


def orphans() -> Iterator[tuple[int, str]]:
    """The living children of this process; zombies are reaped on the way."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
    me = str(os.getpid())
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if parent == me and state not in "ZX":
            yield int(pid), name


def end_orphans() -> None:
    """Kills the children of this process."""
    for pid, _ in list(orphans()):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _devices() -> Iterator[str]:
    """Loop devices with the file behind them, and devices of the device mapper by their names."""
    for name in _names("/sys/block"):
        for file in ("loop/backing_file", "dm/name"):
            try:
                with open(f"/sys/block/{name}/{file}", encoding="utf-8", errors="surrogateescape") as behind:
                    yield f"{name} ({behind.read().strip()})"
            except OSError:
                continue


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


# --- processes -----------------------------------------------------------------------------------------------------


def ends(pidfd: int, seconds: float) -> bool:
    """Waits for the end of a process; False when it takes longer."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def stop_the_child_of(parent: int, pidfd: int) -> None:
    """Stops (SIGSTOP) the first child of ``parent`` as soon as there is one: to others it looks like one that hangs."""
    path = f"/proc/{parent}/task/{parent}/children"
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and not ends(pidfd, 0):
        try:
            with open(path, encoding="ascii") as file:
                children = [int(pid) for pid in file.read().split()]
            for pid in children:
                os.kill(pid, signal.SIGSTOP)
        except OSError:
            continue
        if children:
            return


# --- what facts have to look like ------------------------------------------------------------------------------------
