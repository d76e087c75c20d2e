"""Mount targets that an image's, a volume's or a neighbour's link leads astray: the host's files stay out of reach."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import CANNOT_EXECUTE, WRONG_FILE, Failure
from podrun_hooks import container
from podrun_hooks.container import runtime as runtimes
from podrun_hooks.support import syscalls
from support.container_case import Case

pytestmark = pytest.mark.root

RUNTIMES = pytest.mark.parametrize("runtime", ["crun", "runc"])


def refused(case: Case, **options: Any) -> str:
    with pytest.raises(Failure) as failure:
        case.up("true", **options)
    assert failure.value.code == WRONG_FILE
    case.down({})
    assert case.left() == []
    return failure.value.what


@RUNTIMES
@pytest.mark.parametrize(
    "link",
    ["/dev", "dev", "dev/../dev", "/sys", "/proc", "/dev/pts", "/dev/fd", "/sys/fs/cgroup", "/dev/shm/../mqueue"],
)
@pytest.mark.parametrize("given", ["volume", "read-only", "tmpfs"])
def test_a_target_that_a_link_of_the_image_leads_into_a_system_directory_is_refused(
    tmp_path: Path, runtime: str, link: str, given: str
) -> None:
    case = Case(tmp_path)
    (case.layer / "data").symlink_to(link)
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "null").symlink_to("/proc/self/fd/6")
    mounts: dict[str, Any] = {
        "volume": {"volumes": [f"{volume}:/data"]},
        "read-only": {"volumes": [f"{volume}:/data:ro"]},
        "tmpfs": {"tmpfs": ["/data"]},
    }[given]
    assert "leads to" in refused(case, runtime=runtime, user="1000", **mounts)
    assert os.listdir(volume) == ["null"]


@RUNTIMES
def test_a_link_in_a_volume_leads_no_other_volume_into_dev(tmp_path: Path, runtime: str) -> None:
    case = Case(tmp_path)
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "outer/sub").symlink_to("/dev")
    volumes = [f"{tmp_path}/outer:/a", f"{tmp_path}/inner:/a/sub"]
    assert "leads to /dev" in refused(case, runtime=runtime, volumes=volumes)
    assert list((tmp_path / "inner").iterdir()) == []


@pytest.mark.parametrize(
    "target",
    [
        "/dev/null", "/dev/console", "/dev/pts/0", "/dev/fd", "/dev/stdout", "/sys/firmware", "/sys/power",
        "/proc/self/fd/1", "/proc/sys/kernel", "/proc/cpuinfo/x", "/proc/kcore",
    ],
)  # fmt: skip
def test_a_target_in_a_system_directory_is_on_a_short_list(tmp_path: Path, target: str) -> None:
    assert "nothing can be mounted" in refused(Case(tmp_path), volumes=[f"{tmp_path}:{target}"])


@RUNTIMES
def test_what_is_on_the_list_is_mounted(tmp_path: Path, runtime: str) -> None:
    case = Case(tmp_path)
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("seen\n")
    (case.layer / "run").mkdir()
    (case.layer / "run/shm").symlink_to("/dev/shm")
    volumes = [
        f"{tmp_path}/given:/dev/snd", f"{tmp_path}/given/file:/dev/log", f"{tmp_path}/given:/run/shm",
        f"{tmp_path}/given/file:/proc/uptime", f"{tmp_path}/given:/sys/fs/bpf",
    ]  # fmt: skip
    places = "/dev/snd/file /dev/log /dev/shm/file /proc/uptime /sys/fs/bpf/file"
    found = case.run("sh", "-c", f"cat {places}; ls -d /dev/null /dev/pts", volumes=volumes, runtime=runtime)
    assert found == "seen\n" * 5 + "/dev/null\n/dev/pts\n"
    assert case.left() == []


def test_a_mount_within_another_one_that_lies_in_dev_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm/sub").symlink_to("/proc")
    volumes = [f"{tmp_path}/shm:/dev/shm", f"{tmp_path}:/dev/shm/sub"]
    assert "is in another mount" in refused(Case(tmp_path), volumes=volumes)


@pytest.mark.parametrize(
    ("kind", "target"),
    [("proc", "/data"), ("sysfs", "/data"), ("devpts", "/data"), ("mqueue", "/data"), ("cgroup2", "/x")],
)
def test_a_file_system_that_shows_namespaces_is_not_mounted_by_the_host(tmp_path: Path, kind: str, target: str) -> None:
    case = Case(tmp_path)
    with pytest.raises(Failure, match=f"a {kind} cannot be mounted at {target}"):
        case.up("true", facts={"mounts": [{"containerPath": target, "type": kind, "hostPath": kind}]})
    case.down({})


@pytest.mark.parametrize("path", ["/data/null", "/dev/../etc/null", "/dev//null", "/dev"])
def test_a_device_is_made_in_dev_only(tmp_path: Path, path: str) -> None:
    case = Case(tmp_path)
    with pytest.raises(Failure, match="cannot be made at") as failure:
        case.up("true", facts={"deviceNodes": [{"path": path, "hostPath": "/dev/null"}]})
    assert failure.value.code == WRONG_FILE
    case.down({})


# --- the race ------------------------------------------------------------------------------------------------------

#: Exchanges a directory for a link, as fast as it can: renameat2(2) with RENAME_EXCHANGE.
SWAPPER = """
import ctypes, os, sys
libc, directory = ctypes.CDLL(None), sys.argv[1]
os.chdir(directory)
print("ready", flush=True)
while True:
    libc.renameat2(-100, b"sub", -100, b"link", 2)
