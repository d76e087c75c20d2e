"""Trees of files that an image or a payload has made: paths resolved inside them, whose they are, and their removal."""

from __future__ import annotations

import errno
import os
import stat

from podrun.errors import CANNOT_CREATE, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Symbolic links that a path may lead through, as many as the kernel allows (path_resolution(7)).
_LINKS = 40
#: The link that :func:`claim` makes.
OWNER = "of"


class Elsewhere(Exception):  # no failure: the runtime resolves the rest of the path
    """A path leads into a mount that the runtime creates (/proc, /sys, /dev); ``path`` is resolved up to there."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def names(directory: str) -> list[str]:
    """The names in a directory, sorted; none where there is no such directory."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def plain(path: str) -> str:
    """An absolute path without empty parts and dots."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


class Tree:
    """The file system as the container will see it: the root at a descriptor and the mounts over it.

    Paths are resolved here, component by component: a symbolic link means what it means inside, and none leads out.
    """

    def __init__(self, root: int, made_by_runtime: Sequence[str] = ("/proc", "/sys", "/dev")) -> None:
        self.root = root
        #: Resolved targets with descriptors of the (detached) mounts that will lie there; the later of two counts.
        self.mounts: list[tuple[str, int]] = []
        self.made_by_runtime = list(made_by_runtime)

    def find(self, path: str, may_search: Callable[[os.stat_result], bool] | None = None) -> tuple[int, str]:
        """An O_PATH descriptor and the resolved path of what ``path`` leads to; links are followed.

        ``may_search`` tells of each directory on the way whether its lookup is permitted. Raises
        OSError (ENOENT, ENOTDIR, ELOOP, EACCES) as open(2) would, and Elsewhere.
        """
        fd, resolved, _ = self._walk(path, None, may_search)
        return fd, resolved

    def make(self, path: str, *, directory: bool) -> tuple[int, str, bool]:
        """A mount point: its descriptor, the resolved path, and whether it is in one of the mounts.

        Missing parts are created (directories 0755, a file 0644). Raises Failure (CANNOT_CREATE) where it would
        have to be made in a read-only mount, or is of the other type; Elsewhere where the runtime makes it.
        """
        try:
            fd, resolved, inside = self._walk(path, directory)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # nothing is wrong with the path
            where = str(error.filename or path)
            at = path if where == path else f"{path} (at {where})"
            hint = "make it beforehand in what is mounted there, or mount that without ro"
            raise Failure(
                f"{at} cannot be created in the container: {error.strerror}",
                code=CANNOT_CREATE,
                hint=hint if error.errno == errno.EROFS else "",
            ) from error
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        if is_directory != directory:
            os.close(fd)
            kinds = ("a file", "a directory")
            raise Failure(
                f"{path} is {kinds[is_directory]} in the image, but {kinds[directory]} is to be mounted there"
            )
        return fd, resolved, inside

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """The first ``limit`` bytes of a regular file; b"" where there is none."""
        try:
            fd, _ = self.find(path)
        except (OSError, Elsewhere):
            return b""
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return b""
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = os.read(reader, limit)
                # read(2) may return less than a large file has.
                while content and len(content) < limit and (more := os.read(reader, limit - len(content))):
                    content += more
                return content
            finally:
                os.close(reader)
        finally:
            os.close(fd)

    def _walk(
        self,
        path: str,
        make_directory: bool | None,
        may_search: Callable[[os.stat_result], bool] | None = None,
    ) -> tuple[int, str, bool]:
        """Resolves ``path``; with ``make_directory`` not None what is missing is made, the last part of that type."""
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        names: list[str] = []
        fds = [os.dup(self.root)]
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name == "..":
                    if names:
                        names.pop()
                        os.close(fds.pop())
                    continue
                here = "/" + "/".join([*names, name])
                if here in self.made_by_runtime:
                    raise Elsewhere("/".join([here, *reversed(todo)]))
                if may_search and not may_search(os.fstat(fds[-1])):
                    raise OSError(errno.EACCES, os.strerror(errno.EACCES), here)
                inner = None if make_directory is None else True
                fd = self._step(fds[-1], name, here, inner if todo else make_directory)
                mode = os.fstat(fd).st_mode
                if stat.S_ISLNK(mode):
                    links += 1
                    target = os.readlink("", dir_fd=fd)
                    os.close(fd)
                    if links > _LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                    if target.startswith("/"):
                        while names:
                            names.pop()
                            os.close(fds.pop())
                    continue
                fds.append(fd)
                names.append(name)
                if todo and not stat.S_ISDIR(mode):
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), here)
            resolved = "/" + "/".join(names)
            inside = any(f"{resolved}/".startswith(f"{target}/") for target, _ in self.mounts)
            return os.dup(fds[-1]), resolved, inside
        finally:
            for fd in fds:
                os.close(fd)

    def _step(self, directory: int, name: str, here: str, make_directory: bool | None) -> int:
        """Opens one component; makes it when it is missing and ``make_directory`` says of which type."""
        for target, mounted in reversed(self.mounts):
            if target == here:
                return os.dup(mounted)
        try:
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            if make_directory is None:
                raise
        try:
            if make_directory:
                os.mkdir(name, 0o755, dir_fd=directory)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=directory))
        except OSError as error:
            if error.errno == errno.EROFS:
                error.strerror = "it does not exist in a read-only mount"
            error.filename = here
            raise
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def claim(directory: str, run: str) -> None:
    """Notes that a directory below $PODRUN_ROOT/pods ends with its pod, which is one of this run directory's.

    A power cut takes the pod's journal along and leaves the directory: gc knows by the link what to remove
    (leftovers.py). One system call makes it, whole or not at all.
    """
    try:
        os.symlink(run, f"{directory}/{OWNER}")
    except FileExistsError:
        os.unlink(f"{directory}/{OWNER}")
        os.symlink(run, f"{directory}/{OWNER}")


def clear(directory: str) -> None:
    """Removes a directory and all below it without ever following a link, however deep it is.

    A payload can nest directories deeper than any stack or PATH_MAX, so each directory is emptied into a flat one:
    subdirectories that are not empty move up and wait their turn.
    """
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        serial = 0
        waiting = [name for name, is_directory in _entries(root) if not _unlinked(root, name, is_directory)]
        while waiting:
            name = waiting.pop()
            here = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                for inner, is_directory in _entries(here):
                    if _unlinked(here, inner, is_directory):
                        continue
                    serial += 1
                    moved = f"\1{serial}"
                    while exists(root, moved):
                        serial += 1
                        moved = f"\1{serial}"
                    os.rename(inner, moved, src_dir_fd=here, dst_dir_fd=root)
                    waiting.append(moved)
            finally:
                os.close(here)
            os.rmdir(name, dir_fd=root)
    finally:
        os.close(root)
    os.rmdir(directory)


def _entries(fd: int) -> Iterator[tuple[str, bool]]:
    with os.scandir(fd) as entries:
        yield from [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def _unlinked(directory: int, name: str, is_directory: bool) -> bool:
    """Removes one entry; False for a directory with something in it."""
    if not is_directory:
        os.unlink(name, dir_fd=directory)
        return True
    try:
        os.rmdir(name, dir_fd=directory)
        return True
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return False


def exists(directory: int, name: str | bytes) -> bool:
    """Whether an open directory has an entry of this name, whatever it is. Raises OSError."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
