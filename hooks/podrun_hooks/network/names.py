"""The names of the pods on one bridge: a hosts(5) file that all of them mount read-only as their /etc/hosts.

This needs no name server and rewrites no file: a name appears with the write of a single byte. A pod has a record of
two lines of fixed length, for IPv4 and IPv6. It is written as a comment ("#") and becomes valid when the first byte of
each line is written; it is removed in the same way. The C libraries open the file anew for every look-up, and a reader
never sees half a line.
"""

from __future__ import annotations

import fcntl
import os

from podrun.record import NamedTuple
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from podrun.hook import Step

#: Length of a line: room for an address, three names of 64 letters and the pod's tag.
_LINE = 384
_RECORD = 2 * _LINE
_FREE = b"#-"
_HEAD = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


class Name(NamedTuple):
    """A record in use."""

    offset: int
    addresses: list[str]
    names: list[str]
    #: See :func:`mark`.
    mark: str


def path_of(directory: str) -> str:
    """The hosts file of the bridge with this directory."""
    return f"{directory}/hosts"


def mark(step: Step) -> str:
    """The mark of a record's owner: the pod's tag and the step's name."""
    return f"{step.pod.tag}/{step.name}"


def begin(directory: str, *, anew: bool) -> None:
    """Creates the file of a bridge; ``anew`` empties an existing one, whose records are from an earlier boot."""
    fd = os.open(path_of(directory), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # Whatever podrun's umask is: payloads read the file as any user.
        os.fchmod(fd, 0o644)
        if anew or not os.fstat(fd).st_size:
            os.ftruncate(fd, 0)
            os.pwrite(fd, _HEAD, 0)
    finally:
        os.close(fd)


def add(directory: str, addresses: Sequence[str], names: Sequence[str], mark: str) -> int:
    """Adds a pod's names, in the first free record or at the end; returns the offset, for :func:`remove`."""
    called = f"{' '.join(names)}\t# {mark}"
    lines = [f"{address}\t{called}".encode() for address in addresses]
    if not os.path.exists(path_of(directory)):
        begin(directory, anew=False)  # an older podrun made the bridge, or somebody has removed the file
    with syscalls.Naming(path_of(directory)), _Locked(directory) as file:
        offset = _first_free(file)
        record = b"".join(_padded(b"#" + line[1:]) for line in [*lines, b"#-"][:2])
        os.pwrite(file.fd, record, offset)
        for n, line in enumerate(lines):
            os.pwrite(file.fd, line[:1], offset + n * _LINE)
        file.none_free_before(offset + _RECORD)
    return offset


def _first_free(file: _Locked) -> int:
    """The offset of the first free record. Half a record at the end, left by a kill, is overwritten."""
    size = os.fstat(file.fd).st_size
    end = len(_HEAD) + (size - len(_HEAD)) // _RECORD * _RECORD
    start = file.hint()
    if not _is_record(start) or start > end:
        start = len(_HEAD)
    content = b"\n" + os.pread(file.fd, end - start, start)
    found = content.find(b"\n" + _FREE)
    while found >= 0 and found % _RECORD:
        found = content.find(b"\n" + _FREE, found + 1)
    return start + found if found >= 0 else end


def _is_record(offset: int) -> bool:
    return offset >= len(_HEAD) and (offset - len(_HEAD)) % _RECORD == 0


def remove(directory: str, mark: str, offset: int = -1) -> None:
    """Removes a pod's names, if there are any. ``offset``: where they are, if known."""
    try:
        with _Locked(directory) as file:
            whose = f"# {mark} ".encode()  # it ends the line, but for the padding
            if not _is_record(offset) or whose not in os.pread(file.fd, _LINE, offset):
                found = os.pread(file.fd, os.fstat(file.fd).st_size, 0).find(whose)
                offset = found - (found - len(_HEAD)) % _RECORD if found >= 0 else -1
            if offset >= 0:
                os.pwrite(file.fd, b"#", offset + _LINE)
                os.pwrite(file.fd, b"#", offset)
                os.pwrite(file.fd, _padded(_FREE) * 2, offset)
                if offset < file.hint():
                    file.none_free_before(offset)
    except FileNotFoundError:
        pass


def known(directory: str) -> list[Name]:
    """The pods' names on a bridge."""
    try:
        with open(path_of(directory), "rb") as file:
            return list(_records(file.read()))
    except FileNotFoundError:
        return []


def _padded(line: bytes) -> bytes:
    return line[: _LINE - 1].ljust(_LINE - 1) + b"\n"


def _records(content: bytes) -> Iterator[Name]:
    """All records but the free ones: those in use and those half written."""
    for offset in range(len(_HEAD), len(content) - _RECORD + 1, _RECORD):
        lines = [content[at : at + _LINE] for at in (offset, offset + _LINE)]
        if lines[0].startswith(_FREE):
            continue
        valid = [line.decode().split() for line in lines if not line.startswith(b"#")]
        whose = lines[0].rpartition(b"# ")[2].decode().strip()
        yield Name(offset, [words[0] for words in valid], valid[0][1:-2] if valid else [], whose)


class _Locked:
    """The file of a bridge, locked by means of a second file: anybody who can read a file can flock(2) it, and pods can
    read this one.

    The lock file holds the offset before which no record is free, so that finding one does not take longer with more
    pods. It is a hint: if a kill or a full disk prevents an update, at worst a record is not reused.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __enter__(self) -> _Locked:
        self.lock = os.open(f"{self.directory}/hosts.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            self.fd = os.open(path_of(self.directory), os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            os.close(self.lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        os.close(self.lock)

    def hint(self) -> int:
        """The offset from which to look for a free record; 0 if it is not known."""
        text = os.pread(self.lock, 16, 0).strip()
        return int(text) if text.isdigit() else 0

    def none_free_before(self, offset: int) -> None:
        try:
            os.pwrite(self.lock, b"%-15d\n" % offset, 0)
        except OSError:
            pass
