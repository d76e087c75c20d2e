"""Leases of a bridge's addresses: a directory with one file per leased address, a hard link to the holder's ledger.

link(2) is exclusive, so two pods never get the same address, and no start waits for another. Leases are removed only
under the bridge's lock: no other pod can take the address between the check that its holder is dead and the removal.
"""

from __future__ import annotations

import fcntl
import os
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from podrun.errors import BUSY, WRONG_FILE, Failure
from podrun.options import whole
from podrun.record import NamedTuple
from podrun_hooks.network import ledger as ledgers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from podrun_hooks.network.ledger import Ledger


class Subnet(NamedTuple):
    """A CIDR network: its lowest address as a number, and the prefix length in bits."""

    base: int
    length: int
    version: int = 4

    @property
    def size(self) -> int:
        """The number of its addresses."""
        return 1 << ((32 if self.version == 4 else 128) - self.length)

    @property
    def hosts(self) -> int:
        """The number of pods that fit: all addresses but the network's, the broadcast and the gateway's."""
        return self.size - 3

    def host(self, n: int) -> str:
        """The address ``n`` above the lowest; 1 is the gateway's."""
        family, length = (AF_INET, 4) if self.version == 4 else (AF_INET6, 16)
        return inet_ntop(family, (self.base + n).to_bytes(length, "big"))

    def offset(self, address: str) -> int:
        """The inverse of :meth:`host`; for an address of another subnet a number outside 0 to size - 1."""
        return number(address) - self.base

    def __str__(self) -> str:
        return f"{self.host(0)}/{self.length}"


def number(address: str) -> int:
    """An IP address as a number. Raises ValueError for any other text."""
    try:
        return int.from_bytes(inet_pton(AF_INET6 if ":" in address else AF_INET, address), "big")
    except OSError:
        raise ValueError(f"{address!r} is not an IP address") from None


def subnet(text: str) -> Subnet:
    """Parses "10.88.0.0/16". Raises ValueError unless the text is a network address with a prefix length."""
    address, slash, length = text.partition("/")
    version = 6 if ":" in address else 4
    bits = whole(length, 32 if version == 4 else 128)
    if not slash or bits is None:
        raise ValueError(f"{text!r} is not a subnet such as 10.1.0.0/16")
    found = Subnet(number(address), bits, version)
    if found.base % found.size:
        raise ValueError(f"{text!r} has bits set behind its prefix; {found._replace(base=found.base & -found.size)}?")
    return found


def claim(directory: str, run: str, ledger: str, fd: int, pools: Sequence[Subnet], seed: str, wanted: str = "") -> str:
    """Leases an address of a bridge's first pool to the ledger at path ``ledger``, open for notes at ``fd``.

    The search starts at a hash of ``seed``: a pod gets its old address again if that is free, and the search does not
    take longer as more addresses are leased. Raises Failure (BUSY) if another pod has ``wanted``, or living pods have
    all addresses.
    """
    leases = f"{directory}/leases"
    pool = pools[0]
    if wanted:
        if not _link(ledger, fd, leases, wanted) and not (
            collect(directory, run, pools, wanted) and _link(ledger, fd, leases, wanted)
        ):
            holder = ledgers.pod_of(ledgers.read(f"{leases}/{wanted}"))
            raise Failure(f"address {wanted} is leased to pod {holder}", code=BUSY)
        return wanted
    for n in _guesses(pool, seed):
        if _link(ledger, fd, leases, pool.host(n)):
            return pool.host(n)
    # The subnet is nearly full: look for a free address, then for one of a dead pod.
    for attempt in range(2):
        if attempt and not collect(directory, run, pools):
            break
        taken = set(os.listdir(leases))
        for n in range(2, pool.size - 1):
            if pool.host(n) not in taken and _link(ledger, fd, leases, pool.host(n)):
                return pool.host(n)
    raise Failure(
        f"all {pool.hosts} addresses of {pool} are leased",
        code=BUSY,
        hint="take a pod down, or give the pods a larger subnet",
    )


