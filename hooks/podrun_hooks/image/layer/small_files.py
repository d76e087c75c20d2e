"""Creates the small files of a layer in batches, each in whichever of two processes is free.

Creating a file takes the kernel longer than Python's share of the work, and one process creates one file at a time. The
second process receives open directories (SCM_RIGHTS, unix(7)) and names without a "/": it never resolves a path, so an
archive cannot lead it out of the layer. The first process waits for it before touching a name that is still pending.
"""

from __future__ import annotations

import errno
import json
import marshal
import os
import socket
from array import array
from collections import deque

from podrun_hooks.image.layer.workers import killed
from podrun_hooks.support import syscalls
from podrun_hooks.support.rooted_tree import exists

#: Bytes of the largest file in a batch: larger files cost more to copy through the socket than they save.
SMALL = 32 << 10
#: Files and bytes in a batch. A message takes 253 open files (SCM_MAX_FD), the socket holds a few such batches.
_FILES = 64
_BYTES = 48 << 10
_LARGEST = _BYTES + SMALL + _FILES * 512
#: The socket is full, or too many descriptors are in flight: the first process creates this batch itself.
_BUSY = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE, errno.ETOOMANYREFS))
#: Leave owner or mode as the file was created.
UNCHANGED = -1
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DONE = b"null"
#: Names that are remembered; they take 10 MiB.
_KNOWN = 100_000


#: Identifies a file whatever path leads to it: the inode of its directory, and its name.
Key = tuple[int, bytes]
#: A file to create: the index of its directory in the batch, its name, the mode that it is created with, its size,
#: its uid, gid and mode (or UNCHANGED), its mtime in nanoseconds.
_File = tuple[int, bytes, int, int, int, int, int, int]


class SmallFiles:
    """The first process's handle on both. Close it even if unpacking the layer fails."""

    def __init__(self, most: int = _FILES) -> None:
        """Forks the second process; a batch has at most ``most`` files. Raises OSError if the fork fails."""
        parent = os.getpid()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            #: The second process.
            self.child = syscalls.fork()
            if not self.child:
                try:
                    syscalls.die_with_parent(parent)
                    self._socket.close()
                    _serve(theirs)
                finally:
                    os._exit(0)
        #: Hashes of the names in use (asking the kernel takes longer); None: there are too many to remember.
        self._used: set[int] | None = set()
        #: Files that may not have been created yet.
        self._pending: set[Key] = set()
        #: Batches that the second process has not answered yet.
        self._sent: deque[list[Key]] = deque()
        self._keys: list[Key] = []
        self._directories: dict[int, int] = {}
        self._files: list[_File] = []
        self._content: list[bytes] = []
        self._bytes = 0
        self._most = most

    def close(self) -> None:
        """Ends the second process."""
        syscalls.end(self.child)
        self._socket.close()

    def reserve(self, parent: int, key: Key) -> bool:
        """Whether a name is free; call before creating or looking up anything of that name.

        Waits for a pending file of that name. Raises as :meth:`make` does.
        """
        if key in self._pending:
            self.wait()
        if self._used is None:
            return not exists(parent, key[1])
        known = len(self._used)
        self._used.add(hash(key))
        if known == len(self._used):
            return False
        if known == _KNOWN:
            self._used = None
        return True

    def make(
        self, parent: int, key: Key, content: bytes, early: int, uid: int, gid: int, mode: int, mtime: int
    ) -> None:
        """Creates a new file, now or later; the caller keeps ``parent`` open until :meth:`flush`.

        Raises OSError with the path of the file that could not be created: this one or an earlier one.
        """
        place = self._directories.setdefault(parent, len(self._directories))
        self._files.append((place, key[1], early, len(content), uid, gid, mode, mtime))
        self._content.append(content)
        self._bytes += len(content)
        self._keys.append(key)
        self._pending.add(key)
        if self._bytes >= _BYTES or len(self._files) == self._most:
            self.flush()

    def flush(self) -> None:
        """Sends the current batch to the second process, or creates it here. Raises as :meth:`make` does."""
        while self._sent and self._answered(socket.MSG_DONTWAIT):
            continue
        if not self._files:
            return
        about = marshal.dumps(self._files)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", self._directories))]
        try:
            message = [len(about).to_bytes(4, "big"), about, *self._content]
            self._socket.sendmsg(message, rights, socket.MSG_DONTWAIT)
            self._sent.append(self._keys)
        except OSError as error:
            if error.errno not in _BUSY:
                # The second process has failed, reported why and ended.
                self._hear_all()
                if isinstance(error, ConnectionError):
                    raise killed() from None
                raise
            _checked(_made(self._files, list(self._directories), memoryview(b"".join(self._content))))
            self._pending.difference_update(self._keys)
        self._keys, self._directories, self._files, self._content, self._bytes = [], {}, [], [], 0

    def wait(self) -> None:
        """Returns when all files have been created. Raises as :meth:`make` does."""
        self.flush()
        self._hear_all()

    def _hear_all(self) -> None:
        while self._sent:
            self._answered(0)

    def _answered(self, flags: int) -> bool:
        try:
            answer = self._socket.recv(1 << 16, flags)
        except BlockingIOError:
            return False
        except ConnectionError:
            answer = b""
        if not answer:
            raise killed()
        _checked(answer)
        self._pending.difference_update(self._sent.popleft())
        return True


