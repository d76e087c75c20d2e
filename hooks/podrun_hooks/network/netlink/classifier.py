"""Which packets a link accepts: programs of the classic packet filter (bpf(4)) behind a clsact qdisc (tc-bpf(8)).

They are part of the link: flushing nftables does not remove them, and they go with the link, so that there is nothing
to undo. On a pod's port they run before br_netfilter could translate an address, and before the bridge learns or
forwards anything. A program costs two messages; layouts are those of <linux/pkt_sched.h>, <linux/pkt_cls.h> and
<linux/filter.h>.
"""

from __future__ import annotations

import sys
from _struct import Struct, unpack
from errno import EEXIST, ENOENT, EOPNOTSUPP

from podrun.record import NamedTuple
from podrun_hooks.network.netlink.rtnetlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Message,
    Socket,
    attribute,
    nested,
    unpacked,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_RTM_NEWQDISC, _RTM_NEWTFILTER, _RTM_GETTFILTER = 36, 44, 46
_TCA_KIND, _TCA_OPTIONS = 1, 2
_BPF_OPS_LEN, _BPF_OPS, _BPF_FLAGS, _ACT_DIRECT = 4, 5, 8, 1
_CLSACT, _HANDLE, _INGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2
_ALL_PROTOCOLS = 0x0300  # ETH_P_ALL, in network order
#: Ahead of filters that somebody else may have added.
_PRIORITY = 1

_TCMSG = Struct("=BxxxiIII")  # family, index, handle, parent, info
_INSTRUCTION = Struct("=HBBI")
_LONG, _HALF, _BYTE, _EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
_VLAN_TAG_PRESENT = 0xFFFFF000 + 48  # SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT
_OK, _SHOT = 0, 2  # TC_ACT_*
_PASS, _DROP = "pass", "drop"
_WHAT = "filter what comes in"

# Offsets from the start of an Ethernet frame.
_SOURCE, _TYPE = 6, 12
_IP_SOURCE, _IP_DESTINATION = 26, 30
_ARP_FORM, _ARP_SIZES, _ARP_MAC, _ARP_IP = 14, 18, 22, 28
_IP6_NEXT, _IP6_HOPS, _IP6_SOURCE, _ICMP6_TYPE, _NDP_TARGET = 20, 21, 22, 54, 62
_ADVERTISEMENT, _ROUTER, _REDIRECT = 136, 134, 137  # RFC 4861


class _Do(NamedTuple):
    """An instruction; ``yes`` and ``no`` are labels, "" the next instruction; ``label`` is its own."""

    code: int
    value: int
    yes: str = ""
    no: str = ""
    label: str = ""


def only_own(mac: bytes, ip: bytes, ip6: Sequence[bytes]) -> bytes:
    """The program for a pod's port: what is not from the pod's own addresses is dropped.

    ``mac``, ``ip`` (IPv4) and ``ip6`` are addresses as bytes. Neighbour discovery may announce only them (ARP, RFC 826;
    RFC 4861), a pod may not pose as a router, tagged frames do not belong on a bridge without VLANs, and nothing may go
    to 127.0.0.0/8, which route_localnet lets in.
    """
    high, low = unpack(">IH", mac)
    own = unpack(">I", ip)[0]
    steps = [
        _Do(_LONG, _VLAN_TAG_PRESENT),
        _Do(_EQUAL, 0, "", _DROP),
        *_same(_SOURCE, high, low),
        _Do(_HALF, _TYPE),
        _Do(_EQUAL, 0x0800, "ip"),
        _Do(_EQUAL, 0x0806, "arp"),
        _Do(_EQUAL, 0x86DD, "ip6", _DROP),
        _Do(_LONG, _IP_SOURCE, label="ip"),
        _Do(_EQUAL, own, "", _DROP),
        _Do(_BYTE, _IP_DESTINATION),
        _Do(_EQUAL, 127, _DROP, _PASS),
        _Do(_LONG, _ARP_FORM, label="arp"),
        _Do(_EQUAL, 0x00010800, "", _DROP),
        _Do(_HALF, _ARP_SIZES),
        _Do(_EQUAL, 0x0604, "", _DROP),
        *_same(_ARP_MAC, high, low),
        _Do(_LONG, _ARP_IP),
        _Do(_EQUAL, own, _PASS, _DROP),
        *_one_of(_IP6_SOURCE, ip6, "ip6", "discovery"),
        # Neighbour discovery has made no hop (RFC 4861, 7.1); what stands behind an extension header could be
        # anything.
        _Do(_BYTE, _IP6_HOPS, label="discovery"),
        _Do(_EQUAL, 255, "", _PASS),
        _Do(_BYTE, _IP6_NEXT),
        _Do(_EQUAL, 6, _PASS),
        _Do(_EQUAL, 17, _PASS),
        _Do(_EQUAL, 132, _PASS),
        _Do(_EQUAL, 58, "", _DROP),
        _Do(_BYTE, _ICMP6_TYPE),
        _Do(_EQUAL, _ROUTER, _DROP),
        _Do(_EQUAL, _REDIRECT, _DROP),
        _Do(_EQUAL, _ADVERTISEMENT, "target", _PASS),
        *_one_of(_NDP_TARGET, ip6, "target", _PASS),
    ]
    return _assembled(steps)


