"""The names of the pods on one bridge: a hosts(5) file that all of them share as their /etc/hosts, read-only.

No server answers for these names and none of the pods' files is rewritten: a name appears by one write of one byte.
A pod has a record of two lines, IPv4 and IPv6, of a fixed length. It is written as a comment ("#") and becomes valid
when its first bytes are put in place; the same way it ends. The C libraries open the file anew for every look-up, and a
reader never sees half a line.
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

#: An address, three names of 64 letters and the pod's tag fit into a line.
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
    """The file of a bridge, given the bridge's directory."""
    return f"{directory}/hosts"


def mark(step: Step) -> str:
    """Whose a record is: the pod's tag and the step's name."""
    return f"{step.pod.tag}/{step.name}"


def begin(directory: str, *, anew: bool) -> None:
    """Makes the file of a bridge; ``anew``: what is in it is of an earlier boot."""
    fd = os.open(path_of(directory), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # The launcher's umask is not the payload's business: it reads this as any user.
        os.fchmod(fd, 0o644)
        if anew or not os.fstat(fd).st_size:
            os.ftruncate(fd, 0)
            os.pwrite(fd, _HEAD, 0)
    finally:
        os.close(fd)


def add(directory: str, addresses: Sequence[str], names: Sequence[str], mark: str) -> int:
    """Names a pod. Its record is the first free one, or one more at the end; returns where, for :func:`remove`."""
    called = f"{' '.join(names)}\t# {mark}"
    lines = [f"{address}\t{called}".encode() for address in addresses]
    if not os.path.exists(path_of(directory)):
        begin(directory, anew=False)  # of a bridge that is older than its file, or somebody has removed it
    with syscalls.Naming(path_of(directory)), _Locked(directory) as file:
        offset = _first_free(file)
        record = b"".join(_padded(b"#" + line[1:]) for line in [*lines, b"#-"][:2])
        os.pwrite(file.fd, record, offset)
        for n, line in enumerate(lines):
            os.pwrite(file.fd, line[:1], offset + n * _LINE)
        file.none_free_before(offset + _RECORD)
    return offset


def _first_free(file: _Locked) -> int:
    """The offset of the first free record. A kill can leave half of one at the end: it is written over."""
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
    """Takes the names of a pod back; nothing when there are none. ``offset``: where they are, if that is known."""
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
    """The records that are in use or half made: all but the free ones."""
    for offset in range(len(_HEAD), len(content) - _RECORD + 1, _RECORD):
        lines = [content[at : at + _LINE] for at in (offset, offset + _LINE)]
        if lines[0].startswith(_FREE):
            continue
        valid = [line.decode().split() for line in lines if not line.startswith(b"#")]
        whose = lines[0].rpartition(b"# ")[2].decode().strip()
        yield Name(offset, [words[0] for words in valid], valid[0][1:-2] if valid else [], whose)


class _Locked:
    """The file of a bridge, locked by another one: flock(2) is for everybody who can read, and pods read this one.

    In the lock's file is the offset before which no record is free: finding one does not take longer the more pods
    there are. It is a hint: what a kill or a full disk keeps it from saying is a record that is not used again.
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
        """Where the first free record may be; 0: not known."""
        text = os.pread(self.lock, 16, 0).strip()
        return int(text) if text.isdigit() else 0

    def none_free_before(self, offset: int) -> None:
        try:
            os.pwrite(self.lock, b"%-15d\n" % offset, 0)
        except OSError:
            pass
