"""rtnetlink messages for what a pod needs (links, addresses, routes), and a socket that sends several at once.

Layouts and numbers are those of <linux/netlink.h>, <linux/rtnetlink.h>, <linux/if_link.h>, <linux/if_addr.h> and
<linux/if_bridge.h>. Every message is acknowledged; what the kernel refuses becomes an OSError that names the message.
"""

from __future__ import annotations

import _socket
import errno
import os
from _struct import Struct

from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

AF_NETLINK, AF_BRIDGE = 16, 7
NETLINK_ROUTE = 0
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
NLM_F_DUMP = 0x300
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_GETADDR, _RTM_NEWROUTE, _RTM_GETROUTE = 20, 22, 24, 26
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK = 1, 3, 4, 5
_IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO = 10, 12, 18
_IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 20, 26, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 4, 5
_IFLA_BR_MCAST_SNOOPING = 23
_IFLA_MACVLAN_MODE, _MACVLAN_MODE_BRIDGE = 1, 4
_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 8, 1
_IFLA_BRPORT_STATE, _IFLA_BRPORT_MODE, _IFLA_BRPORT_FLUSH, _BR_STATE_DISABLED = 1, 4, 24, 0
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_F_NODAD = 1, 2, 8, 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 3, 0, 253, 1
#: What a route of <linux/rtnetlink.h>'s RTN_* other than RTN_UNICAST leads to, and the errnos of those to nowhere.
_KINDS = {2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}
_NO_ROUTE = (13, 22, 95, 97, 101, 113)  # EACCES, EINVAL, EOPNOTSUPP, EAFNOSUPPORT, ENETUNREACH, EHOSTUNREACH

_HEADER = Struct("=IHHII")  # length, type, flags, sequence number, port id
_ATTRIBUTE = Struct("=HH")  # length, type
_LINK = Struct("=BxHiII")  # family, ARPHRD_*, index, flags, mask of the flags to change
_ADDRESS = Struct("=BBBBi")  # family, prefix length, flags, scope, index of the link
_ROUTE = Struct("=BBBBBBBBI")  # family, destination's and source's length, tos, table, protocol, scope, type, flags
_INT = Struct("=i")
_MAX_ERRNO = 4096  # <linux/err.h>
#: Families of addresses, and how many bytes they have.
_ADDRESSES = frozenset({(2, 4), (10, 16)})


class Message(NamedTuple):
    """One request: what it does, for messages; its type, flags beyond REQUEST, and body.

    ``tolerated`` are the errnos that mean as much as success (the thing is there already). Without NLM_F_ACK in
    ``flags`` no answer is awaited.
    """

    doing: str
    kind: int
    flags: int
    body: bytes
    tolerated: Sequence[int] = ()


