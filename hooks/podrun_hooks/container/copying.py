"""Files in and out of a running container, as tar streams: no path of the container's is ever resolved on the host.

The root is opened once, through the container's init; every path below it is opened with RESOLVE_IN_ROOT (openat2(2)),
so a symbolic link means what it means inside, and directories are walked by their descriptors.
"""

from __future__ import annotations

import os
import stat
import tarfile

from podrun.errors import CANNOT_CREATE, UNAVAILABLE, Failure
from podrun_hooks.support import syscalls, userns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, TypeAlias

    #: uid and gid.
    Owner: TypeAlias = tuple[int, int]

#: Limits of one copy: its entries, and the depth of its directories.
_MOST, _DEEPEST = 1_000_000, 500
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Root:
    """The file system of a running container; use as a context manager."""

    def __init__(self, pid: int) -> None:
        try:
            self.fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Failure(f"the container's files cannot be reached: {error.strerror}", code=UNAVAILABLE) from None
        #: The uid and gid that the container's root has on the host.
        self.owner = (_outside(f"/proc/{pid}/uid_map"), _outside(f"/proc/{pid}/gid_map"))

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int) -> int:
        """A descriptor of what a path leads to inside. Raises Failure (UNAVAILABLE)."""
        try:
            return syscalls.openat2(self.fd, path.lstrip("/") or ".", flags)
        except OSError as error:
            raise Failure(f"{path} in the container: {error.strerror}", code=UNAVAILABLE) from None


def _outside(path: str) -> int:
    with open(path, encoding="ascii") as file:
        for line in file:
            inside, outside, _ = map(int, line.split())
            if inside == 0:
                return outside
    return 0


# --- out ------------------------------------------------------------------------------------------------------------


def pack(root: Root, path: str, out: IO[bytes]) -> None:
    """Writes what is at ``path`` as a tar stream; its top entry is named after the last part of the path.

    A symbolic link at the end of the path is copied as one, as docker does. Raises Failure.
    """
    parent, _, name = path.rstrip("/").rpartition("/")
    directory = root.open(path if not name or name in (".", "..") else parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            packer = _Packer(archive)
            if not name or name in (".", ".."):
                packer.contents(directory, ".", 0)
            else:
                packer.entry(directory, name, name, 0)
    except FileNotFoundError:
        raise Failure(f"{path} in the container: No such file or directory", code=UNAVAILABLE) from None
    finally:
        os.close(directory)


class _Packer:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive
        self.count = 0

    def entry(self, directory: int, name: str, path: str, depth: int) -> None:
        self.count += 1
        if self.count > _MOST or depth > _DEEPEST:
            raise Failure(f"{path}: more than {_MOST} files, or deeper than {_DEEPEST}", code=UNAVAILABLE)
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        info = tarfile.TarInfo(path)
        info.mode, info.mtime = stat.S_IMODE(status.st_mode), status.st_mtime
        if stat.S_ISDIR(status.st_mode):
            info.type = tarfile.DIRTYPE
            self.archive.addfile(info)
            inner = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                self.contents(inner, path, depth)
            finally:
                os.close(inner)
        elif stat.S_ISLNK(status.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=directory)
            self.archive.addfile(info)
        elif stat.S_ISREG(status.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            with open(fd, "rb") as file:
                info.size = os.fstat(fd).st_size
                self.archive.addfile(info, _Exactly(file, info.size))
        # Sockets, pipes and devices mean nothing elsewhere: left out, as docker leaves out sockets.

    def contents(self, directory: int, path: str, depth: int) -> None:
        for name in sorted(os.listdir(directory)):
            try:
                self.entry(directory, name, name if path == "." else f"{path}/{name}", depth + 1)
            except FileNotFoundError:
                continue  # it has been removed since


class _Exactly:
    """Reads exactly so many bytes, whatever becomes of the file: its size is in the tar header already."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.left = size

    def read(self, most: int = 1 << 20, /) -> bytes:
        wanted = min(most, self.left)
        found = self.file.read(wanted)
        self.left -= wanted
        return found + bytes(wanted - len(found))


# --- in -------------------------------------------------------------------------------------------------------------


def unpack(root: Root, path: str, stream: IO[bytes], rename: str = "") -> None:
    """Makes the entries of a tar stream below the directory ``path`` of the container.

    ``rename``: the name that the top entry gets. Everything belongs to the container's root. Raises Failure.
    """
    top = root.open(path, os.O_RDONLY | os.O_DIRECTORY)
    mapping = userns.Mapping(-1, userns.Range(*root.owner)) if any(root.owner) else None
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as archive, userns.AsRootOf(mapping):
            for count, member in enumerate(archive):
                if count > _MOST:
                    raise Failure(f"more than {_MOST} files", code=UNAVAILABLE)
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if ".." in parts or len(parts) > _DEEPEST:
                    raise Failure(f"{member.name!r} in the archive leads elsewhere, or too deep", code=UNAVAILABLE)
                if rename and parts:
                    parts[0] = rename
                if parts:
                    _make(top, parts, archive, member, root.owner)
    except tarfile.TarError as error:
        raise Failure(f"the archive cannot be read: {error}", code=UNAVAILABLE) from None
    except OSError as error:
        raise Failure(f"{path} in the container: {error.strerror}", code=CANNOT_CREATE) from None
    finally:
        os.close(top)


def _make(
    top: int, parts: list[str], archive: tarfile.TarFile, member: tarfile.TarInfo, owner: tuple[int, int]
) -> None:
    directory = os.dup(top)
    try:
        for part in parts[:-1]:
            # Never through a link: a process in the container could point it anywhere.
            try:
                os.mkdir(part, 0o755, dir_fd=directory)
            except FileExistsError:
                pass
            inner = os.open(part, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        _place(directory, parts[-1], archive, member, owner)
    finally:
        os.close(directory)


def _place(
    directory: int, name: str, archive: tarfile.TarFile, member: tarfile.TarInfo, owner: tuple[int, int]
) -> None:
    mode = member.mode & 0o7777
    if member.isdir():
        try:
            os.mkdir(name, mode, dir_fd=directory)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise
            return
        os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
        return
    if member.issym() or member.isfile():
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
    if member.issym():
        os.symlink(member.linkname, name, dir_fd=directory)
        os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
    elif member.isfile():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, mode & 0o777, dir_fd=directory)
        with open(fd, "wb") as file:
            content = archive.extractfile(member)
            while content and (block := content.read(1 << 20)):
                file.write(block)
            file.flush()
            os.fchown(fd, *owner)
            os.fchmod(fd, mode & 0o1777)
            os.utime(fd, (member.mtime, member.mtime))
