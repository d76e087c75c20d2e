"""A pod's connections to a backend that is no longer the service's: which entries are forgotten, which are ended.

Layouts are those of <linux/netfilter/nfnetlink_conntrack.h>, <linux/inet_diag.h> and <linux/sock_diag.h>. The functions
act in the network namespace that the process is in.
"""

from __future__ import annotations

from struct import Struct

from podrun.record import NamedTuple
from podrun_hooks.network.netlink.conntrack import delete_selected
from podrun_hooks.network.netlink.rtnetlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    Message,
    Socket,
    attribute,
    attributes,
    nested,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from podrun_hooks.ambassador.maps import Lost

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _FILTER, _STATUS_MASK = 1, 2, 3, 4, 25, 26
_ORIGINAL_FLAGS, _REPLY_FLAGS, _SEEN_REPLY = 1, 2, 2
#: CTA_FILTER_F_*: source and destination address, protocol, source and destination port.
_BY_SRC, _BY_DST, _BY_PROTO, _BY_SRC_PORT, _BY_DST_PORT = 1, 2, 8, 16, 32
_IP, _PROTO = 1, 2
_SRC, _DST, _NUMBER, _SRC_PORT, _DST_PORT = 1, 2, 1, 2, 3
_TCP_INFO, _TCP_STATE, _TCP = 1, 1, 6
_SYN_SENT, _TIME_WAIT, _CLOSE = 1, 7, 8  # TCP_CONNTRACK_*
_FAMILY = Struct("=BBH")
_FLAGS, _STATES = Struct("=I"), Struct(">I")
_INET, _ENOENT = 2, 2
_NETLINK_SOCK_DIAG, _SOCK_DESTROY = 4, 21
_REQUEST = Struct("=BBBxI")  # family, protocol, extensions, states
_NO_COOKIE = b"\xff" * 8


class Flow(NamedTuple):
    """One entry of connection tracking: the pod's side, where it really leads, its tuple as the kernel lists it."""

    proto: int
    source: bytes
    source_port: bytes
    address: bytes
    port: bytes
    backend: bytes
    backend_port: bytes
    #: False for a TCP connection that has not been answered yet, and for one that is over.
    open: bool
    original: bytes


def flows(socket: Socket) -> Iterator[Flow]:
    """The IPv4 flows of the namespace, by a netfilter socket."""
    listing = Message("list tracked connections", _GET, NLM_F_ACK | NLM_F_DUMP, _FAMILY.pack(_INET, 0, 0))
    for _, answer in socket.send(listing):
        parts = dict(attributes(answer[4:]))
        there, back = _tuple(parts.get(_ORIGINAL, b"")), _tuple(parts.get(_REPLY, b""))
        if there and back:
            info = dict(attributes(dict(attributes(parts.get(_PROTOINFO, b""))).get(_TCP_INFO, b"")))
            is_open = info.get(_TCP_STATE, b"\0")[0] not in (_SYN_SENT, _TIME_WAIT, _CLOSE)
            proto, src, sport, dst, dport = there
            yield Flow(proto, src, sport, dst, dport, back[1], back[2], is_open, parts[_ORIGINAL])


def _tuple(raw: bytes) -> tuple[int, bytes, bytes, bytes, bytes] | None:
    parts = dict(attributes(raw))
    ip, proto = dict(attributes(parts.get(_IP, b""))), dict(attributes(parts.get(_PROTO, b"")))
    if not (_SRC in ip and _DST in ip and _NUMBER in proto and _SRC_PORT in proto and _DST_PORT in proto):
        return None
    return proto[_NUMBER][0], ip[_SRC], proto[_SRC_PORT], ip[_DST], proto[_DST_PORT]


def forget(socket: Socket, lost: Collection[Lost]) -> None:
    """Deletes the entries that would lead new packets to a lost backend: of connections that are not open, and of UDP.

    Established connections stay: a backend that leaves in good order answers them to their end. The flow of datagrams
    ends only after a pause, and would stick. The entry of a connection that its backend has reset stays for ten
    seconds, and the kernel sends a new connection from the same port after the old one: nf_conntrack_tcp_packet()
    reopens only an entry whose FIN, or whose client's reset, it has seen. (Where podrun has set the namespace's
    nf_conntrack_tcp_timeout_close to 0 there is no such entry.)

    The kernel selects them in 0.7 ms. Before Linux 6.8 it cannot, and a listing takes more than 10 ms: it looks into
    every bucket of the host's table.
    """
    if all(_forget_at_once(socket, one) for one in lost):
        return
    for flow in _to(socket, lost):
        if flow.proto != _TCP or not flow.open:
            _delete(socket, flow)


def _forget_at_once(socket: Socket, lost: Lost) -> bool:
    """Lets the kernel select the entries; False where it cannot."""
    proto = attribute(_NUMBER, bytes([lost.proto]))
    there = nested(_IP, attribute(_DST, lost.address)) + nested(_PROTO, proto + attribute(_DST_PORT, lost.port))
    back = nested(_IP, attribute(_SRC, lost.backend)) + nested(_PROTO, proto + attribute(_SRC_PORT, lost.backend_port))
    flags = attribute(_ORIGINAL_FLAGS, _FLAGS.pack(_BY_DST | _BY_PROTO | _BY_DST_PORT))
    flags += attribute(_REPLY_FLAGS, _FLAGS.pack(_BY_SRC | _BY_PROTO | _BY_SRC_PORT))
    body = _FAMILY.pack(_INET, 0, 0) + nested(_ORIGINAL, there) + nested(_REPLY, back) + nested(_FILTER, flags)
    if lost.proto == _TCP:
        body += attribute(_STATUS, _STATES.pack(0)) + attribute(_STATUS_MASK, _STATES.pack(_SEEN_REPLY))
    return delete_selected(socket, body)


def reset(socket: Socket, lost: Collection[Lost]) -> int:
    """Ends every connection to a backend whose host has vanished; returns how many there were.

    The pod's own sockets are destroyed first (10 ms); without an entry alone they would be reset at their next
    retransmission, seconds later.
    """
    found = list(_to(socket, lost))
    with Socket(_NETLINK_SOCK_DIAG) as diag:
        for flow in found:
            if flow.proto == _TCP:
                body = _REQUEST.pack(_INET, _TCP, 0, 0xFFFFFFFF) + flow.source_port + flow.port
                body += flow.source + bytes(12) + flow.address + bytes(12) + bytes(4) + _NO_COOKIE
                try:
                    diag.send(Message("end a connection", _SOCK_DESTROY, NLM_F_ACK, body, (_ENOENT,)))
                except OSError:
                    pass  # a kernel without CONFIG_INET_DIAG_DESTROY: the entry's end does it later
            _delete(socket, flow)
    return len(found)


def _to(socket: Socket, lost: Collection[Lost]) -> list[Flow]:
    known = {tuple(one) for one in lost}
    return [
        flow
        for flow in flows(socket)
        if (flow.proto, flow.address, flow.port, flow.backend, flow.backend_port) in known
    ]


def _delete(socket: Socket, flow: Flow) -> None:
    body = _FAMILY.pack(_INET, 0, 0) + nested(_ORIGINAL, flow.original)
    socket.send(Message("forget a tracked connection", _DELETE, NLM_F_ACK, body, (_ENOENT,)))
