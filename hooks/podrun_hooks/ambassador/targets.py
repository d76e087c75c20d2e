"""Which of a service's records become backends of a pod's ambassador, and why the others do not."""

from __future__ import annotations

from podrun.record import NamedTuple
from podrun_hooks.registry.record import PROTOCOLS, packed, unwanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from podrun_hooks.registry.record import Record
    from podrun_hooks.registry.wishes import Ambassador


class Target(NamedTuple):
    """A backend. ``weight``: from 1 to 100."""

    addr: str
    port: int
    weight: int = 1


class Host(NamedTuple):
    """What a record must not lead to on this machine."""

    #: "local" for an address of the machine's own, "broadcast" ..., or "" for an address of somebody else's.
    kind: Callable[[str], str]
    #: Whether podrun publishes a port of the machine (address, port, protocol) for a pod.
    publishes: Callable[[str, int, str], bool]


def of(wish: Ambassador, records: Sequence[Record], host: Host, refused: list[str] | None = None) -> list[Target]:
    """The backends, each once, by address and port; ``refused`` collects why a ready record is none."""
    found: dict[tuple[str, int], Target] = {}
    for record in records:
        if not record.ready or record.proto != wish.proto:
            continue
        why = _why_not(wish, record, host)
        if not why:
            place = (record.addr, record.port)
            weight = record.weight + (found[place].weight if place in found else 0)
            found[place] = Target(record.addr, record.port, weight)
        elif refused is not None:
            refused.append(f"{record.id} of {record.service} leads to {record.addr}:{record.port}: {why}")
    return [found[place] for place in sorted(found)]


def _why_not(wish: Ambassador, record: Record, host: Host) -> str:
    why = unwanted(record.addr)
    if why:
        return why
    if ":" in record.addr and wish.via == "nft":
        return "an IPv6 address, which needs via = 'haproxy'"
    if record.addr in wish.own:
        return "the pod itself"
    if record.addr == wish.address:
        return "the ambassador itself"
    kind = host.kind(record.addr)
    if kind == "local":
        ours = host.publishes(record.addr, record.port, record.proto)
        return "" if ours else "a port of this host that no pod publishes"
    return f"an {kind} address" if kind == "anycast" else f"a {kind} address" if kind else ""


def number(proto: str) -> bytes:
    """A protocol as a field of a key."""
    return bytes([PROTOCOLS[proto]])


def slots(targets: Sequence[Target], count: int, before: Sequence[tuple[str, int] | None]) -> list[tuple[str, int]]:
    """Divides ``count`` slots among the targets by weight; a slot stays with its target of ``before`` where it may.

    The largest remainders get what rounding leaves over; every target gets at least one while there are enough.
    """
    targets = sorted(targets, key=lambda target: (-target.weight, target.addr, target.port))[:count]
    total = sum(target.weight for target in targets)
    exact = {(target.addr, target.port): target.weight * count / total for target in targets}
    quota = {place: max(1, int(share)) for place, share in exact.items()}
    for place in sorted(exact, key=lambda place: (quota[place] - exact[place], place)) * 2:
        left = count - sum(quota.values())
        if left > 0:
            quota[place] += 1
        elif left < 0 and quota[place] > 1:
            quota[place] -= 1
    while sum(quota.values()) != count:
        most = max(quota, key=lambda place: quota[place])
        quota[most] += 1 if sum(quota.values()) < count else -1
    filled: list[tuple[str, int] | None] = []
    for earlier in before:
        stays = earlier is not None and quota.get(earlier, 0) > 0
        filled.append(earlier if stays else None)
        if stays and earlier is not None:
            quota[earlier] -= 1
    rest = [place for place in sorted(quota) for _ in range(quota[place])]
    return [place if place is not None else rest.pop() for place in filled]


def raw(addr: str, port: int) -> bytes:
    """An IPv4 address and a port as nftables holds them: bytes of the right type, whatever a record says."""
    return packed(addr) + port.to_bytes(2, "big") + b"\0\0"
