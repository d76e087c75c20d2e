"""The journal: what is written before and after each act, and what a kill in between leaves readable."""

import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from podrun.engine import chain, locks
from podrun.engine import state as states
from podrun.engine.journal import Header, Writer, read, remove_directory
from podrun.engine.locks import Lock
from podrun.errors import BUSY, Failure
from podrun.hook import Pod
from support.fakes import Hooks, chain_up, step


def written(path: str) -> None:
    with Writer(path) as journal:
        journal.header(Header(Pod("web", "/root", "/run"), "pod", 0, "/etc/web.toml", "boot", 1, 2))
        journal.starting(0, {"hook": "network", "name": "network", "options": {}})
        journal.up(0, {"netns": "/run/netns/podrun-web"}, 4.2)
        journal.starting(1, {"hook": "container", "name": "app", "options": {}})
        journal.process(1, 77, 1234)


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "pod.journal")
    written(path)
    journal = read(path)
    assert journal.header == Header(Pod("web", "/root", "/run"), "pod", 0, "/etc/web.toml", "boot", 1, 2)
    network, container = journal.entries
    assert (network.at, network.facts, network.milliseconds) == ("up", {"netns": "/run/netns/podrun-web"}, 4.2)
    assert (container.at, container.facts, container.process) == ("starting", {}, {"pid": 77, "start": 1234})
    assert not journal.ready


def test_every_prefix_of_a_journal_can_be_read_and_appended_to(tmp_path: Path) -> None:
    whole = tmp_path / "whole.journal"
    written(str(whole))
    text = whole.read_bytes()
    cut = tmp_path / "cut.journal"
    for length in range(len(text)):
        cut.write_bytes(text[:length])
        before = read(str(cut))
        with Writer(str(cut)) as journal:
            journal.stopping()
        after = cut.read_bytes()
        assert after == text[: text.rfind(b"\n", 0, length) + 1] + b'{"at":"stopping"}\n'
        if before.header:
            assert read(str(cut)).entries == before.entries


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "pod.journal"
    path.write_bytes(b'{"at":"ready"}\n' + b"x" * 10_000)
    with Writer(str(path)) as journal:
        journal.ready()
    assert path.read_bytes() == b'{"at":"ready"}\n{"at":"ready"}\n'


def test_a_journal_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "pod.journal"
    written(str(path))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_symlink_in_the_place_of_a_journal_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "pod.journal").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        Writer(str(tmp_path / "pod.journal"))


def test_a_second_lock_is_refused_and_the_first_is_seen(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert not locks.is_locked(run, "web")
    with Lock(run, "web", wait=False):
        assert locks.is_locked(run, "web")
        with pytest.raises(Failure) as refused:
            Lock(run, "web", wait=False)
        assert refused.value.code == BUSY
        Lock(run, "other", wait=False).close()
    assert not locks.is_locked(run, "web")


def test_who_only_asks_for_the_state_makes_nobody_busy(tmp_path: Path) -> None:
    run = str(tmp_path)
    Lock(run, "web", wait=False).close()
    with open(tmp_path / "locks/web") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.02, fcntl.flock, (asking, fcntl.LOCK_UN)).start()
        Lock(run, "web", wait=False).close()


def test_a_lock_dies_with_the_launcher_although_a_child_lives(tmp_path: Path) -> None:
    lock = Lock(str(tmp_path), "web", wait=False)
    here, there = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        lock.close()
        os.close(there)
        os.write(tell, b"closed")
        os.read(here, 1)
        os._exit(0)
    os.read(told, 6)
    lock.close()
    assert not locks.is_locked(str(tmp_path), "web")
    os.close(there)
    os.waitpid(child, 0)


def test_a_journal_of_a_newer_podrun_is_that_ones_to_undo(tmp_path: Path) -> None:
    hooks = Hooks()
    os.makedirs(tmp_path / "run/pods/web")
    path = tmp_path / "run/pods/web/pod.journal"
    text = '{"v":2,"who":"web"}\n{"did":"something"}\n'
    path.write_text(text)
    assert read(str(path)).header.version == 2
    os.mkdir(tmp_path / "run/pods/web/+3")
    shutil.copy(path, later := tmp_path / "run/pods/web/+3/pod.journal")
    assert read(str(later)).header.pod.key == "web/+3"
    shutil.rmtree(later.parent)
    assert states.state(f"{tmp_path}/run", "web") == "failed"
    with pytest.raises(Failure, match=r"a newer podrun has started it \(journal version 2, known is 1\)"):
        chain.undo(f"{tmp_path}/run", "web", hooks.world(), force=True)
    assert path.read_text() == text


def test_a_damaged_line_is_reported_and_does_not_keep_the_rest_from_being_undone(tmp_path: Path) -> None:
    hooks = Hooks()
    hooks.add("network", {"netns": "/run/netns/x"})
    hooks.add("mount")
    chain_up(hooks, tmp_path, step("network"), step("mount"))
    path = tmp_path / "run/pods/web/pod.journal"
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:20] + b"\xff" + lines[2][30:]  # the facts of the first step
    path.write_bytes(b"\n".join(lines))
    assert read(str(path)).damaged == 3
    assert chain.down(str(tmp_path / "run"), "web", hooks.world()) == ["mount", "network"]
    assert "line 3 is damaged" in hooks.said[0]
    assert hooks.calls[-1] == ("down", "network", {})


def test_what_another_version_has_left_of_a_generation_goes_with_the_pod(tmp_path: Path) -> None:
    """It has undone that generation, and did not know these files."""
    run, pod = str(tmp_path), tmp_path / "pods/web"
    for generation in ("+2", "+3"):
        (pod / generation).mkdir(parents=True)
    (pod / "+2/network.of-host").write_text("{}")
    (pod / "+2.network.network").symlink_to("+2/network.network")
    (pod / "+3/pod.journal").write_text("")
    (pod / "+3/network.of-host").write_text("{}")
    remove_directory(run, "web")
    assert sorted(path.name for path in pod.rglob("*")) == ["+3", "network.of-host", "pod.journal"]
    (pod / "+3/pod.journal").unlink()
    remove_directory(run, "web/+3")
    assert not pod.exists()
