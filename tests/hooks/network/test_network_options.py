"""The network step's table: what it accepts, and what it says to what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podrun.errors import WRONG_FILE
from podrun.hook import Pod, Step
from podrun.options import Wrong, read
from podrun_hooks import network
from podrun_hooks.network import files, lease
from podrun_hooks.network.publish.spec import Publish, parse


def step(**table: object) -> Step:
    pod = Pod("web", "/nonexistent", "/nonexistent", "podrun-web")
    return Step(pod, "network", "network", read(network.Options, table))


def test_a_step_without_options_is_a_bridge_that_publishes_nothing() -> None:
    options = step().options
    assert (options.mode, options.publish, options.bridge) == ("bridge", [], "")


@pytest.mark.parametrize(
    ("text", "publish"),
    [
        ("8080:80", Publish("127.0.0.1", 8080, 80)),
        ("8080:80/tcp", Publish("127.0.0.1", 8080, 80)),
        ("53:53/udp", Publish("127.0.0.1", 53, 53, "udp")),
        ("0.0.0.0:8080:80", Publish("0.0.0.0", 8080, 80)),
        ("192.0.2.7:1:65535", Publish("192.0.2.7", 1, 65535)),
        ("8000-8009:80-89", Publish("127.0.0.1", 8000, 80, "tcp", 10)),
        ("0.0.0.0:9:9/sctp", Publish("0.0.0.0", 9, 9, "sctp")),
        ("[::]:8080:80", Publish("::", 8080, 80)),
        ("[2001:DB8:0::7]:8080:80", Publish("2001:db8::7", 8080, 80)),
    ],
)
def test_a_published_port_is_read_in_dockers_spelling(text: str, publish: Any) -> None:
    assert parse(text) == publish


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("80", "hostport:containerport"),
        ("8080:", "hostport:containerport"),
        (":80", "hostport:containerport"),
        ("0:80", "1 to 65535"),
        ("8080:65536", "1 to 65535"),
        ("-1:80", "1 to 65535"),
        ("٣:80", "1 to 65535"),
        ("a:80", "1 to 65535"),
        ("8080:80/dccp", "tcp, udp or sctp"),
        ("8080:80/", "tcp, udp or sctp"),
        ("8080-8081:80", "2 ports of the host cannot lead to 1"),
        ("8081-8080:80-81", "ends before it begins"),
        ("8080-:80-81", "1 to 65535"),
        ("65535-65536:1-2", "1 to 65535"),
        ("localhost:8080:80", "not an IP address"),
        ("1.2.3:8080:80", "not an IP address"),
        ("::1:8080:80", "brackets"),
        ("[::1]:8080:80", "no way to redirect"),
    ],
)
def test_a_port_that_cannot_be_published_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(Wrong, match=words) as refused:
        read(network.Options, {"publish": ["1:1", text]})
    assert refused.value.where == ("publish", 1)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"mode": "brigde"}, "did you mean 'bridge'"),
        ({"mode": "netns:"}, "expected a path after netns:"),
        ({"mode": "netns:x"}, "absolute path"),
        ({"mode": "macvlan:a/b"}, "15 letters"),
        ({"mode": "macvlan"}, "expected a link of the host"),
        ({"mode": "pod:../x"}, "expected a pod's name"),
        ({"mode": "cni:../x"}, "expected a network's name"),
        ({"mac": "02:00:00:00:00"}, "MAC address"),
        ({"mac": "01:00:00:00:00:01"}, "cannot be the address of one interface"),
        ({"mtu": 1279}, "1280 to 65535"),
        ({"routes": ["10.9.0.0 via 10.1.0.1"]}, "not a subnet"),
        ({"routes": ["10.9.0.0/16 10.1.0.1"]}, "expected a route"),
        ({"routes": ["10.9.0.0/16 via fd00::1"]}, "mixes IPv4 and IPv6"),
        ({"sysctls": {"kernel.pid_max": "1"}}, "they begin with net."),
        ({"sysctls": {"net.ipv4/../../x": "1"}}, "they begin with net."),
        ({"search": ["a b"]}, "expected a domain"),
        ({"address6": "10.1.0.1"}, "expected an IPv6 address"),
        ({"interface": "a b"}, "15 letters"),
        ({"subnet": "10.1.2.3/16"}, "10.1.0.0/16?"),
        ({"subnet": "10.1.0.0"}, "not a subnet"),
        ({"subnet": "10.1.0.0/30"}, "8 to 29 bits"),
        ({"subnet": "fd00::/64"}, "expected an IPv4 subnet"),
        ({"subnet6": "10.1.0.0/16"}, "expected an IPv6 subnet"),
        ({"address": "10.1.2"}, "not an IP address"),
        ({"dns": ["one.one.one.one"]}, "not an IP address"),
        ({"hosts": {"db": "here"}}, "not an IP address"),
        ({"hostname": "a_b"}, "host name"),
        ({"hostname": "-a"}, "host name"),
        ({"hostname": "a" * 65}, "host name"),
        ({"bridge": "sixteen-letters-"}, "15 letters"),
        ({"bridge": 'a"b'}, "15 letters"),
        ({"bridges": "x"}, "did you mean 'bridge'"),
    ],
)
def test_a_wrong_option_is_refused_with_the_reason(table: Any, words: str) -> None:
    with pytest.raises(Wrong) as refused:
        read(network.Options, table)
    assert words in refused.value.what


@pytest.mark.parametrize("mode", ["host", "none"])
@pytest.mark.parametrize("more", [{"publish": ["1:1"]}, {"address": "10.1.0.2"}, {"subnet": "10.1.0.0/16"}])
def test_options_of_a_bridge_need_one(mode: str, more: Any) -> None:
    problems = network.check(step(mode=mode, **more))
    assert [problem.code for problem in problems] == [WRONG_FILE]
    assert problems[0].what == f"{next(iter(more))} is not for mode {mode}"


@pytest.mark.parametrize("address", ["10.1.0.0", "10.1.0.1", "10.1.255.255", "10.2.0.7"])
def test_an_address_has_to_be_one_that_a_pod_of_the_subnet_can_have(address: str) -> None:
    problems = network.check(step(subnet="10.1.0.0/16", address=address))
    assert [problem.code for problem in problems] == [WRONG_FILE]


@pytest.mark.parametrize(
    ("cidr", "hosts", "second", "last"),
    [
        ("10.1.0.0/16", 65533, "10.1.0.2", "10.1.255.254"),
        ("192.0.2.8/29", 5, "192.0.2.10", "192.0.2.14"),
        ("fd88::/120", 253, "fd88::2", "fd88::fe"),
    ],
)
def test_a_subnet_counts_its_hosts(cidr: str, hosts: int, second: str, last: str) -> None:
    pool = lease.subnet(cidr)
    assert (str(pool), pool.hosts) == (cidr, hosts)
    assert pool.host(2) == second
    assert pool.host(pool.size - 2) == last
    assert pool.offset(last) == pool.size - 2


@pytest.mark.parametrize(
    ("host", "upstream", "dns", "expected"),
    [
        ("search a\nnameserver 192.0.2.1\n", "", [], "search a\nnameserver 192.0.2.1\n"),
        ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.1\n", [], "nameserver 192.0.2.1\n"),
        ("nameserver ::1\nnameserver 192.0.2.1\n", "nameserver 192.0.2.2\n", [], "nameserver 192.0.2.1\n"),
        ("search a\nnameserver 127.0.0.1\n", "", [], "search a\n"),
        ("nameserver\t0.0.0.0\nnameserver\t192.0.2.1\n", "", [], "nameserver\t192.0.2.1\n"),
        ("nameserver FE80::1%eth0\n", "nameserver fe80::2%eth0\nnameserver 192.0.2.2\n", [], "nameserver 192.0.2.2\n"),
        ("search a\nnameserver 192.0.2.1\n", "", ["192.0.2.9"], "search a\nnameserver 192.0.2.9\n"),
        ("", "", [], ""),
    ],
)
def test_name_servers_that_only_the_host_reaches_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, upstream: str, dns: Any, expected: str
) -> None:
    (tmp_path / "host").write_text(host)
    (tmp_path / "upstream").write_text(upstream)
    monkeypatch.setattr(files, "_RESOLV", str(tmp_path / "host"))
    monkeypatch.setattr(files, "UPSTREAM", str(tmp_path / "upstream"))
    assert files.resolv(dns, reachable_loopback=False) == expected


def test_search_domains_replace_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "host").write_text("domain\told\nsearch\ta b\nnameserver 192.0.2.1\n")
    monkeypatch.setattr(files, "_RESOLV", str(tmp_path / "host"))
    expected = "nameserver 192.0.2.1\nsearch x.example y.example\n"
    assert files.resolv([], ["x.example", "y.example"], reachable_loopback=True) == expected


def test_a_pod_in_the_hosts_network_keeps_the_hosts_name_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "host").write_text("nameserver 127.0.0.53\n")
    monkeypatch.setattr(files, "_RESOLV", str(tmp_path / "host"))
    assert files.resolv([], reachable_loopback=True) == "nameserver 127.0.0.53\n"


def test_etc_hosts_names_the_pod_with_its_ipv4_addresses_where_there_are_some() -> None:
    text = files.hosts("web.example", ["10.1.0.2", "fd88::2"], {"db": "192.0.2.7"})
    lines = [line.split() for line in text.splitlines()]
    assert ["10.1.0.2", "web.example", "web"] in lines
    assert not [line for line in lines if line[0] == "fd88::2"]
    assert "fd88::2\tweb\n" in files.hosts("web", ["fd88::2"], {})
    assert ["192.0.2.7", "db"] in lines
    assert ["127.0.0.1", "localhost"] in lines


def test_a_bridge_whose_file_of_names_is_gone_gets_another(tmp_path: Path) -> None:
    from podrun_hooks.network import names

    names.add(str(tmp_path), ["10.0.0.2"], ["web"], "podrun-web/network")
    assert [name.names for name in names.known(str(tmp_path))] == [["web"]]