class Link(NamedTuple):
    """A link as the kernel describes it: kind is "veth", "bridge", ... or ""; master is an index, 0 for none."""

    ifindex: int
    name: str
    kind: str = ""
    alias: str = ""
    master: int = 0


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute: length, type, payload, padded to four bytes."""
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes that ``data`` consists of, as pairs of type and payload."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, data[at + 4 : at + length]
        at += (length + 3) & ~3


def unpacked(layout: Struct, data: bytes, at: int = 0) -> tuple[Any, ...]:
    """The fields at a place of an answer. Raises OSError for one that is shorter than they are."""
    if len(data) - at < layout.size:
        raise _cut_off()
    return layout.unpack_from(data, at)


def _cut_off() -> OSError:
    return OSError(errno.EBADMSG, "the kernel's answer is cut off")


def packed(address: str) -> tuple[int, bytes]:
    """Address family and bytes of an IPv4 or IPv6 address."""
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    return family, _socket.inet_pton(family, address)


class Socket:
    """A netlink socket of one family, in the network namespace that the process is in when it opens it."""

    def __init__(self, family: int = NETLINK_ROUTE) -> None:
        self._socket = _socket.socket(AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, family)
        # With CAP_ACK an error does not repeat the request; with EXT_ACK it says what the kernel did not like.
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def send(self, *messages: Message) -> list[tuple[int, bytes]]:
        """Sends all messages in one system call, so that no signal comes between them, and awaits every answer.

        Returns what the kernel answered beside acknowledgements: pairs of message type and body. Raises OSError with
        ``filename`` saying what the first refused message was doing; those after it have been tried as well.
        """
        if not messages:
            return []
        awaited: dict[int, Message] = {}
        parts = []
        for message in messages:
            self._sequence += 1
            if message.flags & NLM_F_ACK:
                awaited[self._sequence] = message
            length = _HEADER.size + len(message.body)
            header = _HEADER.pack(length, message.kind, message.flags | NLM_F_REQUEST, self._sequence, 0)
            parts.append(header + message.body + b"\0" * (-length % 4))
        self._socket.send(b"".join(parts))
        answers, refused = self._answers(awaited)
        if refused:
            raise refused
        return answers

    def _answers(self, awaited: dict[int, Message]) -> tuple[list[tuple[int, bytes]], OSError | None]:
        answers: list[tuple[int, bytes]] = []
        refused: OSError | None = None
        while awaited:
            data = self._socket.recv(1 << 16)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
                if length < _HEADER.size or at + length > len(data):
                    raise _cut_off()
                body = data[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if kind not in (_NLMSG_ERROR, _NLMSG_DONE):
                    answers.append((kind, body))
                    continue
                message = awaited.pop(sequence, None)
                number = -_INT.unpack_from(body)[0] if len(body) >= 4 else 0
                if not 0 <= number < _MAX_ERRNO:
                    raise _cut_off()
                if number and not refused and not (message and number in message.tolerated):
                    refused = OSError(number, _reason(number, flags, body), message.doing if message else None)
                    if not message:  # the whole batch was refused: there are no other answers
                        awaited.clear()
        return answers, refused

    def link(self, name: str) -> Link | None:
        """The link of that name, or None."""
        body = _LINK.pack(0, 0, 0, 0, 0) + _name(name)
        try:
            answers = self.send(Message(f"look for {name}", _RTM_GETLINK, NLM_F_ACK, body))
        except OSError as error:
            if error.errno in (19, 22):  # ENODEV; EINVAL for a name longer than the kernel takes
                return None
            raise
        if not answers:
            raise _cut_off()
        return _link(answers[0][1])

    def links(self) -> list[Link]:
        """All links of the namespace."""
        body = _LINK.pack(0, 0, 0, 0, 0)
        answers = self.send(Message("list the links", _RTM_GETLINK, NLM_F_ACK | NLM_F_DUMP, body))
        return [_link(answer) for _, answer in answers]

    def addresses(self) -> list[str]:
        """The addresses of all links in CIDR notation, IPv4 first; those of loopback and link scope are left out."""
        body = _ADDRESS.pack(0, 0, 0, 0, 0)
        answers = self.send(Message("list the addresses", _RTM_GETADDR, NLM_F_ACK | NLM_F_DUMP, body))
        found = []
        for _, answer in answers:
            family, length, _, scope, _ = unpacked(_ADDRESS, answer)
            values = dict(attributes(answer[_ADDRESS.size :]))
            raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b"")
            if (family, len(raw)) in _ADDRESSES and scope == _RT_SCOPE_UNIVERSE:
                found.append(f"{_socket.inet_ntop(family, raw)}/{length}")
        return sorted(found, key=lambda cidr: ":" in cidr)

    def route_kind(self, address: str) -> str:
        """ "local" for an address that the namespace takes for its own, "broadcast", "anycast", "multicast", or "".

        Its routes know more than its list of addresses: ranges that are local as a whole, and every scope.
        """
        family, raw = packed(address)
        body = _ROUTE.pack(family, len(raw) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, raw)
        answers = self.send(Message(f"route to {address}", _RTM_GETROUTE, NLM_F_ACK, body, _NO_ROUTE))
        kinds = [unpacked(_ROUTE, answer)[7] for kind, answer in answers if kind == _RTM_NEWROUTE]
        return _KINDS.get(kinds[0], "") if kinds else ""

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reason(number: int, flags: int, body: bytes) -> str:
    """The kernel's own words where it sent some (extended acknowledgement), else those for the errno."""
    text = os.strerror(number)
    if flags & _NLM_F_ACK_TLVS:
        start = 4 + (_HEADER.size if flags & _NLM_F_CAPPED else unpacked(_HEADER, body, 4)[0])
        for kind, payload in attributes(body[start:]):
            if kind == _NLMSGERR_ATTR_MSG:
                words = payload.rstrip(b"\0").decode(errors="replace")
                return f"{text} ({words})"
    return text