"""


@RUNTIMES
@pytest.mark.parametrize("leads_to", ["/dev", "/proc/self/fd", "/sys", "../../../../../../../../../{host}"])
def test_the_owner_of_a_volume_who_swaps_a_directory_for_a_link_leads_no_mount_away(
    tmp_path: Path, runtime: str, leads_to: str
) -> None:
    outer, inner, host = (tmp_path / name for name in ("outer", "inner", "host"))
    for directory in (outer, inner, host, outer / "sub"):
        directory.mkdir()
    (inner / "null").symlink_to("/proc/self/fd/6")
    (outer / "link").symlink_to(leads_to.format(host=host))
    case = Case(tmp_path)
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, str(outer)], stdout=subprocess.PIPE)
    refusals = runs = 0
    try:
        assert swapper.stdout
        swapper.stdout.readline()
        script = "ls -l /proc/self/fd; ls -ld /dev/null; grep -c ' /dev tmpfs' /proc/mounts; [ -w /dev/ ] && echo end"
        for _ in range(12):
            try:
                found = case.run(
                    "sh", "-c", script, runtime=runtime, volumes=[f"{outer}:/a", f"{inner}:/a/sub"], stop_timeout="0s"
                )
            except Failure as failure:
                # The link was there when podrun looked, or the directory had gone when it wanted to mount over it.
                assert failure.code in (WRONG_FILE, 73, 76), failure.what
                refusals += 1
                continue
            runs += 1
            assert re.search(r" 0 -> /dev/null\n", found)
            assert "seccomp" not in found and "exec.fifo" not in found
            assert re.search(r"^crw.* /dev/null$", found, re.M)
            assert found.endswith("1\nend\n"), found
    finally:
        swapper.kill()
        swapper.wait()
    print(f"{runtime}, link to {leads_to}: {runs} starts, {refusals} refused")
    assert runs + refusals == 12
    assert os.listdir(inner) == ["null"]
    assert os.listdir(host) == []
    assert case.left() == []


@RUNTIMES
def test_a_target_that_moves_after_it_was_resolved_gets_its_mount_where_it_is_now(
    tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    for directory in (outer, inner, outer / "sub"):
        directory.mkdir()
    (inner / "file").write_text("seen\n")
    create = runtimes.create

    def swapped(*arguments: Any, **more: Any) -> int:
        os.rename(outer / "sub", outer / "moved")
        (outer / "sub").symlink_to("/dev")
        return create(*arguments, **more)

    monkeypatch.setattr(runtimes, "create", swapped)
    case = Case(tmp_path)
    volumes = [f"{outer}:/a", f"{inner}:/a/sub"]
    found = case.run("sh", "-c", "cat /a/moved/file; readlink /a/sub; ls /dev/null", volumes=volumes, runtime=runtime)
    assert found == "seen\n/dev\n/dev/null\n"


# --- what the runtime walks itself ---------------------------------------------------------------------------------


def test_a_process_whose_directory_is_in_no_mount_of_its_own_is_noticed() -> None:
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        outside = os.open("/root", os.O_PATH)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        os.fchdir(outside)
        os.write(theirs, b"1")
        time.sleep(60)
    try:
        os.read(ours, 1)
        with pytest.raises(Failure, match="outside of the container") as failure:
            runtimes.confirm_directory(child)
        assert failure.value.code == CANNOT_EXECUTE
        runtimes.confirm_directory(os.getpid())
    finally:
        syscalls.end(child)
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("workdir", ["/proc/self/fd/7", "/dev/fd/7", "/cwd"])
def test_nothing_works_in_a_directory_that_is_a_descriptor(tmp_path: Path, workdir: str) -> None:
    case = Case(tmp_path)
    (case.layer / "cwd").symlink_to("/proc/self/fd/7")
    with pytest.raises(Failure, match="leads to") as failure:
        case.up("true", workdir=workdir)
    assert failure.value.code == CANNOT_EXECUTE
    case.down({})
    case.up("sleep", "60")
    try:
        with pytest.raises(Failure, match="leads to"):
            container.exec_and_wait(case.step(), case.own, ["true"], workdir=workdir)
    finally:
        case.down()


@pytest.mark.parametrize("command", ["/proc/self/exe", "/run-me", "/proc/1/root/bin/true"])
def test_the_runtime_itself_is_no_command(tmp_path: Path, command: str) -> None:
    case = Case(tmp_path)
    (case.layer / "run-me").symlink_to("/proc/self/exe")
    with pytest.raises(Failure, match="leads to /proc") as failure:
        case.up(command)
    assert failure.value.code == CANNOT_EXECUTE
    case.down({})


def test_a_layer_that_its_owner_changes_meanwhile_has_the_directories_that_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    create = runtimes.create

    def swapped(*arguments: Any, **more: Any) -> int:
        for name in ("dev", "proc", "sys"):
            os.rename(case.layer / name, case.layer / f"was-{name}")
            (case.layer / name).symlink_to("/etc")
        return create(*arguments, **more)

    monkeypatch.setattr(runtimes, "create", swapped)
    assert case.run("sh", "-c", "ls -d /dev/null /proc/1 /sys/kernel; ls /etc") == (
        "/dev/null\n/proc/1\n/sys/kernel\ngroup\npasswd\n"
    )


@RUNTIMES
def test_the_hosts_dev_null_is_not_given_to_the_user_of_an_exec(podrun: Any, tmp_path: Path, runtime: str) -> None:
    case = Case(tmp_path)
    image = f'{{ hook = "image", ref = "dir:{case.layer}" }}'
    step = f'{{ hook = "container", command = ["sleep", "60"], stop_timeout = "0s", runtime = "{runtime}" }}'
    podrun("up", "-d", podrun.file("web", f"chain = [ {image}, {step} ]"), check=True)
    uid = 70000 + os.getpid() % 10000
    done = podrun("exec", "-i", "-u", str(uid), "web", "sh", "-c", "read x; echo $?; exec 3>&0")
    assert done.stdout == "1\n", "it reads as /dev/null does"
    assert os.stat("/dev/null").st_uid != uid
    with open("/dev/null", "wb") as null:
        subprocess.run(podrun.argv("exec", "-u", str(uid), "web", "true"), env=podrun.environ, stdout=null, check=True)
    assert os.stat("/dev/null").st_uid != uid


# --- by the command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detached", [False, True])
@RUNTIMES
def test_up_says_what_is_wrong_with_the_target_and_leaves_the_volume_alone(
    podrun: Any, tmp_path: Path, home: Path, runtime: str, detached: bool
) -> None:
    case = Case(tmp_path)
    (case.layer / "data").symlink_to("/dev")
    volume = home / "volume"
    volume.mkdir()
    file = podrun.file(
        "web",
        f'chain = [ {{ hook = "image", ref = {json.dumps(f"dir:{case.layer}")} }}, {{ hook = "container", '
        f'command = ["true"], volumes = ["{volume}:/data"], runtime = "{runtime}" }} ]',
    )
    done = podrun("up", *(["-d"] if detached else []), file)
    assert done.returncode == WRONG_FILE
    assert "nothing can be mounted at /data: it leads to /dev" in done.stderr
    assert list(volume.iterdir()) == []
    assert podrun.journals() == []
