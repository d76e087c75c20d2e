"""Has connection tracking forget a pod's addresses: what has to be done before they are given back."""

from __future__ import annotations

from podrun_hooks.network import bridge
from podrun_hooks.network.netlink import conntrack, nfnetlink, rtnetlink
from podrun_hooks.network.netlink.nfnetlink import Element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def forget(table: str, addresses: Sequence[str]) -> None:
    """Deletes the entries whose answers come from the addresses, which nobody can call any more."""
    conntrack.forget([address for address in addresses if _was_called(table, address)])


def _was_called(table: str, address: str) -> bool:
    """False only for an IPv6 address that the rules have not seen anybody call."""
    if ":" not in address or not bridge.has_rules(table):
        return True
    socket = nfnetlink.socket()
    key = rtnetlink.packed(address)[1]
    if not nfnetlink.find(socket, table, "called6", key):
        return False
    nfnetlink.delete(socket, table, [Element("called6", key, b"")])
    return True