def _link(body: bytes) -> Link:
    index = unpacked(_LINK, body)[2]
    values = dict(attributes(body[_LINK.size :]))
    info = dict(attributes(values.get(_IFLA_LINKINFO, b"")))
    name, alias, kind = (
        part.rstrip(b"\0").decode(errors="replace")
        for part in (values.get(_IFLA_IFNAME, b""), values.get(_IFLA_IFALIAS, b""), info.get(_IFLA_INFO_KIND, b""))
    )
    return Link(index, name, kind, alias, unpacked(_INT, values[_IFLA_MASTER])[0] if _IFLA_MASTER in values else 0)


# --- messages ------------------------------------------------------------------------------------------------------


def _name(name: str) -> bytes:
    return attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0")


def bridge(name: str, mac: bytes, *, tolerated: Sequence[int] = ()) -> Message:
    """Creates a bridge. With an address of its own (``mac``) it does not take that of the port with the lowest one.

    It does not snoop on multicast: without a querier that only costs time, once for each port when one is added, and
    the first port that acted as one would decide who receives what.
    """
    data = nested(_IFLA_INFO_DATA, attribute(_IFLA_BR_MCAST_SNOOPING, b"\0"))
    info = nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"bridge"), data)
    body = _LINK.pack(0, 0, 0, 0, 0) + _name(name) + attribute(_IFLA_ADDRESS, mac) + info
    return Message(f"create the bridge {name}", _RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body, tolerated)


def veth(name: str, peer: str, netns: int, mac: bytes, index: int = 0) -> Message:
    """Creates a veth pair: ``name`` here, ``peer`` with the address ``mac`` in the namespace of descriptor ``netns``.

    ``index`` is that of ``name``; 0: the kernel chooses.

    The peer must not be created up: the kernel refuses with ENOTCONN as long as its other half is not registered.
    """
    inner = _LINK.pack(0, 0, 0, 0, 0) + _name(peer) + attribute(_IFLA_ADDRESS, mac)
    inner += attribute(_IFLA_NET_NS_FD, _INT.pack(netns))
    data = nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, inner))
    info = nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"veth"), data)
    body = _LINK.pack(0, 0, index, 0, 0) + _name(name) + info
    return Message(f"create the veth pair {name}", _RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body)


def macvlan(name: str, parent: int, mac: bytes) -> Message:
    """Creates a macvlan link in bridge mode on the link with index ``parent``; an empty ``mac``: a random one."""
    data = nested(_IFLA_INFO_DATA, attribute(_IFLA_MACVLAN_MODE, _INT.pack(_MACVLAN_MODE_BRIDGE)))
    info = nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"macvlan"), data)
    body = _LINK.pack(0, 0, 0, 0, 0) + _name(name) + attribute(_IFLA_LINK, _INT.pack(parent))
    body += (attribute(_IFLA_ADDRESS, mac) if mac else b"") + info
    return Message(f"create the macvlan {name}", _RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body)


