"""A registry whose answers are JSON of any other shape: each call ends with Away or Refused, or takes them for empty."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks.registry import connect, wishes
from podrun_hooks.registry.http import Answer, Away, Refused
from podrun_hooks.registry.record import Record
from podrun_hooks.registry.source import Source

RECORD = Record("i", "web", "h", "192.0.2.1", 80, "tcp", True, "g", "b", "u", {})
KV = {"key": "L3BvZHJ1bi92MS9zdmMvd2ViL2k=", "value": "e30=", "mod_revision": "3"}
#: All that etcd's answers have, in one.
ETCD = {
    "header": {"revision": "7"}, "kvs": [KV], "count": "1", "ID": "5", "TTL": "9", "result": {"TTL": "9"},
    "keys": ["L3BvZHJ1bi8="], "succeeded": True, "deleted": "1",
    "responses": [{"response_range": {"kvs": [KV], "count": "1"}}],
}  # fmt: skip
SERVICE = {"ID": "i", "Service": "web", "Address": "192.0.2.1", "Port": 80, "Meta": {}, "CreateIndex": 3}
HEALTH = [{"Node": {"Node": "n", "Address": "192.0.2.1"}, "Service": SERVICE, "Checks": [{"Status": "passing"}]}]
ODD = [None, 1, -1, "x", "9" * 30, [], [1], ["x"], {}, {"x": 1}, True, 1.5, float("inf"), [None], [{}], [[]], "/w=="]


def mutations(value: Any) -> Iterator[Any]:
    """The value with one part of it, at any depth, missing or odd."""
    yield from ODD
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: other} for other in mutations(value[key]))
    elif isinstance(value, list):
        for n, one in enumerate(value):
            yield from ([*value[:n], other, *value[n + 1 :]] for other in mutations(one))


CALLS: list[Callable[[Any, Any], Any]] = [
    lambda client, _: client.poll(["web"], seconds=1),
    lambda client, _: client.records("web", seconds=1, wrong=[]),
    lambda client, _: client.services(seconds=1),
    lambda client, _: client.withdraw("web", "i", "g", seconds=1),
    lambda client, _: client.remove("web", "i", seconds=1),
    lambda client, _: client.waiting(seconds=1),
    lambda client, leases: client.announce(RECORD, 15, leases, seconds=1, only_new=True),
    lambda client, leases: client.keep(15, {RECORD.key: RECORD}, leases, seconds=1, repair=True),
    lambda client, leases: client.wait_begins("i", "t", 30, leases, seconds=1),
]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [("etcd", ETCD), ("consul", HEALTH), ("consul", {"a": SERVICE}), ("consul", [{"Value": "e30="}])],
    ids=["etcd", "health", "services", "keys"],
)
def test_no_lie_of_a_registry_is_a_traceback(kind: str, answer: Any, tmp_path: Path) -> None:
    leases = wishes.Leases(str(tmp_path))
    for lie in mutations(answer):
        body = json.dumps(lie).encode()
        for call in CALLS:
            client: Any = connect(Source(kind, "", (("127.0.0.1", 1),)))
            client._http.call = lambda *_, body=body, **__: Answer(200, {}, body)
            try:
                call(client, leases)
            except (Away, Refused):
                continue
