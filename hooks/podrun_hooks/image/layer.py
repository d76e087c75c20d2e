"""Unpacking one layer: an OCI layer tar (layer.md of the OCI image specification) becomes an overlayfs lower directory.

Nothing outside of the directory can be reached, whatever the archive says: every parent directory is opened by
openat2(RESOLVE_IN_ROOT), the last component of a name is never followed, and nothing is opened that is not new.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from typing import NamedTuple

from podrun.errors import MALFORMED, Failure, of_oserror

from .. import linux
from .stream import MAX_LAYER_BYTES, Reader, malformed
from .tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    HARDLINK,
    SYMLINK,
    Entry,
    entries,
)

MAX_ENTRIES = 4_000_000
#: Directories kept open while a layer is unpacked, where the process may open that many files.
_OPEN_DIRECTORIES = 4000
#: As the kernel's own limit on symlinks in one path (path_resolution(7)).
_MAX_SYMLINKS = 40

_BLOCK = 4096
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
#: What AUFS kept for itself; nothing in an OCI layer.
_AUFS = b".wh..wh."
#: Makes what is created in a directory have another mode than it was created with (acl(5)).
_DEFAULT_ACL = b"system.posix_acl_default"
#: xattrs by which overlayfs would believe a layer that it hides or redirects files (overlayfs.rst).
_FORGED = (b"trusted.overlay.", b"user.overlay.")

_O_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_O_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

#: A container's own output; see Summary.stdio.
_STDIO = frozenset((b"/dev/stdout", b"/dev/stderr", b"/proc/self/fd/1", b"/proc/self/fd/2"))

_OF_THE_ARCHIVE = frozenset(
    (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL,
     errno.ENOENT, errno.EXDEV, errno.EMLINK, errno.E2BIG, errno.ERANGE)
)  # fmt: skip


class Summary(NamedTuple):
    """What a layer holds, apart from its files."""

    entries: int
    #: Bytes of file data, in whole blocks of a file system.
    size: int
    #: Directories (relative, "/"-separated, os.fsdecode'd) that no entry describes: made because something is in them.
    implied: list[str]
    #: Absolute paths of symlinks to the container's standard output or error.
    stdio: list[str]
    #: The layer hides everything below it.
    opaque: bool


def extract(reader: Reader, target: str, scratch: str) -> Summary:
    """Unpacks a layer's plain tar stream into the existing, empty directory ``target``.

    Directories that the archive itself replaces by something else are moved to ``scratch``, on the same file system.
    Raises Failure: MALFORMED for what no layer may contain, or what the disk said. ``target`` then holds rubbish.
    """
    tree = _Tree(target, scratch)
    entry = None
    umask = os.umask(0)
    try:
        for entry in entries(reader):
            tree.take(entry, reader)
        tree.finish()
    except OSError as error:
        name = _shown(entry.name) if entry else "layer"
        if error.errno in _OF_THE_ARCHIVE:
            raise malformed(f"{name}: cannot be unpacked: {error.strerror}") from None
        raise of_oserror(error, f"unpacking {name}") from None
    finally:
        os.umask(umask)
        tree.close()
    return Summary(
        tree.count,
        tree.bytes,
        sorted(map(os.fsdecode, tree.implied)),
        sorted(map(os.fsdecode, tree.stdio)),
        tree.opaque,
    )


def _shown(name: bytes) -> str:
    text = name.decode(errors="backslashreplace")
    return text if len(text) < 200 else f"{text[:200]}..."


def _clean(name: bytes) -> bytes:
    """A name without "/" at its ends, "." and ".."; what would lead above the root stays at the root."""
    if name.startswith(b"./"):
        name = name[2:]
    name = name.strip(b"/")
    # The plain case first: most names are clean, and a layer has tens of thousands.
    if b"//" not in name and b"." not in name:
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            parts[-1:] = []
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)


class _Tree:
    """A layer directory while it is filled: its open directories and what has to be done at the end."""

    def __init__(self, target: str, scratch: str) -> None:
        self.scratch = scratch
        self.root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.real = os.fsencode(os.path.realpath(target))
        self.count = 0
        self.bytes = 0
        self.length = 0
        self.implied: set[bytes] = set()
        self.stdio: set[bytes] = set()
        self.opaque = False
        #: Directories' mtimes change while they are filled.
        self.mtimes: dict[bytes, int] = {}
        self.opened: dict[bytes, int] = {}
        self.most = min(_OPEN_DIRECTORIES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        status = os.fstat(self.root)
        #: What is created belongs to 0:0 and has the mode it is created with: no directory hands down a group or ACLs.
        self.exact = not (
            os.geteuid()
            or status.st_gid
            or status.st_mode & stat.S_ISGID
            or os.fsdecode(_DEFAULT_ACL) in os.listxattr(self.root)
        )

    def close(self) -> None:
        self.forget()
        os.close(self.root)

    def forget(self) -> None:
        """Closes the directories: a path may lead elsewhere from here on."""
        for fd in self.opened.values():
            os.close(fd)
        self.opened.clear()

    # --- directories

    def directory(self, path: bytes, make: bool = True, depth: int = 0) -> int:
        """An O_PATH descriptor of a directory of the layer; with ``make``, missing ones are made on the way."""
        if not path:
            return self.root
        fd = self.opened.get(path)
        if fd is not None:
            return fd
        above, _, name = path.rpartition(b"/")
        parent = self.opened.get(above) if above else self.root
        try:
            if parent is not None:
                try:
                    # A single component that is no symlink: most are, and this is a third of the time.
                    fd = os.open(name, _O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                except (NotADirectoryError, FileNotFoundError):
                    fd = linux.openat2(self.root, path, _O_DIRECTORY)
            else:
                fd = linux.openat2(self.root, path, _O_DIRECTORY)
        except FileNotFoundError:
            if not make or depth > _MAX_SYMLINKS:
                raise
            self.imply(path, depth)
            fd = linux.openat2(self.root, path, _O_DIRECTORY)
        except NotADirectoryError:
            if not make or not self.unhide(path):
                raise
            return self.directory(path, make, depth)
        if len(self.opened) >= self.most:
            self.forget()
        self.opened[path] = fd
        return fd

    def imply(self, path: bytes, depth: int) -> None:
        """Makes directories that the archive uses without describing them, or what a dangling symlink points to."""
        parts = path.split(b"/")
        for count in range(1, len(parts) + 1):
            part = b"/".join(parts[:count])
            parent = self.directory(b"/".join(parts[: count - 1]))
            try:
                self.bare_directory(parts[count - 1], parent)
                self.implied.add(part)
            except FileExistsError:
                status = os.stat(parts[count - 1], dir_fd=parent, follow_symlinks=False)
                if not stat.S_ISLNK(status.st_mode):
                    continue
                link = os.readlink(parts[count - 1], dir_fd=parent)
                if not link.startswith(b"/"):
                    here = os.readlink(f"/proc/self/fd/{parent}".encode())
                    link = here[len(self.real) :] + b"/" + link
                self.directory(_clean(link), True, depth + 1)

    def unhide(self, path: bytes) -> bool:
        """Turns a whiteout on the way to ``path`` into an opaque directory: the layer has both the lower one hidden
        and a new one of its own. False when what is in the way is no whiteout."""
        parts = path.split(b"/")
        for count in range(1, len(parts) + 1):
            part = b"/".join(parts[:count])
            head, _, name = part.rpartition(b"/")
            parent = self.directory(head, False)
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if _is_whiteout(status):
                os.unlink(name, dir_fd=parent)
                self.bare_directory(name, parent)
                self.implied.add(part)
                self.set_opaque(parent, name)
                return True
        return False

    def bare_directory(self, name: bytes, parent: int) -> None:
        """Makes a directory of which no entry says anything (yet)."""
        os.mkdir(name, 0o755, dir_fd=parent)
        if not self.exact:
            os.chown(name, 0, 0, dir_fd=parent, follow_symlinks=False)
            os.chmod(name, 0o755, dir_fd=parent)

    def set_opaque(self, parent: int, name: bytes) -> None:
        os.setxattr(_path(parent, name), "trusted.overlay.opaque", b"y", follow_symlinks=False)

    # --- entries

    def take(self, entry: Entry, reader: Reader) -> None:
        self.count += 1
        self.length += entry.length
        if self.count > MAX_ENTRIES:
            raise malformed(f"the layer has more than {MAX_ENTRIES} entries")
        if self.length > MAX_LAYER_BYTES:
            raise malformed(f"the layer has more than {MAX_LAYER_BYTES} bytes in its files")
        path = _clean(entry.name)
        head, _, name = path.rpartition(b"/")
        if b".wh." in path:
            if path.startswith(_AUFS) and path != _OPAQUE:
                return
            if any(part.startswith(_WHITEOUT) for part in head.split(b"/")):
                raise malformed(f"{_shown(entry.name)}: a whiteout is not a directory")
            if name.startswith(_WHITEOUT):
                self.hide(entry, head, name)
                return
        if not path:
            if entry.kind != DIRECTORY:
                raise malformed(f"{_shown(entry.name)!r}: the root of a layer is a directory")
            self.describe(entry, self.root, b".")
            self.mtimes[b""] = entry.mtime
            self.note_heirs(entry)
            return
        if entry.xattrs:
            _check_xattrs(entry)
        parent = self.directory(head)
        kind = entry.kind
        if kind == FILE:
            self.file(entry, parent, name, path, reader)
        elif kind == DIRECTORY:
            self.make_directory(entry, parent, name, path)
        elif kind == SYMLINK:
            if not entry.link:
                raise malformed(f"{_shown(entry.name)}: a symlink to nothing")
            parent = self.free(parent, name, path)
            os.symlink(entry.link, name, dir_fd=parent)
            if entry.link in _STDIO:
                self.stdio.add(b"/" + path)
            self.describe(entry, parent, name)
        elif kind == HARDLINK:
            self.hardlink(entry, parent, name, path)
        else:
            if kind == CHARACTER and entry.device == (0, 0):
                raise malformed(
                    f"{_shown(entry.name)}: a character device 0:0 is overlayfs's whiteout, not the layer's"
                )
            parent = self.free(parent, name, path)
            formats = {FIFO: stat.S_IFIFO, CHARACTER: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK}
            device = 0 if kind == FIFO else os.makedev(*entry.device)
            os.mknod(name, formats[kind] | 0o600, device, dir_fd=parent)
            self.describe(entry, parent, name)

    def free(self, parent: int, name: bytes, path: bytes) -> int:
        """Removes what has this name; returns the parent directory anew."""
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return parent
        if stat.S_ISDIR(status.st_mode):
            os.rename(name, f"{self.scratch}/replaced-{self.count}", src_dir_fd=parent)
            self.mtimes = {key: value for key, value in self.mtimes.items() if not _below(key, path)}
            self.implied = {key for key in self.implied if not _below(key, path)}
            self.stdio = {key for key in self.stdio if not _below(key[1:], path)}
        else:
            os.unlink(name, dir_fd=parent)
            self.stdio.discard(b"/" + path)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            # Paths may lead elsewhere from here on.
            self.forget()
        return self.directory(path.rpartition(b"/")[0])

    def file(self, entry: Entry, parent: int, name: bytes, path: bytes, reader: Reader) -> None:
        mode = entry.mode
        # The set-id bits come last: chown(2) and write(2) may clear them.
        early = mode & 0o777 if self.exact else 0o600
        try:
            fd = os.open(name, _O_NEW, early, dir_fd=parent)
        except FileExistsError:
            parent = self.free(parent, name, path)
            fd = os.open(name, _O_NEW, early, dir_fd=parent)
        try:
            if entry.segments is None:
                rest = size = entry.size
                while rest:
                    rest -= _write(fd, reader.some(rest))
                self.bytes += size + -size % _BLOCK
            else:
                os.ftruncate(fd, entry.length)
                for offset, rest in entry.segments:
                    self.bytes += rest + -rest % _BLOCK
                    os.lseek(fd, offset, os.SEEK_SET)
                    while rest:
                        rest -= _write(fd, reader.some(rest))
            # This order: chown(2) clears setuid bits and capabilities, write(2) clears capabilities.
            if entry.uid or entry.gid or not self.exact:
                os.fchown(fd, entry.uid, entry.gid)
            if mode != early or not self.exact:
                os.fchmod(fd, mode)
            for key, value in entry.xattrs.items():
                _set_xattr(fd, key, value, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def make_directory(self, entry: Entry, parent: int, name: bytes, path: bytes) -> None:
        early = entry.mode & 0o777 if self.exact else 0o755
        done = self.exact and entry.mode == early and not (entry.uid or entry.gid or entry.xattrs)
        try:
            os.mkdir(name, early, dir_fd=parent)
        except FileExistsError:
            done = False
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                parent = self.free(parent, name, path)
                os.mkdir(name, 0o755, dir_fd=parent)
                if _is_whiteout(status):
                    self.set_opaque(parent, name)
        self.implied.discard(path)
        if not done:
            self.describe(entry, parent, name)
        self.mtimes[path] = entry.mtime
        self.note_heirs(entry)

    def note_heirs(self, entry: Entry) -> None:
        """A directory may hand its group (setgid, or the mount option grpid) or its default ACL down."""
        if entry.gid or entry.mode & stat.S_ISGID or _DEFAULT_ACL in entry.xattrs:
            self.exact = False

    def hardlink(self, entry: Entry, parent: int, name: bytes, path: bytes) -> None:
        target = _clean(entry.link)
        head, _, target_name = target.rpartition(b"/")
        missing = malformed(f"{_shown(entry.name)}: a hard link to {_shown(entry.link)}, which this layer has not")
        if not target:
            raise missing
        try:
            status = os.stat(target_name, dir_fd=self.directory(head, False), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise missing from None
        if stat.S_ISDIR(status.st_mode):
            raise malformed(f"{_shown(entry.name)}: a hard link to a directory")
        if _is_whiteout(status):
            raise missing
        # Two descriptors at once: opening one may have closed the other's cached one.
        source = os.dup(self.directory(head, False))
        try:
            parent = self.directory(path.rpartition(b"/")[0])
            try:
                existing = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                if (existing.st_dev, existing.st_ino) == (status.st_dev, status.st_ino):
                    return
                parent = self.free(parent, name, path)
            os.link(target_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def hide(self, entry: Entry, head: bytes, name: bytes) -> None:
        """A whiteout file. It speaks of lower layers only: what this layer itself has under the name stays."""
        if name == _OPAQUE:
            if not head:
                self.opaque = True
                return
            os.setxattr(f"/proc/self/fd/{self.directory(head)}", "trusted.overlay.opaque", b"y")
            return
        hidden = name[len(_WHITEOUT) :]
        if name.startswith(_AUFS):
            return
        if hidden in (b"", b".", b".."):
            raise malformed(f"{_shown(entry.name)}: a whiteout of nothing")
        parent = self.directory(head)
        try:
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
        except FileExistsError:
            status = os.stat(hidden, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self.set_opaque(parent, hidden)

    def describe(self, entry: Entry, parent: int, name: bytes) -> None:
        """Owner, mode, xattrs and mtime of anything but a regular file."""
        if entry.uid or entry.gid or entry.kind == DIRECTORY or not self.exact:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind != SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)
        if entry.xattrs:
            _check_xattrs(entry)
            for key, value in entry.xattrs.items():
                _set_xattr(_path(parent, name), key, value, entry)
        if entry.kind != DIRECTORY:
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def finish(self) -> None:
        for path, mtime in self.mtimes.items():
            head, _, name = path.rpartition(b"/")
            try:
                parent = self.directory(head, False)
                os.utime(name or b".", ns=(mtime, mtime), dir_fd=parent, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue


def _path(parent: int, name: bytes) -> bytes:
    """A path for the calls that have no dir_fd; only its last component comes from the archive."""
    return b"/proc/self/fd/%d/%s" % (parent, name)


def _below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _write(fd: int, piece: memoryview) -> int:
    size = len(piece)
    done = os.write(fd, piece)
    while done < size:
        done += os.write(fd, piece[done:])
    return size


def _check_xattrs(entry: Entry) -> None:
    for key in entry.xattrs:
        if key.startswith(_FORGED):
            raise malformed(f"{_shown(entry.name)}: the extended attribute {_shown(key)} is overlayfs's own")
        if not key or b"\0" in key:
            raise malformed(f"{_shown(entry.name)}: an extended attribute without a proper name")


def _set_xattr(where: int | bytes, key: bytes, value: bytes, entry: Entry) -> None:
    try:
        if isinstance(where, int):
            os.setxattr(where, key, value)
        else:
            os.setxattr(where, key, value, follow_symlinks=False)
    except OSError as error:
        # A file system may lack a class of attributes (user.* on symlinks and devices, POSIX ACLs); a program that
        # loses its capabilities is another program.
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM) and key != b"security.capability":
            return
        raise Failure(
            f"{_shown(entry.name)}: cannot set {_shown(key)}: {error.strerror}",
            code=MALFORMED if error.errno in (errno.EINVAL, errno.ERANGE, errno.E2BIG) else of_oserror(error).code,
        ) from None
