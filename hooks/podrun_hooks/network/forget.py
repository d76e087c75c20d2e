"""Makes connection tracking forget a pod's addresses, which must be done before they are released."""

from __future__ import annotations

from podrun_hooks.network import bridge
from podrun_hooks.network.netlink import conntrack, nfnetlink, rtnetlink
from podrun_hooks.network.netlink.nfnetlink import Element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def forget(table: str, addresses: Sequence[str]) -> None:
    """Deletes the entries of connections to the addresses, which nobody can reach any more."""
    conntrack.forget([address for address in addresses if _was_called(table, address)])


def _was_called(table: str, address: str) -> bool:
    """False only for an IPv6 address to which the rules have not seen a connection."""
    if ":" not in address or not bridge.has_rules(table):
        return True
    socket = nfnetlink.socket()
    key = rtnetlink.packed(address)[1]
    if not nfnetlink.find(socket, table, "called6", key):
        return False
    nfnetlink.delete(socket, table, [Element("called6", key, b"")])
    return True
