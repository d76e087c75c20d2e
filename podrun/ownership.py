"""Whom root believes: a path that nobody but its owners can have changed, every component of it.

One walk decides for everything that is read, run or written to as root. It holds each directory by a descriptor, looks
at links itself, and hands back what it has looked at: a descriptor, or a path without links. The generator of units,
which is alone, carries this file in its own text: it imports the standard library only, and no more than a start may.
"""

import errno
import os
import stat

_ROOT = frozenset({0})
#: Directories that are podrun's own.
_OURS = ("/etc/podrun", "/usr/lib/podrun", "/var/lib/podrun", "/run/podrun")
#: What path_resolution(7) allows.
_MOST_LINKS = 40
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Untrusted(Exception):
    """A component of a path that somebody could change: ``path`` is the component, ``why`` says who."""

    def __init__(self, path: str, why: str, cure: str) -> None:
        super().__init__(f"{path} {why}")
        self.path = path
        self.why = why
        self._cure = cure

    def about(self, path: str) -> str:
        """What is wrong with ``path``, of which this is a component."""
        return f"{path}: {self.why if self.path == path else self}"

    def hint(self, good: str) -> str:
        """What to do about it; ``good``: a directory for such things.

        The rights of a file may be mended, or of podrun's own directories. Those of any other directory stay as they
        are: a machine does not survive that /tmp is root's alone.
        """
        return self._cure or f"put it where only root writes, such as {good}"


def opened(path: str, flags: int = os.O_RDONLY, *, owners: frozenset[int] | None = _ROOT) -> int:
    """A descriptor of what ``path`` leads to; O_NONBLOCK is added, so that a FIFO keeps nobody waiting.

    As root, every component (directories, links, the last one) has to belong to one of ``owners`` (uids) or to root,
    and be writable by its owner alone, or by root's group; ``owners`` None: to root or to whom the last one belongs.
    It may lie in a directory like /tmp, in which nobody can replace what is another's. Raises Untrusted, OSError.
    """
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if os.geteuid():
        return os.open(path, flags)
    if owners is None:
        owners = _ROOT | {os.stat(path).st_uid}
    fd = _walked(path, owners, strict=False)
    try:
        # The very thing that was looked at: proc_pid_fd(5).
        return os.open(f"/proc/self/fd/{fd}", flags)
    finally:
        os.close(fd)


def read(path: str, limit: int = 1 << 20, *, owners: frozenset[int] | None = _ROOT) -> bytes:
    """The content of a plain file of at most ``limit`` bytes that opened() accepts. Raises Untrusted, OSError."""
    return _content(opened(path, owners=owners), path, limit)


def read_any(path: str, limit: int = 1 << 20) -> bytes:
    """The same of a file that may be anybody's: what is in it is only a value. Raises OSError."""
    return _content(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), path, limit)


def _content(fd: int, path: str, limit: int) -> bytes:
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", path)
        content = b""
        while len(content) <= limit >= found.st_size and (piece := os.read(fd, 1 << 16)):
            content += piece
        if max(len(content), found.st_size) > limit:
            raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", path)
        return content
    finally:
        os.close(fd)


def resolved(path: str, *, strict: bool = True) -> str:
    """The path without links of what ``path`` leads to, which as root nobody else can have changed or can change.

    It is for what takes no descriptor (execve(2) of a script, another program). ``strict``: for what is run: neither
    root's group nor a directory like /tmp will do. Raises Untrusted, OSError.
    """
    if os.geteuid():
        return os.path.realpath(path, strict=True)
    fd = _walked(path, _ROOT, strict=strict)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def check(path: str) -> None:
    """Raises Untrusted, as root, when others could change a component of ``path``, or make the part that is missing."""
    if not os.geteuid():
        os.close(_walked(path, _ROOT, strict=False, missing=True))


