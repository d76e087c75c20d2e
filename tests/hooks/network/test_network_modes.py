"""Namespaces of others, links of the host, several interfaces, and what a pod file may ask of an interface."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks import network
from podrun_hooks.network import options
from podrun_hooks.network.netlink import rtnetlink
from support.network_case import call, inside, plain, run, seen, settled

pytestmark = pytest.mark.root


@pytest.fixture
def foreign() -> Iterator[Any]:
    """A namespace that is not podrun's, with an address."""
    name = "t-net-foreign"
    run("ip", "netns", "add", name)
    try:
        run(*inside(name), "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        run(*inside(name), "ip", "address", "add", "203.0.113.7/24", "dev", "v0")
        for link in ("lo", "v0", "v1"):
            run(*inside(name), "ip", "link", "set", link, "up")
        yield f"/run/netns/{name}"
    finally:
        run("ip", "netns", "delete", name)


@pytest.fixture
def wire() -> Iterator[Any]:
    """A link of the host's for macvlan, and another machine on its other end."""
    run("ip", "netns", "add", "t-net-lan")
    run("ip", "link", "add", "t-net-parent", "type", "veth", "peer", "name", "lan", "netns", "t-net-lan")
    try:
        run("ip", "link", "set", "t-net-parent", "up")
        for words in (["address", "add", "198.51.100.1/24", "dev", "lan"], ["link", "set", "lan", "up"]):
            run(*inside("t-net-lan"), "ip", *words)
        run(*inside("t-net-lan"), "ip", "address", "add", "2001:db8:1::1/64", "dev", "lan", "nodad")
        yield "t-net-parent", "t-net-lan"
    finally:
        run("ip", "netns", "delete", "t-net-lan")
        run("ip", "link", "delete", "t-net-parent", check=False)


def links(netns: str) -> dict[str, dict]:
    return {row["ifname"]: row for row in json.loads(run(*inside(netns), "ip", "-d", "-json", "address"))}


# --- somebody else's namespace -------------------------------------------------------------------------------------


def test_a_pod_joins_a_namespace_by_its_path_and_tells_its_addresses(place: Any, foreign: Any) -> None:
    before = seen(place)
    facts = place.up("web", mode=f"netns:{foreign}")
    assert facts["netns"] == f"/run/netns/{place.started['web'].pod.tag}"
    assert os.stat(facts["netns"]).st_ino == os.stat(foreign).st_ino
    assert facts["addresses"] == ["203.0.113.7/24"]
    place.down("web")
    assert not settled(place, before)
    assert "203.0.113.7" in run(*inside(foreign), "ip", "address"), "the namespace is not ours to change"


def test_what_becomes_of_the_path_afterwards_does_not_matter(place: Any, foreign: Any) -> None:
    facts = place.up("web", mode=f"netns:{foreign}")
    run("ip", "netns", "delete", "t-net-foreign")
    try:
        assert "203.0.113.7" in run(*inside(facts["netns"]), "ip", "address")
    finally:
        run("ip", "netns", "add", "t-net-foreign")


@pytest.mark.parametrize("kind", ["nothing", "file", "fifo", "another namespace", "the host's"])
def test_what_is_no_other_network_namespace_is_refused_at_once(place: Any, tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "x")
    if kind == "file":
        open(path, "w").close()
    if kind == "fifo":
        os.mkfifo(path)
    path = {"another namespace": "/proc/self/ns/mnt", "the host's": "/proc/1/ns/net"}.get(kind, path)
    (problem,) = place.check("web", mode=f"netns:{path}")
    assert (problem.code, problem.fatal) == (WRONG_FILE, True)
    with pytest.raises(Failure) as refused:
        place.up("web", mode=f"netns:{path}")
    assert refused.value.code == WRONG_FILE


def test_a_pod_joins_another_ones_namespace_with_its_name_and_addresses(place: Any) -> None:
    web = place.up("web", hostname="www.example")
    before = seen(place)
    facts = place.up("helper", mode="pod:web")
    assert os.stat(facts["netns"]).st_ino == os.stat(web["netns"]).st_ino
    assert (facts["addresses"], facts["hostname"]) == (web["addresses"], "www.example")
    place.serve(web["netns"], 80, "web", host="127.0.0.1")
    assert call(facts["netns"], "127.0.0.1", 80) == "web to 127.0.0.1"
    place.down("helper")
    assert not settled(place, before)
    assert call(web["netns"], "127.0.0.1", 80) == "web to 127.0.0.1"


def test_a_pod_that_is_not_up_cannot_be_joined(place: Any) -> None:
    with pytest.raises(Failure, match="pod web is not up") as refused:
        place.up("helper", mode="pod:web")
    assert refused.value.code == UNAVAILABLE


# --- links of the host ---------------------------------------------------------------------------------------------


def test_a_macvlan_pod_is_on_the_hosts_wire(place: Any, wire: Any) -> None:
    parent, lan = wire
    before = seen(place)
    facts = place.up(
        "web",
        mode=f"macvlan:{parent}",
        address="198.51.100.7/24",
        address6="2001:db8:1::7/64",
        gateway=["198.51.100.1"],
        mac="02:00:5e:00:00:07",
        mtu=1400,
    )
    assert facts["addresses"] == ["198.51.100.7/24", "2001:db8:1::7/64"]
    link = links(facts["netns"])["eth0"]
    assert (link["address"], link["mtu"], link["linkinfo"]["info_kind"]) == ("02:00:5e:00:00:07", 1400, "macvlan")
    place.serve(facts["netns"], 80, "web")
    place.serve(facts["netns"], 80, "web6", host="2001:db8:1::7")
    assert call(lan, "198.51.100.7", 80) == "web to 198.51.100.1"
    assert call(lan, "2001:db8:1::7", 80) == "web6 to 2001:db8:1::1"
    assert "default via 198.51.100.1" in run(*inside(facts["netns"]), "ip", "route")
    place.silence()
    place.down("web")
    assert not settled(place, before)


def test_a_macvlan_that_could_not_be_moved_into_the_pod_is_removed(
    place: Any, wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtnetlink, "move", lambda name, _: rtnetlink.rename(1 << 30, name))
    with pytest.raises((Failure, OSError)):
        place.up("web", mode=f"macvlan:{wire[0]}")
    found = "ip", "-json", "link", "show", "type", "macvlan"
    assert wire[0] in run(*found)
    place.down("web")
    assert wire[0] not in run(*found)


@pytest.mark.parametrize(
    ("table", "code", "words"),
    [
        ({"mode": "macvlan:t-net-none"}, UNAVAILABLE, "no link t-net-none"),
        ({"mode": "macvlan:lo", "address": "198.51.100.7"}, WRONG_FILE, "prefix length"),
        ({"mode": "macvlan:lo", "publish": ["1:1"]}, WRONG_FILE, "not for mode macvlan"),
        ({"mode": "netns:/x", "mtu": 1400}, WRONG_FILE, "not for mode netns"),
        ({"mode": "pod:web"}, WRONG_FILE, "cannot join itself"),
    ],
)
def test_what_a_mode_lacks_is_told_before_anything_is_made(place: Any, table: Any, code: Any, words: str) -> None:
    problems = place.check("web", **table)
    assert [problem.code for problem in problems] == [code]
    assert words in problems[0].what


# --- several steps -------------------------------------------------------------------------------------------------


def test_further_steps_add_interfaces(place: Any, wire: Any) -> None:
    parent, lan = wire
    place.further("other", place.up("other"), bridge="t-net-second")
    before = seen(place)
    facts = place.up("web")
    second = place.further("web", facts, bridge="t-net-second", publish=["45120:80"])
    third = place.further("web", facts, "network-3", mode=f"macvlan:{parent}", address="198.51.100.7/24")
    found = links(facts["netns"])
    assert {"lo", "eth0", "eth1", "eth2"} <= set(found)
    assert second["addresses"][0].partition("/")[0] in {one["local"] for one in found["eth1"]["addr_info"]}
    assert third == {"addresses": ["198.51.100.7/24"]}
    assert run(*inside(facts["netns"]), "ip", "route").count("default") == 1, "the first step's"
    place.serve(facts["netns"], 80, "web")
    assert call("", "127.0.0.1", 45120).startswith("web to ")
    assert call(lan, "198.51.100.7", 80) == "web to 198.51.100.1"
    network.down(place.started.pop("web network-3"), {})
    network.down(place.started.pop("web network-2"), {})
    assert set(links(facts["netns"])) & {"eth0", "eth1", "eth2"} == {"eth0"}, "the others go at once"
    place.silence()
    place.down("web")
    assert not settled(place, before)


def test_an_interface_is_added_to_a_namespace_of_others_and_taken_away_again(place: Any, foreign: Any) -> None:
    facts = place.up("web", mode=f"netns:{foreign}")
    place.further("web", facts, interface="extra0")
    assert "extra0" in links(foreign)
    place.down("web")
    assert "extra0" not in links(foreign)


def test_an_interfaces_name_that_is_taken_is_refused(place: Any) -> None:
    facts = place.up("web")
    with pytest.raises(Failure, match="has an interface eth0 already") as refused:
        place.further("web", facts, interface="eth0", bridge="t-net-second")
    assert refused.value.code == BUSY


# --- what an interface is like ------------------------------------------------------------------------------------


def test_mac_mtu_routes_sysctls_and_the_interfaces_name_are_as_asked(place: Any) -> None:
    facts = place.up(
        "web",
        subnet="198.51.100.0/24",
        mac="02:00:5e:00:00:09",
        mtu=1400,
        interface="net0",
        routes=["203.0.113.0/24 via 198.51.100.1", "192.0.2.0/24"],
        sysctls={"net.core.somaxconn": "77", "net.ipv4.conf.net0.rp_filter": "1"},
        search=["pods.example"],
    )
    link = links(facts["netns"])["net0"]
    assert (link["address"], link["mtu"]) == ("02:00:5e:00:00:09", 1400)
    routes = run(*inside(facts["netns"]), "ip", "route")
    assert "203.0.113.0/24 via 198.51.100.1 dev net0" in routes
    assert "192.0.2.0/24 dev net0 scope link" in routes
    values = run(*inside(facts["netns"]), "sysctl", "-n", "net.core.somaxconn", "net.ipv4.conf.net0.rp_filter")
    assert values.split() == ["77", "1"]
    resolv = next(m["hostPath"] for m in facts["mounts"] if m["containerPath"] == "/etc/resolv.conf")
    assert "search pods.example\n" in open(resolv).read()
    host = json.loads(run("ip", "-json", "link", "show", "master", place.bridge()))
    assert host[0]["mtu"] == 1400


def test_a_sysctl_that_the_kernel_refuses_is_named(place: Any) -> None:
    with pytest.raises(Failure, match=r"net\.ipv4\.nothing") as refused:
        place.up("web", sysctls={"net.ipv4.nothing": "1"})
    assert refused.value.code == WRONG_FILE


def test_networks_toml_says_what_a_bridge_is_like(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "networks.toml"
    file.write_text('[networks.t-net-lan0]\nsubnet = "203.0.113.0/24"\nmtu = 1420\nsearch = ["lan.example"]\n')
    monkeypatch.setattr(options, "NETWORKS", str(file))
    facts = place.up("web", bridge="t-net-lan0", address="203.0.113.9")
    assert facts["addresses"][0] == "203.0.113.9/24"
    assert links(facts["netns"])["eth0"]["mtu"] == 1420
    (problem,) = place.check("two", bridge="t-net-lan0", address="192.0.2.1")
    assert "cannot be a pod's in 203.0.113.0/24" in problem.what
    assert links(place.up("two", bridge="t-net-lan0", mtu=1300)["netns"])["eth0"]["mtu"] == 1300, "the pod's own word"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[network.x]\n", "did you mean 'networks'"),
        ('[networks.x]\nsubnett = "10.1.0.0/16"\n', "did you mean 'subnet'"),
        ('[networks.x]\nsubnet = "10.1.2.3/16"\n', "bits set behind its prefix"),
        ("[networks.x\n", "networks.toml: "),
    ],
)
def test_what_is_wrong_in_networks_toml_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    file = tmp_path / "networks.toml"
    file.write_text(text)
    monkeypatch.setattr(options, "NETWORKS", str(file))
    with pytest.raises(Failure) as refused:
        options.networks()
    assert refused.value.code == WRONG_FILE
    assert words in str(refused.value)


