"""Which command runs: looked up as execvp(3) would, and what cannot run is told as 126 or 127 before the start."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import CANNOT_EXECUTE, NOT_FOUND, Failure
from support.container_case import Case, busybox_root


@pytest.mark.root
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("no-such-program", NOT_FOUND),
        ("/bin/no-such-program", NOT_FOUND),
        ("./no-such-program", NOT_FOUND),
        ("/etc/passwd", CANNOT_EXECUTE),
        ("/etc", CANNOT_EXECUTE),
        ("dangling", NOT_FOUND),
        ("loop", NOT_FOUND),
        ("/out", NOT_FOUND),
    ],
)
def test_a_command_that_is_not_in_the_image_is_127_and_one_that_cannot_run_126(
    tmp_path: Path, command: str, code: int
) -> None:
    case = Case(tmp_path)
    (case.layer / "bin/dangling").symlink_to("/nowhere/at/all")
    (case.layer / "bin/loop").symlink_to("loop")
    (case.layer / "out").symlink_to("../../../../../../usr/bin/env")
    with pytest.raises(Failure) as failure:
        case.up(command)
    assert failure.value.code == code
    case.down({})
    assert case.left() == []


@pytest.mark.root
def test_a_command_is_found_in_an_injected_mount_through_links_of_the_image(tmp_path: Path) -> None:
    programs = busybox_root(tmp_path / "usr") / "bin"
    case = Case(tmp_path)
    case.layers = [str(tmp_path / "bare")]
    for name in ("etc", "usr"):
        (tmp_path / "bare" / name).mkdir(parents=True)
    (tmp_path / "bare/bin").symlink_to("usr/bin")
    case.image_mounts = [{"hostPath": str(programs.parent), "containerPath": "/usr", "type": "bind", "options": ["ro"]}]
    assert case.run("sh", "-c", "echo found") == "found\n"
    assert case.run("/bin/echo", "found") == "found\n"
    with pytest.raises(Failure) as failure:
        case.up("no-such-program")
    assert failure.value.code == NOT_FOUND
    case.down({})


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "owner", "user", "may"),
    [
        (0o700, (0, 0), "1000", False),
        (0o700, (0, 0), "0", True),
        (0o710, (0, 33), "web", True),  # web is in the group www
        (0o710, (0, 33), "web:web", False),
        (0o701, (1000, 0), "1000", True),
        (0o601, (1000, 0), "1000", False),  # the owner's bits count, not the others'
        (0o706, (0, 1000), "1000", False),
        (0o755, (0, 0), "1000", True),
    ],
)
@pytest.mark.parametrize("where", ["file", "directory"])
def test_who_may_not_execute_the_command_is_told_126_before_the_start(
    tmp_path: Path, mode: int, owner: tuple[int, int], user: str, may: bool, where: str
) -> None:
    case = Case(tmp_path)
    (case.layer / "opt").mkdir()
    shutil.copy(case.layer / "bin/busybox", case.layer / "opt/echo")
    (case.layer / "opt/echo").chmod(0o755)
    changed = case.layer / ("opt/echo" if where == "file" else "opt")
    changed.chmod(mode)
    os.chown(changed, *owner)
    if may:
        assert case.run("/opt/echo", "ran", user=user) == "ran\n"
        return
    for command, env in (("/opt/echo", {}), ("echo", {"PATH": "/opt"})):
        with pytest.raises(Failure, match=r"executable|out of reach") as failure:
            case.up(command, user=user, env=env)
        assert failure.value.code == CANNOT_EXECUTE
        case.down({})
    assert case.left() == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("command", "code"), [("nothing", NOT_FOUND), ("/etc", CANNOT_EXECUTE), ("/only", CANNOT_EXECUTE)]
)
def test_an_exec_that_cannot_be_has_the_status_of_a_start_that_cannot_be(
    podrun: Any, tmp_path: Path, command: str, code: int
) -> None:
    case = Case(tmp_path)
    (case.layer / "only").write_bytes((case.layer / "bin/busybox").read_bytes())
    (case.layer / "only").chmod(0o700)
    image = f'{{ hook = "image", ref = "dir:{case.layer}" }}'
    container_step = '{ hook = "container", command = ["sleep", "60"], stop_timeout = "0s" }'
    podrun("up", "-d", podrun.file("web", f"chain = [ {image}, {container_step} ]"), check=True)
    done = podrun("exec", "-u", "1000", "web", command)
    assert done.returncode == code, done.stderr


@pytest.mark.root
def test_a_command_out_of_reach_gives_way_to_one_further_on_in_path(tmp_path: Path) -> None:
    case = Case(tmp_path)
    (case.layer / "opt").mkdir(mode=0o700)
    (case.layer / "opt/echo").write_text("")
    assert case.run("echo", "ran", user="1000", env={"PATH": "/opt:/bin"}) == "ran\n"


@pytest.mark.root
def test_a_command_in_a_mount_that_is_noexec_is_126_and_root_without_capabilities_is_anybody(tmp_path: Path) -> None:
    case = Case(tmp_path)
    (tmp_path / "tools").mkdir()
    shutil.copy(case.layer / "bin/busybox", tmp_path / "tools/echo")
    os.chown(tmp_path / "tools/echo", 1000, 1000)
    (tmp_path / "tools/echo").chmod(0o700)
    volumes = [f"{tmp_path}/tools:/tools"]
    for given in ({"volumes": [f"{volumes[0]}:noexec"]}, {"volumes": volumes, "cap_drop": ["ALL"]}):
        with pytest.raises(Failure, match=r"noexec|for this user") as failure:
            case.up("/tools/echo", **given)
        assert failure.value.code == CANNOT_EXECUTE
        case.down({})
    assert case.run("/tools/echo", "ran", volumes=volumes) == "ran\n"
