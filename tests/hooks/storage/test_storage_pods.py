"""What a container sees of its storage steps, and what a pod's start and stop make of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from podrun.errors import BUSY
from support.launcher import Podrun
from support.storage_case import image_file, run

pytestmark = pytest.mark.root


def pod(podrun: Podrun, *steps: str, command: str) -> str:
    chain = ['{ hook = "image", ref = "host:" }', *steps]
    chain.append(f'{{ hook = "container", command = ["sh", "-c", {json.dumps(command)}] }}')
    return podrun.file("web", f"chain = [ {', '.join(chain)} ]")


def test_a_containers_view_of_every_kind(podrun: Podrun, home: Path) -> None:
    squashfs = image_file(home, "squashfs")
    (home / "below").mkdir()
    (home / "below" / "word").write_text("below")
    steps = [
        f'{{ hook = "storage", source = "{squashfs}", type = "squashfs", target = "/opt/a" }}',
        f'{{ hook = "storage", source = "{home}/below", target = "/opt/b", options = ["O"] }}',
        f'{{ hook = "storage", source = "image:dir:{home}/below", target = "/opt/c" }}',
        '{ hook = "storage", source = "file:", content = "s3cret", target = "/opt/d" }',
    ]
    command = (
        "cat /opt/a/word /opt/b/word /opt/c/word /opt/d; echo x > /opt/b/word; ! touch /opt/c/x /opt/a/x 2>/dev/null"
    )
    path = pod(podrun, *steps, command=command)
    done = podrun("up", path, check=True)
    assert done.stdout == "squashfsbelowbelows3cret"
    assert (home / "below" / "word").read_text() == "below"
    assert podrun.journals() == []


def test_a_files_content_is_in_no_journal_and_nowhere_told(podrun: Podrun) -> None:
    step = '{ hook = "storage", source = "file:", content = "s3cret-${WORD}", target = "/opt/d" }'
    path = pod(podrun, step, command="sleep 60")
    podrun("up", "-d", path, check=True, WORD="w0rd")
    told = [podrun("inspect", "web").stdout, podrun("plan", "web").stdout, podrun("plan", path, WORD="w0rd").stdout]
    told += [
        Path(podrun.run, journal).read_text(errors="replace")
        for journal in podrun.journals()
        if Path(podrun.run, journal).is_file()
    ]
    assert not [text for text in told if "s3cret" in text]
    assert podrun("exec", "web", "cat", "/opt/d").stdout == "s3cret-w0rd"
    podrun("down", "web", check=True)


def test_a_volume_is_filled_from_the_image_at_its_first_use(podrun: Podrun, home: Path) -> None:
    root = home / "rootfs"
    run(
        "sh", "-c", f"mkdir -p {root}/bin {root}/srv/data && cp /bin/busybox {root}/bin/ && ln -s busybox {root}/bin/sh"
    )
    (root / "srv" / "data" / "word").write_text("image")
    (root / "srv" / "link").symlink_to("data")
    (root / "srv" / "kept").mkdir()
    (root / "srv" / "kept" / "word").touch()
    os.chown(root / "srv" / "data", 7, 8)
    os.chmod(root / "srv" / "data", 0o751)
    file = podrun.file(
        "web",
        f"""
[[chain]]
hook = "image"
ref = "dir:{root}"
[[chain]]
hook = "storage"
source = "volume:data"
target = "/srv/link"
[[chain]]
hook = "container"
volumes = ["more:/srv/data2", "kept:/srv/kept:nocopy"]
command = ["sh", "-c", "busybox cat /srv/link/word; busybox touch /srv/link/mine"]
""",
    )
    assert podrun("up", file, check=True).stdout == "image"
    data = podrun.root / "volumes" / "data" / "data"
    about = data.stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (7, 8, 0o751)
    assert sorted(os.listdir(data)) == ["mine", "word"]
    assert os.listdir(podrun.root / "volumes" / "kept" / "data") == []
    (data / "word").write_text("changed")
    assert podrun("up", file, check=True).stdout == "changed"


def test_a_read_only_bind_is_read_only_all_the_way_down(podrun: Podrun, home: Path) -> None:
    (home / "top" / "inner").mkdir(parents=True)
    run("mount", "-t", "tmpfs", "t-storage", str(home / "top" / "inner"))
    try:
        step = f'{{ hook = "storage", source = "{home}/top", target = "/opt/a", options = ["ro"] }}'
        done = podrun("up", pod(podrun, step, command="! touch /opt/a/x /opt/a/inner/x"), check=True)
        assert done.stderr.count("Read-only file system") == 2
    finally:
        run("umount", str(home / "top" / "inner"))


def test_what_the_host_mounts_later_reaches_a_slave_bind_and_no_private_one(podrun: Podrun, home: Path) -> None:
    top = home / "top"
    (top / "inner").mkdir(parents=True)
    run("mount", "--bind", str(top), str(top))
    run("mount", "--make-shared", str(top))
    try:
        steps = [
            f'{{ hook = "storage", source = "{top}", target = "/opt/a", options = ["rslave"] }}',
            f'{{ hook = "storage", source = "{top}", target = "/opt/b" }}',
        ]
        podrun("up", "-d", pod(podrun, *steps, command="sleep 60"), check=True)
        run("mount", "-t", "tmpfs", "t-storage", str(top / "inner"))
        (top / "inner" / "word").write_text("later")
        assert podrun("exec", "web", "cat", "/opt/a/inner/word").stdout == "later"
        assert podrun("exec", "web", "cat", "/opt/b/inner/word").returncode
        run("umount", str(top / "inner"))
        podrun("down", "web", check=True)
    finally:
        run("umount", "-l", str(top))


def test_a_busy_mount_stops_down_and_the_next_one_goes_on(podrun: Podrun, home: Path) -> None:
    step = f'{{ hook = "storage", source = "{image_file(home, "ext4")}", type = "ext4", target = "/opt/a" }}'
    podrun("up", "-d", pod(podrun, step, command="sleep 60"), check=True)
    process = subprocess.Popen(["sleep", "60"], cwd=podrun.run / "pods/web/mnt/storage")
    try:
        done = podrun("down", "web")
        assert done.returncode == BUSY
        assert f"held by sleep (pid {process.pid}: its working directory)" in done.stderr
    finally:
        process.kill()
        process.wait()
    podrun("down", "web", check=True)
    assert podrun.journals() == []
