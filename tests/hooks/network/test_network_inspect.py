"""What podrun tells about networks, and what its garbage collection removes and leaves."""

from __future__ import annotations

import os
from typing import Any

import pytest

from podrun_hooks.network import bridge, inspect
from support.network_case import Place, free_port, plain, run, seen

pytestmark = pytest.mark.root


def lose(place: Place, pod: str) -> None:
    """The pod's directory is gone, journal and ledger with it; the kernel still has its objects."""
    run("rm", "-r", place.started.pop(pod).pod.directory)


def test_it_lists_bridges_leases_ports_links_and_namespaces(place: Any) -> None:
    port = free_port()
    facts = place.up("web", publish=[f"{port}:80"])
    tag = place.started["web"].pod.tag
    network = inspect.networks(place.run)[0]
    assert (network["name"], network["up"], network["leases"]) == (place.bridge(), True, 1)
    assert inspect.leases(place.run) == [
        {"bridge": place.bridge(), "address": plain(facts), "pod": "web", "alive": True}
    ]
    assert inspect.published(place.run) == [
        {"ip": "127.0.0.1", "port": port, "proto": "tcp", "pod": "web", "address": plain(facts), "target_port": 80}
    ]
    assert inspect.namespaces(place.run) == [
        {"path": facts["netns"], "tag": tag, "inode": str(os.stat(facts["netns"]).st_ino), "alive": True}
    ]
    assert [(row["name"], row["tag"]) for row in inspect.links(place.run)] == [(network["ports"][0], tag)]


def test_an_unused_run_directory_has_nothing_to_tell(place: Any) -> None:
    for ask in (inspect.networks, inspect.leases, inspect.published, inspect.namespaces, inspect.links):
        assert ask(place.run) == []
    assert inspect.collect(place.run) == []
    assert inspect.remove_bridges(place.run) == []


def test_collecting_leaves_what_lives(place: Any) -> None:
    place.up("web", publish=[f"{free_port()}:80"])
    before = seen(place)
    assert inspect.collect(place.run) == []
    assert inspect.remove_bridges(place.run) == []
    assert seen(place) == before


def test_collecting_removes_everything_of_a_lost_pod(place: Any) -> None:
    place.up("other")
    before = seen(place)
    facts = place.up("web", publish=[f"{free_port()}:80", f"0.0.0.0:{free_port()}:80/udp", f"[::]:{free_port()}:80"])
    tag = place.started["web"].pod.tag
    lose(place, "web")
    looked = inspect.collect(place.run, keep=True)
    assert {"lease", "netns", "port"} <= {row["kind"] for row in looked}
    assert os.path.exists(facts["netns"])
    removed = inspect.collect(place.run)
    assert [row for row in removed if row["kind"] != "link"] == looked
    assert {"kind": "netns", "name": tag, "pod": ""} in removed
    assert not [one for one in seen(place) - before if not one.startswith("link ")]


def test_collecting_removes_the_files_of_a_pod_without_a_journal(place: Any) -> None:
    place.up("web")
    step = place.started.pop("web")
    os.unlink(f"{step.pod.directory}/pod.journal")
    inspect.collect(place.run)
    assert not os.path.exists(step.pod.directory)


def test_another_run_directorys_objects_are_foreign(place: Any) -> None:
    other = Place()
    try:
        facts = other.up("web")
        assert inspect.collect(place.run) == []
        assert inspect.namespaces(place.run) == []
        assert os.path.exists(facts["netns"])
    finally:
        other.close()


def test_a_bridge_goes_when_no_pod_is_left_and_its_table_with_it(place: Any) -> None:
    place.up("web")
    name, table = place.bridge(), place.table()
    assert inspect.remove_bridges(place.run) == []
    place.down("web")
    assert inspect.remove_bridges(place.run) == [name]
    assert name not in run("ip", "-brief", "link")
    assert f"inet {table}\n" not in run("nft", "list", "tables")
    assert not os.listdir(f"{place.run}/network")
    place.up("web")


def test_gc_leaves_the_bridges_while_a_start_looks_for_its_own(place: Any) -> None:
    place.up("web")
    place.down("web")
    held = bridge.held(place.run)
    try:
        assert inspect.remove_bridges(place.run) == []
    finally:
        os.close(held)
    assert inspect.remove_bridges(place.run) == [place.bridge()]
