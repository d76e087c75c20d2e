"""User namespaces of pods: ranges of ids and their leases, the namespace and where it is pinned, idmapped mounts.

A range is a slot of 65,536 ids. Its lease is a hard link, <run>/userns/SLOT, to a file in the pod's directory: link(2)
is exclusive, and a lease whose other name is gone (st_nlink 1), or that is of an earlier boot, is dead.
"""

from __future__ import annotations

import errno
import os
import stat

from podrun.errors import BUSY, STEP_FAILED, UNAVAILABLE, Failure
from podrun.record import NamedTuple
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Facts

#: Ids of a pod, enough for "nobody" (65534).
SIZE = 65536
#: subuid(5): whose ranges are podrun's; the second name is podman's and buildah's for containers of root.
_OWNERS = ("podrun", "containers")
_FILES = ("/etc/subuid", "/etc/subgid")
_BOOT = "/proc/sys/kernel/random/boot_id"


class Range(NamedTuple):
    """What a pod's ids 0 to SIZE - 1 are on the host: the first user's and the first group's."""

    uid: int
    gid: int


class Mapping(NamedTuple):
    """A pod's user namespace, for whoever makes mounts for it: a descriptor, and the range."""

    namespace: int
    base: Range


def of_facts(facts: Facts) -> Mapping | None:
    """The pod's mapping, its descriptor to be closed; None where the pod has the host's ids."""
    own = facts.get("userns")
    if not own:
        return None
    return Mapping(os.open(own["path"], os.O_RDONLY | os.O_CLOEXEC), Range(own["uid"], own["gid"]))


# --- which ranges there are ----------------------------------------------------------------------------------------


def ranges() -> list[Range]:
    """The ranges that /etc/subuid and /etc/subgid give to podrun. Raises Failure (UNAVAILABLE) when there are none."""
    found = [_starts(path) for path in _FILES]
    pairs = [Range(uid, gid) for uid, gid in zip(*found, strict=False)]
    if not pairs:
        what = f"no ids are set aside for pods: {' and '.join(_FILES)} have no line for podrun or containers"
        hint = f"echo podrun:1073741824:16777216 | tee -a {' '.join(_FILES)}   (256 pods; ids that nothing else uses)"
        raise Failure(what, code=UNAVAILABLE, hint=hint)
    return pairs


def _starts(path: str) -> list[int]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            rows = [line.strip().split(":") for line in file.read(1 << 20).splitlines()]
    except FileNotFoundError:
        return []
    for owner in _OWNERS:
        starts: list[int] = []
        for row in rows:
            if len(row) == 3 and row[0] == owner and all(word.isascii() and word.isdigit() for word in row[1:]):
                first, count = int(row[1]), int(row[2])
                # Id 0 is the host's root, and 2^32 - 1 is not a valid id.
                if first and first + count < 1 << 32:
                    starts += range(first, first + count - SIZE + 1, SIZE)
        if starts:
            return starts
    return []


def refuse_old_kernel() -> None:
    """Raises Failure (UNAVAILABLE) before kernel 5.19: overlayfs takes no idmapped layers."""
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int(minor.split("-")[0])) < (5, 19):
        what = f"Linux {os.uname().release} cannot stack idmapped layers: that came with 5.19"
        raise Failure(what, code=UNAVAILABLE, hint='userns = "host"')


# --- leases --------------------------------------------------------------------------------------------------------


def ledger_of(directory: str) -> str:
    """The pod's own link to its lease."""
    return f"{directory}/userns.lease"


def claim(run: str, ledger: str, seed: str, pairs: list[Range]) -> Range:
    """Leases a range to the pod with this ledger: the same one as before as long as it is free (``seed``).

    Raises Failure (BUSY) when all are leased and none of the leases is dead.
    """
    from _blake2 import blake2b

    os.makedirs(f"{run}/userns", mode=0o700, exist_ok=True)
    fd = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(_BOOT, "rb", buffering=0) as file:
            os.write(fd, file.read())
        digest = blake2b(seed.encode(), digest_size=4).digest()
        first = int.from_bytes(digest, "big") % len(pairs)
        for attempt in range(2):
            for n in (*range(first, len(pairs)), *range(first)):
                slot = f"{run}/userns/{pairs[n].uid}"
                try:
                    os.link(ledger, slot)
                except FileExistsError:
                    continue
                os.write(fd, slot.encode())
                return Range(*pairs[n])
            if attempt or not collect(run):
                break
    finally:
        os.close(fd)
    raise Failure(f"all {len(pairs)} ranges of ids are leased", code=BUSY, hint="give podrun more in /etc/subuid")


def release(run: str, ledger: str) -> None:
    """Gives the range back; nothing when there is none."""
    try:
        mine = os.stat(ledger)
    except FileNotFoundError:
        return
    if mine.st_nlink > 1:
        with open(ledger, encoding="utf-8") as file:
            slot = file.read().partition("\n")[2]
        # After a kill between link(2) and write(2) it names no slot: then all are searched.
        for path in [slot] if slot else [f"{run}/userns/{name}" for name in os.listdir(f"{run}/userns")]:
            try:
                if os.stat(path).st_ino == mine.st_ino:
                    os.unlink(path)
            except FileNotFoundError:
                continue
    os.unlink(ledger)


def collect(run: str, *, keep: bool = False) -> list[str]:
    """Removes dead leases, or with ``keep`` only looks for them; returns their first ids."""
    dead = []
    try:
        names = sorted(os.listdir(f"{run}/userns"))
    except FileNotFoundError:
        return []
    for name in names:
        try:
            with open(f"{run}/userns/{name}", encoding="utf-8") as file, open(_BOOT, encoding="utf-8") as boot:
                if os.fstat(file.fileno()).st_nlink > 1 and file.readline() == boot.readline():
                    continue
            dead.append(name)
            if not keep:
                os.unlink(f"{run}/userns/{name}")
        except FileNotFoundError:
            continue
    return dead


