"""The directories of a layer that is being unpacked: each is opened once, and created if the archive implies it.

Paths are bytes from the archive, cleaned by :func:`clean`. No path leads out of the layer: each is opened with
openat2(RESOLVE_IN_ROOT), or relative to an open directory by a name that is not a symlink.
"""

from __future__ import annotations

import os
import resource
import stat
from contextlib import suppress

from podrun_hooks.image.layer.small_files import Key, SmallFiles
from podrun_hooks.image.layer.tar import Entry
from podrun_hooks.support import syscalls

#: Most directories kept open; fewer where RLIMIT_NOFILE is low.
_MOST = 4000
#: The kernel's own limit on symlinks in one path (path_resolution(7)).
_MAX_SYMLINKS = 40
#: With this attribute on a directory, files created in it do not get the mode they are created with (acl(5)).
_DEFAULT_ACL = "system.posix_acl_default"
_DIRECTORY = os.O_PATH | os.O_DIRECTORY


class Directories:
    """The directories of one layer. With ``small``, a second process creates files in them."""

    def __init__(self, target: str, small: SmallFiles | None) -> None:
        self.root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        #: Directories that no entry has described so far.
        self.implied: set[bytes] = set()
        self._small = small
        self._real = os.fsencode(os.path.realpath(target))
        self._open: dict[bytes, int] = {}
        self._most = min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        status = os.fstat(self.root)
        #: Inode numbers of the open directories, by descriptor.
        self._inodes = {self.root: status.st_ino}
        #: New files belong to 0:0 and get the mode they are created with: no directory passes on a group or an ACL.
        self.exact = not (
            os.geteuid() or status.st_gid or status.st_mode & stat.S_ISGID or _DEFAULT_ACL in os.listxattr(self.root)
        )

    def close(self) -> None:
        for fd in (*self._open.values(), self.root):
            os.close(fd)

    def forget(self) -> None:
        """Closes all descriptors but the root's, because a path may lead elsewhere from now on."""
        if self._small:
            self._small.flush()
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def open(self, path: bytes, make: bool = True, depth: int = 0) -> int:
        """An O_PATH descriptor of a directory, valid until the next call. With ``make``, creates the directory and its
        parents if they are missing. Raises OSError."""
        if not path:
            return self.root
        fd = self._open.get(path)
        if fd is not None:
            return fd
        above, _, name = path.rpartition(b"/")
        parent = self._open.get(above) if above else self.root
        try:
            # Fast path: most directories are in an open one and are not symlinks. It takes a third of the time.
            fd = self._anywhere(path) if parent is None else self._below(parent, name, path, make)
        except FileNotFoundError:
            if not make or depth > _MAX_SYMLINKS:
                raise
            self._imply(path, depth)
            fd = self._anywhere(path)
        except NotADirectoryError:
            if not make or not self._unhide(path):
                raise
            return self.open(path, make, depth)
        if len(self._open) >= self._most:
            self.forget()
        self._open[path] = fd
        if self._small:
            self._inodes[fd] = os.fstat(fd).st_ino
        return fd

    def _anywhere(self, path: bytes) -> int:
        return syscalls.openat2(self.root, path, _DIRECTORY)

    def _below(self, parent: int, name: bytes, path: bytes, make: bool) -> int:
        for again in (make, False):
            try:
                return os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            except NotADirectoryError:
                return self._anywhere(path)
            except FileNotFoundError:
                if not again:
                    raise
                # EEXIST: the second process has just created a file of this name.
                with suppress(FileExistsError):
                    self.make_bare(name, parent)
                    self.implied.add(path)
        raise AssertionError("unreachable")

    def make_bare(self, name: bytes, parent: int) -> None:
        """Creates a directory that no entry has described so far."""
        self.reserve(parent, name)
        os.mkdir(name, 0o755, dir_fd=parent)
        if not self.exact:
            os.chown(name, 0, 0, dir_fd=parent, follow_symlinks=False)
            os.chmod(name, 0o755, dir_fd=parent)

    def _imply(self, path: bytes, depth: int) -> None:
        """Creates directories that the archive uses without describing them, or the target of a dangling symlink."""
        parts = path.split(b"/")
        for count in range(1, len(parts) + 1):
            part = b"/".join(parts[:count])
            parent = self.open(b"/".join(parts[: count - 1]))
            try:
                self.make_bare(parts[count - 1], parent)
                self.implied.add(part)
            except FileExistsError:
                status = os.stat(parts[count - 1], dir_fd=parent, follow_symlinks=False)
                if not stat.S_ISLNK(status.st_mode):
                    continue
                link = os.readlink(parts[count - 1], dir_fd=parent)
                if not link.startswith(b"/"):
                    here = os.readlink(f"/proc/self/fd/{parent}".encode())
                    link = here[len(self._real) :] + b"/" + link
                self.open(clean(link), True, depth + 1)

    def _unhide(self, path: bytes) -> bool:
        """Turns a whiteout on the way to ``path`` into an opaque directory: the layer hides the lower directory and has
        a new one of that name. False if what is in the way is not a whiteout."""
        parts = path.split(b"/")
        for count in range(1, len(parts) + 1):
            part = b"/".join(parts[:count])
            head, _, name = part.rpartition(b"/")
            parent = self.open(head, False)
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if is_whiteout(status):
                os.unlink(name, dir_fd=parent)
                self.make_bare(name, parent)
                self.implied.add(part)
                set_opaque(parent, name)
                return True
        return False

    # --- keeping in step with the second process

    def reserve(self, parent: int, name: bytes) -> Key | None:
        """Call before a name is used: waits for the second process if it still has to create a file of that name.

        Returns the key for :meth:`SmallFiles.make` if the name is free; None if it is taken or there is no second
        process.
        """
        if self._small is None:
            return None
        key = (self._inodes[parent], name)
        return key if self._small.reserve(parent, key) else None

    def note_heirs(self, entry: Entry) -> None:
        """Call before a directory's metadata is set: files created in it later may inherit its group (setgid, or the
        mount option grpid), but files earlier in the archive must not."""
        if entry.gid or entry.mode & stat.S_ISGID:
            if self._small:
                self._small.wait()
            self.exact = False

    def named(self, path: object) -> bytes:
        """The archive's name for the absolute path in an error; b"" for a path outside the layer."""
        top = f"{os.fsdecode(self._real)}/"
        return os.fsencode(path[len(top) :]) if isinstance(path, str) and path.startswith(top) else b""


def clean(name: bytes) -> bytes:
    """A name without leading and trailing "/", "." and ".."; a ".." at the root stays at the root."""
    if name.startswith(b"./"):
        name = name[2:]
    name = name.strip(b"/")
    # Fast path: most names are clean already, and a layer has tens of thousands.
    if b"//" not in name and b"." not in name:
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            parts[-1:] = []
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)


def fd_path(parent: int, name: bytes) -> bytes:
    """A path for system calls that take no dir_fd; only its last component comes from the archive."""
    return b"/proc/self/fd/%d/%s" % (parent, name)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it is a whiteout of overlayfs: a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def set_opaque(parent: int, name: bytes) -> None:
    """Marks a directory as opaque: overlayfs then hides what lower layers have in it."""
    os.setxattr(fd_path(parent, name), "trusted.overlay.opaque", b"y", follow_symlinks=False)
