"""What happens to a cluster of etcd does not happen to the pods: no request fails, pods start, records come back."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podrun_hooks.follow import begin
from podrun_hooks.registry import connect
from podrun_hooks.registry import source as sources
from support.moving_services import Following
from support.registry_servers import EtcdCluster, Server, etcd, etcdctl
from support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.server]

TTL = 5.0


@pytest.fixture
def cluster() -> Iterator[EtcdCluster]:
    found = EtcdCluster("--quota-backend-bytes", str(16 << 20))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def moving(cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    monkeypatch.setattr(begin, "ensure", lambda step: None)
    found = Following(cluster.url, ttl=f"{TTL:g}s")
    try:
        yield found
    finally:
        found.close()


def ready(url: str) -> set[str]:
    """The units whose records are ready; nothing while etcd does not answer."""
    client = connect(sources.parse(url))
    try:
        return {record.unit for record in client.records("db", seconds=2) if record.ready}
    except Exception:
        return set()
    finally:
        client.close()


def outlived(moving: Following, fault: Callable[[], None], seconds: float, heal: Callable[[], None]) -> None:
    """A client calls before, during and after a fault; in the middle of it a second backend starts."""
    moving.start("b0")
    address = moving.client("app", registry=moving.url)
    moving.timer(address)
    calling = moving.load(address, seconds + 6)
    time.sleep(1)
    fault()
    began = time.monotonic()
    moving.start("b1")
    started = time.monotonic() - began
    time.sleep(max(0.0, seconds - started))
    heal()
    healed = time.monotonic()
    until(lambda: ready(moving.url) == {"b0", "b1"})
    back = time.monotonic() - healed
    moving.undo("b0", "register")
    until(lambda: _leads(moving) == "b1")
    counted = moving.counted(calling, seconds + 60)
    words = f"{counted['good']} requests, b1 started in {started:.1f} s, all records there {back:.1f} s after it"
    print(f"{words}, longest wait {counted['worst_connect']:.0f} ms")
    assert started < 8
    assert back < TTL
    assert counted["good"] > 500
    assert [counted[key] for key in ("connect", "reset", "empty", "timeout")] == [0, 0, 0, 0], str(counted)


def _leads(moving: Following) -> str:
    """The backend that the client is led to, when it is one."""
    one = moving.nft("app", "list", "map", "inet", moving.started["app"].pod.tag, "one")
    return next((name for name, facts in moving.facts.items() if facts["addresses"][0].partition("/")[0] in one), "")


def test_the_member_that_leads_dies_and_comes_back(moving: Following, cluster: EtcdCluster) -> None:
    leading: Server = cluster.leader()
    outlived(moving, leading.kill, 4, leading.start)


def test_the_history_is_compacted_again_and_again(moving: Following, cluster: EtcdCluster) -> None:
    def compact() -> None:
        for n in range(5):
            cluster.etcdctl("put", "/elsewhere", str(n))
            revision = cluster.etcdctl("get", "/elsewhere")["header"]["revision"]
            cluster.etcdctl("compact", str(revision))

    outlived(moving, compact, 2, compact)


@pytest.mark.prove
def test_the_member_that_is_asked_dies(moving: Following, cluster: EtcdCluster) -> None:
    outlived(moving, cluster.members[0].kill, 10, cluster.members[0].start)


@pytest.mark.prove
@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_all_of_it_is_away_for_a_minute(moving: Following, cluster: EtcdCluster, how: str) -> None:
    def fault() -> None:
        for member in cluster.members:
            member.kill() if how == "killed" else member.pause()

    def heal() -> None:
        for member in cluster.members:
            member.start(wait=False) if how == "killed" else member.go_on()
        for member in cluster.members:
            member.await_answer()

    outlived(moving, fault, 60, heal)


@pytest.mark.prove
def test_its_quota_is_used_up(moving: Following, cluster: EtcdCluster) -> None:
    """Writes are refused with an alarm, reads are not, and leases end all the same."""

    def fill() -> None:
        with pytest.raises(subprocess.CalledProcessError):
            for n in range(200):
                cluster.etcdctl("put", f"/junk/{n}", given="x" * 500_000)

    def clear() -> None:
        revision = cluster.etcdctl("get", "/junk/0")["header"]["revision"]
        cluster.etcdctl("compact", str(revision))
        for n in range(3):
            cluster.etcdctl("defrag", member=n)
        cluster.etcdctl("alarm", "disarm")
        cluster.etcdctl("del", "/junk/", "--prefix")

    outlived(moving, fill, 15, clear)


@pytest.mark.prove
def test_its_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd ends when it cannot write: a registry that is away until there is room again."""
    monkeypatch.setattr(begin, "ensure", lambda step: None)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(tmp_path)], check=True)
    try:
        server = etcd(directory=str(tmp_path / "etcd"))
        moving = Following(server.url, ttl=f"{TTL:g}s")
        try:
            junk = tmp_path / "junk"

            def fill() -> None:
                with junk.open("wb") as file:
                    try:
                        while True:
                            file.write(bytes(1 << 16))
                    except OSError:
                        pass
                with pytest.raises(subprocess.CalledProcessError):
                    for n in range(400):
                        etcdctl(server, "put", f"/junk/{n}", given="x" * 500_000)

            def clear() -> None:
                junk.unlink()
                server.kill()
                server.start()

            outlived(moving, fill, 15, clear)
        finally:
            moving.close()
            server.kill()
            shutil.rmtree(server.directory)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
