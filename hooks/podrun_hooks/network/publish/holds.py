"""The hold sets: while a port moves, they keep what no map has translated from being refused."""

from __future__ import annotations

from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.network.publish.spec import noted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun_hooks.network.ledger import Ledger
    from podrun_hooks.network.netlink.nfnetlink import Element

#: The sets that say of a map's key: it has no element just now, but will.
HOLDING = {"host4": "hold4", "host6": "hold6", "any4": "holdany4", "any6": "holdany6"}


def release(table: str, holds: Sequence[Element]) -> None:
    """Deletes what there is of the elements of hold sets; a kill in the middle of a move leaves some."""
    socket = nfnetlink.socket()
    left = [hold for hold in holds if nfnetlink.find(socket, table, hold.map, hold.key)]
    if left:
        nfnetlink.delete(socket, table, left)


def holds_of(ledger: Ledger) -> list[Element]:
    """The elements of hold sets that there may be for the ports of a ledger."""
    return [nfnetlink.Element(HOLDING[element.map], element.key, b"") for element in noted(ledger)]
