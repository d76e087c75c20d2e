"""The ambassador as a map: where a pod's calls go when services come, go and move, with nothing but real packets."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import Failure
from podrun.hook import Step, read
from podrun_hooks import ambassador, container, register
from podrun_hooks.ambassador import maps, targets
from podrun_hooks.ambassador.targets import Target
from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.registry import file, wishes
from podrun_hooks.registry.record import Record
from podrun_hooks.support import syscalls
from support.network_case import inside

pytestmark = pytest.mark.root


def test_a_pod_is_led_to_a_service_that_was_there_before(services: Any) -> None:
    services.backend("db1")
    assert services.call("app", services.client("app"))[0] == "db1"


def test_a_call_without_a_backend_waits_until_there_is_one(services: Any) -> None:
    address = services.client("app")
    calling = services.calling("app", address)
    time.sleep(0.5)
    services.backend("db1")
    said, seconds = services.answer(calling)
    assert said == "db1"
    assert 0.5 < seconds < 3.5


def test_after_the_hold_a_call_is_refused_at_once(services: Any) -> None:
    address = services.client("app", hold="700ms")
    said, seconds = services.call("app", address, seconds=8)
    assert said == "ConnectionRefusedError"
    assert 0.7 < seconds < 2.5
    said, seconds = services.call("app", address, seconds=8)
    assert (said, seconds < 0.3) == ("ConnectionRefusedError", True)


def test_the_hold_runs_from_the_loss_of_the_last_backend(services: Any) -> None:
    address = services.client("app", hold="600ms")
    services.backend("db1")
    time.sleep(0.8)
    assert services.call("app", address)[0] == "db1"
    services.undo("db1", "register")
    assert "expires" in services.nft("app", "list", "set", "inet", services.started["app"].pod.tag, "held")
    time.sleep(0.8)
    assert services.call("app", address)[0] == "ConnectionRefusedError"
    services.do(register, "db1", "register", {"ready": True}, service="db", port=5432)
    assert services.call("app", address)[0] == "db1"


def test_several_backends_share_by_weight_and_a_source_may_stay_with_one(services: Any) -> None:
    services.backend("db1", meta={"weight": "1"})
    services.backend("db2", meta={"weight": "3"})
    address = services.client("app")
    code = """
import socket, sys
for _ in range(400):
    client = socket.create_connection((sys.argv[1], 5432), timeout=5)
    print(client.recv(100).decode().partition(" ")[0])
    client.close()
