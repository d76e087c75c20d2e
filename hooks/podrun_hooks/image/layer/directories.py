"""The directories of a layer that is being unpacked: each opened once, and made where something is in it.

Paths are bytes as an archive has them, cleaned by :func:`clean`. None leads out of the layer: each is opened by
openat2(RESOLVE_IN_ROOT), or below an open directory by a name that is no symlink.
"""

from __future__ import annotations

import os
import resource
import stat
from contextlib import suppress

from podrun_hooks.image.layer.small_files import Key, SmallFiles
from podrun_hooks.image.layer.tar import Entry
from podrun_hooks.support import syscalls

#: Directories kept open, where the process may open that many files.
_MOST = 4000
#: As the kernel's own limit on symlinks in one path (path_resolution(7)).
_MAX_SYMLINKS = 40
#: Makes what is created in a directory have another mode than it was created with (acl(5)).
_DEFAULT_ACL = "system.posix_acl_default"
_DIRECTORY = os.O_PATH | os.O_DIRECTORY


class Directories:
    """Those of one layer. With ``small`` a second process makes files in them."""

    def __init__(self, target: str, small: SmallFiles | None) -> None:
        self.root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        #: Those that no entry describes (yet).
        self.implied: set[bytes] = set()
        self._small = small
        self._real = os.fsencode(os.path.realpath(target))
        self._open: dict[bytes, int] = {}
        self._most = min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        status = os.fstat(self.root)
        #: Of the open directories.
        self._inodes = {self.root: status.st_ino}
        #: What is created belongs to 0:0 and has the mode it is created with: no directory hands down a group or ACLs.
        self.exact = not (
            os.geteuid() or status.st_gid or status.st_mode & stat.S_ISGID or _DEFAULT_ACL in os.listxattr(self.root)
        )

    def close(self) -> None:
        for fd in (*self._open.values(), self.root):
            os.close(fd)

    def forget(self) -> None:
        """Closes all but the root: a path may lead elsewhere from here on."""
        if self._small:
            self._small.flush()
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def open(self, path: bytes, make: bool = True, depth: int = 0) -> int:
        """An O_PATH descriptor of a directory, valid until the next call; with ``make`` it is made if it is missing,
        and so are those on the way. Raises OSError."""
        if not path:
            return self.root
        fd = self._open.get(path)
        if fd is not None:
            return fd
        above, _, name = path.rpartition(b"/")
        parent = self._open.get(above) if above else self.root
        try:
            # Below an open directory, and no symlink: most are, and this is a third of the time.
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
                # A file that the second process had to make first has the name now.
                with suppress(FileExistsError):
                    self.make_bare(name, parent)
                    self.implied.add(path)
        raise AssertionError("unreachable")

    def make_bare(self, name: bytes, parent: int) -> None:
        """Makes a directory of which no entry says anything (yet)."""
        self.reserve(parent, name)
        os.mkdir(name, 0o755, dir_fd=parent)
        if not self.exact:
            os.chown(name, 0, 0, dir_fd=parent, follow_symlinks=False)
            os.chmod(name, 0o755, dir_fd=parent)

    def _imply(self, path: bytes, depth: int) -> None:
        """Makes directories that the archive uses without describing them, or what a dangling symlink points to."""
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
        """Turns a whiteout on the way to ``path`` into an opaque directory: the layer has both the lower one hidden
        and a new one of its own. False when what is in the way is no whiteout."""
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

    # --- what the second process has to do with them

    def reserve(self, parent: int, name: bytes) -> Key | None:
        """Called before a name is used: the second process may have something to make under it, which comes first.

        What :meth:`SmallFiles.make` knows the name by, when nothing has it yet and there is a second process.
        """
        if self._small is None:
            return None
        key = (self._inodes[parent], name)
        return key if self._small.reserve(parent, key) else None

    def note_heirs(self, entry: Entry) -> None:
        """Before a directory is described: it may hand its group (setgid, or the mount option grpid) down to what is
        made in it later, but not to files before it in the archive."""
        if entry.gid or entry.mode & stat.S_ISGID:
            if self._small:
                self._small.wait()
            self.exact = False

    def named(self, path: object) -> bytes:
        """An absolute path that an error speaks of as the archive names it; b"" for any other."""
        top = f"{os.fsdecode(self._real)}/"
        return os.fsencode(path[len(top) :]) if isinstance(path, str) and path.startswith(top) else b""


def clean(name: bytes) -> bytes:
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


def fd_path(parent: int, name: bytes) -> bytes:
    """A path for the calls that have no dir_fd; only its last component comes from the archive."""
    return b"/proc/self/fd/%d/%s" % (parent, name)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it is overlayfs's: a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def set_opaque(parent: int, name: bytes) -> None:
    """Has overlayfs show nothing of what lower layers have in a directory."""
    os.setxattr(fd_path(parent, name), "trusted.overlay.opaque", b"y", follow_symlinks=False)
