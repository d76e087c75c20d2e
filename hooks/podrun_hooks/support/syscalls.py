"""The system calls that Python 3.11's os module lacks: namespaces, the mount API, prctl.

Flags are those of the uapi headers <linux/mount.h>, <linux/sched.h> and <linux/prctl.h>; errors are OSError.
"""

from __future__ import annotations

import os
from _struct import Struct

from podrun import libc
from podrun.libc import Long, checked

# ``signal`` builds enums (3 ms): the start path takes the numbers from the module below it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_GET_SECUREBITS, PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 27, 28, 4
PR_SET_CHILD_SUBREAPER = 36

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# mount(2)'s successors have the same numbers on every architecture (kernel 5.2, mount_setattr 5.12).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_OPENAT2 = 428, 429, 430, 431, 432, 437
_SYS_MOUNT_SETATTR = 442
_SYS_CLONE3, _CLONE_INTO_CGROUP = 435, 0x200000000
_SYS_CLOSE_RANGE, _CLOSE_RANGE_CLOEXEC, _ANY_FD = 436, 4, 0xFFFFFFFF

OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8
MOUNT_ATTR_ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME = 0x70, 0x10, 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000

RESOLVE_NO_MAGICLINKS = 2
RESOLVE_NO_SYMLINKS = 4
RESOLVE_BENEATH = 8
RESOLVE_IN_ROOT = 16

#: How often a walk may be disturbed before that counts as an attack.
_RACES = 1000

#: Signals whose handlers raise: what asks podrun to end, and a step's timeout.
_RAISING = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGALRM)

#: struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
#: cgroup.
_CLONE_ARGS = Struct("=11Q")

_unshare, _setns, _mount, _umount2 = map(libc.function, ("unshare", "setns", "mount", "umount2"))
_syncfs, _setfsuid, _setfsgid = map(libc.function, ("syncfs", "setfsuid", "setfsgid"))


def _bytes(text: str | bytes | None) -> bytes | None:
    return os.fsencode(text) if text is not None else None


def unshare(flags: int) -> None:
    """unshare(2), in a forked child or an aside.Thread only: the launcher itself stays in the host's namespaces."""
    checked(_unshare(flags))


def setns(fd: int, kind: int = 0) -> None:
    """setns(2), where unshare is called. ``kind``: the CLONE_NEW* that the descriptor must be of; 0: any."""
    checked(_setns(fd, kind))


def mount(source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2). ``data`` is cut at 4 KiB by the kernel: stack many layers with :func:`fsmount`."""
    result = _mount(_bytes(source), _bytes(target), _bytes(fstype), Long(flags), _bytes(data))
    checked(result, target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    checked(_umount2(_bytes(target), flags), target)


def fsmount(fstype: str, options: list[tuple[str, str | None]], attributes: int = 0) -> int:
    """A detached mount of a new file system (fsopen, fsconfig, fsmount: kernel 5.2); returns its descriptor.

    ``options`` are pairs of key and value, None for a flag. Raises OSError, with the kernel's own message where the
    file system left one in its context (fsopen(2) "message retrieval").
    """
    context = libc.syscall(_SYS_FSOPEN, _bytes(fstype), 1, path=fstype)
    try:
        for key, value in options:
            command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            libc.syscall(
                _SYS_FSCONFIG, context, command, _bytes(key), _bytes(value), 0, path=f"{fstype}: {key}={value}"
            )
        libc.syscall(_SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0, path=fstype)
        return libc.syscall(_SYS_FSMOUNT, context, 1, attributes, path=fstype)
    except OSError as error:
        try:
            error.strerror = os.read(context, 4096).decode(errors="replace").strip() or error.strerror
        except OSError:
            pass
        raise
    finally:
        os.close(context)


def open_tree(path: str, *, clone: bool = True, recursive: bool = False, dirfd: int = AT_FDCWD) -> int:
    """A descriptor of the mount at ``path``; with ``clone`` a detached copy of it, as a bind mount is (kernel 5.2)."""
    flags = (OPEN_TREE_CLONE if clone else 0) | (AT_RECURSIVE if recursive else 0) | os.O_CLOEXEC
    return libc.syscall(_SYS_OPEN_TREE, dirfd, _bytes(path), flags, path=path)


def move_mount(fd: int, target: str | int) -> None:
    """Attaches a detached mount at a path, or at an open descriptor of a directory or file (kernel 5.2)."""
    if isinstance(target, int):
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        libc.syscall(_SYS_MOVE_MOUNT, fd, b"", target, b"", flags)
    else:
        libc.syscall(_SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, _bytes(target), MOVE_MOUNT_F_EMPTY_PATH, path=target)


class Naming:
    """``with Naming(path)``: an OSError that names no file names this one; that of write(2) and close(2) does not."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _where: object) -> None:
        if isinstance(error, OSError) and not error.filename:
            error.filename = self.path