def _walked(path: str, owners: frozenset[int], *, strict: bool, missing: bool = False) -> int:
    """What a path leads to, as a descriptor (O_PATH); ``missing``: as far as it leads."""
    if "\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    whole = path if path.startswith("/") else f"{os.getcwd()}/{path}"
    left = _parts(whole)
    fd = os.open("/", _LOOK)
    links = 0
    try:
        _believe(fd, owners, strict=strict, last=not left)
        while left:
            try:
                below = os.open(left.pop(), _LOOK, dir_fd=fd)
            except FileNotFoundError:
                if missing:
                    return fd
                raise
            fd, directory = below, fd
            try:
                _believe(fd, owners, strict=strict, last=not left)
                if stat.S_ISLNK(os.fstat(fd).st_mode):
                    links += 1
                    if links > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    target = os.readlink("", dir_fd=fd)
                    left += _parts(target)
                    os.close(fd)
                    fd = os.open("/", _LOOK) if target.startswith("/") else os.dup(directory)
            finally:
                os.close(directory)
        if whole.endswith("/") and not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return fd
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            error.filename = path
        raise


def _parts(path: str) -> list[str]:
    """A path's components, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _believe(fd: int, owners: frozenset[int], *, strict: bool, last: bool) -> None:
    """Raises Untrusted when others than its owners could change what ``fd`` is."""
    found = os.fstat(fd)
    mode = found.st_mode
    if found.st_uid and found.st_uid not in owners:
        why, cure = f"belongs to uid {found.st_uid}", "chown root"
    elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return  # the mode of a link means nothing (symlink(7)); callers who want a file say so
    elif stat.S_ISDIR(mode) and mode & stat.S_ISVTX and not strict and not last:
        return  # in such a directory only its owner moves a thing (inode(7))
    elif mode & stat.S_IWOTH or (mode & stat.S_IWGRP and (found.st_gid or strict)):
        who = "everybody" if mode & stat.S_IWOTH else f"group {found.st_gid}"
        why, cure = f"can be changed by {who} (mode {stat.S_IMODE(mode):04o})", "chmod go-w"
    elif mode & stat.S_IWGRP and _has_acl(fd):
        why, cure = "can be changed by those whom its access control list names", "setfacl -b"
    elif not os.major(found.st_dev) and (who := _of_nfs4(fd)):
        # Network file systems have no device. What stands in a list of NFSv4 need not show in the mode (RFC 8881, 6.4).
        why, cure = f"can be changed by {who}, as its NFSv4 access control list has it", ""
    else:
        return
    path = os.readlink(f"/proc/self/fd/{fd}")
    ours = stat.S_ISREG(mode) or any(f"{path}/".startswith(f"{place}/") for place in _OURS)
    raise Untrusted(path, why, f"{cure} {path}" if ours else "")


def _has_acl(fd: int) -> bool:
    """Whether there is a POSIX ACL: its mask is what the mode shows as the group's rights (acl(5))."""
    try:
        return bool(os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access"))
    except OSError:
        return False


#: ACE4_* masks of RFC 8881, 6.2.1.3: write, append, delete a child, delete, change the list, the owner.
_NFS4_CHANGES = 0x2 | 0x4 | 0x40 | 0x10000 | 0x40000 | 0x80000


def _of_nfs4(fd: int) -> str:
    """Who may change a file by its NFSv4 access control list, beside its owner and group; "" for nobody.

    The group's rights are in the mode. A list that cannot be read names somebody.
    """
    try:
        content = os.getxattr(f"/proc/self/fd/{fd}", "system.nfs4_acl")
    except OSError as error:
        # A file system without such lists, or a server that has none.
        return "" if error.errno in (errno.EOPNOTSUPP, errno.ENODATA) else "somebody"
    return nfs4_changer(content)


def nfs4_changer(content: bytes) -> str:
    """The same of the list as the kernel hands it out: entries in XDR (nfsace4)."""
    words = [int.from_bytes(content[at : at + 4], "big") for at in range(0, len(content), 4)]
    at = 1
    try:
        for _ in range(words[0]):
            kind, _, mask, length = words[at : at + 4]
            who = content[4 * (at + 4) : 4 * (at + 4) + length].decode()
            at += 4 + -(-length // 4)
            if len(who.encode()) != length:
                return "somebody"
            # Kind 0 allows; 1 denies, which takes nothing back that an entry before it has allowed.
            if kind == 0 and mask & _NFS4_CHANGES and who not in ("OWNER@", "GROUP@"):
                return who
    except (ValueError, IndexError):
        return "somebody"
    return "" if 4 * at == len(content) else "somebody"
