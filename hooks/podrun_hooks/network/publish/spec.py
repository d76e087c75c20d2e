"""Published ports in a pod file's spelling, in a ledger's notes, and as elements of the nftables table.

An element's comment is the tag of its pod, so that ``nft list table`` shows to which pod it belongs.
"""

from __future__ import annotations

import _socket

from podrun.options import Wrong, whole
from podrun.record import NamedTuple
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.network.netlink.nfnetlink import Element, concatenated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from podrun_hooks.network.ledger import Ledger

#: Longest comment of nft(8) (NFTNL_UDATA_COMMENT_MAXLEN less the final NUL); tags can be longer.
LONGEST_COMMENT = 127
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


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
    """The same ports with every range split into single ports."""
    return [
        publish._replace(host=publish.host + n, port=publish.port + n, length=1)
        for publish in wanted
        for n in range(publish.length)
    ]


def parse(text: str) -> Publish:
    """Parses docker's spelling, ``[ip:]hostport[-last]:containerport[-last][/tcp|udp|sctp]``; 127.0.0.1 by default.

    Raises Wrong.
    """
    rest, slash, proto = text.partition("/")
    if not slash:
        proto = "tcp"
    if proto not in PROTOCOLS:
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
    """The first port of "80" or "80-89", and the number of ports."""
    one, dash, other = word.partition("-")
    first, last = whole(one, 65535), whole(other if dash else one, 65535)
    if not (first and last):
        raise Wrong(f"expected ports from 1 to 65535, not {word!r} in {where!r}")
    if last < first:
        raise Wrong(f"{word!r} in {where!r} ends before it begins")
    return first, last - first + 1


def _address(text: str, where: str) -> str:
    family = _socket.AF_INET6 if ":" in text else _socket.AF_INET
    try:
        ip = _socket.inet_ntop(family, _socket.inet_pton(family, text))
    except OSError:
        raise Wrong(f"{text!r} is not an IP address in {where!r}") from None
    if ip == "::1":
        raise Wrong(f"{where!r}: the kernel has no way to redirect [::1]; publish on 127.0.0.1")
    return ip


# --- in the table --------------------------------------------------------------------------------------------------


def restore(run: str, table: str) -> None:
    """Adds the ports of living pods again after another program has flushed the ruleset."""
    for ledger in ledgers.everywhere(run):
        for one in noted(ledger) if ledgers.alive(run, ledger) and ledgers.holds_ports(ledger) else ():
            try:
                nfnetlink.add(nfnetlink.socket(), table, [one])
            except FileExistsError:
                pass


def lost(table: str, ledger: Ledger) -> list[Publish]:
    """The ports of a ledger that are missing in the table, unless another generation has them."""
    if not ledgers.holds_ports(ledger):
        return []
    socket = nfnetlink.socket()
    gone = []
    for publish, target, tag in lines(ledger):
        wanted = element_of(publish, target, tag)
        if nfnetlink.find(socket, table, wanted.map, wanted.key) != wanted:
            gone.append(publish)
    return gone


def noted(ledger: Ledger) -> Iterator[Element]:
    """The elements for the ports in a ledger."""
    for publish, target, tag in lines(ledger):
        yield element_of(publish, target, tag)


def lines(ledger: Ledger) -> Iterator[tuple[Publish, str, str]]:
    """The published ports in a ledger, each with the pod's address and tag."""
    for line in ledger.all("publish"):
        ip, host, port, proto, target, tag = line.split(" ")
        yield Publish(ip, int(host), int(port), proto), target, tag


def line_of(publish: Publish, target: str, tag: str) -> str:
    """A ledger's note of a port under "publish"; the inverse of :func:`lines`."""
    ip, host, port, proto, _ = publish
    return f"{ip} {host} {port} {proto} {target} {tag}"


def element_of(publish: Publish, target: str, tag: str) -> Element:
    """The map element that leads from a port to a pod's address."""
    raw = _raw(target)
    value = concatenated(raw, publish.port.to_bytes(2, "big"))
    return Element(*key_of(publish), value, tag[:LONGEST_COMMENT])


def key_of(publish: Publish) -> tuple[str, bytes]:
    """The map and the key of a published port."""
    fields = [bytes([PROTOCOLS[publish.proto]]), publish.host.to_bytes(2, "big")]
    version = 6 if ":" in publish.ip else 4
    if publish.everywhere:
        return f"any{version}", concatenated(*fields)
    return f"host{version}", concatenated(_raw(publish.ip), *fields)


def _raw(address: str) -> bytes:
    return _socket.inet_pton(_socket.AF_INET6 if ":" in address else _socket.AF_INET, address)
