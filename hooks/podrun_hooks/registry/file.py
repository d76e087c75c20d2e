"""The file registry: a directory for each service, a file for each record. No server, no process.

``<registry>/<service>/<id>.json``, 0644 in directories of 0755, written by root, without secrets. A record appears by
rename(2), so readers see all of it or nothing. Whoever writes one holds the registry's lock (wishes.Locked), and leads
this host's ambassadors to it before letting go.
"""

from __future__ import annotations

import errno
import os
import stat

from podrun import atomic
from podrun.hook import Wrong
from podrun_hooks.registry.record import LARGEST, MOST, Record, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def path_of(directory: str, service: str, identity: str) -> str:
    """Where a record is."""
    return f"{directory}/{service}/{identity}.json"


def put(directory: str, record: Record) -> None:
    """Writes a record; an earlier one is replaced."""
    path = path_of(directory, record.service, record.id)
    atomic.replace(path, record.text + "\n", 0o644, parents=0o755)


def delete(directory: str, service: str, identity: str, gen: str = "") -> bool:
    """Removes a record, with ``gen`` only one of that invocation; True when it was there and has been removed."""
    path = path_of(directory, service, identity)
    found = read(directory, service, identity)
    theirs = found is not None and gen and found.gen != gen
    removed = not theirs and atomic.remove(path)
    try:
        os.rmdir(os.path.dirname(path))
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise
    return removed


def read(directory: str, service: str, identity: str) -> Record | None:
    """A record; None when there is none, or no valid one."""
    try:
        return _record(path_of(directory, service, identity), service)
    except (FileNotFoundError, Wrong):
        return None


def records(directory: str, service: str, *, wrong: list[str] | None = None) -> list[Record]:
    """The records of a service, by id; ``wrong`` collects what is not a record, and why."""
    found = []
    for name in _names(f"{directory}/{service}"):
        path = f"{directory}/{service}/{name}"
        try:
            found.append(_record(path, service))
        except FileNotFoundError:
            continue
        except Wrong as trouble:
            if wrong is not None:
                wrong.append(f"{path}: {trouble.what}")
    return found


def services(directory: str) -> list[str]:
    """The services that have a record."""
    return [name for name in _names(directory, kind="") if os.path.isdir(f"{directory}/{name}")]


def stamp(directory: str, service: str) -> int:
    """The time of the latest change of a service, in nanoseconds; 0 without one. rename(2) and unlink(2) set it."""
    try:
        return os.stat(f"{directory}/{service}").st_mtime_ns
    except FileNotFoundError:
        return 0


def _names(directory: str, kind: str = ".json") -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from [name for name in names if name.endswith(kind) and not name.startswith(".")][: MOST * 16]


def _record(path: str, service: str) -> Record:
    try:
        # Not a FIFO that nobody writes to, not a link to a file that only root may read.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Wrong(error.strerror or "it cannot be read") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Wrong("not a plain file")
        # A record is one write(2) of a page or two: a read(2) has all of it.
        found = parse(os.read(fd, LARGEST + 1))
    finally:
        os.close(fd)
    if found.service != service or f"{found.id}.json" != os.path.basename(path):
        raise Wrong(f"it says that it is {found.id} of {found.service}")
    return found
