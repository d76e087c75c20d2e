"""A snapshot of a btrfs subvolume for each start, made in constant time; <linux/btrfs.h> has the ioctls."""

from __future__ import annotations

import errno
import fcntl
import os
from struct import Struct

from podrun.errors import BUSY, WRONG_FILE, Failure

_SNAP_CREATE_V2, _SNAP_DESTROY = 0x50009417, 0x5000940F
_CREATE = Struct("=qQQ32x4040s")  # btrfs_ioctl_vol_args_v2: fd, transaction, flags, reserved, name
_DESTROY = Struct("=q4088s")  # btrfs_ioctl_vol_args: fd, name


# ioctl(2) by way of fcntl takes 1,024 bytes of what cannot be written to, and 4 KiB only in a bytearray.


def snapshot(path: str, name: str) -> str:
    """Makes a writable snapshot of the subvolume at ``path``; returns its path, beside it or, where that is another
    file system, in it. Raises Failure (WRONG_FILE) for what is no subvolume.
    """
    source = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(source).st_ino != 256:  # BTRFS_FIRST_FREE_OBJECTID: the root of every subvolume
            raise Failure(f"{path} is not a btrfs subvolume", code=WRONG_FILE)
        for directory in _places(path):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _SNAP_CREATE_V2, bytearray(_CREATE.pack(source, 0, 0, f".{name}".encode())))
                return f"{directory}/.{name}"
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.ENOTTY) and directory != path:
                    continue
                if error.errno == errno.ENOTTY:
                    raise Failure(f"{path} is not on btrfs", code=WRONG_FILE) from None
                raise
            finally:
                os.close(fd)
    finally:
        os.close(source)
    raise Failure(f"{path} is not on btrfs", code=WRONG_FILE)


def remove(path: str, name: str) -> None:
    """Removes the snapshot; nothing when there is none. Raises Failure (BUSY) naming who uses it."""
    for directory in _places(path):
        found = f"{directory}/.{name}"
        if not os.path.isdir(found) or os.path.islink(found):
            continue
        from podrun_hooks.storage import busy

        holder = busy.holder(found)
        if holder:
            raise Failure(f"the snapshot {found} is held by {holder}", code=BUSY)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _SNAP_DESTROY, bytearray(_DESTROY.pack(0, f".{name}".encode())))
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            # Subvolumes that the payload made: rmdir(2) removes an empty one.
            from podrun_hooks.support.rooted_tree import clear

            clear(found)
        finally:
            os.close(fd)


def _places(path: str) -> list[str]:
    return [os.path.dirname(path.rstrip("/")) or "/", path]