# --- names ---------------------------------------------------------------------------------------------------------


def hosts(facts: dict) -> str:
    return next(mount["hostPath"] for mount in facts["mounts"] if mount["containerPath"] == "/etc/hosts")


def resolved(facts: dict, name: str) -> list[str]:
    """What the C library of a process in the pod makes of a name: the generated file in the place of its own."""
    script = 'mount --bind "$1" /etc/hosts && getent ahosts "$2" | cut -d" " -f1 | sort -u'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "-", hosts(facts), name], capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def test_a_pod_knows_the_pods_that_come_after_it_and_forgets_those_that_go(place: Any) -> None:
    first = place.up("web")
    assert resolved(first, "db") == []
    second = place.up("db", hostname="db.example")
    assert len(second["addresses"]) == 2
    assert resolved(first, "db") == [plain(second)]
    assert resolved(first, "db.example") == [plain(second)]
    assert resolved(second, "web") == [plain(first)]
    assert resolved(first, "localhost")
    place.down("db")
    assert resolved(first, "db") == []


def test_a_network_may_have_no_ipv6_or_give_it_to_names(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = place.home / "networks.toml"
    settings.write_text("[networks.t-net-four]\nipv6 = false\n[networks.t-net-both]\nnames6 = true\n")
    settings.chmod(0o644)
    monkeypatch.setattr(options, "NETWORKS", str(settings))
    monkeypatch.setattr(options.trusted, "text", lambda path, place: Path(path).read_text())
    for name, table in {
        "network": {"bridge": "t-net-four"},
        "pod": {"ipv6": False, "publish": ["45011:80"]},
        "lone": {"mode": "none", "ipv6": False},
        "routed": {"bridge": "t-net-four", "hosts": {"x": "192.0.2.1"}},
    }.items():
        facts = place.up(name, **table)
        assert [address for address in facts["addresses"] if ":" in address] == [], name
        assert run(*inside(facts["netns"]), "ip", "-6", "-brief", "address") == "", name
    both, other = (place.up(name, bridge="t-net-both") for name in ("both", "other"))
    assert resolved(other, "both") == sorted(cidr.partition("/")[0] for cidr in both["addresses"])
    assert len(resolved(other, "both")) == 2


@pytest.mark.parametrize("table", [{"mode": "host"}, {"address6": "fd99::1/64", "mode": "macvlan:lo"}])
def test_ipv6_false_is_refused_where_it_cannot_be(place: Any, table: Any) -> None:
    assert [problem.key for problem in place.check("web", ipv6=False, **table)] == ["ipv6"]


def test_a_name_takes_the_place_of_one_that_has_gone(place: Any) -> None:
    facts = place.up("web")
    for n in range(5):
        place.up(f"p{n}")
    size = os.stat(hosts(facts)).st_size
    for _ in range(3):
        for n in range(5):
            place.down(f"p{n}")
        for n in range(5):
            place.up(f"p{n}")
    assert os.stat(hosts(facts)).st_size == size
    assert resolved(facts, "p4") != []


def test_a_pod_with_hosts_of_its_own_sees_the_pods_that_were_there_before_it(place: Any) -> None:
    web = place.up("web")
    facts = place.up("db", hosts={"mail": "192.0.2.25"})
    assert resolved(facts, "mail") == ["192.0.2.25"]
    assert plain(web) in resolved(facts, "web")
    assert plain(facts) in resolved(web, "db")


def test_the_names_of_another_bridge_are_not_known(place: Any) -> None:
    web = place.up("web")
    place.up("db", bridge="t-net-second")
    assert resolved(web, "db") == []
