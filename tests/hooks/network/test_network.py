"""What the network step makes and removes: namespaces, links, files, and its manners towards what is not podrun's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import NetNS

from podrun.errors import BUSY, CANNOT_CREATE, WRONG_FILE, Failure
from podrun_hooks import network
from podrun_hooks.network import files, host_files, inspect, ledger, namespace
from podrun_hooks.network.netlink import rtnetlink
from podrun_hooks.support import syscalls
from support.network_case import Place, call, inside, plain, run, seen, settled

pytestmark = pytest.mark.root


def test_a_pod_has_loopback_one_address_of_each_family_and_a_way_out(place: Any) -> None:
    facts = place.up("web")
    with NetNS(os.path.basename(facts["netns"])) as reader:
        addresses = {f"{one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}" for one in reader.get_addr()}
        names = {link.get_attr("IFLA_IFNAME"): link["flags"] & 1 for link in reader.get_links()}
        gateways = {route.get_attr("RTA_GATEWAY") for route in reader.get_default_routes()}
    assert {*facts["addresses"], "127.0.0.1/8", "::1/128"} <= addresses
    assert names["lo"]
    assert names["eth0"]
    row = inspect.networks(place.run)[0]
    assert row["subnet"].rpartition(".")[0] + ".1" in gateways
    assert len(gateways) == 2


def test_ip_netns_knows_the_namespace_and_the_link_says_whose_it_is(place: Any) -> None:
    facts = place.up("web")
    tag = place.started["web"].pod.tag
    assert facts["netns"] == f"/run/netns/{tag}"
    assert any(line.split()[0] == tag for line in run("ip", "netns", "list").splitlines())
    links = json.loads(run("ip", "-json", "link", "show", "master", place.bridge()))
    assert [(link["ifalias"], link["operstate"]) for link in links] == [(tag, "UP")]


def test_the_bridge_of_another_run_directory_has_another_name_and_subnet(place: Any) -> None:
    other = Place()
    try:
        one, two = place.up("web"), other.up("web")
        assert place.bridge() != other.bridge()
        assert one["netns"] != two["netns"]
        assert inspect.networks(place.run)[0]["subnet"] != inspect.networks(other.run)[0]["subnet"]
    finally:
        other.close()


def test_a_pod_gets_its_address_again(place: Any) -> None:
    first = place.up("web")["addresses"]
    place.down("web")
    assert place.up("web")["addresses"] == first


def test_a_payload_without_privileges_may_listen_on_port_80_and_nobody_routes_for_it(place: Any) -> None:
    facts = place.up("web")
    values = run(
        *inside(facts["netns"]),
        "cat",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "/proc/sys/net/ipv6/conf/eth0/accept_ra",
    )
    assert values.split() == ["0", "0"]


def test_the_pods_name_is_in_its_files(place: Any) -> None:
    facts = place.up("web@1", hosts={"db": "192.0.2.7"}, dns=["192.0.2.53"])
    mounts = {mount["containerPath"]: mount for mount in facts["mounts"]}
    texts = {path: Path(mount["hostPath"]).read_text() for path, mount in mounts.items()}
    assert facts["hostname"] == "web-1"
    assert texts["/etc/hostname"] == "web-1\n"
    assert f"{plain(facts)}\tweb-1\n" in texts["/etc/hosts"]
    assert "192.0.2.7\tdb\n" in texts["/etc/hosts"]
    assert "nameserver 192.0.2.53\n" in texts["/etc/resolv.conf"]
    assert all({"nosuid", "nodev"} <= set(mount["options"]) for mount in mounts.values())
    assert all(os.stat(mount["hostPath"]).st_mode & 0o777 == 0o644 for mount in mounts.values())


def test_a_pod_without_a_network_has_a_namespace_with_loopback_only(place: Any) -> None:
    facts = place.up("web", mode="none")
    links = json.loads(run(*inside(facts["netns"]), "ip", "-json", "link"))
    assert [link["ifname"] for link in links if "UP" in link["flags"]] == ["lo"]
    assert not [link for link in links if link["ifname"] == "eth0"]
    assert facts["addresses"] == []
    assert inspect.networks(place.run) == []


def test_a_pod_in_the_hosts_network_has_the_hosts_name_and_nothing_of_its_own(place: Any) -> None:
    facts = place.up("web", mode="host")
    assert (facts["netns"], facts["addresses"], facts["hostname"]) == ("host", [], os.uname().nodename)
    assert not os.path.exists(namespace.path_of(place.started["web"].pod.tag))
    text = next(m["hostPath"] for m in facts["mounts"] if m["containerPath"] == "/etc/resolv.conf")
    assert Path(text).read_text() == Path("/etc/resolv.conf").read_text()


def test_what_the_host_changes_later_is_written_in_place(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver, hosts = place.home / "resolv.conf", place.home / "hosts"
    resolver.write_text("search lan\nnameserver 192.0.2.1\nnameserver 127.0.0.53\n")
    hosts.write_text("192.0.2.7\tprinter\n")
    monkeypatch.setattr(files, "_RESOLV", str(resolver))
    monkeypatch.setattr(files, "_HOSTS", str(hosts))
    pods = {
        "hosts": place.up("hosts", mode="host", hosts={"db": "192.0.2.8"}),
        "bridged": place.up("bridged"),
        "own": place.up("own", mode="host", dns=["192.0.2.53"]),
    }
    opened = {
        (pod, mount["containerPath"][5:]): open(mount["hostPath"])
        for pod, facts in pods.items()
        for mount in facts["mounts"]
    }
    try:
        assert host_files.refresh(place.run) == []
        for path, text in ((resolver, "nameserver 198.51.100.1\nnameserver 127.0.0.53\n"), (hosts, "192.0.2.9\tp\n")):
            new = path.with_suffix(".new")
            new.write_text(text)
            new.rename(path)
        assert len(host_files.refresh(place.run)) == 5
        texts = {key: file.read() for key, file in opened.items()}
    finally:
        for file in opened.values():
            file.close()
    assert texts["hosts", "resolv.conf"] == "nameserver 198.51.100.1\nnameserver 127.0.0.53\n"
    assert texts["hosts", "hosts"] == "192.0.2.9\tp\n192.0.2.8\tdb\n"
    assert texts["bridged", "resolv.conf"] == "nameserver 198.51.100.1\n"
    assert "printer" not in texts["bridged", "hosts"]
    assert texts["own", "resolv.conf"] == "nameserver 192.0.2.53\n"


@pytest.mark.parametrize("table", [{}, {"mode": "none"}, {"mode": "host"}, {"publish": ["45001:80", "45002:53/udp"]}])
@pytest.mark.parametrize("known", [True, False], ids=["with its facts", "with no facts"])
def test_down_leaves_nothing_and_may_be_repeated(place: Any, table: Any, known: bool) -> None:
    place.up("other")
    before = seen(place)
    facts = place.up("web", **table)
    step = place.started["web"]
    assert seen(place) - before
    network.down(step, facts if known else {})
    assert not settled(place, before)
    network.down(step, facts if known else {})
    place.started.pop("web")
    assert not settled(place, before)


def test_down_of_what_never_was_does_nothing(place: Any) -> None:
    step, before = place.step("web"), seen(place)
    network.down(step, {})
    assert seen(place) == before


@pytest.mark.parametrize("mode", ["host", "none", "netns:/run/netns/x", "pod:other"])
def test_a_further_network_step_that_brings_a_namespace_is_refused(place: Any, mode: str) -> None:
    with pytest.raises(Failure, match="has a network already") as refused:
        network.up(place.step("web", mode=mode), {"netns": "/run/netns/x"})
    assert refused.value.code == WRONG_FILE


def test_a_pod_in_the_hosts_network_gets_no_further_interface(place: Any) -> None:
    with pytest.raises(Failure, match="in the host's network already") as refused:
        network.up(place.step("web"), {"netns": "host"})
    assert refused.value.code == WRONG_FILE


def test_up_after_a_start_that_nobody_undid_replaces_what_is_left(place: Any) -> None:
    first = place.up("web", publish=["45001:80"])
    # While it is open the kernel gives its inode to no other.
    with open(first["netns"]) as before:
        second = network.up(place.started["web"], {})
        assert second["addresses"] == first["addresses"]
        assert os.stat(second["netns"]).st_ino != os.fstat(before.fileno()).st_ino


def test_a_dead_namespace_of_a_lost_run_directory_is_replaced(place: Any) -> None:
    first = place.up("web")
    os.unlink(ledger.path_of(place.started["web"]))
    place.up("web")
    assert os.path.exists(first["netns"])


@pytest.mark.parametrize("kind", ["file", "netns", "directory", "fifo", "link"])
def test_a_foreign_object_at_the_namespaces_place_is_never_touched(place: Any, kind: str) -> None:
    step = place.step("web")
    path = namespace.path_of(step.pod.tag)
    namespace.share()
    make = {
        "file": lambda: Path(path).write_text("mine"),
        "netns": lambda: run("ip", "netns", "add", step.pod.tag),
        "directory": lambda: os.mkdir(path),
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: os.symlink("/dev/null", path),
    }
    make[kind]()  # type: ignore[no-untyped-call]
    try:
        before = os.lstat(path)
        with pytest.raises(Failure) as refused:
            network.up(step, {})
        assert refused.value.code == CANNOT_CREATE
        assert path in refused.value.what
        network.down(step, {})
        assert os.lstat(path).st_ino == before.st_ino
    finally:
        subprocess.run(["ip", "netns", "delete", step.pod.tag] if kind == "netns" else ["rm", "-rf", path], check=True)


def test_a_foreign_link_with_the_bridges_name_is_never_touched(place: Any) -> None:
    run("ip", "link", "add", "t-net-foreign", "type", "bridge")
    try:
        with pytest.raises(Failure, match="t-net-foreign that is not podrun's") as refused:
            place.up("web", bridge="t-net-foreign")
        assert refused.value.code == CANNOT_CREATE
        place.down("web")
        assert "bridge" in run("ip", "-d", "link", "show", "t-net-foreign")
    finally:
        run("ip", "link", "delete", "t-net-foreign")


def test_a_subnet_that_is_routed_elsewhere_is_refused(place: Any) -> None:
    run("ip", "link", "add", "t-net-taken", "type", "bridge")
    run("ip", "address", "add", "198.51.100.1/24", "dev", "t-net-taken")
    run("ip", "link", "set", "t-net-taken", "up")
    try:
        with pytest.raises(Failure, match=r"t-net-taken has 198\.51\.100\.0/24") as refused:
            place.up("web", subnet="198.51.100.0/25")
        assert refused.value.code == CANNOT_CREATE
    finally:
        run("ip", "link", "delete", "t-net-taken")


def test_a_bridge_keeps_the_subnet_it_has(place: Any) -> None:
    place.up("web", subnet="198.51.100.0/24")
    assert plain(place.up("two")).startswith("198.51.100.")
    with pytest.raises(Failure, match=r"has 198\.51\.100\.0/24, not 203\.0\.113\.0/24") as refused:
        place.up("three", subnet="203.0.113.0/24")
    assert refused.value.code == WRONG_FILE


def test_a_bridge_that_somebody_deleted_is_made_again_with_its_subnet(place: Any) -> None:
    place.up("web")
    before = inspect.networks(place.run)[0]["subnet"]
    place.down("web")
    run("ip", "link", "delete", place.bridge())
    place.up("web")
    row = inspect.networks(place.run)[0]
    assert (row["subnet"], row["up"], len(row["ports"])) == (before, True, 1)


def test_a_fixed_address_is_the_pods_and_nobody_elses(place: Any) -> None:
    facts = place.up("web", subnet="198.51.100.0/24", address="198.51.100.77")
    assert facts["addresses"][0] == "198.51.100.77/24"
    with pytest.raises(Failure, match=r"198\.51\.100\.77 is leased to pod web") as refused:
        place.up("two", address="198.51.100.77")
    assert refused.value.code == BUSY


def test_an_address_of_both_families_is_the_pods_and_nobody_elses(place: Any) -> None:
    on = {"subnet": "198.51.100.0/24", "subnet6": "2001:db8:7::/64"}
    facts = place.up("web", **on, address="198.51.100.77", address6="2001:db8:7::a:1")
    assert facts["addresses"] == ["198.51.100.77/24", "2001:db8:7::a:1/64"]
    place.serve(facts["netns"], 80, "web", host="2001:db8:7::a:1")
    other = place.up("other")
    assert call(other["netns"], "2001:db8:7::a:1", 80).startswith("web to ")
    with pytest.raises(Failure, match="2001:db8:7::a:1 is leased to pod web") as refused:
        place.up("two", address6="2001:db8:7::a:1")
    assert refused.value.code == BUSY
    place.silence()
    place.down("two")
    place.down("web")
    facts = place.up("two", address6="2001:db8:7:0::a:1/64")
    place.serve(facts["netns"], 80, "two", host="2001:db8:7::a:1")
    assert call(other["netns"], "2001:db8:7::a:1", 80).startswith("two to "), "neighbours hear of the new one"


@pytest.mark.parametrize(
    ("address6", "words"),
    [
        ("2001:db8:7::9", r"belongs to the pod with 198\.51\.100\.9; take one from 2001:db8:7::100 on"),
        ("2001:db8:8::1", "cannot be a pod's in 2001:db8:7::/64"),
    ],
)
def test_an_ipv6_address_that_a_pod_cannot_have_is_refused(place: Any, address6: str, words: str) -> None:
    on = {"subnet": "198.51.100.0/24", "subnet6": "2001:db8:7::/64", "address6": address6}
    assert place.check("web", **on)[0].code == WRONG_FILE
    with pytest.raises(Failure, match=words) as refused:
        place.up("web", **on)
    assert refused.value.code == WRONG_FILE


def test_the_ipv6_address_that_goes_with_the_ipv4_address_may_be_named(place: Any) -> None:
    on = {"subnet": "198.51.100.0/24", "subnet6": "2001:db8:7::/64"}
    facts = place.up("web", **on, address="198.51.100.9", address6="2001:db8:7::9")
    assert facts["addresses"] == ["198.51.100.9/24", "2001:db8:7::9/64"]


def test_a_fixed_address_outside_of_the_bridges_subnet_is_refused(place: Any) -> None:
    with pytest.raises(Failure, match="cannot be a pod's") as refused:
        place.up("web", address="203.0.113.7")
    assert refused.value.code == WRONG_FILE


def test_a_host_without_ipv6_gives_ipv4_addresses_only(place: Any, tmp_path: Path) -> None:
    """In a namespace that stands for such a host, as disable_ipv6 is one of its own."""
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from podrun_hooks.support import syscalls
syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
syscalls.mount("tmpfs", "/run/netns", "tmpfs")
for which in ("all", "default"):
    open(f"/proc/sys/net/ipv6/conf/{{which}}/disable_ipv6", "w").write("1")
from support.network_case import Place
place = Place()
print(place.up("web", publish=["0.0.0.0:80:80"])["addresses"])
place.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("/20") == 1
    assert ":" not in done.stdout


def test_pods_that_start_at_once_get_different_addresses(place: Any) -> None:
    failed: list[BaseException] = []
    found: list[str] = []

    def start(n: int) -> None:
        code = f"""
