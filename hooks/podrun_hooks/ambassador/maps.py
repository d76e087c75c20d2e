"""Writes into a pod's maps where services are: one dump, one transaction, then the flows to backends that are gone.

The functions act in the network namespace that the process is in; reach.py enters it.
"""

from __future__ import annotations

import sys

from podrun.record import NamedTuple
from podrun_hooks.ambassador import targets as chosen
from podrun_hooks.ambassador.ruleset import SLOTS
from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.network.netlink.nfnetlink import Element
from podrun_hooks.registry.record import packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun_hooks.ambassador.targets import Target
    from podrun_hooks.network.netlink.rtnetlink import Socket
    from podrun_hooks.registry.wishes import Ambassador

_MAPS = ("one", "many", "hashed")
#: Milliseconds for which a backend still counts as one after its last new connection.
_RETIRED = 2000
#: How often a change is tried that others have come in between of.
_ATTEMPTS = 20
#: Bytes of a service in a key: protocol, address and port, each padded to four.
_SERVICE = 12


class Lost(NamedTuple):
    """A backend that a service no longer has; addresses and ports as bytes."""

    proto: int
    address: bytes
    port: bytes
    backend: bytes
    backend_port: bytes


def key_of(wish: Ambassador) -> bytes:
    """A service as part of a key."""
    return nfnetlink.concatenated(chosen.number(wish.proto), packed(wish.address), wish.port.to_bytes(2, "big"))


def begin(socket: Socket, wish: Ambassador) -> None:
    """Makes a service known to the table; without a backend it is held from now on."""
    forget(socket, wish)
    new = [Element("services", key_of(wish), b""), *_held(wish)]
    address = packed(wish.address)
    if address[0] != 127 and not nfnetlink.find(socket, wish.place, "addresses", address):
        new.append(Element("addresses", address, b""))
    nfnetlink.replace(socket, wish.place, [], new)


def forget(socket: Socket, wish: Ambassador) -> bool:
    """Removes a service from the table; False when no other is left in it."""
    key = key_of(wish)
    gone = [one for map_ in ("services", "held", *_MAPS) for one in _all(socket, wish.place, map_)]
    others = any(one.map == "services" and one.key != key for one in gone)
    nfnetlink.replace(socket, wish.place, [one for one in gone if one.key[:_SERVICE] == key], [])
    return others


def switch(socket: Socket, table: str, wanted: Sequence[tuple[Ambassador, Sequence[Target]]]) -> list[Lost]:
    """Gives the services of one table their backends; returns those that they no longer have.

    A service that has lost its last backend is held from now on; one that had none stays held, or refused.
    """
    for attempt in range(_ATTEMPTS):
        gone, new, lost = _changes(socket, table, wanted)
        try:
            nfnetlink.replace(socket, table, gone, new)
            break
        except (FileNotFoundError, FileExistsError):
            # An element has timed out since the dump, or somebody else leads the pod too: its own start, the follower.
            if attempt == _ATTEMPTS - 1:
                raise
    return lost


def _changes(
    socket: Socket, table: str, wanted: Sequence[tuple[Ambassador, Sequence[Target]]]
) -> tuple[list[Element], list[Element], list[Lost]]:
    """The elements to delete and to add, by what the table holds now, and the backends that are lost with that."""
    before = {map_: {one.key: one for one in _all(socket, table, map_)} for map_ in _MAPS}
    held = {one.key for one in _all(socket, table, "held")}
    after = {map_: dict(elements) for map_, elements in before.items()}
    gone: list[Element] = []
    new: list[Element] = []
    lost: list[Lost] = []
    for wish, targets in wanted:
        key = key_of(wish)
        was = {map_: {k: one for k, one in before[map_].items() if k[:_SERVICE] == key} for map_ in _MAPS}
        now = _elements(wish, key, targets, was)
        for map_ in _MAPS:
            changed = [k for k in {*was[map_], *now[map_]} if was[map_].get(k) != now[map_].get(k)]
            gone += [was[map_][k] for k in changed if k in was[map_]]
            new += [now[map_][k] for k in changed if k in now[map_]]
            for k in changed:
                after[map_].pop(k, None)
            after[map_].update({k: now[map_][k] for k in changed if k in now[map_]})
        values = {one.value for map_ in _MAPS for one in was[map_].values()}
        values -= {one.value for map_ in _MAPS for one in now[map_].values()}
        lost += [Lost(key[0], key[4:8], key[8:10], value[:4], value[4:6]) for value in sorted(values)]
        if not targets and any(was.values()) and key not in held:
            new += _held(wish)
        elif targets and key in held:
            gone.append(Element("held", key, b""))
    backends = {one.value for elements in after.values() for one in elements.values()}
    known = {one.key: one for one in nfnetlink.elements(socket, table, "backends")}
    for value in {*known, *backends}:
        retiring = value in known and known[value].timeout
        if value in known and (value in backends) == bool(retiring):
            # It comes back, or it goes: its refusals are kept from clients until their entries are deleted.
            gone.append(Element("backends", value, b""))
        if value in backends and (value not in known or retiring):
            new.append(Element("backends", value, b""))
        elif value not in backends and not retiring:
            new.append(Element("backends", value, b"", timeout=_RETIRED))
    return gone, new, lost


def _all(socket: Socket, table: str, map_: str) -> list[Element]:
    return [one._replace(timeout=0) for one in nfnetlink.elements(socket, table, map_)]


def _held(wish: Ambassador) -> list[Element]:
    if not wish.hold:
        return []
    milliseconds = 0 if wish.hold == float("inf") else max(1, min(int(wish.hold * 1000), 1 << 40))
    return [Element("held", key_of(wish), b"", timeout=milliseconds)]


def _elements(
    wish: Ambassador, key: bytes, targets: Sequence[Target], was: dict[str, dict[bytes, Element]]
) -> dict[str, dict[bytes, Element]]:
    """A service's elements: one for its only backend, or one for each slot."""
    made: dict[str, dict[bytes, Element]] = {map_: {} for map_ in _MAPS}
    if len(targets) == 1:
        made["one"][key] = Element("one", key, chosen.raw(targets[0].addr, targets[0].port))
    elif targets:
        map_ = "hashed" if wish.balance == "source" else "many"
        # The number is a register of the processor's byte order (NFT_NG_RANDOM, jhash).
        keys = [key + n.to_bytes(4, sys.byteorder) for n in range(SLOTS)]
        by_value = {chosen.raw(target.addr, target.port): (target.addr, target.port) for target in targets}
        before = [by_value.get(was[map_][k].value) if k in was[map_] else None for k in keys]
        for k, (addr, port) in zip(keys, chosen.slots(targets, SLOTS, before), strict=True):
            made[map_][k] = Element(map_, k, chosen.raw(addr, port))
    return made
