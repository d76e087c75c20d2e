"""What images of others hold: users in odd spellings and short rows, programs that cannot be executed, in words."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import CANNOT_EXECUTE, Failure
from podrun_hooks.container import executables, processes, rootfs, users
from podrun_hooks.container import paths as places
from podrun_hooks.container.options import of_healthcheck
from podrun_hooks.container.users import User
from podrun_hooks.support.rooted_tree import Tree
from support.container_case import Case
from support.launcher import Podrun

pytestmark = pytest.mark.root

PASSWD = "root:x:0:0:root:/root:/bin/sh\nshort:x:1001:1002\nbare:x:1003\nodd:x\nweb:x:1000:1000::/srv/web:\n"


def resolved(tmp_path: Path, text: str, passwd: str = PASSWD, group: str = "web:x:1000\nlog:x:50:short\n") -> User:
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc/passwd").write_text(passwd)
    (tmp_path / "etc/group").write_text(group)
    root = os.open(tmp_path, os.O_PATH)
    try:
        return users.resolve(text, Tree(root), of_image=True)
    finally:
        os.close(root)


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("1000:", User(1000, 1000, [], "/srv/web")),
        (":1000", User(0, 1000, (), "/root")),
        (":web", User(0, 1000, (), "/root")),
        ("short", User(1001, 1002, [50], "/")),
        ("bare", User(1003, 0, [], "/")),
        ("4711", User(4711, 0, [], "/")),
    ],
)
def test_users_are_read_as_docker_reads_them(tmp_path: Path, text: str, user: User) -> None:
    assert resolved(tmp_path, text) == user


def test_the_last_row_of_a_large_passwd_file_counts(tmp_path: Path) -> None:
    many = "".join(f"u{number}:x:{number}:{number}::/home/u{number}:/bin/false\n" for number in range(10_000, 60_000))
    assert resolved(tmp_path, "last", passwd=f"{many}last:x:7:8::/l:\n") == User(7, 8, [], "/l")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"#!/bin/sh\r\necho\r\n", "CRLF"),
        (b"#!/usr/bin/python3\n", "/usr/bin/python3, which is not in the image"),
        (b"echo without a first line\n", "neither a program nor a script"),
        (b"", "is empty"),
        (b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xf7\0" + bytes(44), "is a program for machine 247"),
    ],
    ids=["CRLF", "interpreter", "no first line", "empty", "machine"],
)
def test_a_file_that_cannot_be_executed_is_told_with_the_reason(
    tmp_path: Path, content: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executables, "_others", lambda: False)
    case = Case(tmp_path)
    (case.layer / "bin/app").write_bytes(content)
    (case.layer / "bin/app").chmod(0o755)
    with pytest.raises(Failure, match=words) as caught:
        case.up("app")
    assert caught.value.code == CANNOT_EXECUTE
    case.down({})


def test_a_program_for_another_c_library_is_told(tmp_path: Path) -> None:
    case = Case(tmp_path)
    for name in ("true", "dynamic"):
        (case.layer / f"bin/{name}").unlink(missing_ok=True)
    subprocess.run(["cp", "/usr/bin/true", case.layer / "bin/dynamic"], check=True)
    with pytest.raises(Failure, match=r"needs the loader /lib.*, which is not in the image"):
        case.up("dynamic")
    case.down({})


def test_the_images_volumes_can_be_written_below_a_read_only_root_and_go_with_the_pod(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.config = {"Volumes": {"/data": {}, "/srv/www": {}, "/new": {}}}
    (case.layer / "data").mkdir(mode=0o750)
    (case.layer / "srv/www").mkdir(parents=True)
    (case.layer / "srv/www/page").write_text("from the image")
    script = (
        "echo a >/data/a && echo b >/new/b && cat /srv/www/page && echo c >/srv/www/c && stat -c %a /data; touch /x"
    )
    text = case.run("sh", "-c", script, read_only=True)
    assert text.startswith("from the image750\n"), text
    assert "Read-only file system" in text
    assert case.left() == []
    assert not (case.layer / "srv/www/c").exists()


def test_the_images_volumes_are_no_overlay_and_go_with_the_container(tmp_path: Path) -> None:
    case = Case(tmp_path)
    # A path with ".." means what it means in the image (CVE-2022-23648), and nothing is mounted over /proc.
    case.config = {
        "Volumes": {"/data": {}, "/new": {}, "/../../srv/www": {}, "/proc/acpi": {}, "/out": {}, "/file": {}}
    }
    (case.layer / "data").mkdir(mode=0o750)
    os.chown(case.layer / "data", 7, 8)
    (case.layer / "srv/www").mkdir(parents=True)
    (case.layer / "srv/www/page").write_text("from the image\n")
    (case.layer / "out").symlink_to("/dev/shm")
    (case.layer / "file").write_text("no directory\n")
    script = (
        'for d in data new srv/www; do echo x >/$d/x || exit; grep -q " /$d " /proc/mounts || echo none; '
        'grep -q "^overlay /$d " /proc/mounts && echo overlay; done; '
        "cat /srv/www/page /file; stat -c '%a %u %g' /data; cat /new/x"
    )
    for persist, before in ((False, ""), (True, ""), (True, "x\n")):
        printed = case.run("sh", "-c", f"cat /new/x 2>/dev/null; {script}", persist=persist)
        assert printed == f"{before}from the image\nno directory\n750 7 8\nx\n"
        assert (case.left() == []) is not persist
    assert os.listdir(case.layer / "srv/www") == ["page"]


def test_the_layers_own_top_directory_has_its_mode_and_owner(tmp_path: Path) -> None:
    case = Case(tmp_path)
    assert case.run("stat", "-c", "%a %u", "/") == "755 0\n"
    case.layer.chmod(0o1777)
    os.chown(case.layer, 7, 8)
    assert case.run("stat", "-c", "%a %u %g", "/") == "1777 7 8\n"


@pytest.mark.parametrize(
    ("test", "command"),
    [
        (["CMD", "probe", "-x"], ["probe", "-x"]),
        (["CMD-SHELL", "probe || exit 1"], ["/bin/sh", "-c", "probe || exit 1"]),
        (["NONE"], None),
        ([], None),
        (None, None),
    ],
)
def test_the_images_healthcheck_is_a_live_probe(test: list[str] | None, command: list[str] | None) -> None:
    check = {"Test": test, "Interval": 5_000_000_000, "Timeout": 0, "Retries": 2, "StartPeriod": 9_000_000_000}
    given = {"Healthcheck": check}
    found = of_healthcheck(given)
    assert (found.exec if found else None) == command
    if found:
        assert (found.interval, found.timeout, found.retries, found.start_period) == (5.0, 30, 2, 9.0)


def test_a_container_that_fails_the_images_healthcheck_is_killed(tmp_path: Path) -> None:
    case = Case(tmp_path)
    check = {"Test": ["CMD-SHELL", "false"], "Interval": 50_000_000, "Timeout": 1_000_000_000, "Retries": 2}
    case.config = {"Healthcheck": check}
    case.up("sleep", "60", health="image", stop_signal="KILL")
    pidfd = os.pidfd_open(case.own["process"]["pid"])
    assert processes.ended(pidfd, 10)
    os.close(pidfd)
    case.down()
    assert case.left() == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"StopSignal": "SIGNOPE"}, "the image's STOPSIGNAL 'SIGNOPE' is not a signal: SIGTERM will ask it to end"),
        ({"Healthcheck": {"Test": ["NONE"]}}, "the image has no HEALTHCHECK that could be run"),
        ({"StopSignal": "RTMIN+3", "Healthcheck": {"Test": ["CMD", "true"]}}, ""),
    ],
)
def test_what_an_image_says_in_vain_is_told(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    case = Case(tmp_path)
    case.config = config
    case.up("sleep", "60", health="image", stop_timeout=0.1)
    said = [line for line in case.said if not line.startswith(("STATUS=", "MAINPID="))]
    case.down()
    assert any(told in line for line in said) if told else said == []
    if "StopSignal" in config and not told:
        assert "of SIGRTMIN+3: killed" in "".join(case.said)


def test_labels_of_the_image_are_kept(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.config = {"Labels": {"a": "1", "b": "2"}}
    case.up("sleep", "60", stop_signal="KILL", labels={"b": "own"})
    told = json.loads(Path(places.of(case.step()).config).read_text())["annotations"]
    case.down()
    assert (told["a"], told["b"]) == ("1", "own")


def test_a_link_to_a_resolver_below_a_read_only_mount_does_not_keep_a_pod_from_starting(tmp_path: Path) -> None:
    case = Case(tmp_path)
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
    (etc / "passwd").write_text("root:x:0:0::/:\n")
    (tmp_path / "given").write_text("nameserver 10.0.0.1\n")
    mounts = [
        {"hostPath": str(etc), "containerPath": "/etc", "options": ["bind", "ro"]},
        {"hostPath": str(tmp_path / "given"), "containerPath": "/etc/hosts", "options": ["bind", "ro"]},
        {"hostPath": str(tmp_path / "given"), "containerPath": "/etc/resolv.conf", "options": ["bind", "ro"]},
    ]
    assert case.run("sh", "-c", "test -e /etc/hosts || echo up", facts={"mounts": mounts}) == "up\n"


def test_on_an_overlay_a_container_that_keeps_nothing_has_its_layer_in_memory(podrun: Podrun, home: Path) -> None:
    def there(memory: bool, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        place = f"cd {home}; mkdir -p l u w run root; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w o root; "
        place += "mount -t tmpfs -o mode=0755 tmpfs run; " if memory else ""
        argv = [
            "unshare",
            "-m",
            "sh",
            "-c",
            f'{place} "$@"; echo "status $?"; find run/pods root/pods -type f; {script}',
        ]
        return subprocess.run([*argv, "sh", *podrun.argv(*words)], env=podrun.environ, capture_output=True, text=True)

    words = ["run", "--network", "none", "--name", "web", "host:", "sh", "-c", "echo x >/f && cat /f"]
    done = there(True, "", *words)
    assert done.stdout == "x\nstatus 0\n", done.stderr
    done = there(False, "", *words)
    assert "status 73" in done.stdout
    assert f"mount -t tmpfs tmpfs {home}/run has it in memory" in done.stderr
    keeping = podrun.file(
        "web",
        'chain = [ { hook = "image", ref = "host:" }, { hook = "container", command = ["true"], persist = true } ]',
    )
    done = there(True, "", "up", keeping)
    assert "status 73" in done.stdout
    assert "as persist = true needs it" in done.stderr


def test_what_a_root_on_an_overlay_means_is_told() -> None:
    assert rootfs.type_of("/proc/self") == "proc"
    assert rootfs.type_of("/dev/shm") == "tmpfs"
