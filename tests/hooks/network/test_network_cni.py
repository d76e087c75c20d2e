"""Stock CNI plugins (Debian's containernetworking-plugins), unchanged: ADD, DEL, CHECK, GC, and the chaining of results."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from podrun.cli import networks as podrun_networks
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks import network
from podrun_hooks.network import cni, health, inspect
from support.network_case import Place, call, free_port, inside, run, seen, settled

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not os.path.exists("/usr/lib/cni/bridge"), reason="containernetworking-plugins is not installed"
    ),
]

#: Writes down how it was called; fails when a file of the verb's name is beside it.
RECORDER = """#!/bin/sh
cd {directory}
config=$(cat)
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{{"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}}'; exit
fi
printf '%s %s %s %s\\n' "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_IFNAME" "$config" >> calls
[ ! -e "fail-$CNI_COMMAND" ] || {{ echo '{{"code": 11, "msg": "try again", "details": "later"}}'; exit 1; }}
case $CNI_COMMAND in ADD) printf '%s' "$config" | jq -c .prevResult;; esac
"""


@pytest.fixture
def place(networks: Any) -> Iterator[Any]:
    """Closed before ``networks`` is: DEL needs the plugins."""
    found = Place()
    try:
        yield found
    finally:
        found.close()
        run("ip", "link", "delete", "t-net-cni0", check=False)


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A directory of configurations with the network "lan": a bridge with host-local addresses, and portmap."""
    monkeypatch.setattr(cni, "CONFIGURATION", str(tmp_path))
    monkeypatch.setattr(cni, "PLUGINS", (*cni.PLUGINS, str(tmp_path)))
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "198.51.100.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(tmp_path / "leases"),
    }
    bridge = {"type": "bridge", "bridge": "t-net-cni0", "isGateway": True, "ipMasq": False, "ipam": ipam}
    bridge["dns"] = {"nameservers": ["192.0.2.53"], "search": ["lan.example"]}
    plugins = [bridge, {"type": "tuning", "capabilities": {"mac": True}}, {"type": "recorder"}]
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER.format(directory=tmp_path))
    recorder.chmod(0o755)

    def write(version: str = "1.0.0", plugins: list = plugins) -> None:
        (tmp_path / "10-lan.conflist").write_text(
            json.dumps({"cniVersion": version, "name": "lan", "plugins": plugins})
        )

    write()
    yield tmp_path, write


def calls(directory: Path) -> list[str]:
    try:
        return [line.split()[0] for line in (directory / "calls").read_text().splitlines()]
    except FileNotFoundError:
        return []


def leases(directory: Path) -> list[str]:
    place = directory / "leases" / "lan"
    return sorted(name for name in os.listdir(place) if name[0].isdigit()) if place.exists() else []


def test_a_pod_is_on_the_network_that_the_plugins_made(place: Any, networks: Any) -> None:
    directory, _ = networks
    before = seen(place)
    facts = place.up("web", mode="cni:lan", mac="02:00:5e:00:00:11")
    assert facts["addresses"] == [f"{leases(directory)[0]}/24"]
    place.serve(facts["netns"], 80, "web")
    assert call("", leases(directory)[0], 80).startswith("web to ")
    assert "02:00:5e:00:00:11" in run(*inside(facts["netns"]), "ip", "link", "show", "eth0")
    resolv = next(m["hostPath"] for m in facts["mounts"] if m["containerPath"] == "/etc/resolv.conf")
    assert "nameserver 192.0.2.53\nsearch lan.example\n" in open(resolv).read()
    assert calls(directory) == ["ADD"]
    place.silence()
    place.down("web")
    assert calls(directory) == ["ADD", "DEL"]
    assert (leases(directory), settled(place, before)) == ([], set())


def test_each_plugin_gets_the_result_of_the_one_before_and_del_gets_the_last(place: Any, networks: Any) -> None:
    directory, _ = networks
    facts = place.up("web", mode="cni:lan")
    place.down("web")
    assert calls(directory) == ["ADD", "DEL"]
    for line in (directory / "calls").read_text().splitlines():
        verb, id_, interface, config = line.split(" ", 3)
        given = json.loads(config)
        assert (id_, interface, given["name"]) == (os.path.basename(facts["netns"]), "eth0", "lan")
        assert given["prevResult"]["ips"][0]["address"] == facts["addresses"][0], verb


def remove_chains_of_portmap() -> None:
    """The plugin leaves its empty chains in the nat table, with jumps to them."""
    for tool in ("iptables", "ip6tables"):
        for rule in run(tool, "-t", "nat", "-S", check=False).splitlines():
            if rule.startswith("-A") and "CNI-" in rule:
                run(tool, "-t", "nat", *shlex.split(rule.replace("-A", "-D", 1)), check=False)
        for rule in run(tool, "-t", "nat", "-S", check=False).splitlines():
            if rule.startswith("-N CNI-"):
                run(tool, "-t", "nat", "-X", rule.split()[1], check=False)


def test_portmap_publishes_ports(place: Any, networks: Any, request: pytest.FixtureRequest) -> None:
    _, write = networks
    request.addfinalizer(remove_chains_of_portmap)
    bridge = json.loads((networks[0] / "10-lan.conflist").read_text())["plugins"][0]
    write(plugins=[bridge, {"type": "portmap", "capabilities": {"portMappings": True}}])
    port = free_port()
    facts = place.up("web", mode="cni:lan", publish=[f"127.0.0.1:{port}:80"])
    place.serve(facts["netns"], 80, "web")
    assert call("", "127.0.0.1", port).startswith("web to ")
    place.silence()
    place.down("web")
    assert call("", "127.0.0.1", port, timeout=0.5) == ""


