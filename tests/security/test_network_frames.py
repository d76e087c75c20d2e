"""What a pod's port lets in: frames from the pod's own addresses, and nothing for the host's loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from struct import pack, unpack

import pytest

from podrun_hooks.network import health, options
from podrun_hooks.network.namespace import _link_local
from podrun_hooks.network.netlink import rtnetlink
from podrun_hooks.network.netlink.classifier import only_own
from support.network_case import Place, call, free_port, inside, plain, run

pytestmark = pytest.mark.root

_SEND = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(("eth0", 0))
for line in sys.stdin.read().split():
    link.send(bytes.fromhex(line))
"""
_HEAR = """
import socket, time
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(("eth0", 0))
link.settimeout(0.1)
print("hearing", flush=True)
heard, until = set(), time.monotonic() + 4
while time.monotonic() < until:
    try:
        frame = link.recv(2000)
    except TimeoutError:
        continue
    at = frame.find(b"mark=")
    if at >= 0:
        heard.add(frame[at + 5 : at + 8].decode())
        if "999" in heard:
            break
print(*sorted(heard))
"""
_ALL = b"\xff" * 6
_GROUP = bytes.fromhex("333300000001")
_ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")


class Pod:
    """A pod's addresses as bytes."""

    def __init__(self, facts: dict[str, object]) -> None:
        self.netns = str(facts["netns"])
        self.mac = bytes.fromhex(mac_of(self.netns))
        self.ip = rtnetlink.packed(plain(facts))[1]
        self.ip6 = rtnetlink.packed(plain(facts, 6))[1]
        self.local = rtnetlink.packed(_link_local(self.mac).partition("/")[0])[1]


def mac_of(netns: str) -> str:
    return run(*inside(netns), "cat", "/sys/class/net/eth0/address").strip().replace(":", "")


def arp(mac: bytes, sender: bytes, ip: bytes, operation: int = 2) -> bytes:
    return _ALL + mac + b"\x08\x06" + pack(">HHBBH", 1, 0x0800, 6, 4, operation) + sender + ip + _ALL + ip


def ip4(mac: bytes, source: bytes, target: bytes = b"\xff" * 4, to: bytes = _ALL) -> bytes:
    # br_netfilter drops what has a wrong checksum or length; behind it comes a mark of eight bytes.
    head = pack(">BBHHHBB", 0x45, 0, 28, 0, 0, 64, 253)
    total = sum(unpack(">9H", head + source + target))
    total = (total & 0xFFFF) + (total >> 16)
    return to + mac + b"\x08\0" + head + pack(">H", ~(total + (total >> 16)) & 0xFFFF) + source + target


def ip6(mac: bytes, source: bytes, following: int = 253, hops: int = 64, rest: bytes = b"") -> bytes:
    head = pack(">IHBB", 6 << 28, len(rest) + 8, following, hops)
    return _GROUP + mac + b"\x86\xdd" + head + source + _ALL_NODES + rest


def discovery(kind: int, target: bytes) -> bytes:
    return bytes([kind, 0, 0, 0, 0x20, 0, 0, 0]) + target