#: struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
_MOUNT_ATTR = Struct("=4Q")


def mount_setattr(
    fd: int, attributes: int, *, clear: int = 0, recursive: bool = False, propagation: int = 0, userns: int = 0
) -> None:
    """Sets and clears MOUNT_ATTR_* on a mount given by descriptor, with ``recursive`` on those below it (kernel 5.12).

    ``userns``: the user namespace whose mapping MOUNT_ATTR_IDMAP applies.
    """
    wanted = _MOUNT_ATTR.pack(attributes, clear, propagation, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", flags, wanted, len(wanted))


#: struct open_how: flags, mode, resolve.
_OPEN_HOW = Struct("=3Q")


def openat2(dirfd: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """openat2(2) (kernel 5.6), close-on-exec. RESOLVE_IN_ROOT: "/", ".." and symlinks stay below ``dirfd``."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_RACES):
        try:
            return libc.syscall(_SYS_OPENAT2, dirfd, _bytes(path), how, len(how), path=path)
        except BlockingIOError:
            # EAGAIN: somebody, anywhere, has renamed or mounted something while a ".." was walked; to be tried again.
            continue
    return libc.syscall(_SYS_OPENAT2, dirfd, _bytes(path), how, len(how), path=path)


def syncfs(path: str) -> None:
    """syncfs(2): all written to the file system of ``path`` is on the disk; raises what the disk reported."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        checked(_syncfs(fd))
    finally:
        os.close(fd)


def prctl(option: int, value: int) -> int:
    """prctl(2) with one argument."""
    return checked(libc.prctl(option, Long(value), 0, 0, 0))


def set_fs_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2): as whom files are looked up and made."""
    _setfsgid(gid)
    _setfsuid(uid)


def fork(cgroup: str = "") -> int:
    """fork(2) as os.fork() does it, but a signal's exception never leaves a child that the caller does not know of.

    In the child no handler raises any more: nothing there would undo what the parent is about to undo itself.
    ``cgroup``: the directory of a cgroup (v2) that the child begins in where that can be; it has to become another
    program, because Python does not know of such a child.
    """
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _RAISING)
    child = -1
    try:
        child = _fork_into(cgroup) if cgroup else os.fork()
        for number in _RAISING if not child else ():
            if callable(_signal.getsignal(number)):
                _signal.signal(number, _signal.SIG_DFL)
    finally:
        try:
            # What came meanwhile is delivered, and its handler may raise, in here.
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        except BaseException:
            if child > 0:
                end(child)
            raise
    return child


def _fork_into(cgroup: str) -> int:
    """clone3(2) with CLONE_INTO_CGROUP: to move a process instead waits for a grace period of RCU, 10 ms."""
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return os.fork()
    try:
        arguments = _CLONE_ARGS.pack(_CLONE_INTO_CGROUP, 0, 0, 0, _signal.SIGCHLD, 0, 0, 0, 0, 0, directory)
        return libc.syscall(_SYS_CLONE3, arguments, len(arguments))
    except OSError:  # before Linux 5.7, or forbidden by a seccomp filter
        child = os.fork()
        if not child:
            try:
                with open(f"{cgroup}/cgroup.procs", "w", encoding="utf-8") as file:
                    file.write("0")
            except OSError:
                pass
        return child
    finally:
        os.close(directory)


def end(child: int) -> None:
    """Kills a child and waits for it; also one that has been waited for already."""
    try:
        os.kill(child, 9)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def die_with_parent(parent: int, signal: int = 9) -> None:
    """In a forked child: end when ``parent`` (its pid) does, also when it has ended already."""
    prctl(PR_SET_PDEATHSIG, signal)
    if os.getppid() != parent:
        os._exit(128 + signal)


def close_on_exec_from(first: int) -> None:
    """Marks every descriptor from ``first`` on close-on-exec (close_range(2), kernel 5.11)."""
    libc.syscall(_SYS_CLOSE_RANGE, first, _ANY_FD, _CLOSE_RANGE_CLOEXEC)


def heed_signals() -> None:
    """In a forked child that is about to become a program: no signal is ignored any more.

    An ignored one stays ignored across execve(2), down to the payload: Python ignores SIGPIPE, a shell SIGINT.
    """
    for number in range(1, _signal.NSIG):
        if _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)