def test_a_further_step_adds_a_cni_interface(place: Any, networks: Any) -> None:
    facts = place.up("web")
    second = place.further("web", facts, mode="cni:lan")
    assert second["addresses"][0].startswith("198.51.100.")
    assert "198.51.100." in run(*inside(facts["netns"]), "ip", "address", "show", "eth1")
    network.down(place.started.pop("web network-2"), {})
    assert "eth1" not in run(*inside(facts["netns"]), "ip", "-brief", "link")


def test_what_a_plugin_says_is_told_and_del_undoes_the_plugins_before_it(place: Any, networks: Any) -> None:
    directory, _ = networks
    (directory / "fail-ADD").touch()
    with pytest.raises(Failure, match="CNI network lan: recorder: try again: later"):
        place.up("web", mode="cni:lan")
    assert leases(directory)
    place.down("web")
    assert leases(directory) == []


def test_a_failing_del_is_told_and_the_next_down_goes_on(place: Any, networks: Any) -> None:
    directory, _ = networks
    place.up("web", mode="cni:lan")
    (directory / "fail-DEL").touch()
    with pytest.raises(Failure, match="recorder DEL: try again"):
        network.down(place.started["web"], {})
    (directory / "fail-DEL").unlink()
    place.down("web")
    assert leases(directory) == []


def test_del_gets_the_configuration_of_add_whatever_became_of_it(place: Any, networks: Any) -> None:
    directory, _ = networks
    place.up("web", mode="cni:lan")
    (directory / "10-lan.conflist").unlink()
    place.down("web")
    assert leases(directory) == []


def test_the_attachment_of_a_pod_without_a_journal_is_deleted_by_gc(place: Any, networks: Any) -> None:
    directory, _ = networks
    place.up("web", mode="cni:lan")
    os.unlink(f"{place.started.pop('web').pod.directory}/pod.journal")
    inspect.collect(place.run)
    assert (leases(directory), calls(directory)[-1]) == ([], "DEL")


def test_check_tells_what_is_wrong_with_an_attachment(place: Any, networks: Any) -> None:
    directory, _ = networks
    facts = place.up("web", mode="cni:lan")
    assert health.problems(place.run) == []
    (directory / "fail-CHECK").touch()
    assert "recorder: try again" in health.problems(place.run)[0].what
    run(*inside(facts["netns"]), "ip", "link", "delete", "eth0")
    assert "bridge: " in health.problems(place.run)[0].what


def test_gc_names_the_living_attachments_to_plugins_that_know_it(place: Any, networks: Any) -> None:
    """Debian's plugins are older than CNI 1.1: one of our own takes GC."""
    directory, write = networks
    with pytest.raises(Failure, match="has no GC"):
        cni.collect(place.run, "lan")
    facts = place.up("web", mode="cni:lan")
    write(version="1.1.0", plugins=[{"type": "recorder"}])
    cni.collect(place.run, "lan")
    verb, rest = (directory / "calls").read_text().splitlines()[-1].split(" ", 1)
    valid = json.loads(rest.strip())["cni.dev/valid-attachments"]
    assert (verb, valid) == ("GC", [{"containerID": os.path.basename(facts["netns"]), "ifname": "eth0"}])


def test_gc_is_not_asked_of_plugins_that_do_not_announce_it(place: Any, networks: Any) -> None:
    """Debian's bridge would refuse: its newest version is 1.0.0."""
    directory, write = networks
    bridge = {"type": "bridge", "bridge": "t-net-cni0", "ipam": {}}
    write(version="1.1.0", plugins=[bridge, {"type": "recorder"}])
    assert (cni.collect(place.run, "lan"), calls(directory)) == (["bridge"], ["GC"])
    done = CliRunner().invoke(podrun_networks.group, ["gc", "lan"], obj={"root": place.root, "run": place.run})
    assert "bridge was not asked" in done.output
    write(version="1.1.0", plugins=[bridge])
    with pytest.raises(Failure, match="no plugin of network lan announces CNI"):
        cni.collect(place.run, "lan")


@pytest.mark.parametrize(
    ("table", "code", "words"),
    [
        ({"mode": "cni:none"}, UNAVAILABLE, "has no network none; there are: lan"),
        ({"mode": "cni:lan", "subnet": "10.1.0.0/16"}, WRONG_FILE, "subnet is not for mode cni"),
        ({"mode": "cni:lan", "publish": ["1:1"]}, WRONG_FILE, "no plugin of it has the capability portMappings"),
    ],
)
def test_what_a_network_lacks_is_told(place: Any, networks: Any, table: Any, code: Any, words: str) -> None:
    problems = place.check("web", **table)
    if problems:
        told, what = problems[0].code, f"{problems[0].what}; {problems[0].hint}"
    else:
        with pytest.raises(Failure) as refused:
            place.up("web", **table)
        told, what = refused.value.code, str(refused.value)
    assert (told, words in what) == (code, True), what


@pytest.mark.parametrize("name", ["../../bin/sh", "/bin/sh", "..", ".hidden"])
def test_a_plugin_is_a_name_and_never_a_path(place: Any, networks: Any, name: str) -> None:
    """CVE-2021-20206."""
    networks[1](plugins=[{"type": name}])
    (problem,) = place.check("web", mode="cni:lan")
    assert problem.code == WRONG_FILE
    assert "is not the name of a CNI plugin" in problem.what


def test_a_plugin_that_is_not_installed_is_told_with_the_package(place: Any, networks: Any) -> None:
    networks[1](plugins=[{"type": "t-net-none"}])
    (problem,) = place.check("web", mode="cni:lan")
    assert (problem.code, problem.hint) == (UNAVAILABLE, "apt install containernetworking-plugins")
