"""Published ports: one nftables table of podrun's own, with one map element per port, and who else holds a port.

An element's comment is the tag of its pod, so everybody can tell whose it is, ``nft list table`` included.
"""

from __future__ import annotations

import _socket
import os

from podrun.errors import BUSY, STEP_FAILED, Failure
from podrun.hook import Wrong
from podrun.record import NamedTuple

from . import bridge as bridges
from . import ledger as ledgers
from . import nfnetlink
from .child import Child
from .nfnetlink import Element, concatenated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from podrun.hook import Pod

    from .bridge import Bridge
    from .ledger import Ledger

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_EADDRINUSE = 98


class Publish(NamedTuple):
    """A port of the host that leads to a port of the pod."""

    #: The host's address: "127.0.0.1", another one, or "0.0.0.0" or "::" for all of them.
    ip: str
    host: int
    port: int
    proto: str = "tcp"
    #: The number of consecutive ports, of the host and of the pod alike.
    length: int = 1

    @property
    def everywhere(self) -> bool:
        """True for every address of the host."""
        return self.ip in ("0.0.0.0", "::")

    def __str__(self) -> str:
        last = f"-{self.host + self.length - 1}" if self.length > 1 else ""
        return f"{f'[{self.ip}]' if ':' in self.ip else self.ip}:{self.host}{last}/{self.proto}"


def each(wanted: Sequence[Publish]) -> list[Publish]:
    """The same with every range as its ports."""
    return [
        publish._replace(host=publish.host + n, port=publish.port + n, length=1)
        for publish in wanted
        for n in range(publish.length)
    ]


def parse(text: str) -> Publish:
    """Reads docker's spelling, ``[ip:]hostport[-last]:containerport[-last][/tcp|udp|sctp]``; 127.0.0.1 by default.

    Raises Wrong.
    """
    rest, slash, proto = text.partition("/")
    if not slash:
        proto = "tcp"
    if proto not in _PROTOCOLS:
        raise Wrong(f"expected tcp, udp or sctp behind the slash, not {text!r}")
    rest, _, inner = rest.rpartition(":")
    address, _, outer = rest.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        raise Wrong(f"an IPv6 address belongs in brackets: [address]:8080:80, not {text!r}")
    if not (outer and inner):
        raise Wrong(f"expected [ip:]hostport:containerport[/tcp|udp|sctp], not {text!r}")
    (host, count), (port, inside) = (_range(word, text) for word in (outer, inner))
    if count != inside:
        raise Wrong(f"{text!r}: {count} ports of the host cannot lead to {inside} of the pod")
    return Publish(_address(address or "127.0.0.1", text), host, port, proto, count)


def _range(word: str, where: str) -> tuple[int, int]:
    """The first port of "80" or "80-89", and how many they are."""
    first, dash, last = word.partition("-")
    for one in (first, last) if dash else (first,):
        if not (one.isdecimal() and one.isascii() and 0 < int(one) < 65536):
            raise Wrong(f"expected ports from 1 to 65535, not {word!r} in {where!r}")
    if dash and int(last) < int(first):
        raise Wrong(f"{word!r} in {where!r} ends before it begins")
    return int(first), int(last) - int(first) + 1 if dash else 1


def _address(text: str, where: str) -> str:
    family = _socket.AF_INET6 if ":" in text else _socket.AF_INET
    try:
        ip = _socket.inet_ntop(family, _socket.inet_pton(family, text))
    except OSError:
        raise Wrong(f"{text!r} is not an IP address in {where!r}") from None
    if ip == "::1":
        raise Wrong(f"{where!r}: the kernel has no way to redirect [::1]; publish on 127.0.0.1")
    return ip


# --- the table -----------------------------------------------------------------------------------------------------

