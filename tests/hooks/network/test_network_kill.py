"""podrun is killed (-9) inside the network step's up and down; one down with no facts leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks import network
from podrun_hooks.network import cni, ledger
from support.network_case import Place, call, free_port, inside, run, seen, settled

pytestmark = pytest.mark.root

#: More random moments: PODRUN_KILL_ROUNDS=1000
ROUNDS = int(os.environ.get("PODRUN_KILL_ROUNDS", "30"))

# Argument 1: the notification at which it kills itself, or after how many seconds it is killed ("t0.002").
_VICTIM = """
import os, signal, sys, time
sys.path[:0] = {path!r}
from podrun.hook import Pod, Step, read
from podrun_hooks import network
from podrun_hooks.network import bridge, cni, files, lease, namespace
from podrun_hooks.network.publish import ports
cni.CONFIGURATION = {configuration!r}
point = sys.argv[1]
count = 0
def tell(_):
    global count
    count += 1
    if str(count) == point:
        os.kill(os.getpid(), 9)
pod = Pod("web", {root!r}, {run!r}, {tag!r}, invocation="x")
step = Step(pod, "network", {name!r}, read(network.Options, {table!r}), tell)
if point.startswith("t"):
    signal.setitimer(signal.ITIMER_REAL, float(point[1:]))  # nobody handles SIGALRM: it ends the process like SIGKILL
began = time.monotonic()
network.{verb}(step, {facts!r})
print(time.monotonic() - began)
"""


@pytest.fixture
def place() -> Iterator[Any]:
    found = Place()
    try:
        found.up("other")
        yield found
    finally:
        found.close()


@pytest.fixture
def table() -> Any:
    return {"publish": [f"{free_port()}:80", f"{free_port()}:53/udp"]}


def victim(place: Place, verb: str, point: str, table: dict, facts: dict | None = None) -> bool:
    """Runs the verb in a process that is killed; False when it came to its end before. ``facts``: a further step's."""
    return not attempt(place, verb, point, table, facts)


def moments(place: Place, verb: str, table: dict, facts: dict | None = None) -> Iterator[float]:
    """Random moments of a verb, in seconds from its begin: between nothing and what it takes here when nobody kills it."""
    dice = random.Random(os.environ.get("PODRUN_KILL_SEED"))
    if verb == "down":
        place.up("web", **table)
    took = attempt(place, verb, "", table, facts)
    network.down(place.started["web network-2" if facts else "web"], {})
    while True:
        yield dice.uniform(0.0001, took)


def attempt(place: Place, verb: str, point: str, table: dict, facts: dict | None = None) -> float:
    """Runs the verb in a process that is killed at ``point``; the seconds that the verb took, 0 when it was killed."""
    name = "network-2" if facts else "network"
    step = place.step("web", name, **table)
    place.started["web network-2" if facts else "web"] = step
    code = _VICTIM.format(
        path=sys.path,
        root=place.root,
        run=place.run,
        tag=step.pod.tag,
        name=name,
        table=table,
        verb=verb,
        facts=facts or {},
        configuration=cni.CONFIGURATION,
    )
    ended = subprocess.run([sys.executable, "-c", code, point], capture_output=True, text=True)
    assert ended.returncode in (0, -9, -14), ended.stderr
    return float(ended.stdout) if ended.returncode == 0 else 0.0


def points(place: Place, verb: str, table: dict, least: int) -> Iterator[Any]:
    point = 1
    while victim(place, verb, str(point), table):
        yield point
        point += 1
    assert point > least


def test_killed_at_every_notification_of_up_one_down_leaves_nothing(place: Any, table: Any) -> None:
    before = seen(place)
    for point in points(place, "up", table, 5):
        network.down(place.started["web"], {})
        assert not settled(place, before), f"notification {point}"
    network.down(place.started["web"], {})
    assert not settled(place, before)


def test_killed_at_every_notification_of_up_the_next_up_works(place: Any, table: Any) -> None:
    for _ in points(place, "up", table, 5):
        facts = place.up("web", **table)
        place.serve(facts["netns"], 80, "web")
        assert call("", "127.0.0.1", int(table["publish"][0].partition(":")[0])).startswith("web to ")
        network.down(place.started["web"], facts)


def test_killed_at_every_notification_of_down_the_next_down_finishes(place: Any, table: Any) -> None:
    before = seen(place)
    place.up("web", **table)
    for point in points(place, "down", table, 3):
        network.down(place.started["web"], {})
        assert not settled(place, before), f"notification {point}"
        place.up("web", **table)
    assert not settled(place, before)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_killed_at_random_moments_one_down_leaves_nothing(place: Any, table: Any, verb: str) -> None:
    before = seen(place)
    killed = 0
    for _, moment in zip(range(ROUNDS), moments(place, verb, table), strict=False):
        if verb == "down":
            place.up("web", **table)
        killed += victim(place, verb, f"t{moment}", table)
        network.down(place.started["web"], {})
        assert not settled(place, before), f"{verb} killed after {moment * 1000:.2f} ms"
    assert killed > ROUNDS // 4


def test_killed_before_there_is_a_bridge_the_next_up_makes_it() -> None:
    killed = 0
    for n in range(8):
        place = Place()
        try:
            killed += victim(place, "up", f"t{0.001 + n * 0.003}", {})
            facts = place.up("web")
            place.serve(facts["netns"], 80, "web")
            assert call("", facts["addresses"][0].partition("/")[0], 80).startswith("web to ")
        finally:
            place.close()
    assert killed


