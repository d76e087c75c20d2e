"""Unpacks one layer: an OCI layer tar (layer.md of the OCI image specification) becomes an overlayfs lower directory.

No archive can reach anything outside the directory: every parent directory is inside (directories.py), the last
component of a name is never followed, and only files that are created here are opened.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from podrun.errors import MALFORMED, Failure, of_oserror
from podrun_hooks.image.layer.directories import Directories, clean, fd_path, is_whiteout, set_opaque
from podrun_hooks.image.layer.small_files import NEW, SMALL, UNCHANGED, SmallFiles, settle, write
from podrun_hooks.image.layer.stream import MAX_LAYER_BYTES, Reader, malformed
from podrun_hooks.image.layer.tar import (
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
from podrun_hooks.support import stream_names

MAX_ENTRIES = 4_000_000
_BLOCK = 4096
#: limits.h
_NAME_MAX = 255
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
#: AUFS's own metadata, which has no meaning in an OCI layer.
_AUFS = b".wh..wh."

#: Most paths kept in Summary.stdio. One is enough to decide; the others show people where to look.
_ENOUGH = 32

#: Errors that the archive causes, not this machine.
_OF_THE_ARCHIVE = frozenset(
    (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL,
     errno.ENOENT, errno.EXDEV, errno.EMLINK, errno.E2BIG, errno.ERANGE)
)  # fmt: skip


class Summary(NamedTuple):
    """Metadata of an unpacked layer."""

    entries: int
    #: Bytes of file data, in whole blocks of a file system.
    size: int
    #: Directories (relative, "/"-separated, os.fsdecode'd) that no entry describes: parents of other entries.
    implied: list[str]
    #: Absolute paths of files that open the container's standard output or error by name: symlinks to it, and small
    #: files that mention it (podrun_hooks.support.stream_names).
    stdio: list[str]
    #: The layer's root is opaque: it hides all lower layers.
    opaque: bool


def extract(reader: Reader, target: str, scratch: str, small: SmallFiles | None = None) -> Summary:
    """Unpacks a layer's plain tar stream into the existing, empty directory ``target``.

    A directory that a later entry replaces by another kind of file is moved to ``scratch``, on the same file system.
    With ``small``, a second process creates the small files; it has finished them when this returns.
    Raises Failure: MALFORMED if no layer may contain such an entry, else with the code for the OSError. ``target`` is
    then incomplete.
    """
    tree = _Tree(target, scratch, small)
    entry = None
    umask = os.umask(0)
    try:
        for entry in entries(reader):
            tree.take(entry, reader)
        tree.finish()
    except OSError as error:
        # The second process may have failed on an earlier entry than the current one.
        name = _shown(tree.directories.named(error.filename) or (entry.name if entry else b"layer"))
        if error.errno in _OF_THE_ARCHIVE:
            raise malformed(f"{name}: cannot be unpacked: {error.strerror}") from None
        raise of_oserror(error, f"unpacking {name}") from None
    finally:
        os.umask(umask)
        tree.directories.close()
    return Summary(
        tree.count,
        tree.bytes,
        sorted(map(os.fsdecode, tree.directories.implied)),
        sorted(map(os.fsdecode, tree.stdio)),
        tree.opaque,
    )


def _shown(name: bytes) -> str:
    text = name.decode(errors="backslashreplace")
    return text if len(text) < 200 else f"{text[:200]}..."


class _Tree:
    """A layer directory that is being filled, and the work left for the end."""

    def __init__(self, target: str, scratch: str, small: SmallFiles | None) -> None:
        self.scratch = scratch
        self.small = small
        self.directories = Directories(target, small)
        self.count = 0
        self.bytes = 0
        self.length = 0
        self.stdio: set[bytes] = set()
        self.opaque = False
        #: Mtimes of directories, set at the end: they change while the directories are filled.
        self.mtimes: dict[bytes, int] = {}

    def take(self, entry: Entry, reader: Reader) -> None:
        self.count += 1
        self.length += entry.length
        if self.count > MAX_ENTRIES:
            raise malformed(f"the layer has more than {MAX_ENTRIES} entries")
        if self.length > MAX_LAYER_BYTES:
            raise malformed(f"the layer has more than {MAX_LAYER_BYTES} bytes in its files")
        path = clean(entry.name)
        head, _, name = path.rpartition(b"/")
        if b".wh." in path:
            if path.startswith(_AUFS) and path != _OPAQUE:
                return
            if head.startswith(_WHITEOUT) or b"/.wh." in head:
                raise malformed(f"{_shown(entry.name)}: a whiteout is not a directory")
            if name.startswith(_WHITEOUT):
                self.hide(entry, head, name)
                return
        if not path:
            if entry.kind != DIRECTORY:
                raise malformed(f"{_shown(entry.name)!r}: the root of a layer is a directory")
            self.directories.note_heirs(entry)
            self.describe(entry, self.directories.root, b".")
            self.mtimes[b""] = entry.mtime
            return
        if entry.xattrs:
            _check_xattrs(entry)
        parent = self.directories.open(head)
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
            if entry.link in stream_names.NAMES:
                self.stdio.add(b"/" + path)
            self.describe(entry, parent, name)
        elif kind == HARDLINK:
            self.hardlink(entry, parent, name, path)
        else:
            if kind == CHARACTER and entry.device == (0, 0):
                return  # an overlayfs whiteout, leaked from the build machine; OCI layers mark whiteouts by name
            parent = self.free(parent, name, path)
            formats = {FIFO: stat.S_IFIFO, CHARACTER: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK}
            device = 0 if kind == FIFO else os.makedev(*entry.device)
            os.mknod(name, formats[kind] | 0o600, device, dir_fd=parent)
            self.describe(entry, parent, name)

    def free(self, parent: int, name: bytes, path: bytes) -> int:
        """Removes whatever has this name; returns a valid descriptor of the parent directory."""
        self.directories.reserve(parent, name)
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return parent
        if stat.S_ISDIR(status.st_mode):
            os.rename(name, f"{self.scratch}/replaced-{self.count}", src_dir_fd=parent)
            self.mtimes = {key: value for key, value in self.mtimes.items() if not _below(key, path)}
            self.directories.implied = {key for key in self.directories.implied if not _below(key, path)}
            self.stdio = {key for key in self.stdio if not _below(key[1:], path)}
        else:
            os.unlink(name, dir_fd=parent)
            self.stdio.discard(b"/" + path)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            # Paths may lead elsewhere from now on.
            self.directories.forget()
        return self.directories.open(path.rpartition(b"/")[0])

    def file(self, entry: Entry, parent: int, name: bytes, path: bytes, reader: Reader) -> None:
        mode, exact = entry.mode, self.directories.exact
        # The set-id bits come last: chown(2) and write(2) may clear them.
        early = mode & 0o777 if exact else 0o600
        late = mode if mode != early or not exact else UNCHANGED
        uid, gid = (entry.uid, entry.gid) if entry.uid or entry.gid or not exact else (UNCHANGED, UNCHANGED)
        key = self.directories.reserve(parent, name)
        few = entry.size <= SMALL and entry.segments is None and not entry.xattrs
        if self.small and key and few and len(name) <= _NAME_MAX:
            content = reader.exactly(entry.size)
            self.search(path, content)
            self.small.make(parent, key, content, early, uid, gid, late, entry.mtime)
            self.bytes += entry.size + -entry.size % _BLOCK
            return
        try:
            fd = os.open(name, NEW, early, dir_fd=parent)
        except FileExistsError:
            parent = self.free(parent, name, path)
            fd = os.open(name, NEW, early, dir_fd=parent)
        try:
            if entry.segments is None:
                rest = size = entry.size
                if rest <= stream_names.SMALL and stream_names.searched(path):
                    content = reader.exactly(rest)
                    self.search(path, content)
                    write(fd, memoryview(content))
                    rest = 0
                while rest:
                    rest -= write(fd, reader.some(rest))
                self.bytes += size + -size % _BLOCK
            else:
                os.ftruncate(fd, entry.length)
                for offset, rest in entry.segments:
                    self.bytes += rest + -rest % _BLOCK
                    os.lseek(fd, offset, os.SEEK_SET)
                    while rest:
                        rest -= write(fd, reader.some(rest))
            # Before the attributes: chown(2) and write(2) clear capabilities.
            settle(fd, uid, gid, late)
            for attribute, value in entry.xattrs.items():
                _set_xattr(fd, attribute, value, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def search(self, path: bytes, content: bytes) -> None:
        """Adds a file that mentions the container's standard output or error by name to ``stdio``."""
        if len(self.stdio) < _ENOUGH and stream_names.mentioned(content) and stream_names.searched(path):
            self.stdio.add(b"/" + path)

    def make_directory(self, entry: Entry, parent: int, name: bytes, path: bytes) -> None:
        self.directories.note_heirs(entry)
        early = entry.mode & 0o777 if self.directories.exact else 0o755
        done = self.directories.exact and entry.mode == early and not (entry.uid or entry.gid or entry.xattrs)
        self.directories.reserve(parent, name)
        try:
            os.mkdir(name, early, dir_fd=parent)
        except FileExistsError:
            done = False
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                parent = self.free(parent, name, path)
                os.mkdir(name, 0o755, dir_fd=parent)
                if is_whiteout(status):
                    set_opaque(parent, name)
        self.directories.implied.discard(path)
        if not done:
            self.describe(entry, parent, name)
        self.mtimes[path] = entry.mtime

    def hardlink(self, entry: Entry, parent: int, name: bytes, path: bytes) -> None:
        target = clean(entry.link)
        head, _, target_name = target.rpartition(b"/")
        missing = malformed(f"{_shown(entry.name)}: hard-link target {_shown(entry.link)} is not in this layer")
        if not target:
            raise missing
        try:
            holder = self.directories.open(head, False)
            self.directories.reserve(holder, target_name)
            status = os.stat(target_name, dir_fd=holder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise missing from None
        if stat.S_ISDIR(status.st_mode):
            raise malformed(f"{_shown(entry.name)}: a hard link to a directory")
        if is_whiteout(status):
            raise missing
        # Both descriptors are needed at once, but opening one may close the other's cached one: hence dup.
        source = os.dup(self.directories.open(head, False))
        try:
            parent = self.directories.open(path.rpartition(b"/")[0])
            self.directories.reserve(parent, name)
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
        """Handles a whiteout file. It hides lower layers only: this layer's own file of the hidden name stays."""
        if name == _OPAQUE:
            if not head:
                self.opaque = True
                return
            os.setxattr(f"/proc/self/fd/{self.directories.open(head)}", "trusted.overlay.opaque", b"y")
            return
        hidden = name[len(_WHITEOUT) :]
        if name.startswith(_AUFS):
            return
        if hidden in (b"", b".", b".."):
            raise malformed(f"{_shown(entry.name)}: a whiteout of nothing")
        parent = self.directories.open(head)
        self.directories.reserve(parent, hidden)
        try:
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
        except FileExistsError:
            status = os.stat(hidden, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                set_opaque(parent, hidden)

    def describe(self, entry: Entry, parent: int, name: bytes) -> None:
        """Sets owner, mode, xattrs and mtime of anything but a regular file; a directory's mtime is set at the end."""
        if entry.uid or entry.gid or entry.kind == DIRECTORY or not self.directories.exact:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind != SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)
        if entry.xattrs:
            _check_xattrs(entry)
            for key, value in entry.xattrs.items():
                _set_xattr(fd_path(parent, name), key, value, entry)
        if entry.kind != DIRECTORY:
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def finish(self) -> None:
        if self.small:
            self.small.wait()
        for path, mtime in self.mtimes.items():
            head, _, name = path.rpartition(b"/")
            try:
                parent = self.directories.open(head, False)
                os.utime(name or b".", ns=(mtime, mtime), dir_fd=parent, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue


def _below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def _check_xattrs(entry: Entry) -> None:
    for key in entry.xattrs:
        if len(key) < 6 or b"\0" in key:
            raise malformed(f"{_shown(entry.name)}: an extended attribute without a proper name")


def _set_xattr(where: int | bytes, key: bytes, value: bytes, entry: Entry) -> None:
    try:
        if isinstance(where, int):
            os.setxattr(where, key, value)
        else:
            os.setxattr(where, key, value, follow_symlinks=False)
    except OSError as error:
        # A file system may lack a class of attributes (user.* on symlinks and devices, POSIX ACLs). But a program must
        # not lose its capabilities: it would not do the same.
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM) and key != b"security.capability":
            return
        raise Failure(
            f"{_shown(entry.name)}: cannot set {_shown(key)}: {error.strerror}",
            code=MALFORMED if error.errno in (errno.EINVAL, errno.ERANGE, errno.E2BIG) else of_oserror(error).code,
        ) from None
