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
from podrun_hooks import linux

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


def add(directory: str, addresses: Sequence[str], names: Sequence[str], mark: str) -> None:
    """Names a pod. Its record is the first free one, or one more at the end."""
    called = f"{' '.join(names)}\t# {mark}"
    lines = [f"{address}\t{called}".encode() for address in addresses]
    if not os.path.exists(path_of(directory)):
        begin(directory, anew=False)  # of a bridge that is older than its file, or somebody has removed it
    with linux.Naming(path_of(directory)), _Locked(directory) as fd:
        content = os.pread(fd, os.fstat(fd).st_size, 0)
        found = content.find(b"\n" + _FREE)
        while found >= 0 and (found + 1 - len(_HEAD)) % _RECORD:
            found = content.find(b"\n" + _FREE, found + 1)
        # A kill can leave half a record at the end: it is written over.
        end = len(_HEAD) + (len(content) - len(_HEAD)) // _RECORD * _RECORD
        offset = found + 1 if found >= 0 else end
        record = b"".join(_padded(b"#" + line[1:]) for line in [*lines, b"#-"][:2])
        os.pwrite(fd, record, offset)
        for n, line in enumerate(lines):
            os.pwrite(fd, line[:1], offset + n * _LINE)


def remove(directory: str, mark: str) -> None:
    """Takes the names of a pod back; nothing when there are none."""
    try:
        with _Locked(directory) as fd:
            content = os.pread(fd, os.fstat(fd).st_size, 0)
            # The mark ends the line, but for the padding.
            found = content.find(f"# {mark} ".encode())
            if found >= 0:
                offset = found - (found - len(_HEAD)) % _RECORD
                os.pwrite(fd, b"#", offset + _LINE)
                os.pwrite(fd, b"#", offset)
                os.pwrite(fd, _padded(_FREE) * 2, offset)
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
    """The file of a bridge, locked by another one: flock(2) is for everybody who can read, and pods read this one."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __enter__(self) -> int:
        self.lock = os.open(f"{self.directory}/hosts.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            self.fd = os.open(path_of(self.directory), os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            os.close(self.lock)
            raise
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        os.close(self.lock)