import sys
sys.path[:0] = {sys.path!r}
from podrun.hook import *
from podrun_hooks import network
from podrun.host import tag
pod = Pod("p{n}", {place.root!r}, {place.run!r}, tag("p{n}", {place.run!r}))
step = Step(pod, "network", "network", read(network.Options, {{"subnet": "198.51.100.0/28"}}))
print(network.up(step, {{}})["addresses"][0])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        (found.append(done.stdout) if not done.returncode else failed.append(AssertionError(done.stderr)))

    for n in range(12):
        place.started[f"p{n}"] = place.step(f"p{n}")
    threads = [threading.Thread(target=start, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
    assert len(set(found)) == 12


@pytest.mark.parametrize(
    ("table", "most"),
    [({}, {"up": (6, 0), "down": (4, 0)}), ({"publish": ["45001:80"]}, {"up": (9, 0), "down": (1, 1)})],
)
def test_a_step_on_a_bridge_that_is_there_takes_few_netlink_requests_and_processes(
    place: Any, monkeypatch: pytest.MonkeyPatch, table: Any, most: dict[str, tuple[int, int]]
) -> None:
    """Each request is a system call that the kernel answers; a process would cost a millisecond."""
    place.up("other")
    requests: list[int] = []
    real = rtnetlink.Socket.send

    def counted(socket: rtnetlink.Socket, *messages: Any) -> Any:
        requests.append(len(messages))
        return real(socket, *messages)

    forked: list[int] = []
    fork = syscalls.fork

    def noted() -> int:
        forked.append(1)
        return fork()

    monkeypatch.setattr(rtnetlink.Socket, "send", counted)
    monkeypatch.setattr(syscalls, "fork", noted)
    facts = place.up("web", **table)
    up = len(requests), len(forked)
    place.down("web", facts)
    assert (up, (len(requests) - up[0], len(forked) - up[1])) == (most["up"], most["down"])
