"""The small encoder: pyroute2 reads from the kernel what it made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute, NetNS, netns

from podrun_hooks.network.child import Child
from podrun_hooks.network.netlink import rtnetlink

MAC = b"\x02P\x0a\xfa\x00\x02"


@pytest.fixture
def space() -> Iterator[Any]:
    """A namespace, with what runs in it: ``space(work)`` calls ``work(socket)`` inside."""
    name = "t-net-encoder"
    netns.create(name)

    def within(work: Any) -> Any:
        def enter() -> str:
            netns.setns(name)
            with rtnetlink.Socket() as socket:
                return str(work(socket) or "")

        return Child(enter).join()

    within.name = name
    try:
        yield within
    finally:
        netns.remove(name)


def links(name: str) -> dict:
    with NetNS(name) as reader:
        return {link.get_attr("IFLA_IFNAME"): link for link in reader.get_links()}


@pytest.mark.root
def test_a_bridge_has_the_given_name_and_hardware_address(space: Any) -> None:
    space(lambda socket: socket.send(rtnetlink.bridge("br", MAC)))
    link = links(space.name)["br"]
    assert link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_KIND") == "bridge"
    assert link.get_attr("IFLA_ADDRESS") == "02:50:0a:fa:00:02"


@pytest.mark.root
def test_a_change_sets_a_link_up_and_gives_it_alias_master_and_no_link_local_address(space: Any) -> None:
    def work(socket: Any) -> None:
        socket.send(rtnetlink.bridge("br", MAC))
        bridge = socket.link("br").ifindex
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        socket.send(
            rtnetlink.veth("out", "in", here, MAC),
            rtnetlink.change("out", up=True, alias="podrun-wéb", master=bridge, no_link_local=True),
        )

    space(work)
    found = links(space.name)
    out = found["out"]
    assert out["flags"] & 1
    assert out.get_attr("IFLA_IFALIAS") == "podrun-wéb"
    assert out.get_attr("IFLA_MASTER") == found["br"]["index"]
    inet6 = out.get_attr("IFLA_AF_SPEC").get_attr("AF_INET6")
    assert inet6.get_attr("IFLA_INET6_ADDR_GEN_MODE") == 1
    assert found["in"].get_attr("IFLA_ADDRESS") == "02:50:0a:fa:00:02"
    assert not found["in"]["flags"] & 1


@pytest.mark.root
def test_the_peer_of_a_veth_pair_is_made_in_another_namespace(space: Any) -> None:
    other = "t-net-encoder-peer"
    netns.create(other)
    try:

        def work(socket: Any) -> None:
            fd = os.open(f"/run/netns/{other}", os.O_RDONLY)
            socket.send(rtnetlink.veth("out", "eth0", fd, MAC))

        space(work)
        assert "out" in links(space.name)
        assert "eth0" not in links(space.name)
        assert links(other)["eth0"].get_attr("IFLA_ADDRESS") == "02:50:0a:fa:00:02"
    finally:
        netns.remove(other)


@pytest.mark.root
@pytest.mark.parametrize(("cidr", "family"), [("10.250.0.2/20", 2), ("fd88:1::2/64", 10)])
def test_an_address_is_usable_at_once(space: Any, cidr: str, family: int) -> None:
    def work(socket: Any) -> None:
        socket.send(rtnetlink.bridge("br", MAC), rtnetlink.change("br", up=True))
        socket.send(rtnetlink.address(socket.link("br").ifindex, cidr))

    space(work)
    with NetNS(space.name) as reader:
        found = [one for one in reader.get_addr(family=family) if one["index"] == links(space.name)["br"]["index"]]
    text, _, length = cidr.partition("/")
    mine = next(one for one in found if one.get_attr("IFA_ADDRESS") == text)
    assert mine["prefixlen"] == int(length)
    assert not (mine.get_attr("IFA_FLAGS") or 0) & 0x40, "IFA_F_TENTATIVE"


@pytest.mark.root
@pytest.mark.parametrize(("cidr", "gateway"), [("10.250.0.2/20", "10.250.0.1"), ("fd88:1::2/64", "fd88:1::1")])
def test_a_default_route_leads_to_the_gateway(space: Any, cidr: str, gateway: str) -> None:
    def work(socket: Any) -> None:
        socket.send(rtnetlink.bridge("br", MAC), rtnetlink.change("br", up=True))
        index = socket.link("br").ifindex
        socket.send(rtnetlink.address(index, cidr), rtnetlink.default_route(index, gateway))

    space(work)
    with NetNS(space.name) as reader:
        routes = reader.get_default_routes(family=10 if ":" in gateway else 2)
        assert [route.get_attr("RTA_GATEWAY") for route in routes] == [gateway]
        assert routes[0].get_attr("RTA_OIF") == links(space.name)["br"]["index"]


@pytest.mark.root
def test_a_hairpin_port_sends_back_what_came_in_by_it(space: Any) -> None:
    def work(socket: Any) -> None:
        socket.send(rtnetlink.bridge("br", MAC))
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        socket.send(
            rtnetlink.veth("out", "in", here, MAC),
            rtnetlink.change("out", master=socket.link("br").ifindex),
            rtnetlink.hairpin("out"),
        )

    space(work)
    port = links(space.name)["out"].get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_SLAVE_DATA")
    assert port.get_attr("IFLA_BRPORT_MODE") == 1


@pytest.mark.root
def test_a_silenced_port_neither_forwards_nor_learns(space: Any) -> None:
    def work(socket: Any) -> None:
        socket.send(rtnetlink.bridge("br", MAC), rtnetlink.change("br", up=True))
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        socket.send(
            rtnetlink.veth("out", "in", here, MAC),
            rtnetlink.change("out", up=True, master=socket.link("br").ifindex),
            rtnetlink.change("in", up=True),
        )
        socket.send(rtnetlink.silence(socket.link("out").ifindex))

    space(work)
    port = links(space.name)["out"].get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_SLAVE_DATA")
    assert port.get_attr("IFLA_BRPORT_STATE") == 0


@pytest.mark.root
def test_a_removed_link_is_gone(space: Any) -> None:
    space(lambda socket: socket.send(rtnetlink.bridge("br", MAC)))
    space(lambda socket: socket.send(rtnetlink.remove("br")))
    assert "br" not in links(space.name)


@pytest.mark.root
def test_a_refused_message_is_named_and_those_before_it_are_done(space: Any) -> None:
    def work(socket: Any) -> Any:
        try:
            socket.send(
                rtnetlink.bridge("first", MAC), rtnetlink.change("absent", up=True), rtnetlink.bridge("last", MAC)
            )
        except OSError as error:
            return f"{error.errno} {error.filename}"

    assert space(work) == "19 set up absent"
    assert {"first", "last"} <= set(links(space.name))


@pytest.mark.root
def test_a_tolerated_error_is_none(space: Any) -> None:
    space(lambda socket: socket.send(rtnetlink.bridge("br", MAC)))
    space(lambda socket: socket.send(rtnetlink.bridge("br", MAC, tolerated=(17,))))


@pytest.mark.root
def test_a_refusal_carries_the_kernels_own_words(space: Any) -> None:
    def work(socket: Any) -> Any:
        try:
            socket.send(rtnetlink.default_route(1, "10.250.0.1"))
        except OSError as error:
            return error.strerror

    assert "(" in space(work)


@pytest.mark.root
def test_links_are_read_as_pyroute2_reads_them() -> None:
    with IPRoute() as reader, rtnetlink.Socket() as socket:
        theirs = {(link["index"], link.get_attr("IFLA_IFNAME")) for link in reader.get_links()}
        assert {("lo", 1)} <= {(link.name, link.ifindex) for link in socket.links()}
        assert {(link.ifindex, link.name) for link in socket.links()} & theirs
        assert socket.link("lo").ifindex == 1
        assert socket.link("t-net-absent") is None


@pytest.mark.parametrize("length", range(9))
def test_attributes_are_padded_and_read_back(length: Any) -> None:
    data = rtnetlink.attribute(3, b"x" * length) + rtnetlink.nested(7, rtnetlink.attribute(1, b"y"))
    assert len(data) % 4 == 0
    pairs = list(rtnetlink.attributes(data))
    assert pairs[0] == (3, b"x" * length)
    assert [kind for kind, _ in pairs] == [3, 7]
    assert list(rtnetlink.attributes(pairs[1][1])) == [(1, b"y")]


def test_garbage_ends_the_reading_of_attributes() -> None:
    assert list(rtnetlink.attributes(b"\1\0\1\0rest")) == []
