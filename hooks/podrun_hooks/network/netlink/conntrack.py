"""What connection tracking remembers of published ports: found and deleted over ctnetlink.

Layouts are those of <linux/netfilter/nfnetlink_conntrack.h>.
"""

from __future__ import annotations

from struct import Struct

from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.network.netlink.rtnetlink import NLM_F_ACK, NLM_F_DUMP, Message, attribute, attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = _SUBSYSTEM << 8 | 1, _SUBSYSTEM << 8 | 2
_TUPLE_ORIG, _NESTED = 1, 0x8000
_TUPLE_PROTO, _PROTO_NUM, _PROTO_DST_PORT = 2, 1, 3
_ENOENT = 2
_TCP = 6
_FAMILY = Struct("=BBH")  # address family, version, resource
_PORT = Struct(">H")


def forget(ports: Set[int]) -> None:
    """Deletes the entries of everything but TCP whose first packet went to one of the ports.

    A UDP flow is tracked as long as it does not pause: published later, or to another pod, its port would go on to
    mean what it meant at the first packet.
    """
    socket = nfnetlink.socket()
    for family in (2, 10):
        listing = Message("list tracked connections", _GET, NLM_F_ACK | NLM_F_DUMP, _FAMILY.pack(family, 0, 0))
        for _, answer in socket.send(listing):
            original = dict(attributes(answer[4:])).get(_TUPLE_ORIG, b"")
            if _matches(original, ports):
                body = _FAMILY.pack(family, 0, 0) + attribute(_TUPLE_ORIG | _NESTED, original)
                gone = Message("forget a tracked connection", _DELETE, NLM_F_ACK, body, (_ENOENT,))
                socket.send(gone)


def _matches(original: bytes, ports: Set[int]) -> bool:
    values = dict(attributes(dict(attributes(original)).get(_TUPLE_PROTO, b"")))
    protocol, port = values.get(_PROTO_NUM, b""), values.get(_PROTO_DST_PORT, b"")
    return protocol[:1] != bytes([_TCP]) and len(port) >= 2 and _PORT.unpack(port[:2])[0] in ports
