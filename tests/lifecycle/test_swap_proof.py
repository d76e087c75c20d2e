"""./dev prove swap: fifty swaps under 32 busy connections of each kind, figure by figure, beside a restart."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from support.busy import Busy, Count
from support.launcher import Podrun
from support.network_case import inside, outside_host, run
from support.swap_case import Web

pytestmark = [pytest.mark.root, pytest.mark.prove]

_SWAPS = 50


@pytest.fixture
def web(swapped: Web) -> Web:
    """In the place of the other tests' pod with a step of every kind."""
    return swapped


def _clients(web: Web, keep: bool, other: str, here: str, pod: str, six: str) -> dict[str, Busy]:
    """32 connections: by the host's loopback, from another host, from another pod by the host's address, by IPv6."""
    return {
        "127.0.0.1": Busy("127.0.0.1", web.port, 8, keep=keep),
        "another host": Busy(here, web.port, 8, keep=keep, netns=inside(other)),
        "hairpin": Busy(here, web.port, 8, keep=keep, netns=inside(pod)),
        "IPv6": Busy(six, web.more, 8, keep=keep, netns=inside(other)),
    }


@pytest.mark.parametrize("how", ["swap", "restart"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "one a connection"])
def test_fifty_swaps_of_a_busy_pod(web: Web, podrun: Podrun, keep: bool, how: str) -> None:
    podrun("up", "-d", web.path, check=True)
    podrun("run", "-d", "--name", "caller", "host:", "sleep", "1000", check=True)
    pod = next(one for one in Path("/run/netns").iterdir() if one.name.endswith("-caller"))
    took = []
    with outside_host() as (other, _, here):
        six = "fd51::1"
        run("ip", "address", "add", f"{six}/64", "dev", "t-net-wire", "nodad")
        run(*inside(other), "ip", "address", "add", "fd51::2/64", "dev", "wire", "nodad")
        clients = _clients(web, keep, other, here, str(pod), six)
        for version in range(2, 2 + (_SWAPS if how == "swap" else 5)):
            web.write(str(version))
            began = time.monotonic()
            podrun("reload" if how == "swap" else "restart", "web", check=True, timeout=120)
            took.append(time.monotonic() - began)
        counts = {name: client.stop() for name, client in clients.items()}
    podrun("down", "caller", check=True)
    _show(f"{how}, {'kept connections' if keep else 'one request a connection'}, {len(took)} times", counts, took)
    if how == "swap":
        assert sum(count.failed for count in counts.values()) == 0


def test_an_application_that_closes_idle_connections_at_its_end_loses_requests(web: Web, podrun: Podrun) -> None:
    podrun("up", "-d", web.write("1", env=", ABRUPT = '1'"), check=True)
    clients = {"127.0.0.1, kept": Busy("127.0.0.1", web.port, 32, keep=True)}
    for version in range(2, 22):
        web.write(str(version), env=", ABRUPT = '1'")
        podrun("reload", "web", check=True)
    _show("closing idle connections at SIGTERM, 20 swaps", {name: one.stop() for name, one in clients.items()}, [0.0])


def _show(what: str, counts: dict[str, Count], took: list[float]) -> None:
    middle = sorted(took)[len(took) // 2]
    print(f"\n{what}: {middle:.2f} s each")
    for name, count in counts.items():
        why = Counter(count.why).most_common(1)
        print(
            f"  {name:16} {count.requests:7} requests {count.failed:5} failed  p99 {count.p99:7.1f} ms  gap {count.gap:7.1f} ms  {why}"
        )


def test_nothing_is_left_beside_the_payload(web: Web, podrun: Podrun) -> None:
    podrun("up", "-d", web.path, check=True)
    for version in range(2, 5):
        web.write(str(version))
        podrun("reload", "web", check=True)
    mine = subprocess.run(["pgrep", "-fa", str(podrun.run)], capture_output=True, text=True, check=False).stdout
    print(f"\nprocesses of podrun beside the payload after three swaps: {len(mine.splitlines())} {mine}")
    assert not mine
