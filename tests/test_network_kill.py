"""podrun is killed (-9) inside the network step's up and down; one down with no facts leaves nothing behind."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from network_case import Place, call, free_port, seen, settled

from podrun_hooks import network

pytestmark = pytest.mark.root

#: More random moments: PODRUN_KILL_ROUNDS=1000
ROUNDS = int(os.environ.get("PODRUN_KILL_ROUNDS", "30"))

# Argument 1: the notification at which it kills itself, or after how many seconds it is killed ("t0.002").
_VICTIM = """
import os, signal, sys
sys.path[:0] = {path!r}
from podrun.hook import Pod, Step, read
from podrun_hooks import network
from podrun_hooks.network import bridge, files, lease, namespace, ports
point = sys.argv[1]
count = 0
def tell(_):
    global count
    count += 1
    if str(count) == point:
        os.kill(os.getpid(), 9)
pod = Pod("web", {root!r}, {run!r}, {tag!r}, invocation="x")
step = Step(pod, "network", "network", read(network.Options, {table!r}), tell)
if point.startswith("t"):
    signal.setitimer(signal.ITIMER_REAL, float(point[1:]))  # nobody handles SIGALRM: it ends the process like SIGKILL
network.{verb}(step, {{}})
"""


@pytest.fixture
def place():
    found = Place()
    try:
        found.up("other")
        yield found
    finally:
        found.close()


@pytest.fixture
def table():
    return {"publish": [f"{free_port()}:80", f"{free_port()}:53/udp"]}


def victim(place: Place, verb: str, point: str, table: dict) -> bool:
    """Runs the verb in a process that is killed; False when it came to its end before."""
    step = place.step("web", **table)
    place.started["web"] = step
    code = _VICTIM.format(path=sys.path, root=place.root, run=place.run, tag=step.pod.tag, table=table, verb=verb)
    process = subprocess.Popen([sys.executable, "-c", code, point], stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate()
    assert process.returncode in (0, -9, -14), errors
    return process.returncode != 0


def points(place: Place, verb: str, table: dict, least: int):
    point = 1
    while victim(place, verb, str(point), table):
        yield point
        point += 1
    assert point > least


def test_killed_at_every_notification_of_up_one_down_leaves_nothing(place, table):
    before = seen(place)
    for point in points(place, "up", table, 5):
        network.down(place.started["web"], {})
        assert not settled(place, before), f"notification {point}"
    network.down(place.started["web"], {})
    assert not settled(place, before)


def test_killed_at_every_notification_of_up_the_next_up_works(place, table):
    for _ in points(place, "up", table, 5):
        facts = place.up("web", **table)
        place.serve(facts["netns"], 80, "web")
        assert call("", "127.0.0.1", int(table["publish"][0].partition(":")[0])).startswith("web to ")
        network.down(place.started["web"], facts)


def test_killed_at_every_notification_of_down_the_next_down_finishes(place, table):
    before = seen(place)
    place.up("web", **table)
    for point in points(place, "down", table, 3):
        network.down(place.started["web"], {})
        assert not settled(place, before), f"notification {point}"
        place.up("web", **table)
    assert not settled(place, before)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_killed_at_random_moments_one_down_leaves_nothing(place, table, verb):
    before = seen(place)
    dice = random.Random(os.environ.get("PODRUN_KILL_SEED"))
    killed = 0
    for _ in range(ROUNDS):
        if verb == "down":
            place.up("web", **table)
        moment = dice.uniform(0.0001, 0.008 if verb == "up" else 0.004)
        killed += victim(place, verb, f"t{moment}", table)
        network.down(place.started["web"], {})
        assert not settled(place, before), f"{verb} killed after {moment * 1000:.2f} ms"
    assert killed > ROUNDS // 4


def test_killed_before_there_is_a_bridge_the_next_up_makes_it():
    for n in range(8):
        place = Place()
        try:
            victim(place, "up", f"t{0.001 + n * 0.003}", {})
            facts = place.up("web")
            place.serve(facts["netns"], 80, "web")
            assert call("", facts["addresses"][0].partition("/")[0], 80).startswith("web to ")
        finally:
            place.close()
