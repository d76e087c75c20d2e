"""What crm_mon's XML means: hosts, pods, failures; and how a word reaches another host's shell."""

from __future__ import annotations

import os
import subprocess
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podrun.cluster import hosts, pacemaker, programs
from podrun.cluster.pacemaker import Machine, Unit
from podrun.errors import Failure

#: As crm_mon 2.1.5 prints it, attributes that are not read left out.
NODE = '<node name="{}" online="{}" standby="{}" maintenance="{}" pending="{}" unclean="{}"/>'
NO, YES = "false", "true"
POD = (
    '<resource id="{}" resource_agent="ocf:podrun:pod" role="{}" managed="{}" failed="{}" blocked="{}" {}>{}</resource>'
)


def mon(*resources: Any, nodes: str = "", failures: str = "", quorum: str = "true") -> Any:
    text = f'<pacemaker-result><summary><current_dc present="true" with_quorum="{quorum}"/></summary><nodes>{nodes}'
    text += f"</nodes><resources>{''.join(resources)}</resources><failures>{failures}</failures></pacemaker-result>"
    return ElementTree.fromstring(text)


def pod(
    name: Any, *on: Any, role: str = "Started", managed: Any = YES, failed: Any = NO, blocked: Any = NO, more: str = ""
) -> Any:
    return POD.format(name, role, managed, failed, blocked, more, "".join(f'<node name="{host}"/>' for host in on))


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ((YES, NO, NO, NO, NO), "online"),
        ((YES, YES, NO, NO, NO), "standby"),
        ((YES, NO, YES, NO, NO), "maintenance"),
        ((YES, NO, NO, YES, NO), "pending"),
        ((NO, NO, NO, NO, NO), "offline"),
        ((NO, NO, NO, NO, YES), "unclean"),
        ((YES, NO, NO, NO, YES), "unclean"),
    ],
)
def test_the_states_of_a_host(flags: Any, state: str) -> None:
    assert pacemaker.parsed(mon(nodes=NODE.format("n1", *flags))).machines == [Machine("n1", state, 0, {})]


@pytest.mark.parametrize(
    ("resource", "units"),
    [
        (pod("web", "n1"), [Unit("web", "n1", "started", "started")]),
        (pod("web", role="Stopped"), [Unit("web", "", "started", "stopped")]),
        (pod("web", role="Stopped", more='target_role="Stopped"'), [Unit("web", "", "stopped", "stopped")]),
        (pod("web", "n1", managed=NO), [Unit("web", "n1", "unmanaged", "started")]),
        (pod("web", "n1", failed=YES), [Unit("web", "n1", "started", "failed")]),
        (pod("web", "n1", failed=YES, blocked=YES), [Unit("web", "n1", "started", "blocked")]),
        (pod("web", role="Stopped", more='pending="Starting"'), [Unit("web", "", "started", "starting")]),
        (pod("web.blue", "n1", "n2"), [Unit("web@blue", host, "started", "started") for host in ("n1", "n2")]),
        ('<resource id="vip" resource_agent="ocf:heartbeat:IPaddr2" role="Started" managed="true"/>', []),
        (
            f'<clone id="u-Global">{pod("u", "n1")}{pod("u", "n2")}{pod("u", role="Stopped")}</clone>',
            [Unit("u", "n1", "started", "started"), Unit("u", "n2", "started", "started")],
        ),
        (
            f'<clone id="u-Global">{pod("u", role="Stopped")}{pod("u", role="Stopped")}</clone>',
            [Unit("u", "", "started", "stopped")],
        ),
    ],
)
def test_where_a_pod_is_and_what_is_wanted_of_it(resource: Any, units: Any) -> None:
    assert pacemaker.parsed(mon(resource)).units == units


def test_pods_are_counted_by_host_and_attributes_belong_to_it() -> None:
    attributes = '<nodes><node uname="n1"><instance_attributes><nvpair name="disk" value="ssd"/><nvpair name="standby"'
    attributes += ' value="on"/></instance_attributes></node></nodes>'
    nodes = NODE.format("n1", YES, YES, NO, NO, NO)
    found = pacemaker.parsed(mon(pod("a", "n1"), pod("b", "n1"), nodes=nodes), ElementTree.fromstring(attributes))
    assert found.machines == [Machine("n1", "standby", 2, {"disk": "ssd"})]


def test_a_failure_is_told_with_its_reason() -> None:
    failure = '<failure op_key="web.blue_monitor_10000" node="n1" task="monitor" interval="10000" exitreason="gone"/>'
    assert pacemaker.parsed(mon(failures=failure)).failures == {"web@blue": "n1: monitor: gone"}


def test_a_partition_without_quorum_is_known_as_one() -> None:
    assert not pacemaker.parsed(mon(quorum="false")).quorum


def test_an_answer_that_is_not_xml_is_a_failure() -> None:
    with pytest.raises(Failure, match="not XML"):
        pacemaker._xml("crm_mon: connection to cluster failed")


# --- other hosts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "a b", "a;b", "a\nb", "$(x)", "n1-", "ü", "a" * 254])
def test_what_is_no_host_is_refused(name: Any) -> None:
    with pytest.raises(Failure, match="is not the name of a host"):
        hosts.command(name, ["true"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=8), max_size=4))
def test_another_hosts_shell_gets_the_words_as_they_are(words: Any) -> None:
    argv = hosts.command("other.example", ["printf", "%s\\0", *words])
    assert argv[:1] + argv[-3:-1] == ["ssh", "--", "other.example"]
    done = subprocess.run(["sh", "-c", argv[-1]], capture_output=True, check=True)
    assert done.stdout.decode() == "".join(f"{word}\0" for word in words or [""])


def test_this_host_is_asked_without_ssh() -> None:
    assert hosts.command(os.uname().nodename, ["a b"]) == ["a b"]


def test_a_host_key_is_never_a_question() -> None:
    argv = hosts.command("n2", ["true"])
    assert "-oStrictHostKeyChecking=yes" in argv
    assert "-oBatchMode=yes" in argv


def test_a_program_that_hangs_or_prints_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LIMIT", 1 << 16)
    assert programs.run(["sleep", "60"], 0.3).code == programs.TIMED_OUT
    done = programs.run(["yes"], 30)
    assert (done.code, len(done.out)) == (programs.TIMED_OUT, 1 << 16)