# Adding is idempotent for everything but rules, so chains are emptied first; nft applies the whole or nothing.
# What enters the host for 127.0.0.0/8, or claims to come from there, is dropped before connection tracking can
# translate it: route_localnet on the bridge would otherwise let pods reach what listens on the host's loopback.
# From elsewhere a pod is reached at its published ports only: the host forwards, so who is on a wire of it could route
# the pods' subnet here, and call what is published on 127.0.0.1 or not at all.
# A pod that calls a published port sees answers from the wrong address unless its own is masqueraded as well.
_RULES = """
add table inet {table}
add set inet {table} bridges {{ type ifname; }}
add set inet {table} subnets4 {{ type ipv4_addr; flags interval; }}
add set inet {table} subnets6 {{ type ipv6_addr; flags interval; }}
add map inet {table} host4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet {table} host6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
add map inet {table} any4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet {table} any6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
add chain inet {table} loopback {{ type filter hook prerouting priority -300; policy accept; }}
add chain inet {table} forward {{ type filter hook forward priority 0; policy accept; }}
add chain inet {table} published
add chain inet {table} prerouting {{ type nat hook prerouting priority -100; policy accept; }}
add chain inet {table} output {{ type nat hook output priority -100; policy accept; }}
add chain inet {table} postrouting {{ type nat hook postrouting priority 100; policy accept; }}
flush chain inet {table} loopback
flush chain inet {table} forward
flush chain inet {table} published
flush chain inet {table} prerouting
flush chain inet {table} output
flush chain inet {table} postrouting
add rule inet {table} loopback iifname != "lo" ip daddr 127.0.0.0/8 drop
add rule inet {table} loopback iifname != "lo" ip saddr 127.0.0.0/8 drop
add rule inet {table} forward iifname @bridges accept
add rule inet {table} forward oifname @bridges ct state established,related accept
add rule inet {table} forward oifname @bridges ct status dnat accept
add rule inet {table} forward oifname @bridges drop
add rule inet {table} published fib daddr type != local return
add rule inet {table} published meta l4proto != {{ tcp, udp, sctp }} return
add rule inet {table} published dnat ip to ip daddr . meta l4proto . th dport map @host4
add rule inet {table} published dnat ip to meta l4proto . th dport map @any4
add rule inet {table} published dnat ip6 to ip6 daddr . meta l4proto . th dport map @host6
add rule inet {table} published dnat ip6 to meta l4proto . th dport map @any6
add rule inet {table} prerouting jump published
add rule inet {table} output jump published
add rule inet {table} postrouting ip saddr 127.0.0.0/8 oifname @bridges masquerade
add rule inet {table} postrouting ip saddr @subnets4 ip daddr @subnets4 ct status dnat masquerade
add rule inet {table} postrouting ip6 saddr @subnets6 ip6 daddr @subnets6 ct status dnat masquerade
add rule inet {table} postrouting ip saddr @subnets4 ip daddr != @subnets4 ip daddr != 224.0.0.0/4 masquerade
add rule inet {table} postrouting ip6 saddr @subnets6 ip6 daddr != @subnets6 ip6 daddr != ff00::/8 masquerade
"""


def lay(bridge: Bridge) -> None:
    """Makes the table, or mends it, and adds the bridge to it. Raises Failure with nft's own words."""
    elements = f'add element inet {bridge.table} bridges {{ "{bridge.name}" }}\n'
    for name, pool in (("subnets4", bridge.pool), ("subnets6", bridge.pool6)):
        if pool:
            elements += f"add element inet {bridge.table} {name} {{ {pool} }}\n"
    _nft(_RULES.format(table=bridge.table) + elements)


def remove_table(table: str) -> None:
    """Deletes the table if it is there."""
    _nft(f"add table inet {table}\ndelete table inet {table}\n")


def delete_element(table: str, map_: str, fields: Sequence[str]) -> None:
    """Deletes one element by the fields of its key, as nft spells them."""
    _nft(f"delete element inet {table} {map_} {{ {' . '.join(fields)} }}\n")


def _nft(script: str) -> None:
    from podrun_hooks import process

    ended = process.run([process.find("nft", "nftables"), "-f", "-"], stdin=script.encode())
    if ended.status:
        raise Failure(f"nft: {(ended.errors or ended.output).splitlines()[0]}", code=STEP_FAILED)


