"""The follower: records stay, come late and go; pods are led; and nothing breaks when it, or the registry, is away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from podrun_hooks import register
from podrun_hooks.follow import begin, process
from podrun_hooks.registry import connect, wishes
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.record import Record
from support.ambassador_case import Services
from support.registry_servers import Server, etcd
from support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.server]


class Host(Services):
    """Pods on a host whose registry has a server, and the follower as a process."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.follower: subprocess.Popen[str] | None = None

    def follow(self) -> subprocess.Popen[str]:
        os.makedirs(wishes.directory(self.run), mode=0o700, exist_ok=True)
        self.follower = subprocess.Popen(begin.command(self.run, "unit"), stderr=subprocess.PIPE, text=True)
        until(lambda: begin.running(self.run) == "unit")
        return self.follower

    def words(self) -> str:
        """Ends the follower; returns what it said."""
        assert self.follower
        self.follower.send_signal(signal.SIGTERM)
        _, words = self.follower.communicate(timeout=10)
        self.follower = None
        return words

    def backend(self, name: str, port: int = 5432, **table: Any) -> str:
        return super().backend(name, port, **{"registry": self.url, "advertise": "pod", "ttl": "3s", **table})

    def client(self, name: str, **table: Any) -> str:
        return super().client(name, **{"registry": self.url, **table})

    def records(self, service: str = "db") -> list[Record]:
        return connect(sources.parse(self.url)).records(service, seconds=2)

    def close(self) -> None:
        if self.follower:
            self.follower.kill()
            self.follower.communicate()
        super().close()


@pytest.fixture(autouse=True)
def no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps start no follower here: the tests do."""
    monkeypatch.setattr(begin, "ensure", lambda step: None)


@pytest.fixture(params=["etcd", "consul"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    found = Host(request.getfixturevalue(request.param).url)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def own() -> Iterator[Server]:
    """An etcd of the test's own, to be killed."""
    server = etcd()
    yield server
    server.close()


@pytest.fixture
def alone(own: Server) -> Iterator[Host]:
    """A host whose registry is that one."""
    found = Host(own.url)
    try:
        yield found
    finally:
        found.close()


def test_pods_are_led_when_services_come_move_and_go(host: Any) -> None:
    host.follow()
    address = host.client("app", service="moving")
    calling = host.calling("app", address)
    time.sleep(0.3)
    host.backend("db1", service="moving")
    assert host.answer(calling)[0] == "db1"
    host.backend("db2", service="moving")
    until(lambda: host.call("app", address)[0] == "db2")
    host.undo("db1", "register")
    until(lambda: "many" not in host.nft("app", "list", "ruleset") or "elements" not in host.nft(
        "app", "list", "map", "inet", host.started["app"].pod.tag, "many"))  # fmt: skip
    assert {host.call("app", address)[0] for _ in range(5)} == {"db2"}


def test_records_outlive_their_ttl_as_long_as_somebody_follows(host: Any) -> None:
    host.follow()
    host.backend("db1", service="lasting")
    until(lambda: [one.ready for one in host.records("lasting")] == [True])
    end = time.monotonic() + 5
    while time.monotonic() < end:
        assert [one.ready for one in host.records("lasting")] == [True]
        time.sleep(0.2)
    host.undo("db1", "register")
    until(lambda: host.records("lasting") == [])


def test_when_the_follower_dies_nothing_moves_and_its_successor_goes_on(alone: Any) -> None:
    follower = alone.follow()
    alone.backend("db1")
    address = alone.client("app")
    follower.kill()
    follower.communicate()
    assert alone.call("app", address)[0] == "db1"
    alone.follow()
    time.sleep(3.5)
    assert [one.unit for one in alone.records()] == ["db1"]
    alone.backend("db2")
    alone.undo("db1", "register")
    until(lambda: alone.call("app", address)[0] == "db2")


def test_nobody_follows_and_the_record_ends_with_its_lease(alone: Any) -> None:
    alone.backend("db1")
    assert len(alone.records()) == 1
    until(lambda: alone.records() == [])
    alone.follow()
    until(lambda: len(alone.records()) == 1)


def test_a_registry_that_is_away_delays_nobody_and_gets_everything_later(alone: Any, own: Any) -> None:
    alone.follow()
    own.kill()
    began = time.monotonic()
    alone.backend("db1")
    address = alone.client("app")
    assert time.monotonic() - began < 6
    wish = wishes.read(alone.run, "db1", "register")
    assert isinstance(wish, wishes.Registration)
    assert wish.deferred
    calling = alone.calling("app", address, seconds=30)
    time.sleep(1.5)
    own.start()
    assert alone.answer(calling)[0] == "db1"
    assert [one.unit for one in alone.records()] == ["db1"]
    until(lambda: not wishes.read(alone.run, "db1", "register").deferred)
    words = alone.words()
    assert "Connection refused; records end with their leases, nothing else changes" in words
    assert words.count("Connection refused") == 1
    assert "it answers again" in words
    assert "which was deferred" in words


