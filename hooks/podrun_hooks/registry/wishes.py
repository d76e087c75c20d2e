"""What the pods of this host want from registries: a file for each registration and each ambassador, 0600.

``<run>/follow/<pod>.<step>.json``. A step writes its wish before it does anything and removes it first of all; the
follower does what the wishes say, so that nothing is lost when it, or a registry, was down.
"""

from __future__ import annotations

import fcntl
import os
import time

from podrun import atomic, jsontext
from podrun.identity import Identity, of_text
from podrun.record import NamedTuple
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from podrun_hooks.registry.source import Source

_SUFFIX = ".json"


class Registration(NamedTuple):
    """A record to be kept."""

    pod: str
    step: str
    source: Source
    ttl: float
    record: Record
    #: The registry was away when the step wanted to write the record: the follower may replace another one.
    deferred: bool = False


class Ambassador(NamedTuple):
    """A service to be followed for a pod."""

    pod: str
    step: str
    source: Source
    service: str
    #: "nft" or "haproxy".
    via: str
    #: The path of the pod's network namespace, and which one it is; "host" and 0 for the host's.
    netns: str
    inode: int
    #: The nftables table in there, or the path of HAProxy's socket.
    place: str
    proto: str
    #: Where the pod finds the service.
    address: str
    port: int
    hold: float
    balance: str
    #: The pod's own addresses: no record leads to them.
    own: list[str]
    #: The host's nftables table with the published ports of podrun's pods.
    published: str
    #: The file in the pod's containers that says where the service is; "" for none.
    listing: str = ""


def directory(run: str) -> str:
    """Where the wishes are."""
    return f"{run}/follow"


def path_of(run: str, pod: str, step: str) -> str:
    """The file of a step's wish."""
    return f"{directory(run)}/{Identity(pod, step).text}{_SUFFIX}"


def write(run: str, wish: Registration | Ambassador) -> None:
    """Writes a step's wish; an earlier one is replaced."""
    kind = "record" if isinstance(wish, Registration) else "ambassador"
    table: dict[str, Any] = {"v": 1, "kind": kind, **wish._asdict(), "source": sources.to_json(wish.source)}
    if isinstance(wish, Registration):
        table["record"] = wish.record._asdict()
    atomic.replace(path_of(run, wish.pod, wish.step), jsontext.dumps(table), parents=0o700)


def remove(run: str, pod: str, step: str) -> None:
    """Removes a step's wish; nothing when it is gone."""
    atomic.remove(path_of(run, pod, step))


def read(run: str, pod: str, step: str) -> Registration | Ambassador | None:
    """A step's wish, or None."""
    try:
        with open(path_of(run, pod, step), encoding="utf-8") as file:
            table = jsontext.loads(file.read())
    except (FileNotFoundError, ValueError):
        return None
    kind = table.pop("kind")
    del table["v"]
    table["source"] = sources.from_json(table["source"])
    if kind == "record":
        return Registration(**{**table, "record": Record(**table["record"])})
    return Ambassador(**table)


def each(run: str) -> Iterator[Registration | Ambassador]:
    """The wishes of a run directory, read one after another: the follower keeps no second copy of them."""
    try:
        names = sorted(os.listdir(directory(run)))
    except FileNotFoundError:
        return
    for name in names:
        if name.endswith(_SUFFIX) and not name.startswith("."):
            wish = read(run, *of_text(name.removesuffix(_SUFFIX)))
            if wish:
                yield wish


def everything(run: str) -> list[Registration | Ambassador]:
    """All wishes of a run directory."""
    return list(each(run))


def of_pod(run: str, pod: str) -> list[Registration | Ambassador]:
    """The wishes of one pod."""
    return [wish for wish in everything(run) if wish.pod == pod]


def ambassadors(run: str, source: Source, service: str) -> list[Ambassador]:
    """The ambassadors of this host for a service of a registry."""
    return [
        wish
        for wish in everything(run)
        if isinstance(wish, Ambassador) and wish.service == service and wish.source == source
    ]


def stamp_of(run: str, wish: Registration | Ambassador) -> int:
    """Changes when a step writes its wish once more; 0 when it is gone."""
    try:
        return os.stat(path_of(run, wish.pod, wish.step)).st_mtime_ns
    except FileNotFoundError:
        return 0


def unwanted(run: str) -> list[str]:
    """Files of writers that were killed (unfinished for a minute), and leases of registries that no pod uses."""
    used = {wish.source.identity for wish in everything(run)}
    try:
        names = os.listdir(directory(run))
    except FileNotFoundError:
        return []
    leases = [name for name in names if name.endswith(".lease") and name.partition("-")[0] not in used]
    found = [f"{directory(run)}/{name}" for name in names if name.startswith(".") or name in leases]
    return [path for path in found if _age(path) > 60]


def _age(path: str) -> float:
    try:
        return time.time() - os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def stamp(run: str) -> int:
    """Changes when a wish comes or goes; 0 without any."""
    try:
        return os.stat(directory(run)).st_mtime_ns
    except FileNotFoundError:
        return 0


class Leases:
    """The host's leases, one for each registry, user and TTL: files beside the wishes, so that steps use them too."""

    def __init__(self, run: str) -> None:
        self._directory = directory(run)

    def of(self, source: Source, ttl: float) -> str:
        """The lease's id, "" for none."""
        try:
            with open(self._path(source, ttl), encoding="utf-8") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    def keep(self, source: Source, ttl: float, lease: str) -> None:
        """Writes down a lease that has been granted."""
        # Two steps may be granted one at the same time: the later one counts, and the follower moves the records there.
        atomic.replace(self._path(source, ttl), lease, parents=0o700)

    def forget(self, source: Source) -> None:
        """Forgets the leases of a registry that nobody uses any more: they end by themselves."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return
        for name in names:
            if name.startswith(f"{source.identity}-") and name.endswith(".lease"):
                atomic.remove(f"{self._directory}/{name}")

    def _path(self, source: Source, ttl: float) -> str:
        return f"{self._directory}/{source.identity}-{ttl:g}.lease"


class Locked:
    """``with Locked(run, directory):`` no other step writes into this file registry, which is made if need be.

    The lock is not in the registry, which everybody may read: whoever can open a file can lock it (flock(2)).
    """

    def __init__(self, run: str, registry: str) -> None:
        self.run = run
        self.registry = registry

    def __enter__(self) -> None:
        from _blake2 import blake2s

        os.makedirs(self.registry, mode=0o755, exist_ok=True)
        name = blake2s(self.registry.encode(), digest_size=8).hexdigest()
        self.fd = _locked(self.run, name)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def held(run: str) -> int:
    """A descriptor that locks the wishes of ambassadors: held to choose a pod's address, or to rely on none."""
    return _locked(run, "addresses")


def lock_of(run: str, name: str) -> str:
    """The path of a lock, beside those of pods, none of whose names begins with a dot. It is never unlinked."""
    os.makedirs(f"{run}/locks", mode=0o700, exist_ok=True)
    return f"{run}/locks/.registry-{name}"


def _locked(run: str, name: str) -> int:
    """A descriptor of a lock."""
    fd = os.open(lock_of(run, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd
