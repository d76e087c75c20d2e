"""Files that nobody reads half written: the new content is written beside the file and takes its place by rename(2).

The unfinished file is ``.NAME.new`` in the same directory, and a lock (flock(2)), which ends with its process, keeps
two writers apart. What a killed writer has left there goes with the next write, with :func:`remove` and with
:func:`sweep`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: How often, 10 ms apart, a writer looks whether another one of the same file has finished.
_ATTEMPTS = 500


def replace(
    path: str,
    content: str | bytes | Callable[[int], object],
    mode: int | None = 0o600,
    *,
    parents: int | None = None,
    dir_fd: int | None = None,
    sync: bool = False,
) -> None:
    """Gives a file this content, or what a callable writes into the descriptor that it is called with.

    ``mode`` None: 0666 without the umask. ``parents``: the mode of its directory, which is made if need be. ``dir_fd``:
    ``path`` is relative to it. ``sync``: the content is on the disk when this returns, and a power cut before leaves
    the old or the new one. A link at ``path`` is replaced. Raises OSError about ``path``; what the callable raises;
    nothing unfinished is left then.
    """
    for attempt in range(8):
        try:
            if parents is not None:
                os.makedirs(os.path.dirname(path), mode=parents, exist_ok=True)
            _replace(path, content, mode, dir_fd, sync)
            return
        except (FileNotFoundError, FileExistsError):
            # Whoever removes the last file of a directory may remove that, too.
            if parents is None or attempt == 7:
                raise


def _replace(
    path: str, content: str | bytes | Callable[[int], object], mode: int | None, dir_fd: int | None, sync: bool
) -> None:
    new = _unfinished(path)
    try:
        fd = _begun(new, 0o666 if mode is None else mode, dir_fd)
        try:
            if mode is not None:
                os.fchmod(fd, mode)  # whatever the umask is
            if callable(content):
                content(fd)
            else:
                with open(fd, "wb", closefd=False) as file:
                    file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                os.fsync(fd)
            os.rename(new, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except BaseException:
            _unlink(new, dir_fd)
            raise
        finally:
            os.close(fd)
        if sync:
            directory = os.open(
                os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd
            )
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except OSError as error:
        if error.filename in (None, new):
            error.filename, error.filename2 = path, None
        raise


def remove(path: str) -> bool:
    """Removes a file, and what a killed writer has left beside it; whether the file was there."""
    _unlink(_unfinished(path))
    return _unlink(path)


def sweep(directory: str) -> list[str]:
    """Removes what killed writers have left in a directory; returns the paths. One that is being written stays."""
    try:
        files = [entry for entry in os.scandir(directory) if entry.is_file(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    left = [entry.path for entry in files if entry.name.startswith(".") and entry.name.endswith(".new")]
    return [path for path in left if _clear(path)]


def _unfinished(path: str) -> str:
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}.{name}.new"


def _begun(new: str, mode: int, dir_fd: int | None) -> int:
    """A descriptor of the unfinished file: made by this process, empty and locked."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    for _ in range(_ATTEMPTS):
        try:
            fd = os.open(new, flags, mode, dir_fd=dir_fd)
        except FileExistsError:
            if not _clear(new, dir_fd):
                time.sleep(0.01)
            continue
        if _is_mine(fd, new, dir_fd):
            return fd
        os.close(fd)
    raise OSError(errno.EBUSY, "another process is writing it", new)


def _clear(new: str, dir_fd: int | None = None) -> bool:
    """Removes an unfinished file that nobody is writing; whether it did."""
    try:
        fd = os.open(new, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    try:
        return _is_mine(fd, new, dir_fd) and _unlink(new, dir_fd)
    finally:
        os.close(fd)


def _is_mine(fd: int, new: str, dir_fd: int | None) -> bool:
    """Locks the file; whether this process holds the lock now and the file is still the one of that name."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), os.stat(new, dir_fd=dir_fd, follow_symlinks=False))
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.ENOENT)  # else a file system without locks


def _unlink(path: str, dir_fd: int | None = None) -> bool:
    try:
        os.unlink(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return True
