"""Connection tracking's entries, found and deleted over ctnetlink.

An entry outlives what it leads to: an established TCP connection's stays for five days. Whoever gives an address back
deletes the entries whose answers come from it first, or an old client is served from the next pod that has it. Layouts
are those of <linux/netfilter/nfnetlink_conntrack.h>.
"""

from __future__ import annotations

from _struct import Struct
from errno import EINVAL, ENOENT, EOPNOTSUPP

from podrun.record import NamedTuple
from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.network.netlink.rtnetlink import (
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_DUMP,
    Message,
    attribute,
    attributes,
    nested,
    packed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from podrun_hooks.network.netlink.rtnetlink import Socket

TCP = 6
#: TCP_CONNTRACK_SYN_SENT: not answered yet; TCP_CONNTRACK_CLOSE: one side has reset it.
SYN_SENT, CLOSE = 1, 8

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = _SUBSYSTEM << 8 | 1, _SUBSYSTEM << 8 | 2
_TUPLE_ORIG, _TUPLE_REPLY, _PROTOINFO, _ID, _FILTER = 1, 2, 4, 12, 25
_TUPLE_IP, _TUPLE_PROTO, _PROTO_NUM, _PROTO_DST_PORT = 1, 2, 1, 3
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS, _FILTER_IP_SRC, _FILTER_PROTO_NUM = 1, 2, 1, 8
_STATUS, _STATUS_MASK, _SEEN_REPLY = 3, 26, 2
#: UDP and SCTP: what can be published beside TCP.
_OTHERS = (17, 132)
#: Deletions in one message: their acknowledgements fit into the socket's buffer.
_AT_ONCE = 100
_IPV4 = 2
#: The attributes of source and destination in a tuple, by address family: AF_INET and AF_INET6.
_IP = {2: (1, 2), 10: (3, 4)}
_FAMILY = Struct("=BBH")  # address family, version, resource
_FLAGS = Struct("=I")
_NUMBER = Struct(">I")
_PORT = Struct(">H")


class Entry(NamedTuple):
    """One tracked connection. Addresses are bytes, as the kernel has them."""

    family: int
    proto: int
    #: Where its first packet went.
    destination: bytes
    port: int
    #: Where its answers come from: the pod, when the destination was a published port.
    answers_from: bytes
    #: TCP's state in connection tracking's numbers, 0 for other protocols.
    state: int
    #: What the kernel finds it by.
    key: bytes


def forget(addresses: Collection[str]) -> None:
    """Deletes every entry whose answers come from one of ``addresses`` (plain or CIDR), TCP's included.

    0.2 ms for an IPv4 address, 10 ms for an IPv6 one whatever the table holds (of the usual 262,144 buckets).
    """
    for address in addresses:
        family, raw = packed(address.partition("/")[0])
        if family != _IPV4 or not _forget_at_once(family, raw):
            _delete([entry for entry in _entries(family, containing=raw) if entry.answers_from == raw])


def forget_all_but_open(addresses: Collection[str]) -> None:
    """The same, but TCP's are spared from where the other side has answered until one side resets the connection.

    For an address that goes on serving the connections it has, while new ones lead elsewhere. The entry of a connection
    that the address has reset stays for ten seconds, and a new one from the same port would follow it
    (nf_conntrack_tcp_packet() reopens only an entry whose FIN, or whose client's reset, it has seen).
    """
    for address in addresses:
        family, raw = packed(address.partition("/")[0])
        if family == _IPV4 and all(
            _forget_at_once(family, raw, proto, unanswered=proto == TCP) for proto in (TCP, *_OTHERS)
        ):
            found = _entries(family, containing=raw, selection=_selection(family, raw, TCP))
        else:
            found = _entries(family, containing=raw)
        _delete(
            [
                entry
                for entry in found
                if entry.answers_from == raw and (entry.proto != TCP or entry.state in (SYN_SENT, CLOSE))
            ]
        )


def _forget_at_once(family: int, address: bytes, proto: int = 0, *, unanswered: bool = False) -> bool:
    """Lets the kernel select the entries; False before Linux 6.8, which cannot. ``proto`` 0: of every protocol.

    Not for IPv6: its comparison is inverted there, and all but that address' entries would go
    (ctnetlink_filter_match_tuple() in net/netfilter/nf_conntrack_netlink.c).
    """
    body = _FAMILY.pack(family, 0, 0) + _selection(family, address, proto)
    if unanswered:
        body += attribute(_STATUS, _NUMBER.pack(0)) + attribute(_STATUS_MASK, _NUMBER.pack(_SEEN_REPLY))
    return delete_selected(nfnetlink.socket(), body)


def delete_selected(socket: Socket, body: bytes) -> bool:
    """Has the kernel delete the entries that a request selects; False before Linux 6.8, which cannot."""
    try:
        socket.send(Message("forget tracked connections", _DELETE, NLM_F_ACK, body, (ENOENT,)))
    except OSError as error:
        if error.errno not in (EINVAL, EOPNOTSUPP):
            raise
        return False
    return True


def _selection(family: int, address: bytes, proto: int) -> bytes:
    """Has the kernel select the entries whose answers come from an address, and of one protocol unless it is 0."""
    flags = _FILTER_IP_SRC | (_FILTER_PROTO_NUM if proto else 0)
    wanted = attribute(_FILTER_ORIG_FLAGS, _FLAGS.pack(0)) + attribute(_FILTER_REPLY_FLAGS, _FLAGS.pack(flags))
    source = [nested(_TUPLE_IP, attribute(_IP[family][0], address))]
    if proto:
        source.append(nested(_TUPLE_PROTO, attribute(_PROTO_NUM, bytes([proto]))))
    return nested(_TUPLE_REPLY, *source) + nested(_FILTER, wanted)


def forget_destinations(places: Collection[tuple[int, str, int]]) -> None:
    """Deletes the entries, but TCP's, whose first packet went to one of the places: protocol, address and port.

    A UDP flow is tracked as long as it does not pause: its packets would go on to where the port led at the first one.
    """
    wanted = {(proto, packed(address)[1], port) for proto, address, port in places if proto != TCP}
    for family in {packed(address)[0] for _, address, _ in places}:
        found = _entries(family)
        _delete([entry for entry in found if (entry.proto, entry.destination, entry.port) in wanted])


def _entries(family: int, *, containing: bytes = b"", selection: bytes = b"") -> Iterator[Entry]:
    """The entries of an address family, at least those in which these bytes are: a busy table has 100,000."""
    body = _FAMILY.pack(family, 0, 0) + selection
    listing = Message("list tracked connections", _GET, NLM_F_ACK | NLM_F_DUMP, body)
    try:
        answers = nfnetlink.socket().send(listing)
    except OSError as error:
        if error.errno in (EINVAL, EOPNOTSUPP):  # a kernel without ctnetlink lists no connections
            return
        raise
    for _, answer in answers:
        if containing in answer:
            yield _entry(family, answer[4:])


def _entry(family: int, data: bytes) -> Entry:
    values = dict(attributes(data))
    original, reply = values.get(_TUPLE_ORIG, b""), values.get(_TUPLE_REPLY, b"")
    source, destination = _IP[family]
    proto = dict(attributes(dict(attributes(original)).get(_TUPLE_PROTO, b"")))
    port = proto.get(_PROTO_DST_PORT, b"")
    tcp = dict(attributes(dict(attributes(values.get(_PROTOINFO, b""))).get(_PROTOINFO_TCP, b"")))
    return Entry(
        family,
        (proto.get(_PROTO_NUM) or b"\0")[0],
        _address(original, destination),
        _PORT.unpack(port[:2])[0] if len(port) >= 2 else 0,
        _address(reply, source),
        (tcp.get(_TCP_STATE) or b"\0")[0],
        # With its id it is this very one, not a successor with the same ends.
        attribute(_TUPLE_ORIG | NLA_F_NESTED, original) + attribute(_ID, values.get(_ID, b"")),
    )


def _address(tuple_: bytes, kind: int) -> bytes:
    return dict(attributes(dict(attributes(tuple_)).get(_TUPLE_IP, b""))).get(kind, b"")


def _delete(entries: Sequence[Entry]) -> None:
    for at in range(0, len(entries), _AT_ONCE):
        bodies = [_FAMILY.pack(entry.family, 0, 0) + entry.key for entry in entries[at : at + _AT_ONCE]]
        messages = [Message("forget a tracked connection", _DELETE, NLM_F_ACK, body, (ENOENT,)) for body in bodies]
        nfnetlink.socket().send(*messages)