def _guesses(pool: Subnet, seed: str) -> Iterator[int]:
    from _blake2 import blake2b

    digest = blake2b(seed.encode(), digest_size=32).digest()
    for at in range(0, 32, 4):
        yield 2 + int.from_bytes(digest[at : at + 4], "big") % pool.hosts


def _link(ledger: str, fd: int, leases: str, address: str) -> bool:
    lease = f"{leases}/{address}"
    if os.path.exists(lease):
        return False
    ledgers.note(fd, "address", address)
    try:
        os.link(ledger, lease)
    except FileExistsError:
        return False
    return True


def release(directory: str, ledger: Ledger) -> None:
    """Releases the addresses of a ledger. Addresses that it only tried to lease stay with their holders.

    Before that, connection tracking must have forgotten them (:func:`held`, conntrack.forget): otherwise their next
    holder would get the previous holder's clients.
    """
    try:
        mine = os.stat(ledger.path).st_ino
    except FileNotFoundError:
        return
    for address in ledger.all("address"):
        lease = f"{directory}/leases/{address}"
        try:
            with _Locked(directory):
                if os.stat(lease).st_ino == mine:
                    os.unlink(lease)
        except FileNotFoundError:
            pass


def held(directory: str, pools: Sequence[Subnet], ledger: Ledger) -> list[str]:
    """All addresses of a ledger's leases on a bridge with these pools; each IPv4 address has an IPv6 one with it."""
    mine = [address for address in ledger.all("address") if _is_held(f"{directory}/leases/{address}", ledger)]
    return [each for address in mine for each in _with_ipv6(pools, address)]


def _is_held(lease: str, ledger: Ledger) -> bool:
    try:
        return os.path.samefile(lease, ledger.path)
    except FileNotFoundError:
        return False


def _with_ipv6(pools: Sequence[Subnet], address: str) -> list[str]:
    if ":" in address or not pools:
        return [address]
    n = pools[0].offset(address)
    return [pool.host(n) for pool in pools]


def collect(
    directory: str, run: str, pools: Sequence[Subnet], only: str = "", *, keep: bool = False
) -> list[tuple[str, str]]:
    """Removes the leases of dead pods, or just the address ``only`` if its pod is dead; returns (address, pod) pairs.

    With ``keep`` it only looks for them.
    """
    from podrun_hooks.network.netlink import conntrack

    dead = []
    for address in [only] if only else _listed(f"{directory}/leases"):
        lease = f"{directory}/leases/{address}"
        with _Locked(directory):
            ledger = ledgers.read(lease)
            if not ledgers.alive(run, ledger):
                dead.append((address, ledgers.pod_of(ledger)))
                if not keep and os.path.exists(lease):
                    conntrack.forget(_with_ipv6(pools, address))
                    os.unlink(lease)
    return dead


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


class _Locked:
    """The lock for removing a bridge's leases. It locks their directory: a full disk has no room for a lock file."""

    def __init__(self, directory: str) -> None:
        self.path = f"{directory}/leases"

    def __enter__(self) -> None:
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def fixed6(pool: Subnet, pool6: Subnet | None, address: str, n: int) -> str:
    """The IPv6 ``address`` in the form to lease; "" if pod ``n`` of the bridge has it anyway.

    Raises Failure (WRONG_FILE) for an address that the pod cannot have: those derived from IPv4 addresses are other
    pods'.
    """
    if not pool6:
        raise Failure(f"the bridge has no IPv6, and the pod is to have {address}", code=WRONG_FILE)
    offset = pool6.offset(address)
    if offset == n:
        return ""
    if 0 <= offset < pool.size:
        whose = f"{address} belongs to the pod with {pool.host(offset)}"
        raise Failure(whose, code=WRONG_FILE, hint=f"take one from {pool6.host(pool.size)} on")
    if not 0 <= offset < pool6.size:
        raise Failure(f"address {address} cannot be a pod's in {pool6}", code=WRONG_FILE)
    return pool6.host(offset)


def fixed(pool: Subnet, address: str) -> None:
    """Raises Failure (WRONG_FILE) if no pod can have ``address`` in ``pool``."""
    if not 2 <= pool.offset(address) < pool.size - 1:
        raise Failure(f"address {address} cannot be a pod's in {pool}", code=WRONG_FILE)
