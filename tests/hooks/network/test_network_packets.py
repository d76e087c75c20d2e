"""Real packets: between pods, from the host, from another machine, and to published ports from everywhere."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import BUSY, WRONG_FILE, Failure
from podrun_hooks.network import bridge, inspect
from podrun_hooks.network.publish import ports, spec
from support.network_case import Place, call, free_port, inside, outside_host, plain, run

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def place() -> Iterator[Any]:
    """Two pods, each with a server on port 80; tests take further ones up and down as they like."""
    found = Place()
    try:
        for name in ("one", "two"):
            facts = found.up(name)
            found.serve(facts["netns"], 80, name)
            found.serve(facts["netns"], 80, name, host=plain(facts, 6))
        yield found
    finally:
        found.close()


@pytest.fixture
def pod(place: Any) -> Iterator[Any]:
    """Takes a pod named web up, with a server for each protocol on port 80; down afterwards."""

    def up(**table: Any) -> Any:
        facts = place.up("web", **table)
        for proto in ("tcp", "udp"):
            place.serve(facts["netns"], 80, f"web-{proto}", proto=proto)
        if len(facts["addresses"]) > 1:
            place.serve(facts["netns"], 80, "web-tcp6", host=plain(facts, 6))
        return facts

    yield up
    if "web" in place.started:
        place.down("web")


def address(place: Place, pod: str, version: int = 4) -> str:
    rows = inspect.leases(place.run)
    found = next(row["address"] for row in rows if row["pod"] == pod)
    if version == 4:
        return found
    text = run(*inside(place.started[pod].pod.tag), "ip", "-6", "-brief", "address", "show", "eth0", "scope", "global")
    return text.split()[2].partition("/")[0]


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_reaches_another_one(place: Any, version: int) -> None:
    netns = place.started["two"].pod.tag
    said = call(netns, address(place, "one", version), 80)
    assert said == f"one to {address(place, 'two', version)}"


@pytest.mark.parametrize("version", [4, 6])
def test_the_host_reaches_a_pod(place: Any, version: int) -> None:
    assert call("", address(place, "one", version), 80).startswith("one to ")


def test_a_pod_is_reached_as_soon_as_up_returns(place: Any) -> None:
    """The first ARP request is answered: the next one would be sent a second later."""
    for _ in range(5):
        facts = place.up("fresh")
        began = time.monotonic()
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect((plain(facts), 80))
        assert time.monotonic() - began < 0.9
        place.down("fresh")


def test_a_pod_reaches_another_machine_in_the_hosts_name(place: Any) -> None:
    with outside_host() as (netns, there, here):
        place.serve(netns, 80, "outside")
        assert call(place.started["one"].pod.tag, there, 80) == f"outside to {here}"


def test_a_published_port_is_on_the_hosts_loopback_alone(place: Any, pod: Any) -> None:
    port = free_port()
    pod(publish=[f"{port}:80"])
    assert call("", "127.0.0.1", port).startswith("web-tcp to ")
    with outside_host() as (netns, _, here):
        assert call(netns, here, port, timeout=0.5) == ""
        run(*inside(netns), "ip", "route", "add", "127.0.0.2/32", "via", here, check=False)
    assert call(place.started["one"].pod.tag, inspect_gateway(place), port, timeout=0.5) == ""


def inspect_gateway(place: Place) -> str:
    return inspect.networks(place.run)[0]["subnet"].partition("/")[0].rpartition(".")[0] + ".1"


def test_a_port_published_everywhere_is_reached_from_everywhere(place: Any, pod: Any) -> None:
    port = free_port()
    facts = pod(publish=[f"0.0.0.0:{port}:80"])
    gateway = inspect_gateway(place)
    assert call("", "127.0.0.1", port).startswith("web-tcp to ")
    assert call("", gateway, port).startswith("web-tcp to ")
    with outside_host() as (netns, there, here):
        assert call("", here, port).startswith("web-tcp to ")
        assert call(netns, here, port) == f"web-tcp to {there}", "the payload sees who calls"
        assert call(place.started["one"].pod.tag, here, port).startswith("web-tcp to "), "from another pod"
        assert call(facts["netns"], here, port).startswith("web-tcp to "), "from itself"


def test_a_port_published_on_one_address_is_on_that_one_alone(place: Any, pod: Any) -> None:
    port = free_port()
    with outside_host() as (netns, there, here):
        pod(publish=[f"{here}:{port}:80"])
        assert call(netns, here, port) == f"web-tcp to {there}"
        assert call("", "127.0.0.1", port, timeout=0.5) == ""


def test_a_udp_port_is_published_beside_a_tcp_port_of_the_same_number(place: Any, pod: Any) -> None:
    port = free_port()
    pod(publish=[f"{port}:80/udp", f"{port}:80"])
    assert call("", "127.0.0.1", port, proto="udp").startswith("web-udp to ")
    assert call("", "127.0.0.1", port).startswith("web-tcp to ")


def test_a_port_is_published_on_ipv6(place: Any, pod: Any) -> None:
    port = free_port()
    facts = pod(publish=[f"[::]:{port}:80"])
    gateway = inspect.networks(place.run)[0]["subnet6"].partition("/")[0] + "1"
    assert call("", gateway, port).startswith("web-tcp6 to ")
    assert call(facts["netns"], gateway, port).startswith("web-tcp6 to ")
    assert call(place.started["one"].pod.tag, gateway, port).startswith("web-tcp6 to ")


def test_a_port_is_closed_after_down(place: Any, pod: Any) -> None:
    port = free_port()
    pod(publish=[f"{port}:80"])
    place.down("web")
    assert call("", "127.0.0.1", port, timeout=0.5) == ""
    assert not [row for row in inspect.published(place.run) if row["port"] == port]


def test_a_pod_does_not_reach_what_listens_on_the_hosts_loopback(place: Any, pod: Any) -> None:
    """route_localnet on the bridge would let it: the reason for the raw rule."""
    port = free_port()
    facts = pod(publish=[f"{free_port()}:80"])
    place.serve("", port, "secret", host="127.0.0.1")
    netns = inside(facts["netns"])
    for name in ("all", "eth0"):
        run(*netns, "sysctl", "-qw", f"net.ipv4.conf.{name}.route_localnet=1")
    run(*netns, "ip", "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local", check=False)
    run(*netns, "ip", "route", "add", "127.0.0.1/32", "via", inspect_gateway(place), "src", plain(facts))
    assert call("", "127.0.0.1", port) == "secret to 127.0.0.1"
    assert call(facts["netns"], "127.0.0.1", port, timeout=0.5) == ""


def test_a_port_of_another_pod_is_in_use_and_the_pod_is_named(place: Any, pod: Any) -> None:
    port = free_port()
    pod(publish=[f"{port}:80"])
    for taken in (f"{port}:81", f"0.0.0.0:{port}:81"):
        problems = place.check("three", publish=[taken])
        assert [(problem.code, problem.fatal) for problem in problems] == [(BUSY, True)]
        assert problems[0].what.endswith("is in use by pod web")
        with pytest.raises(Failure, match="in use by pod web") as refused:
            place.up("three", publish=[taken])
        assert refused.value.code == BUSY
        place.down("three")
    assert call("", "127.0.0.1", port).startswith("web-tcp to "), "the failed one took nothing away"
    assert place.check("web", publish=[f"{port}:80"]) == [], "its own port is not in its way"


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_port_of_a_process_of_the_host_is_in_use_and_the_process_is_named(place: Any, proto: str) -> None:
    port = free_port()
    place.serve("", port, "host", host="127.0.0.1", proto=proto)
    problems = place.check("three", publish=[f"{port}:80/{proto}"])
    assert [problem.code for problem in problems] == [BUSY]
    assert f"(pid {place.servers[-1].pid})" in problems[0].what
    with pytest.raises(Failure, match="in use by"):
        place.up("three", publish=[f"{port}:80/{proto}"])
    place.down("three")


def test_a_port_that_is_published_twice_is_an_error_of_the_pod_file(place: Any) -> None:
    problems = place.check("three", publish=["45010:80", "45010:81"])
    assert [problem.code for problem in problems] == [WRONG_FILE]


def test_the_port_of_a_dead_pod_is_taken_over(place: Any, pod: Any) -> None:
    port = free_port()
    pod(publish=[f"{port}:80"])
    step = place.started.pop("web")
    run("rm", "-r", step.pod.directory)
    assert place.check("web2", publish=[f"{port}:80"]) == []
    facts = place.up("web2", publish=[f"{port}:80"])
    place.serve(facts["netns"], 80, "web2")
    assert call("", "127.0.0.1", port).startswith("web2 to ")
    place.down("web2")
    inspect.collect(place.run)


def test_a_port_that_somebody_else_has_reclaimed_meanwhile_is_not_reclaimed_again(place: Any, pod: Any) -> None:
    port = free_port()
    pod(publish=[f"{port}:80"])
    step = place.started["web"]
    away = Path(f"{place.home}/away")
    Path(step.pod.directory).rename(away)
    held = bridge.held(place.run, fcntl.LOCK_EX)
    child = os.fork()
    if not child:
        try:
            os.close(held)
            other = step.pod._replace(name="other")
            found = ports.holder(other, bridge.table(step.pod), spec.parse(f"{port}:80"), reclaim=True)
            os._exit(0 if found == "pod web" else 3)
        finally:
            os._exit(4)
    time.sleep(0.2)
    away.rename(step.pod.directory)
    os.close(held)
    assert os.waitpid(child, 0)[1] == 0
    assert call("", "127.0.0.1", port).startswith("web-tcp to ")


def test_a_local_end_of_a_connection_is_no_holder_of_a_port(place: Any) -> None:
    place.serve("", listening := free_port(), "host", host="127.0.0.1")
    with socket.create_connection(("127.0.0.1", listening)) as connection:
        local = connection.getsockname()[1]
        assert place.check("three", publish=[f"{local}:80"]) == []


def test_ports_are_back_at_the_next_start_after_somebody_flushed_the_ruleset(place: Any, pod: Any) -> None:
    """``nft flush ruleset`` of one table stands for it: the machine's other tables are not ours to flush."""
    port = free_port()
    pod(publish=[f"{port}:80"])
    run("nft", "delete", "table", "inet", place.table())
    assert call("", "127.0.0.1", port, timeout=0.5) == ""
    assert not inspect.networks(place.run)[0]["guarded"]
    place.up("three")
    place.down("three")
    assert inspect.networks(place.run)[0]["guarded"]
    assert call("", "127.0.0.1", port).startswith("web-tcp to ")