"""
    argv = [*inside(services.facts["app"]["netns"]), sys.executable, "-c", code, address]
    seen = collections.Counter(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    assert seen.keys() == {"db1", "db2"}
    assert 240 < seen["db2"] < 350
    # A single port again: the map with the slots is empty, the one without leads.
    services.undo("db1", "register")
    table = services.started["app"].pod.tag
    assert "elements" not in services.nft("app", "list", "map", "inet", table, "many")
    assert services.call("app", address)[0] == "db2"
    services.do(register, "db1", "register", {"ready": True}, service="db", port=5432)
    fixed = services.client("app", step="fixed", balance="source")
    assert len({services.call("app", fixed)[0] for _ in range(6)}) == 1


def test_nothing_for_the_address_leaves_the_pod_untranslated(services: Any) -> None:
    address = services.client("app", hold="0s")
    said, seconds = services.call("app", address, 81)
    assert (said, seconds < 0.5) == ("ConnectionRefusedError", True)


def test_a_pod_without_a_default_route_is_led_too(services: Any) -> None:
    services.pod("app", mode="none")
    with pytest.raises(Failure, match="connected to nothing"):
        services.client("app")
    services.pod("lonely")
    subprocess.run([*inside(services.facts["lonely"]["netns"]), "ip", "route", "del", "default"], check=True)
    services.backend("db1")
    assert services.call("lonely", services.client("lonely"))[0] == "db1"


def test_an_address_of_the_pods_loopback_leads_out_as_well(services: Any) -> None:
    services.backend("db1")
    assert services.client("app", address="127.0.0.1") == "127.0.0.1"
    assert services.call("app", "127.0.0.1")[0] == "db1"
    # What else listens there is not in the way of it, nor the other way round.
    services.serve(services.facts["app"]["netns"], 81, "own", host="127.0.0.1")
    assert services.call("app", "127.0.0.1", 81)[0] == "own"


def test_each_service_of_a_pod_has_an_address_of_its_own_and_goes_alone(services: Any) -> None:
    services.backend("db1")
    services.backend("cache1", 6379, service="cache")
    db, cache = services.client("app"), services.client("app", service="cache", port=6379, step="cache")
    assert db != cache
    assert services.call("app", cache, 6379)[0] == "cache1"
    services.undo("app", "cache")
    assert services.call("app", db)[0] == "db1"
    table = services.started["app"].pod.tag
    services.undo("app", "ambassador")
    assert table not in services.nft("app", "list", "tables")
    with pytest.raises(Failure, match=r"198.18.0.9:5432 already stands for db in this pod"):
        for step in ("a", "b"):
            services.client("app", step=step, address="198.18.0.9")


def test_what_the_containers_are_told(services: Any) -> None:
    services.backend("db1")
    services.pod("app")
    facts = services.do(ambassador, "app", "ambassador", service="db", port=5432)
    env = dict(pair.split("=", 1) for pair in facts["env"])
    assert (env["DB_HOST"], env["DB_PORT"]) == ("198.18.0.1", "5432")
    assert env["DB_PORT_5432_TCP"] == "tcp://198.18.0.1:5432"
    assert (env["DB_PORT_5432_TCP_ADDR"], env["DB_PORT_5432_TCP_PORT"]) == ("198.18.0.1", "5432")
    hosts = Path(facts["mounts"][0]["hostPath"])
    assert hosts.read_text().endswith("198.18.0.1\tdb\n")
    assert f"{services.facts['app']['addresses'][0].partition('/')[0]}\tapp" in hosts.read_text()
    assert [one["port"] for one in facts["backends"]["db"]] == [5432]
    services.undo("app", "ambassador")
    assert not hosts.exists()


@pytest.mark.parametrize(
    ("addr", "port", "why"),
    [
        ("127.0.0.1", 22, "loopback"),
        ("169.254.169.254", 80, "link-local"),
        ("224.0.0.1", 80, "multicast"),
        ("255.255.255.255", 80, "reserved"),
        ("2001:db8::1", 80, "an IPv6 address"),
        ("own", 80, "the pod itself"),
        ("198.18.0.1", 5432, "the ambassador itself"),
        ("gateway", 22, "a port of this host that no pod publishes"),
    ],
)
def test_a_record_that_leads_astray_leads_nobody(
    services: Any, capfd: pytest.CaptureFixture[str], addr: str, port: int, why: str
) -> None:
    own = services.pod("app")["addresses"][0].partition("/")[0]
    addr = {"own": own, "gateway": own.rpartition(".")[0] + ".1"}.get(addr, addr)
    if why.startswith("a port"):
        argv = [*inside(services.facts["app"]["netns"]), "ip", "-j", "route", "show", "default"]
        addr = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)[0]["gateway"]
    file.put(f"{services.run}/registry", Record("evil", "db", "h", addr, port, ready=True))
    services.client("app", hold="0s")
    assert f"leads to {addr}:{port}: {why}" in capfd.readouterr().err
    assert "elements" not in services.nft("app", "list", "map", "inet", services.started["app"].pod.tag, "one")


def test_what_the_hosts_routes_take_for_its_own_is_no_backend(services: Any, capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["ip", "link", "add", "t-amb-own", "type", "bridge"], check=True)
    try:
        # An address of link scope, a range that is local as a whole (AnyIP), and a subnet's broadcast address.
        for words in (
            "address add 203.0.113.65/30 scope link dev t-amb-own",
            "link set t-amb-own up",
            "route add local 203.0.113.80/28 dev lo",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        local = "a port of this host that no pod publishes"
        expected = {"203.0.113.65": local, "203.0.113.85": local, "203.0.113.67": "a broadcast address"}
        for n, addr in enumerate(expected):
            file.put(f"{services.run}/registry", Record(f"evil{n}", "db", "h", addr, 22, ready=True))
        services.client("app", hold="0s")
        said = capfd.readouterr().err
        for addr, why in expected.items():
            assert f"leads to {addr}:22: {why}" in said
        assert "elements" not in services.nft("app", "list", "map", "inet", services.started["app"].pod.tag, "one")
    finally:
        subprocess.run(["ip", "route", "del", "local", "203.0.113.80/28", "dev", "lo"], check=False)
        subprocess.run(["ip", "link", "delete", "t-amb-own"], check=True)


def test_a_port_that_podrun_publishes_on_this_host_is_a_backend(services: Any) -> None:
    facts = services.pod("db1", publish=["0.0.0.0:15432:5432"])
    services.serve(facts["netns"], 5432, "db1")
    given = services.do(register, "db1", "register", {"ready": True}, service="db", port=5432)
    record = json.loads(Path(given["record"]).read_text())
    assert record["port"] == 15432
    assert record["addr"] not in ("0.0.0.0", "127.0.0.1")
    assert services.call("app", services.client("app"))[0] == "db1"


def test_a_pod_that_went_away_uncleanly_keeps_nobody_from_following(services: Any) -> None:
    services.client("gone")
    address = services.client("app")
    subprocess.run(["ip", "netns", "del", services.facts["gone"]["netns"].rpartition("/")[2]], check=True)
    services.backend("db1")
    assert services.call("app", address)[0] == "db1"


def test_a_start_that_was_killed_leaves_what_down_and_the_next_start_clear_away(services: Any) -> None:
    services.backend("db1")
    services.client("app")
    hook, step, _ = services.steps[-1]
    # As after kill -9: the step's facts are lost, and it may be undone twice.
    hook.down(step, {})
    hook.down(step, {})
    assert wishes.read(services.run, "app", "ambassador") is None
    assert services.nft("app", "list", "tables") == ""
    assert services.call("app", services.client("app"))[0] == "db1"


def test_who_leads_a_pod_at_the_same_time_as_another_tries_again(services: Any) -> None:
    """The pod's own start and the follower: a transaction of one fails when the other has changed an element."""
    services.client("app")
    wish = wishes.read(services.run, "app", "ambassador")
    assert isinstance(wish, wishes.Ambassador)
    children = []
    for n in range(2):
        child = os.fork()
        if not child:
            status = 1
            try:
                syscalls.setns(os.open(wish.netns, os.O_RDONLY), syscalls.CLONE_NEWNET)
                netfilter = nfnetlink.Socket(nfnetlink.NETLINK_NETFILTER)
                for at in range(60):
                    maps.switch(netfilter, wish.place, [(wish, [Target(f"192.0.2.{n + 1 + at % 2}", 80)])])
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_thirty_steps_at_once_lose_no_update(services: Any) -> None:
    address = services.client("app")
    names = [f"db{n}" for n in range(6)]
    for name in names:
        services.pod(name)
        services.serve(services.facts[name]["netns"], 5432, name)

    def come_and_go(name: str) -> None:
        for n in range(5):
            step = f"r{n}"
            services.do(register, name, step, {"ready": True}, service="db", port=5432)
            services.undo(name, step)

    children = []
    for name in names:
        child = os.fork()
        if not child:
            try:
                come_and_go(name)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    services.do(register, "db3", "last", {"ready": True}, service="db", port=5432)
    assert services.call("app", address)[0] == "db3"
    table = services.started["app"].pod.tag
    assert "elements" not in services.nft("app", "list", "map", "inet", table, "many")