# --- the namespace -------------------------------------------------------------------------------------------------


def path_of(directory: str) -> str:
    """Where the user namespace is pinned."""
    return f"{directory}/userns"


def netns_of(directory: str) -> str:
    """Where the network namespace that it owns is pinned until the network step, or the runtime, has it."""
    return f"{directory}/userns.net"


def make(directory: str, base: Range) -> None:
    """Makes both namespaces and pins them. Raises Failure, OSError."""
    child, closing = _made(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET, *_lines(base))
    try:
        for kind, place in (("user", path_of(directory)), ("net", netns_of(directory))):
            os.close(os.open(place, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            syscalls.mount(f"/proc/{child}/ns/{kind}", place, "none", syscalls.MS_BIND)
    finally:
        _end(child, closing)


def unpin(directory: str) -> None:
    """Unpins both namespaces; they end with the last process in them."""
    for place in (netns_of(directory), path_of(directory)):
        try:
            syscalls.umount(place, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
        try:
            os.unlink(place)
        except FileNotFoundError:
            pass


def opened(uid_map: str, gid_map: str) -> int:
    """A descriptor of a user namespace that exists for its mapping alone: no process is in it."""
    child, closing = _made(syscalls.CLONE_NEWUSER, uid_map, gid_map)
    try:
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        _end(child, closing)


def _lines(base: Range) -> tuple[str, str]:
    return f"0 {base.uid} {SIZE}\n", f"0 {base.gid} {SIZE}\n"


def _made(flags: int, uid_map: str, gid_map: str) -> tuple[int, tuple[int, ...]]:
    """A child in new namespaces that waits to be ended, and descriptors to close after that."""
    ready, go = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    child = syscalls.fork()
    if not child:
        try:
            syscalls.die_with_parent(parent)
            # podrun is not dumpable: its parent would need CAP_SYS_PTRACE to look into /proc, and no unit has that.
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
            syscalls.unshare(flags)
            os.write(ready[1], b"1")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    closing = (ready[0], *go)
    try:
        if not os.read(ready[0], 1):
            what = "the kernel refuses to create a user namespace"
            raise Failure(what, code=STEP_FAILED, hint="sysctl user.max_user_namespaces")
        for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
            with open(f"/proc/{child}/{name}", "w", encoding="utf-8") as file:
                file.write(text)
    except BaseException:
        _end(child, closing)
        raise
    return child, closing


def _end(child: int, closing: tuple[int, ...]) -> None:
    syscalls.end(child)
    for fd in closing:
        os.close(fd)


# --- as the pod's root ---------------------------------------------------------------------------------------------


class AsRootOf:
    """``with AsRootOf(mapping)``: files that podrun makes belong to the pod's root, and its own rights stay.

    On a layer whose owners are mapped the host's root has no id, and cannot own a file (EOVERFLOW). With
    SECBIT_NO_SETUID_FIXUP the capabilities stay that setfsuid(2) would take away (capabilities(7)).
    """

    def __init__(self, mapping: Mapping | None) -> None:
        self.base = mapping.base if mapping else None

    def __enter__(self) -> None:
        if self.base:
            self.bits = syscalls.prctl(syscalls.PR_GET_SECUREBITS, 0)
            syscalls.prctl(syscalls.PR_SET_SECUREBITS, self.bits | syscalls.SECBIT_NO_SETUID_FIXUP)
            syscalls.set_fs_ids(self.base.uid, self.base.gid)

    def __exit__(self, *_: object) -> None:
        if self.base:
            syscalls.set_fs_ids(os.geteuid(), os.getegid())
            syscalls.prctl(syscalls.PR_SET_SECUREBITS, self.bits)


def idmapped(path: str, namespace: int, *, recursive: bool = False) -> int:
    """A detached copy of the mount at ``path`` with the owners of a user namespace. Raises OSError."""
    tree = syscalls.open_tree(path, recursive=recursive)
    try:
        syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_IDMAP, recursive=recursive, userns=namespace)
    except BaseException:
        os.close(tree)
        raise
    return tree


def become_root(namespace: int) -> None:
    """In a forked child: become the root of a user namespace."""
    syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def tolerates_nobody(source: str, mode: int, *, read_only: bool) -> bool:
    """Whether a mount serves although its files belong to nobody in the pod.

    That is a file that everybody may read and nobody has to write; a device; a socket.
    """
    return (
        (stat.S_ISREG(mode) and read_only and bool(mode & 0o004)) or source.startswith("/dev/") or stat.S_ISSOCK(mode)
    )


def refusal(source: str, *, read_only: bool = False) -> str:
    """Why a path of the host cannot have the owners of a pod's user namespace; "" when it can, or is not there."""
    try:
        if tolerates_nobody(source, os.stat(source).st_mode, read_only=read_only):
            return ""
        namespace = opened(f"0 65536 {SIZE}\n", f"0 65536 {SIZE}\n")
    except (OSError, Failure):
        return ""
    try:
        os.close(idmapped(source, namespace, recursive=True))
    except OSError as error:
        return not_mapped(source) if error.errno in NOT_MAPPED else ""
    finally:
        os.close(namespace)
    return ""


#: What mount_setattr(2) answers where a file system has no idmapped mounts, or is one already.
NOT_MAPPED = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def not_mapped(source: str) -> str:
    """The message about such a file system."""
    return f"{source} cannot have the owners of the pod's user namespace: its file system has no idmapped mounts"