def test_a_flushed_ruleset_is_laid_for_all_bridges_of_the_run_directory(place: Any) -> None:
    place.up("elsewhere", bridge="t-net-second")
    try:
        run("nft", "delete", "table", "inet", place.table())
        place.up("three")
        place.down("three")
        text = run("nft", "list", "set", "inet", place.table(), "bridges")
        assert "t-net-second" in text
        assert place.bridge() in text
    finally:
        place.down("elsewhere")
        assert inspect.remove_bridges(place.run) == ["t-net-second"]


def test_an_address_that_changes_hands_leads_to_its_new_pod_at_once(place: Any) -> None:
    """The old namespace lives on for a moment; a process in it lets it live longer than that."""
    facts = place.up("old", address=(taken := free_address(place)))
    place.serve(facts["netns"], 80, "old")
    neighbour = place.started["one"].pod.tag
    assert call("", taken, 80).startswith("old")
    assert call(neighbour, taken, 80).startswith("old")
    place.down("old")
    facts = place.up("new", address=taken)
    place.serve(facts["netns"], 80, "new")
    assert call(neighbour, taken, 80).startswith("new")
    assert call("", taken, 80).startswith("new")
    place.down("new")


def free_address(place: Place) -> str:
    taken = {row["address"] for row in inspect.leases(place.run)}
    stem = inspect_gateway(place).rpartition(".")[0]
    return next(f"{stem}.{n}" for n in range(200, 250) if f"{stem}.{n}" not in taken)


def test_the_ruleset_says_whose_a_port_is(place: Any, pod: Any) -> None:
    port = free_port()
    pod(publish=[f"{port}:80"])
    text = run("nft", "list", "map", "inet", place.table(), "host4")
    assert f'127.0.0.1 . tcp . {port} comment "{place.started["web"].pod.tag}"' in text
    assert sys.byteorder == "big" or f": {address(place, 'web')} . 80" in text