@pytest.fixture
def wire() -> Iterator[Any]:
    run("ip", "link", "add", "t-net-kill0", "type", "veth", "peer", "name", "t-net-kill1")
    run("ip", "link", "set", "t-net-kill0", "up")
    yield "t-net-kill0"
    run("ip", "link", "delete", "t-net-kill0")


@pytest.mark.parametrize("verb", ["up", "down"])
@pytest.mark.parametrize("mode", ["pod:other", "macvlan:t-net-kill0", "none"])
def test_killed_at_every_notification_in_another_mode_one_down_leaves_nothing(
    place: Any, wire: Any, mode: str, verb: str
) -> None:
    table = {"mode": mode, **({"address": "198.51.100.7/24"} if "macvlan" in mode else {})}
    before = seen(place)
    for point in range(1, 9):
        if verb == "down":
            place.up("web", **table)
        killed = victim(place, verb, str(point), table)
        network.down(place.started["web"], {})
        assert not settled(place, before), f"notification {point}"
        if not killed:
            break
    assert point > 1


@pytest.mark.parametrize("verb", ["up", "down"])
@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_killed_at_every_notification_of_a_further_step_one_down_leaves_nothing(
    place: Any, wire: Any, kind: str, verb: str, table: Any
) -> None:
    facts = place.up("web")
    tables = {"bridge": table, "macvlan": {"mode": f"macvlan:{wire}", "address": "198.51.100.7/24"}}
    before = seen(place) | inner(facts)
    for point in range(1, 12):
        if verb == "down":
            place.further("web", facts, **tables[kind])
        killed = victim(place, verb, str(point), tables[kind], facts)
        network.down(place.started["web network-2"], {})
        assert not settled(place, before), f"notification {point}"
        assert inner(facts) <= before, f"notification {point}"
        if not killed:
            break
    assert point > 1


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_killed_at_random_moments_a_further_step_leaves_nothing(place: Any, wire: Any, kind: str) -> None:
    facts = place.up("web")
    tables = {"bridge": {}, "macvlan": {"mode": f"macvlan:{wire}", "address": "198.51.100.7/24"}}
    before = seen(place) | inner(facts)
    killed = 0
    for _, moment in zip(range(ROUNDS), moments(place, "up", tables[kind], facts), strict=False):
        killed += victim(place, "up", f"t{moment}", tables[kind], facts)
        network.down(place.started["web network-2"], {})
        assert not settled(place, before), f"killed after {moment * 1000:.2f} ms"
        assert inner(facts) <= before, f"killed after {moment * 1000:.2f} ms"
    assert killed > ROUNDS // 4


@pytest.fixture
def stock(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A network of Debian's plugins; what they have of a pod.

    Their bridge is there already: a bridge plugin that is killed while it makes it (before it sets its hardware
    address) fails ever after, because the kernel gives a bridge without a port and an address of its own all zeroes.
    """
    if not os.path.exists("/usr/lib/cni/bridge"):
        pytest.skip("containernetworking-plugins is not installed")
    monkeypatch.setattr(cni, "CONFIGURATION", str(tmp_path))
    ipam = {"type": "host-local", "ranges": [[{"subnet": "198.51.100.0/24"}]], "dataDir": str(tmp_path / "leases")}
    plugins = [{"type": "bridge", "bridge": "t-net-kill2", "isGateway": True, "ipam": ipam}, {"type": "tuning"}]
    (tmp_path / "lan.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "lan", "plugins": plugins}))

    def has() -> set[str]:
        ports = run("ip", "-o", "link", "show", "master", "t-net-kill2", check=False).splitlines()
        leases = os.listdir(tmp_path / "leases" / "lan") if os.path.exists(tmp_path / "leases" / "lan") else []
        return {f"lease {name}" for name in leases if name[0].isdigit()} | {f"port {line.split()[1]}" for line in ports}

    place.up("first", mode="cni:lan")
    place.down("first")
    yield has
    run("ip", "link", "delete", "t-net-kill2", check=False)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_killed_at_every_notification_beside_stock_cni_plugins_one_down_leaves_nothing(
    place: Any, stock: Any, verb: str
) -> None:
    table = {"mode": "cni:lan"}
    before = seen(place)
    for point in range(1, 9):
        if verb == "down":
            place.up("web", **table)
        killed = victim(place, verb, str(point), table)
        network.down(place.started["web"], {})
        assert (settled(place, before), stock()) == (set(), set()), f"notification {point}"
        if not killed:
            break
    assert point > (4 if verb == "up" else 1)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_killed_at_random_moments_while_cni_plugins_work_one_down_leaves_nothing(
    place: Any, stock: Any, verb: str
) -> None:
    table = {"mode": "cni:lan"}
    before = seen(place)
    killed = 0
    for _, moment in zip(range(max(5, ROUNDS // 6)), moments(place, verb, table), strict=False):
        if verb == "down":
            place.up("web", **table)
        killed += victim(place, verb, f"t{moment}", table)
        network.down(place.started["web"], {})
        assert (settled(place, before), stock()) == (set(), set()), f"{verb} killed after {moment * 1000:.2f} ms"
    assert killed


def inner(facts: dict) -> set[str]:
    """The links in a pod's namespace."""
    return {
        f"inner {line.split()[1].partition('@')[0]}"
        for line in run(*inside(facts["netns"]), "ip", "-o", "link").splitlines()
    }


def test_a_replaced_generation_whose_undoing_was_killed_between_umount_and_unlink_is_undone(place: Place) -> None:
    netns = place.up("web")["netns"]
    fd = ledger.further(ledger.path_of(place.started["web"]))
    ledger.note(fd, "holds", "no")
    os.close(fd)
    run("umount", netns)
    network.settle(place.started["web"], {}, 1.0)
    place.down("web")
    assert not os.path.exists(netns)
