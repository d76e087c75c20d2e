"""What connection tracking still knows of a pod that has gone, and what it must not lose of those that stay."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from podrun_hooks.network.netlink import conntrack, nfnetlink
from podrun_hooks.network.netlink.nfnetlink import Element
from podrun_hooks.network.publish import ruleset, spec
from support.network_case import Place, inside, plain
from support.waiting import until

pytestmark = pytest.mark.root


@pytest.fixture
def talk() -> Iterator[list[socket.socket]]:
    """Sockets that stay open until the test ends."""
    found: list[socket.socket] = []
    yield found
    for each in found:
        each.close()


def _protocols(address: str) -> list[str]:
    """The protocols of the entries whose answers come from an address: conntrack(8) reads what podrun's code is to."""
    argv = ["conntrack", "-L", "-f", "ipv6" if ":" in address else "ipv4", "--reply-src", address]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines()]


def _answering(address: str) -> int:
    return len(_protocols(address))


def _connected(talk: list[socket.socket], address: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    talk.append(client)
    client.settimeout(3)
    client.connect((address, port))
    if kind == socket.SOCK_DGRAM:  # a TCP server resets a connection with data that it has not read
        client.send(b"?")
    assert client.recv(100)
    # A delayed acknowledgement (40 ms, tcp(7)) that leaves after ``down`` would make a new entry.
    time.sleep(0.1)
    return client


@pytest.mark.parametrize("published", [True, False], ids=["published", "called by its address"])
def test_an_address_is_given_back_with_no_connection_left_that_leads_to_it(
    place: Place, talk: Any, published: bool
) -> None:
    ports = ["127.0.0.1:5310:80", "127.0.0.1:5310:80/udp", "0.0.0.0:5311:80"] if published else []
    web = place.up("web", publish=ports)
    addresses = [plain(web), plain(web, 6)]
    place.serve(web["netns"], 80, "web", host="::")
    place.serve(web["netns"], 80, "web", proto="udp")
    for address in addresses:
        _connected(talk, address, 80)
    if published:
        _connected(talk, "127.0.0.1", 5310)
        _connected(talk, "127.0.0.1", 5311)
        _connected(talk, "127.0.0.1", 5310, socket.SOCK_DGRAM)
    assert [_answering(address) for address in addresses] == [4 if published else 1, 1]
    place.down("web")
    assert [_answering(address) for address in addresses] == [0, 0]


def test_a_pod_that_goes_cuts_no_other_pods_flow_on_the_same_port(place: Place, talk: Any) -> None:
    web = place.up("web", publish=["127.0.0.2:5312:53/udp", "127.0.0.2:5312:80"])
    other = place.up("other", publish=["127.0.0.3:5312:53/udp", "127.0.0.3:5312:80"])
    for pod in (web, other):
        place.serve(pod["netns"], 53, "word", proto="udp")
        place.serve(pod["netns"], 80, "word")
    _connected(talk, "127.0.0.3", 5312)
    flow = _connected(talk, "127.0.0.3", 5312, socket.SOCK_DGRAM)
    before = _answering(plain(other))
    _connected(talk, "127.0.0.2", 5312, socket.SOCK_DGRAM)
    place.down("web")
    assert _answering(plain(other)) == before == 2
    flow.send(b"?")
    assert flow.recv(100).startswith(b"word")
    # Nor does one that comes.
    place.up("third", publish=["127.0.0.4:5312:53/udp"])
    assert _answering(plain(other)) == before


def test_kernels_that_cannot_filter_get_every_entry_looked_at(
    place: Place, talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "_FILTER", 99)  # an attribute that this kernel knows as little as an old one that
    web, other = place.up("web"), place.up("other")
    for pod in (web, other):
        place.serve(pod["netns"], 80, "web")
        _connected(talk, plain(pod), 80)
    place.down("web")
    assert (_answering(plain(web)), _answering(plain(other))) == (0, 1)


def test_a_connection_that_was_answered_stays_while_it_is_open(place: Place, talk: Any) -> None:
    web = place.up("web", publish=["127.0.0.1:5313:80", "127.0.0.1:5314:81/udp"])
    place.serve(web["netns"], 80, "web")
    place.serve(web["netns"], 81, "web", proto="udp")
    _connected(talk, "127.0.0.1", 5313)
    _connected(talk, "127.0.0.1", 5314, socket.SOCK_DGRAM)
    conntrack.forget_all_but_open([plain(web)])
    assert _protocols(plain(web)) == ["tcp"]


def test_who_has_no_answer_yet_gets_to_whoever_the_port_leads_to_next(place: Place, talk: Any) -> None:
    web = place.up("web", publish=["127.0.0.1:5316:80"])
    rules = "table inet silent { chain in { type filter hook input priority 0; policy drop; }; }"
    subprocess.run([*inside(web["netns"]), "nft", "-f", "-"], input=rules, text=True, check=True)
    client = socket.socket()
    talk.append(client)
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", 5316))
    assert _answering(plain(web)) == 1
    conntrack.forget_all_but_open([plain(web)])
    assert _answering(plain(web)) == 0


_RESETS = """
import socket, struct
server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True:
    client, _ = server.accept()
    client.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
"""


@pytest.mark.parametrize("filters", [True, False], ids=["the kernel filters", "it cannot"])
def test_a_port_whose_connection_the_pod_has_reset_is_free_for_whoever_comes_next(
    place: Place, talk: Any, monkeypatch: pytest.MonkeyPatch, filters: bool
) -> None:
    if not filters:
        monkeypatch.setattr(conntrack, "_FILTER", 99)
    web = place.up("web", publish=["127.0.0.1:5317:80"])
    server = subprocess.Popen([*inside(web["netns"]), sys.executable, "-c", _RESETS], stdout=subprocess.PIPE, text=True)
    place.servers.append(server)
    assert server.stdout
    assert server.stdout.readline() == "listening\n"
    addresses = [plain(web), plain(web, 6)]
    for address, port in [(plain(web), 80), ("127.0.0.1", 5317), (plain(web, 6), 80)]:
        client = socket.create_connection((address, port), 3)
        talk.append(client)
        client.send(b"?")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    # The server is busy with one that stays open.
    talk.append(socket.create_connection((plain(web), 80), 3))
    assert [_answering(address) for address in addresses] == [3, 1]
    conntrack.forget_all_but_open(addresses)
    assert [_answering(address) for address in addresses] == [1, 0]


def test_an_ipv6_address_is_given_back_clean_whatever_rules_others_have(place: Place, talk: Any) -> None:
    web = place.up("web")
    place.serve(web["netns"], 80, "web", host="::")
    # Of the same priority as podrun's chain, and made later: the kernel asks it first, and then no other one.
    chain = "chain c { type nat hook postrouting priority 100; ip6 daddr fd00::/8 masquerade; }"
    subprocess.run(["nft", "-f", "-"], input=f"table ip6 t_foreign {{ {chain}; }}", text=True, check=True)
    try:
        _connected(talk, plain(web, 6), 80)
    finally:
        subprocess.run(["nft", "delete", "table", "ip6", "t_foreign"], check=True)
    assert _answering(plain(web, 6)) == 1
    place.down("web")
    assert _answering(plain(web, 6)) == 0


_KEEPS = """
import socket
server = socket.create_server(("::", 5318), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
print("listening", flush=True)
kept = []
while True:
    kept.append(server.accept())
"""
#: Opens connections until three in a row are not answered, tells how many there are, and keeps them.
_OPENS = """
import socket, struct, sys, time
kept, missed = [], 0
while len(kept) < int(sys.argv[2]) and missed < 3:
    try:
        kept.append(socket.create_connection((sys.argv[1], 5318), 0.3))
        kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        missed = 0
    except TimeoutError:
        missed += 1
print(len(kept), flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("version", [4, 6])
def test_one_pod_cannot_fill_the_hosts_table_of_connections(
    place: Place, talk: Any, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    monkeypatch.setattr(ruleset, "_SAMPLE", 1)
    monkeypatch.setattr(ruleset, "_most", lambda: 20)
    web, other = place.up("web"), place.up("other")
    keeping = subprocess.Popen([sys.executable, "-c", _KEEPS], stdout=subprocess.PIPE, text=True)
    place.servers.append(keeping)
    assert keeping.stdout
    assert keeping.stdout.readline() == "listening\n"
    argv = ["ip", "-j", f"-{version}", "route", "show", "default"]
    routes = json.loads(subprocess.run([*inside(web["netns"]), *argv], capture_output=True, check=True).stdout)

    def opened(facts: dict[str, Any], number: int) -> int:
        words = [sys.executable, "-c", _OPENS, routes[0]["gateway"], str(number)]
        opening = subprocess.Popen([*inside(facts["netns"]), *words], stdout=subprocess.PIPE, text=True)
        place.servers.append(opening)
        assert opening.stdout
        return int(opening.stdout.readline())

    assert opened(web, 40) == 20
    assert opened(other, 5) == 5
    # What it gives up counts no more.
    place.servers[1].kill()
    until(lambda: opened(web, 5) == 5)


def test_elements_are_replaced_all_or_none(place: Place) -> None:
    web = place.up("web", publish=["127.0.0.1:5315:80"])
    table, own = place.table(), nfnetlink.socket()
    before = spec.element_of(spec.parse("127.0.0.1:5315:80"), plain(web), place.started["web"].pod.tag)
    after = before._replace(value=spec.element_of(spec.parse("127.0.0.1:5315:81"), plain(web), "").value)
    assert nfnetlink.find(own, table, before.map, before.key) == before
    with pytest.raises(FileNotFoundError):
        nfnetlink.replace(own, table, [before, Element("any4", after.key[:8], b"")], [after])
    assert nfnetlink.find(own, table, before.map, before.key) == before
    nfnetlink.replace(own, table, [before], [after])
    assert nfnetlink.find(own, table, before.map, before.key) == after
    nfnetlink.replace(own, table, [after], [before])