def no_loopback() -> bytes:
    """The program for a pod that may send from any address: nothing goes to 127.0.0.0/8 or comes from there."""
    return _assembled(
        [
            _Do(_HALF, _TYPE),
            _Do(_EQUAL, 0x0800, "", _PASS),
            _Do(_BYTE, _IP_SOURCE),
            _Do(_EQUAL, 127, _DROP),
            _Do(_BYTE, _IP_DESTINATION),
            _Do(_EQUAL, 127, _DROP, _PASS),
        ]
    )


def _same(at: int, high: int, low: int) -> list[_Do]:
    """Drops frames without this hardware address there."""
    return [_Do(_LONG, at), _Do(_EQUAL, high, "", _DROP), _Do(_HALF, at + 4), _Do(_EQUAL, low, "", _DROP)]


def _one_of(at: int, addresses: Sequence[bytes], label: str, then: str) -> list[_Do]:
    """Goes on at ``then`` with frames that have one of the IPv6 addresses there; drops the others."""
    steps: list[_Do] = []
    for n, address in enumerate(addresses):
        other = f"{label}{n + 1}" if n + 1 < len(addresses) else _DROP
        for word, value in enumerate(unpack(">4I", address)):
            own = (label if not n else f"{label}{n}") if not word else ""
            steps += [_Do(_LONG, at + 4 * word, label=own), _Do(_EQUAL, value, then if word == 3 else "", other)]
    return steps or [_Do(_RETURN, _SHOT, label=label)]


def _assembled(steps: Sequence[_Do]) -> bytes:
    whole = [*steps, _Do(_RETURN, _OK, label=_PASS), _Do(_RETURN, _SHOT, label=_DROP)]
    places = {step.label: n for n, step in enumerate(whole) if step.label}
    program = b""
    for n, (code, value, yes, no, _) in enumerate(whole):
        ways = (places[label] - n - 1 if label else 0 for label in (yes, no))
        program += _INSTRUCTION.pack(code, *ways, value)
    return program


def attached(ifindex: int, program: bytes) -> list[Message]:
    """Attaches a program to a link's ingress; does nothing where one is attached already."""
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    qdisc = _TCMSG.pack(0, ifindex, _HANDLE, _CLSACT, 0) + attribute(_TCA_KIND, b"clsact\0")
    options = nested(
        _TCA_OPTIONS,
        attribute(_BPF_OPS_LEN, (len(program) // _INSTRUCTION.size).to_bytes(2, sys.byteorder)),
        attribute(_BPF_OPS, program),
        attribute(_BPF_FLAGS, _ACT_DIRECT.to_bytes(4, sys.byteorder)),
    )
    rule = _TCMSG.pack(0, ifindex, 1, _INGRESS, _PRIORITY << 16 | _ALL_PROTOCOLS) + attribute(_TCA_KIND, b"bpf\0")
    return [
        Message(f"{_WHAT} (sch_ingress)", _RTM_NEWQDISC, flags, qdisc, (EEXIST,)),
        Message(f"{_WHAT} (cls_bpf)", _RTM_NEWTFILTER, flags, rule + options, (EEXIST,)),
    ]


def is_missing(error: OSError) -> bool:
    """Whether a refusal of :func:`attached` means that the kernel has no such qdisc or classifier, nor a module."""
    return error.errno in (ENOENT, EOPNOTSUPP) and str(error.filename).startswith(_WHAT)


def is_attached(socket: Socket, ifindex: int) -> bool:
    """Whether a program of podrun's priority is attached to a link's ingress."""
    body = _TCMSG.pack(0, ifindex, 0, _INGRESS, 0)
    try:
        answers = socket.send(Message("look for filters", _RTM_GETTFILTER, NLM_F_ACK | NLM_F_DUMP, body))
    except OSError:
        return False
    return any(unpacked(_TCMSG, answer)[4] >> 16 == _PRIORITY for _, answer in answers)