@pytest.mark.parametrize(
    ("table", "warned"),
    [
        ({"cap_add": ["NET_ADMIN"]}, True),
        ({"capabilities": {"add": ["ALL"]}}, True),
        ({"cap_add": ["SYS_TIME"]}, False),
    ],
)
def test_check_warns_of_a_container_that_could_change_its_map(services: Any, table: Any, warned: bool) -> None:
    pod = services.step("any").pod
    leading = Step(pod, "ambassador", "db", read(ambassador.Options, {"service": "db", "port": 1}))
    step = Step(pod, "container", "main", read(container.Options, table))
    problems = container.check_in_chain(step, [leading])
    assert [(problem.fatal, problem.key) for problem in problems] == ([(False, "cap_add")] if warned else [])
    assert container.check_in_chain(step, []) == []


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1], [64]),
        ([1, 1], [32, 32]),
        ([1, 3], [16, 48]),
        ([1, 100], [1, 63]),
        ([1, 1, 1], [21, 21, 22]),
        ([100] + [1] * 62, [1] * 62 + [2]),
        ([1] * 100, [1] * 64),
    ],
)
def test_slots_are_divided_by_weight_and_everybody_gets_one(weights: Any, shares: Any) -> None:
    places = [Target(f"10.0.{n // 250}.{n % 250 + 1}", 80, weight) for n, weight in enumerate(weights)]
    seen = collections.Counter(targets.slots(places, 64, [None] * 64))
    assert sorted(seen.values()) == sorted(shares)


def test_a_slot_stays_with_whom_it_was_when_others_come_and_go() -> None:
    two = [Target("10.0.0.1", 80), Target("10.0.0.2", 80)]
    before = targets.slots(two, 64, [None] * 64)
    after = targets.slots([*two, Target("10.0.0.3", 80)], 64, list(before))
    assert sum(a == b for a, b in zip(before, after, strict=True)) >= 42
    assert targets.slots(two, 64, list(before)) == before


def test_a_start_that_fails_halfway_leaves_nothing_in_another_pods_network(
    services: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.pod("owner")
    options = read(ambassador.Options, {"service": "db", "port": 5432})
    step = Step(services.started["owner"].pod._replace(name="guest", tag="podrun-guest"), "ambassador", "x", options)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(maps, "begin", fails)
    with pytest.raises((Failure, OSError)):
        ambassador.up(step, services.facts["owner"])
    ambassador.down(step, {})
    assert "podrun-guest" not in services.nft("owner", "list", "tables")