def frames(own: Pod, other: Pod, gateway: Pod) -> dict[str, tuple[bytes, bool]]:
    """Frames of a pod by what they are, and whether they are to pass."""
    foreign, loopback = bytes([203, 0, 113, 9]), bytes([127, 0, 0, 1])
    hop, padded = bytes([58, 0, 1, 4, 0, 0, 0, 0]), bytes(24)
    fine = {
        "IPv4": ip4(own.mac, own.ip),
        "IPv4 to the pod": ip4(own.mac, own.ip, other.ip, other.mac),
        "ARP": arp(own.mac, own.mac, own.ip),
        "an ARP request": arp(own.mac, own.mac, own.ip, 1),
        "IPv6": ip6(own.mac, own.ip6),
        "link-local IPv6": ip6(own.mac, own.local),
        "UDP with 255 hops": ip6(own.mac, own.ip6, 17, 255),
        "its advertisement": ip6(own.mac, own.ip6, 58, 255, discovery(136, own.ip6)),
        "its local advertisement": ip6(own.mac, own.local, 58, 255, discovery(136, own.local)),
        "a solicitation of another": ip6(own.mac, own.local, 58, 255, discovery(135, other.ip6)),
        "a listener report behind a hop-by-hop header": ip6(own.mac, own.local, 0, 1, hop + bytes([143]) + padded),
        "a fragment": ip6(own.mac, own.ip6, 44, 64, bytes(8)),
    }
    foul = {
        "another's hardware address": ip4(other.mac, own.ip),
        "another's address": ip4(own.mac, other.ip),
        "the gateway's address": ip4(own.mac, gateway.ip),
        "an address of nobody here": ip4(own.mac, foreign),
        "no address": ip4(own.mac, bytes(4)),
        "the loopback's address": ip4(own.mac, loopback),
        "to the loopback": ip4(own.mac, own.ip, loopback),
        "ARP for another": arp(own.mac, own.mac, other.ip),
        "ARP for the gateway": arp(own.mac, own.mac, gateway.ip),
        "a request as the gateway": arp(own.mac, own.mac, gateway.ip, 1),
        "ARP of another hardware address": arp(own.mac, other.mac, own.ip),
        "ARP in another's frame": arp(other.mac, own.mac, own.ip),
        "ARP of another form": arp(own.mac, own.mac, own.ip).replace(b"\x06\x04\0\x02", b"\x06\x05\0\x02"),
        "another's IPv6 address": ip6(own.mac, other.ip6),
        "another's link-local address": ip6(own.mac, other.local),
        "an IPv6 address of nobody here": ip6(own.mac, own.ip6[:-1] + b"\xee"),
        "no IPv6 address": ip6(own.mac, bytes(16), 58, 255, discovery(135, other.ip6)),
        "another's advertisement": ip6(own.mac, own.ip6, 58, 255, discovery(136, other.ip6)),
        "the gateway's advertisement": ip6(own.mac, own.local, 58, 255, discovery(136, gateway.ip6)),
        "one behind a hop-by-hop header": ip6(own.mac, own.ip6, 0, 255, hop + discovery(136, other.ip6)),
        "one behind destination options": ip6(own.mac, own.ip6, 60, 255, hop + discovery(136, other.ip6)),
        "one in a fragment": ip6(
            own.mac, own.ip6, 44, 255, bytes([58, 0, 0, 0, 0, 0, 0, 1]) + discovery(136, other.ip6)
        ),
        "a router's advertisement": ip6(own.mac, own.local, 58, 255, discovery(134, own.ip6)),
        "a redirect": ip6(own.mac, own.local, 58, 255, discovery(137, other.ip6)),
        "a tag": _ALL + own.mac + b"\x81\0\0\x05" + ip4(own.mac, own.ip)[12:],
        "a service tag": _ALL + own.mac + b"\x88\xa8\0\x05" + ip4(own.mac, own.ip)[12:],
        "a tag of no VLAN": _ALL + own.mac + b"\x81\0\0\0" + ip4(own.mac, other.ip)[12:],
        "another protocol": _ALL + own.mac + b"\x88\xb5" + bytes(46),
        "reverse ARP": arp(own.mac, own.mac, own.ip).replace(b"\x08\x06\0\x01", b"\x80\x35\0\x01"),
        "a spanning tree": bytes.fromhex("0180c2000000") + own.mac + pack(">H", 38) + bytes(38),
    }
    return {
        **{key: (frame, True) for key, frame in fine.items()},
        **{key: (frame, False) for key, frame in foul.items()},
    }


def heard(sender: Pod, listener: Pod, sent: dict[str, bytes]) -> set[str]:
    """Which of the frames arrive at another pod."""
    marked = {f"{n:03}": key for n, key in enumerate(sent)}
    argv = [*inside(listener.netns), sys.executable, "-c", _HEAR]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as ear:
        assert ear.stdout
        assert ear.stdout.readline() == "hearing\n"
        lines = [(sent[key] + f"mark={number}".encode()).ljust(60, b"\0").hex() for number, key in marked.items()]
        last = (arp(sender.mac, sender.mac, sender.ip) + b"mark=999").hex()
        argv = [*inside(sender.netns), sys.executable, "-c", _SEND]
        subprocess.run(argv, input="\n".join([*lines, last]), text=True, check=True)
        said = ear.stdout.read().split()
    assert "999" in said
    return {marked[number] for number in said if number != "999"}


@pytest.fixture
def pods(place: Place) -> tuple[Pod, Pod, Pod]:
    """The sender, another pod, and the bridge in a pod's place."""
    own, other = Pod(place.up("own")), Pod(place.up("other"))
    gateway = Pod.__new__(Pod)
    gateway.ip, gateway.ip6 = own.ip[:3] + b"\1", own.ip6[:8] + bytes(7) + b"\1"
    return own, other, gateway