def test_a_registry_that_hangs_moves_nobody(alone: Any, own: Any) -> None:
    alone.follow()
    alone.backend("db1")
    address = alone.client("app")
    own.pause()
    time.sleep(1)
    assert alone.call("app", address)[0] == "db1"
    own.go_on()
    alone.backend("db2")
    alone.undo("db1", "register")
    until(lambda: alone.call("app", address)[0] == "db2")


def test_what_somebody_deleted_comes_back_and_orphans_of_this_host_go(alone: Any) -> None:
    alone.follow()
    alone.backend("db1")
    client = connect(sources.parse(alone.url))
    client.remove("db", alone.records()[0].id, seconds=2)
    until(lambda: len(alone.records()) == 1)
    # As after kill -9 of a pod that is gone: the record is there, and nobody's wish.
    wishes.remove(alone.run, "db1", "register")
    until(lambda: alone.records() == [])


def test_a_record_that_is_written_while_the_follower_looks_is_no_orphan(host: Any) -> None:
    followed = process.Followed(sources.parse(host.url), host.run)
    host.backend("db1", service="early")
    [first] = wishes.everything(host.run)
    followed.wants([first], [])  # type: ignore[list-item]
    host.backend("db2", service="early")
    followed._keep(first.ttl)
    until(lambda: sorted(one.unit for one in host.records("early")) == ["db1", "db2"])
    followed.client.close()


def test_connections_to_a_host_that_has_vanished_are_ended(alone: Any) -> None:
    alone.follow()
    alone.backend("db1")
    code = """
import socket, sys, time
client = socket.create_connection((sys.argv[1], 7000), timeout=60)
print("connected", flush=True)
began = time.monotonic()
try:
    print("read", client.recv(10))
except OSError as error:
    print(type(error).__name__, flush=True)
"""
    keep = "import socket, time; s = socket.create_server(('0.0.0.0', 7000)); c = s.accept(); time.sleep(100)"
    netns = alone.facts["db1"]["netns"].rpartition("/")[2]
    server = subprocess.Popen(["ip", "netns", "exec", netns, "python3", "-c", keep])
    alone.do(register, "db1", "echo", {"ready": True}, service="echo", port=7000, registry=alone.url, advertise="pod")
    address = alone.client("app", service="echo", port=7000)
    app = alone.facts["app"]["netns"].rpartition("/")[2]
    time.sleep(0.5)
    talking = subprocess.Popen(
        ["ip", "netns", "exec", app, "python3", "-c", code, address], stdout=subprocess.PIPE, text=True
    )
    try:
        assert talking.stdout
        assert talking.stdout.readline() == "connected\n"
        # The host loses its power: no FIN, no RST, and nobody renews its lease.
        links = json.loads(
            subprocess.run(["ip", "netns", "exec", netns, "ip", "-j", "link"], capture_output=True).stdout
        )
        down = next(link["ifname"] for link in links if link["ifname"] != "lo")
        subprocess.run(["ip", "netns", "exec", netns, "ip", "link", "set", down, "down"], check=True)
        wishes.remove(alone.run, "db1", "echo")
        connect(sources.parse(alone.url)).remove("echo", alone.records("echo")[0].id, seconds=2)
        began = time.monotonic()
        assert talking.stdout.readline() in ("ConnectionAbortedError\n", "ConnectionResetError\n")
        assert time.monotonic() - began < 8
    finally:
        for process in (talking, server):
            process.kill()
            process.wait()


def test_it_stays_small_and_holds_no_pods_namespace(alone: Any) -> None:
    follower = alone.follow()
    alone.backend("db1")
    address = alone.client("app")
    until(lambda: alone.call("app", address)[0] == "db1")
    rollup = open(f"/proc/{follower.pid}/smaps_rollup").read()
    assert int(rollup.partition("Rss:")[2].split()[0]) < 12 * 1024
    assert int(rollup.partition("Pss:")[2].split()[0]) < 8 * 1024
    links = {os.readlink(f"/proc/{follower.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{follower.pid}/fd")}
    assert not any(link.startswith("net:") for link in links)
    alone.undo("app", "ambassador")


def test_of_two_one_follows_and_the_other_takes_over(alone: Any) -> None:
    first = alone.follow()
    second = subprocess.Popen(begin.command(alone.run, "sidekick"), stderr=subprocess.PIPE, text=True)
    try:
        alone.backend("db1")
        time.sleep(0.5)
        assert begin.running(alone.run) == "unit"
        first.kill()
        first.communicate()
        alone.follower = None
        until(lambda: begin.running(alone.run) == "sidekick")
        time.sleep(4)
        assert len(alone.records()) == 1
        # One that is no unit ends when nobody needs it any more.
        alone.undo("db1", "register")
        assert second.wait(10) == 0
    finally:
        second.kill()
        second.communicate()
