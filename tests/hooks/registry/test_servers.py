"""Registries with a server: what is written, kept, followed and taken back, the same with each of them."""

from __future__ import annotations

import os
import time
from binascii import b2a_base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks.registry import bell, connect, oversized, wishes
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.etcd import _range
from podrun_hooks.registry.http import Away, TooLarge
from podrun_hooks.registry.record import Record
from support.registry_servers import free_port

pytestmark = pytest.mark.server

TTL = 15.0


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    found = connect(sources.parse(server.url))
    yield found
    found.close()


@pytest.fixture
def leases(tmp_path: Path) -> Any:
    return wishes.Leases(str(tmp_path))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Any:
    service = "s" + "".join(c for c in request.node.name if c.isalnum()).lower()[:50]
    host = os.uname().nodename
    return Record(
        f"web.register@{host}", service, host, "192.0.2.1", 80, "tcp", True, "gen", "b", "web", {"weight": "3"}
    )


def announce(client: Any, record: Any, leases: Any, **more: Any) -> Any:
    return client.announce(record, TTL, leases, seconds=2, **more)


def records(client: Any, service: Any, number: Any) -> Any:
    """Waits for so many records: an agent tells its cluster a moment later."""
    deadline = time.monotonic() + 5
    while len(found := client.records(service, seconds=2)) != number and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def until(condition: Any, seconds: float = 5.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_a_record_is_there_as_it_was_written_until_it_is_withdrawn(client: Any, leases: Any, record: Any) -> None:
    assert announce(client, record, leases)
    until(lambda: client.records(record.service, seconds=2) == [record])
    assert record.service in client.services(seconds=2)
    assert not client.withdraw(record.service, record.id, "another generation", seconds=2)
    assert client.withdraw(record.service, record.id, "gen", seconds=2)
    assert not client.withdraw(record.service, record.id, "gen", seconds=2)
    assert records(client, record.service, 0) == []


def test_readiness_goes_to_and_fro(client: Any, leases: Any, record: Any) -> None:
    for ready in (False, True, False):
        announce(client, record._replace(ready=ready), leases)
        until(lambda ready=ready: [one.ready for one in client.records(record.service, seconds=2)] == [ready])


def test_a_poll_tells_what_has_changed_and_nothing_else(client: Any, leases: Any, record: Any) -> None:
    other = record._replace(id="other@h", gen="o")
    assert client.poll([record.service], seconds=2) == {record.service: []}
    assert client.poll([record.service], seconds=2) == {}
    announce(client, record, leases)
    until(lambda: client.poll([record.service], seconds=2).get(record.service) == [record])
    assert client.poll([record.service], seconds=2) == {}
    announce(client, other, leases)
    until(lambda: client.poll([record.service], seconds=2).get(record.service) == [other, record])
    announce(client, record._replace(service="elsewhere-" + record.service[:40]), leases)
    assert client.poll([record.service], seconds=2) == {}
    client.withdraw(record.service, record.id, "gen", seconds=2)
    until(lambda: client.poll([record.service], seconds=2).get(record.service) == [other])
    # Two changes between two polls that leave as many as before.
    client.withdraw(record.service, other.id, "o", seconds=2)
    announce(client, record, leases)
    until(lambda: client.poll([record.service], seconds=2).get(record.service) == [record])
    assert client.poll([record.service, "new"], seconds=2) == {"new": []}


def test_what_is_kept_is_repaired_and_orphans_go(client: Any, leases: Any, record: Any) -> None:
    other, orphan = record._replace(id="other@h", gen="o"), record._replace(id="orphan@h", gen="x")
    announce(client, orphan, leases)
    done = client.keep(TTL, {record.key: record, other.key: other}, leases, seconds=2, repair=True)
    assert [line.partition(" ")[0] for line in done if record.service in line] == [
        "registered",
        "registered",
        "removed",
    ]
    until(lambda: {one.id for one in client.records(record.service, seconds=2)} == {record.id, other.id})
    assert not any(
        record.service in line
        for line in client.keep(TTL, {record.key: record, other.key: other}, leases, seconds=2, repair=True)
    )
    client.keep(TTL, {}, leases, seconds=2, repair=True)


def test_whoever_waits_leaves_a_note_and_takes_it_back(client: Any, leases: Any) -> None:
    client.wait_begins("a.wait@h", '{"v":1}', TTL, leases, seconds=2)
    assert '{"v":1}' in client.waiting(seconds=2)
    client.wait_ends("a.wait@h", seconds=2)
    assert '{"v":1}' not in client.waiting(seconds=2)


def test_the_first_endpoint_that_answers_is_taken(server: Any, leases: Any, record: Any) -> None:
    host, _, port = server.url.rpartition(":")
    source = sources.parse(f"{host}:{free_port()},127.0.0.1:{port}")
    began = time.monotonic()
    assert announce(connect(source), record, leases)
    assert time.monotonic() - began < 1.5


def test_nobody_there_is_told_with_each_endpoints_trouble() -> None:
    ports = free_port(), free_port()
    for scheme in ("etcd", "consul"):
        client = connect(sources.parse(f"{scheme}://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"))
        with pytest.raises(Away, match=f"{ports[0]}: Connection refused; .*{ports[1]}: Connection refused"):
            client.records("web", seconds=2)


# --- etcd alone ----------------------------------------------------------------------------------------------------


def test_a_lease_that_is_gone_is_granted_again_with_all_that_was_under_it(etcd: Any, leases: Any, record: Any) -> None:
    client = connect(sources.parse(etcd.url))
    announce(client, record, leases)
    client._call("lease/revoke", {"ID": leases.of(client.source, TTL)}, 2)  # type: ignore[call-arg]
    assert client.records(record.service, seconds=2) == []
    done = client.keep(TTL, {record.key: record}, leases, seconds=2, repair=False)
    assert done == ["granted a new lease", f"registered {record.key}"]
    assert client.records(record.service, seconds=2) == [record]
    # A step that knows the old lease does not fail either.
    client._call("lease/revoke", {"ID": leases.of(client.source, TTL)}, 2)  # type: ignore[call-arg]
    assert announce(client, record, leases)


def test_nobody_takes_a_successors_record_away_or_writes_over_it(etcd: Any, leases: Any, record: Any) -> None:
    client = connect(sources.parse(etcd.url))
    successor = record._replace(gen="successor", host="other")
    announce(client, record, leases)
    announce(client, successor, leases)
    assert not client.withdraw(record.service, record.id, record.gen, seconds=2)
    assert not announce(client, record, leases, only_new=True)
    client.keep(TTL, {record.key: record}, leases, seconds=2, repair=True)
    assert client.records(record.service, seconds=2) == [successor]


def test_strangers_keys_beside_records_are_passed_over(etcd: Any, leases: Any, record: Any) -> None:
    client: Any = connect(sources.parse(etcd.url))
    announce(client, record, leases)
    for n, text in enumerate(["", "{", record.text, "\x00", '{"v":2}', "x" * 100_000]):
        client._put(f"{record.key[: record.key.rindex('/')]}/stranger{n}", text, "0", 2, None)
    wrong: list[str] = []
    assert client.records(record.service, seconds=2, wrong=wrong) == [record]
    assert len(wrong) == 6
    # Nor does a key that is no text.
    raw = f"{record.key[: record.key.rindex('/')]}/".encode() + b"\xff"
    key = b2a_base64(raw, newline=False).decode()
    client._call("kv/put", {"key": key, "value": key}, 2)
    client._call("kv/put", {"key": b2a_base64(b"/podrun/v1/wait/\xff", newline=False).decode(), "value": key}, 2)
    try:
        assert client.poll([record.service], seconds=2)[record.service] == [record]
        assert record.service in client.services(seconds=2)
        assert client.waiting(seconds=2)
    finally:
        client._call("kv/deleterange", {"key": b2a_base64(b"/podrun/v1/wait/\xff", newline=False).decode()}, 2)


@pytest.mark.parametrize("size", [1_400_000, 16], ids=["too large to read", "as usual"])
def test_a_service_whose_records_are_too_large_hides_no_other_one(
    etcd: Any, leases: Any, record: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: Any = connect(sources.parse(etcd.url))
    announce(client, record, leases)
    large = record.service + "-large"
    for n in range(4):
        client._put(f"/podrun/v1/svc/{large}/{n}", "x" * size, "0", 5, None)
    try:
        known = client.poll([large, record.service], seconds=5)
        assert known[record.service] == [record]
        assert (large in known) == (size == 16)
        assert [line.split(":")[0] for line in client.oversized.news()] == [large] * (size != 16)
        # What changes meanwhile is seen, and so is that the service can be read again.
        announce(client, record._replace(port=81), leases)
        assert client.poll([large, record.service], seconds=5) == {record.service: [record._replace(port=81)]}
    finally:
        client._call("kv/deleterange", _range(f"/podrun/v1/svc/{large}/"), 5)
    monkeypatch.setattr(oversized, "_AGAIN", 0.0)
    client.oversized._until = dict.fromkeys(client.oversized._until, 0.0)
    assert client.poll([large, record.service], seconds=5) == {large: []}
    assert client.poll([large, record.service], seconds=5) == {}
    client.close()


def test_a_cluster_that_was_restored_from_an_older_state_is_read_anew(etcd: Any, leases: Any, record: Any) -> None:
    client = connect(sources.parse(etcd.url))
    announce(client, record, leases)
    client.poll([record.service], seconds=2)
    client._revision += 1000
    client._known[record.service]["/podrun/v1/svc/gone"] = record  # type: ignore[call-overload]
    assert client.poll([record.service], seconds=2) == {record.service: [record]}


# --- Consul alone --------------------------------------------------------------------------------------------------


def test_what_others_have_registered_in_consul_is_found_too(consul: Any, record: Any) -> None:
    client = connect(sources.parse(consul.url))
    body = {"ID": "db 1", "Name": record.service, "Address": "192.0.2.7", "Port": 5432}
    client._call("PUT", "/v1/agent/service/register", body, 2)  # type: ignore[call-arg]
    found = records(client, record.service, 1)
    assert [(one.id, one.addr, one.port, one.ready) for one in found] == [("db-1", "192.0.2.7", 5432, True)]
    client._call("PUT", "/v1/agent/service/deregister/db%201", None, 2)  # type: ignore[call-arg]


def test_a_service_of_consul_with_a_strange_name_is_only_a_strange_name(consul: Any) -> None:
    client = connect(sources.parse(consul.url))
    name = "My Service? HTTP/1.1"
    body = {"ID": "odd", "Name": name, "Address": "192.0.2.7", "Port": 5432}
    client._call("PUT", "/v1/agent/service/register", body, 2)  # type: ignore[call-arg]
    try:
        until(lambda: name in client.services(seconds=2))
        wrong: list[str] = []
        until(lambda: client.records(name, seconds=2, wrong=wrong) == [] and wrong)
        assert "expected a service name" in wrong[0]
    finally:
        client._call("PUT", "/v1/agent/service/deregister/odd", None, 2)  # type: ignore[call-arg]


def test_a_service_of_consul_that_is_too_large_hides_no_other_one(
    consul: Any, leases: Any, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: Any = connect(sources.parse(consul.url))
    announce(client, record, leases)
    asked = client.records

    def records_of(service: str, **more: Any) -> Any:
        if service == "a-large-one":
            raise TooLarge("the answer has more than 4 MiB")
        return asked(service, **more)

    monkeypatch.setattr(client, "records", records_of)
    seen: dict[str, Any] = {}
    until(lambda: seen.update(client.poll(["a-large-one", record.service], seconds=2)) or seen.get(record.service))
    assert "a-large-one" not in seen
    assert client.oversized.news() == [
        "a-large-one: the answer has more than 4 MiB; whoever is led there stays where it is"
    ]
    client.withdraw(record.service, record.id, record.gen, seconds=2)


def test_a_change_rings_before_anybody_polls(client: Any, record: Any, leases: Any) -> None:
    announce(client, record, leases)
    records(client, record.service, 1)
    until(lambda: not client.poll([record.service], seconds=2))
    client.listen(time.monotonic())
    if not client.bell.listens:
        pytest.skip("what stands for Consul cannot tell of changes")

    def rung() -> bool:
        bell.wait(client.bell.descriptors(), 0.2)
        found: bool = client.bell.rings(time.monotonic())
        client.listen(time.monotonic())
        return found

    until(lambda: not rung())  # etcd tells that the watch has begun
    other = connect(client.source)
    try:
        announce(other, record._replace(ready=False), leases)
        began = time.monotonic()
        bell.wait(client.bell.descriptors(), 5)
        assert time.monotonic() - began < 1
        assert client.bell.rings(time.monotonic())
        until(lambda: [one.ready for one in client.records(record.service, seconds=2)] == [False])
    finally:
        other.close()