def restore(run: str, table: str) -> None:
    """Puts the ports of living pods back after somebody else has emptied the ruleset."""
    for ledger in ledgers.everywhere(run):
        for element in _noted(ledger) if ledgers.alive(run, ledger) else ():
            try:
                nfnetlink.add(nfnetlink.socket(), table, [element])
            except FileExistsError:
                pass


def lost(table: str, ledger: Ledger) -> list[Publish]:
    """The ports of a ledger that are not in the table."""
    socket = nfnetlink.socket()
    gone = []
    for publish, target, tag in _lines(ledger):
        element = _element(publish, target, tag)
        if nfnetlink.find(socket, table, element.map, element.key) != element:
            gone.append(publish)
    return gone


# --- a pod's ports -------------------------------------------------------------------------------------------------


def take(pod: Pod, bridge: Bridge, wanted: Sequence[Publish], addresses: Sequence[str], fd: int) -> None:
    """Publishes ``wanted`` for the pod that has ``addresses``, all or nothing, noting it in the ledger at ``fd`` first.

    Raises Failure (BUSY), naming the holder, when one of the ports is in use.
    """
    if any(publish.ip.startswith("127.") or publish.ip == "0.0.0.0" for publish in wanted):
        bridges.allow_localnet(bridge.name)
    elements = []
    for publish in wanted:
        _refuse_held(pod, bridge.table, publish)
        target = next((one for one in addresses if (":" in one) == (":" in publish.ip)), "")
        if not target:
            raise Failure(f"{publish} is published on IPv6, and the bridge has none", code=STEP_FAILED)
        elements.append(_element(publish, target, pod.tag))
        ip, host, port, proto, _ = publish
        ledgers.note(fd, "publish", f"{ip} {host} {port} {proto} {target} {pod.tag}")
    try:
        nfnetlink.add(nfnetlink.socket(), bridge.table, elements)
    except FileExistsError:
        for publish in wanted:
            _refuse_held(pod, bridge.table, publish)
        raise
    _forget(wanted)


def _forget(wanted: Sequence[Publish]) -> None:
    """Ends what connection tracking still knows of the ports: a UDP caller that never pauses would be kept out."""
    datagrams = {publish.host for publish in wanted if publish.proto != "tcp"}
    if datagrams:
        from . import conntrack

        conntrack.forget(datagrams)


def begin_release(table: str, ledger: Ledger) -> Child | None:
    """Starts to take the ports of a ledger back; those that another pod holds stay. None: there are none.

    In a child, because closing the socket at once would wait, and make others wait (see nfnetlink.socket).
    """
    elements = list(_noted(ledger))
    if not elements:
        return None

    def delete() -> None:
        socket = nfnetlink.socket()
        for element in elements:
            if nfnetlink.find(socket, table, element.map, element.key) == element:
                try:
                    nfnetlink.delete(socket, table, [element])
                except FileNotFoundError:  # the child of a down that was killed got there first
                    pass
        _forget([publish for publish, _, _ in _lines(ledger)])

    nfnetlink.close()
    return Child(delete, lingering=0.05)


def holder(pod: Pod, table: str, publish: Publish, *, reclaim: bool = False) -> str:
    """Who else has the port: "pod web", "nginx (pid 17)", or "" when nobody has.

    With ``reclaim``, the element of a pod that is dead is deleted on the way.
    """
    socket = nfnetlink.socket()
    for element in _rivals(publish):
        found = nfnetlink.find(socket, table, element.map, element.key)
        if not found or found.comment == pod.tag:
            continue
        name = found.comment.removeprefix(bridges.prefix(pod)).replace("+", "@")
        if any(ledgers.alive(pod.run, ledger) for ledger in ledgers.of(pod.run, name)):
            return f"pod {name}"
        if reclaim:
            nfnetlink.delete(socket, table, [found])
    return _listener(publish)


def _refuse_held(pod: Pod, table: str, publish: Publish) -> None:
    found = holder(pod, table, publish, reclaim=True)
    if found:
        raise Failure(f"port {publish} is in use by {found}", code=BUSY)


