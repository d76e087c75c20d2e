"""What is noticed of other people's changes to links and rules, and mended: ``podrun network``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from podrun.cli import networks
from podrun.errors import UNAVAILABLE
from podrun_hooks.network import health
from support.network_case import Place, call, free_port, plain, run

pytestmark = pytest.mark.root


def network(place: Place, *words: str) -> Any:
    given = {"root": place.root, "run": place.run, "debug": False}
    return CliRunner().invoke(networks.group, list(words), obj=given)


def own(place: Place) -> list[str]:
    """What is wrong with this place's bridges: the machine may have its own troubles."""
    return [one.what for one in health.problems(place.run) if "chain" not in one.what]


def test_a_whole_network_has_no_problem(place: Any) -> None:
    place.up("web", publish=[f"{free_port()}:80"])
    assert own(place) == []


def test_a_flushed_ruleset_is_noticed_and_reloaded(place: Any) -> None:
    port = free_port()
    facts = place.up("web", publish=[f"{port}:80"])
    place.serve(facts["netns"], 80, "web")
    run("nft", "delete", "table", "inet", place.table())
    assert "was flushed" in own(place)[0]
    assert call("", "127.0.0.1", port, timeout=0.5) == ""
    assert network(place, "reload").output.splitlines()[0] == place.bridge()
    assert own(place) == []
    assert call("", "127.0.0.1", port).startswith("web to ")


def test_flushed_chains_are_noticed_although_the_table_is_there(place: Any) -> None:
    place.up("web")
    run("nft", "flush", "table", "inet", place.table())
    assert "was flushed" in own(place)[0]
    network(place, "reload")
    assert own(place) == []


def test_a_port_that_somebody_took_out_is_named_and_put_back(place: Any) -> None:
    port = free_port()
    place.up("web", publish=[f"{port}:80"])
    run("nft", "flush", "map", "inet", place.table(), "host4")
    assert f"port 127.0.0.1:{port}/tcp of pod web is not published any more" in own(place)
    network(place, "reload")
    assert own(place) == []


@pytest.mark.parametrize("what", ["down", "gone"])
def test_a_bridge_that_is_down_or_gone_is_noticed(place: Any, what: str) -> None:
    place.up("web")
    run("ip", "link", *(["set", place.bridge(), "down"] if what == "down" else ["delete", place.bridge()]))
    assert any(f"{place.bridge()} is {what}" in one for one in own(place))
    network(place, "reload")
    assert own(place) == []


def test_a_chain_of_others_that_drops_what_is_forwarded_is_named_with_the_remedy() -> None:
    """The chains as dockerd makes them; test_network_reach.py does it with packets, on a host of its own."""
    rules = [
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}},
    ]
    (problem,) = health._blocked("podrun0", rules)
    assert "chain ip filter FORWARD drops what is forwarded" in problem.what
    assert "iptables -I DOCKER-USER -i podrun0 -j ACCEPT" in problem.hint


def test_a_rule_that_lets_the_bridge_through_ends_the_warning() -> None:
    rule = {"family": "ip", "table": "filter", "chain": "DOCKER-USER"}

    def accept(key: str) -> dict:
        match = {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": "podrun0"}}
        return {"rule": {**rule, "expr": [match, {"accept": None}]}}

    chain = {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}}
    assert list(health._blocked("podrun0", [chain, accept("iifname")]))
    assert not list(health._blocked("podrun0", [chain, accept("iifname"), accept("oifname")]))


def test_it_lists_and_inspects(place: Any) -> None:
    port = free_port()
    facts = place.up("web", publish=[f"{port}:80"])
    (row,) = [json.loads(line) for line in network(place, "ls", "--format", "json").output.splitlines()]
    assert (row["name"], row["leases"], row["guarded"]) == (place.bridge(), 1, True)
    assert network(place, "ls", "-q").output == f"{place.bridge()}\n"
    assert f"{place.bridge()}  " in network(place, "ls").output
    whole = json.loads(network(place, "inspect", place.bridge()).output)
    assert [lease["pod"] for lease in whole["leases"]] == ["web"]
    assert [(one["port"], one["address"]) for one in whole["published"]] == [(port, plain(facts))]
    assert network(place, "inspect", "t-net-none").exit_code == UNAVAILABLE
