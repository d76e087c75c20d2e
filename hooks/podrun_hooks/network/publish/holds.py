"""The hold sets: while a port moves, packets that no map has translated are dropped instead of refused."""

from __future__ import annotations

from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.network.publish.spec import noted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun_hooks.network.ledger import Ledger
    from podrun_hooks.network.netlink.nfnetlink import Element

#: By map, the set of keys whose element in that map is just being replaced.
HOLDING = {"host4": "hold4", "host6": "hold6", "any4": "holdany4", "any6": "holdany6"}


def release(table: str, holds: Sequence[Element]) -> None:
    """Deletes those elements of hold sets that exist; a kill during a move leaves some behind."""
    socket = nfnetlink.socket()
    left = [hold for hold in holds if nfnetlink.find(socket, table, hold.map, hold.key)]
    if left:
        nfnetlink.delete(socket, table, left)


def holds_of(ledger: Ledger) -> list[Element]:
    """The elements of hold sets that may exist for the ports of a ledger."""
    return [nfnetlink.Element(HOLDING[element.map], element.key, b"") for element in noted(ledger)]