def _noted(ledger: Ledger) -> Iterator[Element]:
    for publish, target, tag in _lines(ledger):
        yield _element(publish, target, tag)


def _lines(ledger: Ledger) -> Iterator[tuple[Publish, str, str]]:
    """The published ports of a ledger with the pod's address and tag."""
    for line in ledger.all("publish"):
        ip, host, port, proto, target, tag = line.split(" ")
        yield Publish(ip, int(host), int(port), proto), target, tag


def _element(publish: Publish, target: str, tag: str) -> Element:
    raw = _raw(target)
    value = concatenated(raw, publish.port.to_bytes(2, "big"))
    return Element(*_key(publish), value, tag)


def _key(publish: Publish) -> tuple[str, bytes]:
    fields = [bytes([_PROTOCOLS[publish.proto]]), publish.host.to_bytes(2, "big")]
    version = 6 if ":" in publish.ip else 4
    if publish.everywhere:
        return f"any{version}", concatenated(*fields)
    return f"host{version}", concatenated(_raw(publish.ip), *fields)


def _rivals(publish: Publish) -> Iterator[Element]:
    """The elements that would be in the way: the same, that of all addresses, and for that one each of the host's."""
    for ip in {publish.ip, "::" if ":" in publish.ip else "0.0.0.0"}:
        yield Element(*_key(publish._replace(ip=ip)), b"")
    if publish.everywhere:
        for ip in _of_the_host(6 if ":" in publish.ip else 4):
            yield Element(*_key(publish._replace(ip=ip)), b"")


def _of_the_host(version: int) -> list[str]:
    """The host's addresses: as many lookups as it has, however many ports are published."""
    from . import rtnetlink

    with rtnetlink.Socket() as socket:
        plain = [cidr.partition("/")[0] for cidr in socket.addresses()]
    return [*(["127.0.0.1"] if version == 4 else []), *(ip for ip in plain if (":" in ip) == (version == 6))]


def _raw(address: str) -> bytes:
    return _socket.inet_pton(_socket.AF_INET6 if ":" in address else _socket.AF_INET, address)


# --- the host's own processes --------------------------------------------------------------------------------------


def _listener(publish: Publish) -> str:
    """The host's process that listens on the port, or "": binding to it tells in microseconds that there is one."""
    family = _socket.AF_INET6 if ":" in publish.ip else _socket.AF_INET
    kind = _socket.SOCK_DGRAM if publish.proto == "udp" else _socket.SOCK_STREAM
    try:
        socket = _socket.socket(family, kind | _socket.SOCK_CLOEXEC, _PROTOCOLS[publish.proto])
    except OSError:  # a kernel without SCTP sockets has no listeners either
        return ""
    try:
        if family == _socket.AF_INET6:
            socket.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        if publish.proto == "tcp":
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        socket.bind((publish.ip, publish.host))
    except OSError as error:
        # An address that the host does not have (yet) has no listener either; nor has a port that is only the local
        # end of a connection.
        return _named(publish) if error.errno == _EADDRINUSE else ""
    finally:
        socket.close()
    return ""


def _named(publish: Publish) -> str:
    if publish.proto == "sctp":
        return "a process of the host"
    inodes = set()
    # TCP sockets listen in state 0A; UDP ones that are not connected are in 07 (include/net/tcp_states.h).
    state = "0A" if publish.proto == "tcp" else "07"
    for file in (publish.proto, f"{publish.proto}6"):
        try:
            with open(f"/proc/net/{file}", encoding="utf-8") as sockets:
                rows = [line.split() for line in sockets.read().splitlines()[1:]]
        except FileNotFoundError:
            continue
        inodes |= {row[9] for row in rows if row[3] == state and int(row[1].rpartition(":")[2], 16) == publish.host}
    for pid in filter(str.isdecimal, os.listdir("/proc")) if inodes else ():
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}")[8:-1] in inodes:
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
                        return f"{comm.read().strip()} (pid {pid})"
        except OSError:
            continue
    return "a process of the host" if inodes else ""
