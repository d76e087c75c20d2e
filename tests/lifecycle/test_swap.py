"""A hot swap: a new version without a lost request, and what is left when it fails or is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from support.busy import SERVER, Busy
from support.launcher import HERE, Podrun
from support.network_case import inside, outside_host, run
from support.objects import listing
from support.swap_case import Web

pytestmark = [pytest.mark.root]


@pytest.fixture
def web(swapped: Web) -> Web:
    """In the place of the other tests' pod with a step of every kind."""
    return swapped


def kinds(web: Web) -> Counter[str]:
    """How many objects of each kind there are: a generation that is whole has as many as any other."""
    # The names of files differ, and every process of the host sees the mount of a namespace.
    found = [line.split()[0] for line in listing(web.podrun.run, web.podrun.root)]
    return Counter(kind for kind in found if kind not in ("file", "process"))


def has(web: Web, wanted: Counter[str]) -> bool:
    """True when that is what there is, once the kernel has deleted what has been let go."""
    deadline = time.monotonic() + 3
    while kinds(web) != wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def get(port: int) -> str:
    return subprocess.run(
        ["curl", "-s", "-m", "5", f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=False
    ).stdout


def test_a_reload_swaps_to_the_file_as_it_is_now_and_leaves_nothing_of_the_old_one(web: Web) -> None:
    web.podrun("up", "-d", web.path, check=True)
    before, there = web.inspect(), kinds(web)
    for version in ("2", "3"):
        web.write(version)
        web.podrun("reload", "web", check=True)
        assert get(web.port) == get(web.more) == version
        after = web.inspect()
        assert after["addresses"] != before["addresses"]
        assert web.record()["addr"] == after["addresses"][0].partition("/")[0]
        before = after
    assert after["state"] == "up"
    assert web.podrun("exec", "web", "printenv", "VERSION").stdout == "3\n"
    assert has(web, there)


@pytest.mark.parametrize("keep", [True, False], ids=["kept connections", "a connection a request"])
def test_no_request_fails_while_a_pod_is_swapped(web: Web, keep: bool) -> None:
    web.podrun("up", "-d", web.path, check=True)
    with outside_host() as (other, _, here):
        clients = [
            Busy("127.0.0.1", web.port, keep=keep),
            Busy(here, web.port, keep=keep, netns=inside(other)),
            Busy(here, web.more, keep=keep),
        ]
        for version in range(2, 5):
            web.write(str(version))
            web.podrun("reload", "web", check=True)
        counts = [client.stop() for client in clients]
    for count in counts:
        assert count.failed == 0, count
        assert count.requests > 100
        assert "4" in count.versions


def test_a_version_that_does_not_get_ready_leaves_the_old_one_serving(web: Web) -> None:
    web.podrun("up", "-d", web.path, check=True)
    there, client = kinds(web), Busy("127.0.0.1", web.port, keep=False)
    for wrong, code in (
        ({"patience": "300ms", "env": ', PORT = "81"'}, 76),
        ({"server": "raise SystemExit(3)"}, 76),
        ({"container": 'memory = "wrong"'}, 78),
    ):
        web.write("2", **wrong)
        ended = web.podrun("reload", "web")
        assert ended.returncode == code, ended.stderr
    count = client.stop()
    assert (count.failed, {*count.versions}) == (0, {"1"}), count
    assert has(web, there)


def test_the_replaced_generation_may_drain(web: Web) -> None:
    web.write("1", pod='drain = "10s"')
    web.podrun("up", "-d", web.path, check=True)
    import socket

    kept = socket.create_connection(("127.0.0.1", web.port), timeout=5)
    kept.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert kept.recv(1000).endswith(b"1")
    web.write("2", pod='drain = "10s"')
    swapping = web.podrun.start("reload", "web")
    deadline = time.monotonic() + 10
    while get(web.port) != "2":
        assert time.monotonic() < deadline
    # The connection is still the old one's, and nobody has asked it to end.
    time.sleep(0.3)
    kept.sendall(b"GET / HTTP/1.1\r\n\r\n")
    answer = kept.recv(1000)
    assert answer.endswith(b"1")
    assert b"close" not in answer
    assert swapping.poll() is None
    kept.close()
    assert swapping.wait(5) == 0


def test_what_cannot_run_twice_is_stopped_and_started(web: Web) -> None:
    web.podrun("up", "-d", web.path, check=True)
    web.write("2", container="persist = true")
    ended = web.podrun("reload", "web")
    assert ended.returncode == 0, ended.stderr
    assert "a writable layer that persists" in ended.stderr
    assert get(web.port) == "2"
    web.write("2")
    web.podrun("down", "web", check=True)
    subprocess.run(["rm", "-rf", str(web.podrun.root / "pods")], check=True)


#: A migration: it writes down which generation is coming and what the clients have meanwhile.
_MIGRATION = """#!/bin/sh
case $PODRUN_VERB in
describe) echo '{{"beside": true}}' ;;
up) echo "$PODRUN_GENERATION $(curl -s -m 5 http://127.0.0.1:{port}/)" >>{home}/migrated; exit $(cat {home}/fails) ;;
esac
"""


def test_a_migration_runs_before_the_new_generation_takes_traffic_and_may_stop_it(web: Web, home: Path) -> None:
    hook = home / "migrate"
    hook.write_text(_MIGRATION.format(port=web.port, home=home))
    hook.chmod(0o755)

    def write(version: str, fails: int) -> str:
        (home / "fails").write_text(str(fails))
        path = Path(web.write(version))
        step = f'[[chain]]\nhook = "exec:{hook}"\n[[chain]]\nhook = "container"'
        path.write_text(path.read_text().replace('[[chain]]\nhook = "container"', step))
        return str(path)

    web.podrun("up", "-d", write("1", 0), check=True)
    write("2", 0)
    web.podrun("reload", "web", check=True)
    write("3", 1)
    assert web.podrun("reload", "web").returncode != 0
    assert get(web.port) == "2"
    assert (home / "migrated").read_text().splitlines() == ["1 ", "2 1", "3 2"]


_SAYS_READY = """
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as said:
    said.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
ending, idle ="""
_IN_THE_HOSTS_NETWORK = """
[pod]
reload = "swap"
stop_timeout = "10s"
[[chain]]
hook = "image"
ref = "host:"
[[chain]]
hook = "network"
mode = "{mode}"
{network}
[[chain]]
hook = "container"
command = ["/usr/bin/python3", "-c", '''{server}''']
env = {{ VERSION = "{version}", REUSE = "1" }}
ready = {{ notify = true, timeout = "20s" }}
"""


def _write_in_the_hosts(podrun: Podrun, version: str, mode: str = "host", network: str = "reuse_port = true") -> str:
    server = SERVER.replace("ending, idle =", _SAYS_READY).replace("${", "$${")
    return podrun.file("web", _IN_THE_HOSTS_NETWORK.format(mode=mode, network=network, server=server, version=version))


@pytest.mark.parametrize(("migrates", "swapped"), [("1", True), pytest.param("0", False, marks=pytest.mark.prove)])
def test_in_the_hosts_network_a_server_with_so_reuseport_is_swapped(
    podrun: Podrun, migrates: str, swapped: bool
) -> None:
    def there(*words: str) -> str:
        argv = ["nsenter", "--net=/run/netns/t-net-host", *podrun.argv(*words)]
        done = subprocess.run(argv, env=podrun.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    run("ip", "netns", "add", "t-net-host")
    try:
        run(*inside("t-net-host"), "ip", "link", "set", "lo", "up")
        run(*inside("t-net-host"), "sysctl", "-q", f"net.ipv4.tcp_migrate_req={migrates}")
        there("up", "-d", _write_in_the_hosts(podrun, "1"))
        client = Busy("127.0.0.1", 80, 4, keep=False, netns=inside("t-net-host"))
        for version in "23":
            _write_in_the_hosts(podrun, version)
            assert ("stopped and started" in there("reload", "web")) == (not swapped)
        count = client.stop()
        assert (count.failed == 0) == swapped, count
        assert "3" in count.versions
        # What has another network now is not swapped, and comes back from there.
        for mode, network in (("bridge", ""), ("host", "reuse_port = true")):
            _write_in_the_hosts(podrun, "5", mode, network)
            assert "what runs now is in" in there("reload", "web")
    finally:
        there("down", "web")
        run("ip", "netns", "delete", "t-net-host")


def test_a_pod_in_the_foreground_is_swapped_by_the_podrun_that_waits_for_it(web: Web) -> None:
    staying = web.podrun.start("up", web.path, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while get(web.port) != "1":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    client = Busy("127.0.0.1", web.port, keep=True)
    for version in "23":
        web.write(version)
        ended = web.podrun("reload", "web")
        assert ended.returncode == 0, ended.stderr
        assert get(web.port) == version
        assert staying.poll() is None
    web.write("4", patience="300ms", env=', PORT = "81"')
    ended = web.podrun("reload", "web")
    assert ended.returncode == 76
    assert "it was not reloaded" in ended.stderr
    assert get(web.port) == "3"
    count = client.stop()
    assert count.failed == 0, count
    # It waits for the generation that serves: what is sent to it is that one's.
    status = Path(f"/proc/{web.inspect()['containers'][0]['pid']}/status").read_text()
    assert "SigBlk:\t0000000000000000" in status
    staying.terminate()
    assert staying.wait(20) == 0
    assert not (web.podrun.run / "pods" / "web").exists()


def test_a_pod_that_comes_later_joins_the_generation_that_serves_and_holds_it(web: Web) -> None:
    web.podrun("up", "-d", web.path, check=True)
    web.write("2")
    web.podrun("reload", "web", check=True)
    joiner = web.podrun.file(
        "joiner",
        """
[[chain]]
hook = "image"
ref = "host:"
[[chain]]
hook = "network"
mode = "pod:web"
[[chain]]
hook = "container"
command = ["sleep", "100"]
""",
    )
    web.podrun("up", "-d", joiner, check=True)
    assert web.podrun("exec", "joiner", "curl", "-s", "http://127.0.0.1:80/").stdout == "2"
    assert "pod joiner has joined its network" in web.podrun("check", web.path).stdout
    web.podrun("down", "joiner", check=True)
    assert "joined" not in web.podrun("check", web.path).stdout


def test_udp_callers_get_to_the_new_generation_at_once(web: Web) -> None:
    answering = """
import os, socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("", 53))
import threading
def run():
    while True:
        _, peer = one.recvfrom(100)
        one.sendto(os.environ["VERSION"].encode(), peer)
threading.Thread(target=run, daemon=True).start()
"""
    import socket

    web.write("1", server=answering + SERVER)
    web.podrun("up", "-d", web.path, check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(3)
        client.connect(("127.0.0.1", web.port))
        client.send(b"?")
        assert client.recv(10) == b"1"
        web.write("2", server=answering + SERVER)
        web.podrun("reload", "web", check=True)
        client.send(b"?")
        assert client.recv(10) == b"2"


# --- kill -9 -------------------------------------------------------------------------------------------------------


def _killed_at(podrun: Podrun, point: int, *words: str) -> str:
    """What the N-th event of a podrun was that has been killed at it; "" when there were not that many."""
    argv = [sys.executable, str(HERE / "support" / "killed.py"), str(point), *words]
    ended = subprocess.run(
        argv, env=podrun.environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )
    return "" if ended.returncode == 0 else ended.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("then", ["reload", pytest.param("down", marks=pytest.mark.prove)])
def test_killed_at_every_event_of_a_swap_one_generation_serves_and_one_command_cleans_up(web: Web, then: str) -> None:
    web.podrun("up", "-d", web.path, check=True)
    whole = kinds(web)
    point, version = 1, 1
    while True:
        version += 1
        web.write(str(version))
        told = _killed_at(web.podrun, point, "reload", "web")
        if not told:
            break
        point += 1
        assert get(web.port) in (str(version), str(version - 1)), told
        assert get(web.more) in (str(version), str(version - 1)), told
        if then == "reload":
            web.podrun("reload", "web", check=True)
            assert get(web.port) == str(version), told
            assert has(web, whole), told
            assert web.record()["addr"] == web.inspect()["addresses"][0].partition("/")[0], told
        else:
            web.podrun("down", "web", check=True)
            assert not get(web.port), told
            web.podrun("up", "-d", web.path, check=True)
            assert has(web, whole), told
    assert point > 30, "the swap told of fewer events than it has"


# --- a disk that fails ---------------------------------------------------------------------------------------------


def _on_a_failing_disk(web: Web, code: str, point: int) -> tuple[str, int]:
    """Reloads on a disk that fails from the N-th event on: which that was ("": there were not so many), the status."""
    argv = [
        sys.executable,
        str(HERE / "support" / "failing.py"),
        code,
        str(point),
        str(web.podrun.run),
        "reload",
        "web",
    ]
    ended = subprocess.run(
        argv, env=web.podrun.environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    said = ended.stderr.splitlines()
    return next((line for line in said if line.startswith("the disk fails at")), ""), ended.returncode


@pytest.mark.parametrize(
    ("code", "every"), [("ENOSPC", 15), pytest.param("ENOSPC", 1, marks=pytest.mark.prove),
                        pytest.param("EIO", 1, marks=pytest.mark.prove)],
)  # fmt: skip
def test_on_a_disk_that_fails_in_a_swap_one_generation_serves_and_one_command_cleans_up(
    web: Web, code: str, every: int
) -> None:
    web.podrun("up", "-d", web.path, check=True)
    whole, client = kinds(web), Busy("127.0.0.1", web.port, 2, keep=True)
    point, version, good = 1, 1, 0
    while True:
        version += 1
        web.write(str(version))
        told, status = _on_a_failing_disk(web, code, point)
        if not told:
            break
        point += every
        good += status == 0
        assert get(web.port) in (str(version), str(version - 1)), told
        assert get(web.more) == get(web.port), told
        web.podrun("reload", "web", check=True)
        assert get(web.port) == str(version), told
        assert has(web, whole), told
    count = client.stop()
    print(
        f"\n{code} from each of {point - 1} events on: {good} swaps went on, {count.requests} requests, {count.failed} failed"
    )
    assert count.failed == 0, count
    assert point > 30, "the swap told of fewer events than it has"