def move(name: str, netns: int) -> Message:
    """Moves a link into the namespace of descriptor ``netns``; it keeps its name and alias."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _name(name) + attribute(_IFLA_NET_NS_FD, _INT.pack(netns))
    return Message(f"move {name} into the pod", _RTM_NEWLINK, NLM_F_ACK, body)


def rename(index: int, name: str) -> Message:
    """Calls link ``index``, which is down, ``name``."""
    return Message(f"call a link {name}", _RTM_NEWLINK, NLM_F_ACK, _LINK.pack(0, 0, index, 0, 0) + _name(name))


def change(
    name: str,
    *,
    up: bool = False,
    alias: str = "",
    master: int = 0,
    mtu: int = 0,
    no_link_local: bool = False,
) -> Message:
    """Changes a link given by name: sets it up, gives it an alias, a master, an MTU, or no IPv6 link-local address."""
    flags = _IFF_UP if up else 0
    body = _LINK.pack(0, 0, 0, flags, flags) + _name(name)
    if alias:
        body += attribute(_IFLA_IFALIAS, alias.encode()[:255])
    if master:
        body += attribute(_IFLA_MASTER, _INT.pack(master))
    if mtu:
        body += attribute(_IFLA_MTU, _INT.pack(mtu))
    if no_link_local:
        mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))
        body += nested(_IFLA_AF_SPEC, nested(_socket.AF_INET6, mode))
    return Message(f"set up {name}", _RTM_NEWLINK, NLM_F_ACK, body)


def hairpin(name: str) -> Message:
    """Lets a bridge port send out what came in by it: how a pod's call of its own published port comes back.

    With br_netfilter the bridge itself translates addresses, and the packet never reaches the host's routing.
    """
    data = nested(_IFLA_INFO_SLAVE_DATA, attribute(_IFLA_BRPORT_MODE, b"\1"))
    info = nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_SLAVE_KIND, b"bridge"), data)
    body = _LINK.pack(0, 0, 0, 0, 0) + _name(name) + info
    return Message(f"set hairpin mode of {name}", _RTM_NEWLINK, NLM_F_ACK, body)


def silence(index: int, *, tolerated: Sequence[int] = ()) -> Message:
    """Stops a bridge port from forwarding and learning, at once, and forgets who was behind it; ``index``: its link."""
    state = attribute(_IFLA_BRPORT_STATE, bytes([_BR_STATE_DISABLED]))
    body = _LINK.pack(AF_BRIDGE, 0, index, 0, 0)
    body += nested(_IFLA_PROTINFO, state, attribute(_IFLA_BRPORT_FLUSH, b""))
    return Message(f"disable bridge port {index}", _RTM_SETLINK, NLM_F_ACK, body, tolerated)


def remove(name: str, *, tolerated: Sequence[int] = ()) -> Message:
    """Deletes a link; the kernel blocks for some 20 ms."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _name(name)
    return Message(f"delete {name}", _RTM_DELLINK, NLM_F_ACK, body, tolerated)


def address(index: int, cidr: str, *, tolerated: Sequence[int] = ()) -> Message:
    """Gives link ``index`` an address ("10.1.2.3/16"), usable at once: without IPv6's duplicate address detection."""
    text, _, length = cidr.partition("/")
    family, raw = packed(text)
    body = _ADDRESS.pack(family, int(length), 0, 0, index) + attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw)
    if family == _socket.AF_INET6:
        body += attribute(_IFA_FLAGS, _INT.pack(_IFA_F_NODAD))
    return Message(f"add {cidr}", _RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body, tolerated)


def default_route(index: int, gateway: str, *, tolerated: Sequence[int] = ()) -> Message:
    """Routes everything that has no other route to ``gateway`` behind link ``index``."""
    return route(index, "", gateway, tolerated=tolerated)


def route(index: int, destination: str, gateway: str = "", *, tolerated: Sequence[int] = ()) -> Message:
    """Routes ``destination`` (CIDR; "": everything) to ``gateway``, or straight to link ``index`` without one."""
    text, _, length = destination.partition("/")
    family, raw = packed(gateway or text)
    scope = _RT_SCOPE_UNIVERSE if gateway or family == _socket.AF_INET6 else _RT_SCOPE_LINK
    body = _ROUTE.pack(family, int(length or 0), 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, scope, _RTN_UNICAST, 0)
    if length and int(length):
        body += attribute(_RTA_DST, packed(text)[1])
    if gateway:
        body += attribute(_RTA_GATEWAY, raw)
    body += attribute(_RTA_OIF, _INT.pack(index))
    doing = f"route {destination or 'everything'} to {gateway or 'the link'}"
    return Message(doing, _RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body, tolerated)
