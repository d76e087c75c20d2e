"""Pod files that a host is sent: what it refuses, what it writes and removes, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.cluster import files
from podrun.errors import BUSY, CANNOT_CREATE, MALFORMED, Failure
from support.systemd_case import Pods

WEB = {"web": {"web.toml": "one\n", "web.toml.d/10-more.toml": "two\n"}}


@pytest.fixture
def etc(tmp_path: Path) -> Any:
    return str(tmp_path / "podrun")


def send(etc: Any, pods: Pods) -> Any:
    """What this host is sent when these pods are a change of what it has."""
    return files.receive(files.message(pods, files.manifest(etc)), etc)


def there(etc: Any) -> Any:
    found = {}
    for directory, _, names in os.walk(etc):
        found |= {os.path.relpath(f"{directory}/{name}", etc): open(f"{directory}/{name}").read() for name in names}
    found.pop(files.MANIFEST, None)
    return found


def test_files_arrive_for_root_only_and_again_nothing_is_written(etc: Any) -> None:
    assert send(etc, WEB).written == ["web.toml", "web.toml.d/10-more.toml"]
    assert there(etc) == WEB["web"]
    assert stat.S_IMODE(os.stat(f"{etc}/web.toml").st_mode) == 0o600
    assert send(etc, WEB) == files.Received([], [])


def test_only_what_the_manifest_lists_is_removed(etc: Any) -> None:
    send(etc, {**WEB, "db": {"db.toml": "three\n"}})
    with open(f"{etc}/mine.toml", "w") as file:
        file.write("mine\n")
    done = send(etc, {"db": {"db.toml": "three\n"}})
    assert done == files.Received([], ["web.toml", "web.toml.d/10-more.toml"])
    assert there(etc) == {"db.toml": "three\n", "mine.toml": "mine\n"}
    assert not os.path.exists(f"{etc}/web.toml.d")


def test_somebody_elses_file_is_not_replaced_and_nothing_else_is_changed(etc: Any) -> None:
    os.makedirs(etc)
    with open(f"{etc}/web.toml", "w") as file:
        file.write("mine\n")
    with pytest.raises(Failure, match="is not the cluster's") as caught:
        send(etc, {**WEB, "a": {"a.toml": "x"}})
    assert caught.value.code == CANNOT_CREATE
    assert there(etc) == {"web.toml": "mine\n"}


def test_the_same_file_of_somebody_else_is_taken_over(etc: Any) -> None:
    os.makedirs(etc)
    with open(f"{etc}/web.toml", "w") as file:
        file.write("one\n")
    send(etc, WEB)
    assert send(etc, {"web": {"web.toml": "new\n"}}).written == ["web.toml"]


def test_a_file_that_was_changed_or_removed_here_is_put_right(etc: Any) -> None:
    send(etc, WEB)
    same = files.fingerprint(etc)
    with open(f"{etc}/web.toml", "w") as file:
        file.write("changed\n")
    os.unlink(f"{etc}/web.toml.d/10-more.toml")
    assert files.fingerprint(etc) != same
    send(etc, WEB)
    assert there(etc) == WEB["web"]
    assert files.fingerprint(etc) == same


def test_a_host_that_missed_a_change_cannot_undo_it(etc: Any, tmp_path: Path) -> None:
    behind = str(tmp_path / "behind")
    for host in (etc, behind):
        send(host, WEB)
    send(etc, {**WEB, "db": {"db.toml": "three\n"}})
    for pods in (WEB, {}, {"x": {"x.toml": ""}}):
        with pytest.raises(Failure, match="newer files") as caught:
            files.receive(files.message(pods, files.manifest(behind)), etc)
        assert caught.value.code == BUSY
    assert "db.toml" in there(etc)
    files.receive(files.message({**WEB, "db": {"db.toml": "three\n"}}, files.manifest(etc)), behind)
    assert files.fingerprint(behind) == files.fingerprint(etc)


def test_a_link_in_the_place_of_a_directory_is_not_followed(etc: Any, tmp_path: Path) -> None:
    os.makedirs(etc)
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", f"{etc}/web.toml.d")
    with pytest.raises((Failure, OSError)):
        send(etc, WEB)
    assert os.listdir(tmp_path / "elsewhere") == []


def changed(**more: Any) -> Any:
    told = json.loads(files.message(WEB, files.Manifest({}, {})))
    return json.dumps({**told, **more})


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "[]",
        "{",
        changed(version=2),
        changed(generation="1"),
        changed(files={}),
        changed(pods=[]),
        changed(pods={"web": ["other.toml"]}),
        changed(pods={"../web": []}),
        changed(texts={"web.toml": "one\n"}),
        changed(texts={**WEB["web"], "web.toml": "One\n"}),
        changed(texts={**WEB["web"], "web.toml": 5}),
        *(
            json.dumps(
                {"version": 1, "generation": 1, "pods": {}, "texts": {name: "x"}, "files": {name: files.digest("x")}}
            )
            for name in (
                *("../web.toml", "/etc/passwd", "web.conf", "web.toml.d/../x.toml", "a/b.toml", ".web.toml"),
                *("web.toml.d/.x.toml", "cluster.manifest", "web.toml\n", "web.toml.d/a/b.toml", "Web.toml", ""),
            )
        ),
        files.message({"web": {"web.toml": "x" * (files.LIMIT + 1)}}, files.Manifest({}, {})),
    ],
)
def test_what_is_broken_is_refused_before_anything_is_written(etc: Any, sent: Any) -> None:
    with pytest.raises(Failure) as caught:
        files.receive(sent, etc)
    assert caught.value.code == MALFORMED
    assert not os.path.exists(etc)


def test_a_kill_leaves_whole_files_and_a_manifest_that_lists_them(etc: Any, tmp_path: Path) -> None:
    generations = [
        {f"p{n}": {f"p{n}.toml": f"{mark}{n}\n" * 50} for n in range(20)} | {mark: {f"{mark}.toml": "x"}}
        for mark in "ab"
    ]
    program = tmp_path / "receive.py"
    program.write_text(
        "import json, sys\nfrom podrun.cluster import files\n"
        "generations, etc = json.loads(sys.stdin.read()), sys.argv[1]\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for pods in generations: files.receive(files.message(pods, files.manifest(etc)), etc)\n"
    )
    for number in range(12):
        process = subprocess.Popen(
            [sys.executable, program, etc], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        process.stdin.write(json.dumps(generations))
        process.stdin.close()
        process.stdout.readline()
        time.sleep(0.004 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = {name: text for name, text in there(etc).items() if not name.startswith(".")}
        listed = files.manifest(etc).files
        assert set(found) <= set(listed)
        for name, text in found.items():
            assert text in [one.get(name) for generation in generations for one in generation.values()]
    send(etc, {})
    assert {name for name in there(etc) if not name.startswith(".")} == set()