def _serve(theirs: socket.socket) -> None:
    """The second process's loop: ends when there are no more batches, or when a file cannot be created."""
    os.umask(0)
    room = bytearray(_LARGEST)
    rights = socket.CMSG_SPACE(_FILES * array("i").itemsize)
    while True:
        length, said, _, _ = theirs.recvmsg_into([room], rights)
        if not length:
            return
        directories = array("i")
        for _, _, content in said:
            directories.frombytes(content)
        message = memoryview(room)
        start = 4 + int.from_bytes(message[:4], "big")
        answer = _made(marshal.loads(message[4:start]), directories, message[start:])
        theirs.sendall(answer)
        if answer != _DONE:
            # From here on the first process cannot send (EPIPE), so it reads the answer. Read what it has sent before:
            # unread data would make its recv fail with ECONNRESET instead (unix(7)).
            theirs.shutdown(socket.SHUT_RD)
            while theirs.recv(1):
                continue
            return
        for fd in directories:
            os.close(fd)


def _made(files: list[_File], directories: list[int] | array[int], content: memoryview) -> bytes:
    """Creates the files; returns the reply message (b"null", or the OSError's arguments as JSON)."""
    at = 0
    for place, name, early, size, uid, gid, mode, mtime in files:
        try:
            fd = os.open(name, NEW, early, dir_fd=directories[place])
            try:
                write(fd, content[at : at + size])
                settle(fd, uid, gid, mode)
                os.utime(fd, ns=(mtime, mtime))
            finally:
                os.close(fd)
        except OSError as error:
            return json.dumps([error.errno, error.strerror, _path(directories[place], name)]).encode()
        at += size
    return _DONE


def _path(parent: int, name: bytes) -> str:
    try:
        return f"{os.readlink(f'/proc/self/fd/{parent}')}/{os.fsdecode(name)}"
    except OSError:
        return os.fsdecode(name)  # the path is longer than PATH_MAX


def _checked(answer: bytes) -> None:
    if answer != _DONE:
        raise OSError(*json.loads(answer))


def write(fd: int, content: memoryview) -> int:
    """Writes all of ``content``; returns its size."""
    size = len(content)
    done = os.write(fd, content)
    while done < size:
        done += os.write(fd, content[done:])
    return size


def settle(fd: int, uid: int, gid: int, mode: int) -> None:
    """Sets owner and mode of a file, in this order: chown(2) clears setuid bits."""
    if uid != UNCHANGED:
        os.fchown(fd, uid, gid)
    if mode != UNCHANGED:
        os.fchmod(fd, mode)