def test_a_pod_sends_as_itself_and_as_nobody_else(pods: tuple[Pod, Pod, Pod]) -> None:
    own, other, _ = pods
    table = frames(*pods)
    assert heard(own, other, {key: frame for key, (frame, _) in table.items()}) == {
        key for key, (_, passes) in table.items() if passes
    }


def test_the_filter_is_the_ports_and_outlasts_a_flush_of_the_ruleset(place: Place, pods: tuple[Pod, Pod, Pod]) -> None:
    own, other, _ = pods
    run("nft", "delete", "table", "inet", place.table())
    table = frames(*pods)
    sent = {key: table[key][0] for key in ("ARP", "ARP for another", "another's address", "another's advertisement")}
    assert heard(own, other, sent) == {"ARP"}


def test_a_bridge_may_let_its_pods_send_from_any_address_but_not_to_the_hosts_loopback(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(place.run).parent / "networks.toml"
    path.write_text(f'[networks."{place.bridge()}"]\nany_source = true\n')
    path.chmod(0o644)
    monkeypatch.setattr(options, "NETWORKS", str(path))
    own, other = Pod(place.up("own")), Pod(place.up("other"))
    table = frames(own, other, own)
    sent = {key: table[key][0] for key in ("another's address", "ARP for another", "to the loopback", "a tag")}
    assert heard(own, other, sent) == {"another's address", "ARP for another", "a tag"}


def test_a_pods_packet_to_127_0_0_1_reaches_nobody_also_after_a_flush(place: Place) -> None:
    port, secret = free_port(), free_port()
    facts = place.up("web", publish=[f"{port}:80"])
    place.serve("", secret, "secret", host="127.0.0.1")
    netns = inside(facts["netns"])
    for name in ("all", "eth0"):
        run(*netns, "sysctl", "-qw", f"net.ipv4.conf.{name}.route_localnet=1")
    run(*netns, "ip", "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local", check=False)
    gateway = plain(facts).rpartition(".")[0] + ".1"
    run(*netns, "ip", "route", "add", "127.0.0.1/32", "via", gateway, "src", plain(facts), "onlink", "dev", "eth0")
    assert Path(f"/proc/sys/net/ipv4/conf/{place.bridge()}/route_localnet").read_text() == "1\n"
    assert call("", "127.0.0.1", secret)
    for _ in range(2):
        assert call(facts["netns"], "127.0.0.1", secret, timeout=0.5) == ""
        run("nft", "delete", "table", "inet", place.table(), check=False)


def test_a_port_whose_filter_somebody_took_away_is_told(place: Place) -> None:
    place.up("web")
    assert not [one for one in health.problems(place.run) if "not filtered" in one.what]
    [port] = [
        line.split()[1].split("@")[0] for line in run("ip", "-o", "link", "show", "master", place.bridge()).splitlines()
    ]
    run("tc", "qdisc", "delete", "dev", port, "clsact")
    assert [one for one in health.problems(place.run) if "not filtered" in one.what]


def test_the_programs_of_addresses_of_one_family_and_of_several_are_whole() -> None:
    """The kernel refuses a program that jumps out of itself: what an assembler gets wrong first."""
    run("ip", "link", "add", "t-cls", "type", "veth", "peer", "name", "t-cls-peer")
    try:
        with rtnetlink.Socket() as socket:
            from podrun_hooks.network.netlink import classifier

            link = socket.link("t-cls")
            assert link
            for count in (0, 1, 2, 3):
                six = [bytes([n]) * 16 for n in range(count)]
                socket.send(*classifier.attached(link.ifindex, only_own(b"\2" * 6, b"\n" * 4, six)))
                assert classifier.is_attached(socket, link.ifindex)
                run("tc", "qdisc", "delete", "dev", "t-cls", "clsact")
    finally:
        run("ip", "link", "delete", "t-cls")


def test_nobody_tells_a_pod_of_another_router(place: Place) -> None:
    netns = place.up("web")["netns"]
    paths = [
        f"/proc/sys/net/ipv{version}/conf/{name}/accept_redirects"
        for version, name in ((4, "all"), (4, "eth0"), (6, "eth0"))
    ]
    assert run(*inside(netns), "cat", *paths).split() == ["0", "0", "0"]
