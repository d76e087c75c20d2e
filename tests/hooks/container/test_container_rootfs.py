"""The root file system: layers, mount points that stay inside, and what is left of it afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import CANNOT_CREATE, MALFORMED, STEP_FAILED, WRONG_FILE, Failure
from podrun_hooks import container
from podrun_hooks.container import paths as places
from podrun_hooks.container import rootfs
from podrun_hooks.support.rooted_tree import clear
from support.container_case import Case, busybox_root

pytestmark = pytest.mark.root


def bind(source: Path | str, target: str, *options: str) -> dict[str, Any]:
    return {"hostPath": str(source), "containerPath": target, "type": "bind", "options": list(options)}


def many_layers(case: Case, count: int, where: Path) -> None:
    """Layers that all write /top, and each a file of its own."""
    for number in range(count):
        layer = where / f"{number:03}"
        layer.mkdir(parents=True)
        (layer / "top").write_text(f"{number}\n")
        (layer / f"of-{number}").write_text("")
        case.layers.append(str(layer))


@pytest.mark.parametrize("count", [1, 2, 129, 400])
def test_layers_are_stacked_lowest_first(tmp_path: Path, count: int) -> None:
    case = Case(tmp_path)
    many_layers(case, count, tmp_path / "layers")
    assert case.run("sh", "-c", "cat /top; ls / | grep -c ^of-") == f"{count - 1}\n{count}\n"
    assert case.left() == []


@pytest.mark.parametrize("count", [1, 150, 490])
def test_older_kernels_get_the_same_stack_in_one_string(tmp_path: Path, count: int) -> None:
    case = Case(tmp_path)
    many_layers(case, count, tmp_path / "a:b,c\\d")
    place = places.of(case.step())
    places.prepare(place, persist=False)
    fd = rootfs.stack_in_one_string(place, case.layers[::-1], volatile=True)
    try:
        assert Path(f"/proc/self/fd/{fd}/top").read_text() == f"{count - 1}\n"
        assert sum(name.startswith("of-") for name in os.listdir(f"/proc/self/fd/{fd}")) == count
        Path(f"/proc/self/fd/{fd}/new").write_text("x")
        assert Path(place.upper, "new").read_text() == "x"
    finally:
        os.close(fd)
    case.down({})
    assert case.left() == []


def test_an_older_kernel_starts_the_same_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_lowerdir_plus(fstype: str, options: list[tuple[str, str | None]], attributes: int = 0) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(rootfs.syscalls, "fsmount", without_lowerdir_plus)
    monkeypatch.setattr(rootfs, "_release", lambda: (6, 1))
    case = Case(tmp_path)
    many_layers(case, 3, tmp_path / "layers")
    assert case.run("cat", "/top") == "2\n"
    case.up("sleep", "60")
    case.down({})
    assert case.left() == []


def test_a_layer_whose_path_is_long_or_odd_is_no_problem(tmp_path: Path) -> None:
    case = Case(tmp_path)
    many_layers(case, 2, tmp_path / ("x" * 200) / ("y, :" * 40))
    assert case.run("cat", "/top") == "1\n"


def test_a_layer_that_occurs_twice_counts_once(tmp_path: Path) -> None:
    case = Case(tmp_path)
    many_layers(case, 2, tmp_path / "layers")
    case.layers = [*case.layers, case.layers[1]]
    assert case.run("cat", "/top") == "0\n"


def test_an_image_without_layers_is_an_empty_root(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.layers = []
    case.image_mounts = [bind(case.layer / "bin", "/bin", "ro")]
    assert case.run("sh", "-c", "ls /").split() == ["bin", "dev", "proc", "sys"]
    assert case.left() == []


def test_a_missing_layer_is_said(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.layers = ["/nowhere/at/all"]
    with pytest.raises(Failure) as failure:
        case.up("true")
    assert failure.value.code == MALFORMED
    case.down({})
    assert case.left() == []


def test_the_image_is_not_written_to(tmp_path: Path) -> None:
    case = Case(tmp_path)
    before = sorted(str(path) for path in case.layer.rglob("*"))
    case.run("sh", "-c", "rm -r /etc /root; touch /new /bin/new", facts={"mounts": [bind(tmp_path, "/made/for/mount")]})
    assert sorted(str(path) for path in case.layer.rglob("*")) == before
    assert case.left() == []


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("kind", ["link out", "link inside", "file", "fifo"])
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_an_image_whose_system_directory_is_none_is_refused(tmp_path: Path, name: str, kind: str, runtime: str) -> None:
    case = Case(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (case.layer / name).rmdir()
    if kind == "file":
        (case.layer / name).write_text("")
    elif kind == "fifo":
        os.mkfifo(case.layer / name)
    else:
        (case.layer / name).symlink_to(outside if kind == "link out" else "etc")
    with pytest.raises(Failure) as failure:
        case.up("true", runtime=runtime)
    assert failure.value.code == MALFORMED
    assert f"/{name}" in failure.value.what
    case.down({})
    assert case.left() == []
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("link", ["{host}", "../../../../../../../../../../{host}", "/etc/../..{host}"])
def test_a_mount_target_behind_a_link_stays_inside(tmp_path: Path, runtime: str, link: str) -> None:
    host, source = tmp_path / "host", tmp_path / "source"
    for directory in (host, source):
        directory.mkdir()
    (source / "file").write_text("seen\n")
    case = Case(tmp_path)
    (case.layer / "data").symlink_to(link.format(host=host))
    mounts = [bind(source, "/data/deep"), bind(source / "file", "/data/one")]
    found = case.run("cat", "/data/deep/file", "/data/one", facts={"mounts": mounts}, runtime=runtime)
    assert found == "seen\nseen\n"
    assert list(host.iterdir()) == []
    assert case.left() == []


def test_a_link_in_the_images_etc_does_not_lead_the_hosts_file_away(tmp_path: Path) -> None:
    case = Case(tmp_path)
    hosts = tmp_path / "hosts"
    hosts.write_text("10.0.0.1 me\n")
    (case.layer / "etc/hosts").symlink_to("/run/generated/hosts")
    assert case.run("cat", "/etc/hosts", "/run/generated/hosts", facts={"mounts": [bind(hosts, "/etc/hosts")]}) == (
        "10.0.0.1 me\n10.0.0.1 me\n"
    )


@pytest.mark.parametrize(
    "target", ["/", "/proc", "/proc/sys", "/dev", "/sys", "//proc/", "/leads-to-proc", "/leads-to-proc/x"]
)
def test_nothing_is_mounted_over_what_protects_the_host(tmp_path: Path, target: str) -> None:
    case = Case(tmp_path)
    (case.layer / "leads-to-proc").symlink_to("/proc/sys")
    with pytest.raises(Failure) as failure:
        case.up("true", facts={"mounts": [bind(tmp_path, target)]})
    assert failure.value.code == WRONG_FILE
    case.down({})
    assert case.left() == []


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_injected_mounts_are_nosuid_and_nodev_and_read_only_all_the_way_down(tmp_path: Path, runtime: str) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    case = Case(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "t-cont", source / "below"], check=True)
    try:
        mounts = [
            bind(source, "/plain"),
            bind(source, "/shut", "ro"),
            {"containerPath": "/mem", "type": "tmpfs", "hostPath": "tmpfs"},
        ]
        script = "grep -E ' /(plain|shut|mem)' /proc/self/mountinfo; touch /plain/below/x && echo ok; touch /shut/below/x && echo BAD"
        found = case.run("sh", "-c", script, facts={"mounts": mounts}, runtime=runtime)
    finally:
        subprocess.run(["umount", source / "below"], check=True)
    rows = {line.split()[4]: line.split()[5].split(",") for line in found.splitlines() if " - " in line}
    assert set(rows) == {"/plain", "/plain/below", "/shut", "/shut/below", "/mem"}
    assert all("nosuid" in flags and "nodev" in flags for flags in rows.values())
    assert {name for name, flags in rows.items() if "ro" in flags} == {"/shut", "/shut/below"}
    assert "ok" in found
    assert "BAD" not in found
    assert case.left() == []


def test_an_outer_mount_does_not_hide_an_inner_one_and_the_last_at_a_target_counts(tmp_path: Path) -> None:
    for name in ("outer", "inner", "late"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    case = Case(tmp_path)
    mounts = [
        bind(tmp_path / "inner", "/a/b"),
        bind(tmp_path / "outer", "/a"),
        bind(tmp_path / "outer", "/c"),
        bind(tmp_path / "late", "/c/"),
    ]
    assert case.run("cat", "/a/who", "/a/b/who", "/c/who", facts={"mounts": mounts}) == "outerinnerlate"


def test_a_target_that_is_missing_in_a_read_only_mount_is_refused(tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    case = Case(tmp_path)
    with pytest.raises(Failure, match="read-only") as failure:
        case.up("true", facts={"mounts": [bind(shut, "/shut", "ro"), bind(tmp_path, "/shut/inner")]})
    assert failure.value.code == CANNOT_CREATE
    assert list(shut.iterdir()) == []
    case.down({})


def test_a_file_and_a_directory_are_not_mounted_over_each_other(tmp_path: Path) -> None:
    case = Case(tmp_path)
    for mount in (bind(tmp_path, "/etc/passwd"), bind("/etc/hostname", "/etc")):
        with pytest.raises(Failure, match="to be mounted there"):
            case.up("true", facts={"mounts": [mount]})
        case.down({})
    with pytest.raises(Failure, match="nowhere") as failure:
        case.up("true", facts={"mounts": [bind("/nowhere", "/x")]})
    assert failure.value.code == STEP_FAILED
    case.down({})
    assert case.left() == []


def test_a_mount_in_dev_and_one_instead_of_shm_work(tmp_path: Path) -> None:
    case = Case(tmp_path)
    (tmp_path / "log").write_text("seen\n")
    mounts = [
        bind(tmp_path / "log", "/dev/log"),
        {"containerPath": "/dev/shm", "type": "tmpfs", "hostPath": "tmpfs", "options": ["size=1m"]},
    ]
    found = case.run(
        "sh",
        "-c",
        "cat /dev/log; grep -c ' /dev/shm ' /proc/self/mountinfo; grep /dev/shm /proc/self/mountinfo",
        facts={"mounts": mounts},
    )
    assert found.startswith("seen\n1\n")
    assert "size=1024k" in found


def test_volumes_in_dockers_spelling_are_mounted_and_a_named_one_stays(tmp_path: Path) -> None:
    case = Case(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/page").write_text("page\n")
    volumes = [f"{tmp_path}/site:/srv/site:ro", "data:/var/lib/data"]
    script = "cat /srv/site/page /var/lib/data/kept; echo kept > /var/lib/data/kept; touch /srv/site/x"
    assert "page\n" in case.run("sh", "-c", script, volumes=volumes)
    found = case.run("sh", "-c", script, volumes=volumes)
    assert "page\nkept\n" in found
    assert "Read-only file system" in found
    assert case.left() == []


def test_a_volume_of_a_missing_directory_is_found_by_check(tmp_path: Path) -> None:
    problems = container.check(Case(tmp_path).step(volumes=[f"{tmp_path}/nowhere:/x"]))
    assert [(problem.code, problem.fatal) for problem in problems] == [(WRONG_FILE, True)]


def test_tmpfs_in_dockers_spelling_is_made(tmp_path: Path) -> None:
    found = Case(tmp_path).run(
        "grep", "/scratch", "/proc/self/mountinfo", tmpfs=["/scratch:size=2m,mode=700", "/scratch2:exec"]
    )
    first, second = found.splitlines()
    assert all(word in first for word in ("noexec", "nosuid", "nodev", "size=2048k", "mode=700"))
    assert "noexec" not in second


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_read_only_root_has_its_mount_points_and_cannot_be_written(tmp_path: Path, runtime: str) -> None:
    case = Case(tmp_path)
    script = "touch /x /etc/x 2>&1; echo ok > /made/x && cat /made/x"
    found = case.run("sh", "-c", script, read_only=True, facts={"mounts": [bind(tmp_path, "/made")]}, runtime=runtime)
    assert found.count("Read-only file system") == 2
    assert found.endswith("ok\n")


def test_the_writable_layer_is_removed_unless_it_is_to_persist(tmp_path: Path) -> None:
    case = Case(tmp_path)
    script = "cat /kept 2>/dev/null; echo kept > /kept"
    assert case.run("sh", "-c", script) == ""
    assert case.run("sh", "-c", script) == ""
    assert case.run("sh", "-c", script, persist=True) == ""
    assert case.run("sh", "-c", script, persist=True) == "kept\n"
    assert Path(case.pod.storage, "main/upper/kept").read_text() == "kept\n"
    assert case.run("sh", "-c", script) == ""
    assert case.left() == []


def test_a_writable_layer_of_an_earlier_boot_is_not_seen(tmp_path: Path) -> None:
    case = Case(tmp_path)
    place = places.of(case.step())
    places.prepare(place, persist=False)
    Path(place.upper, "stale").write_text("")
    assert "stale" not in case.run("ls", "/")


def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    nest = "import os\nfor _ in range(3000):\n os.mkdir('d' * 9); os.symlink('/', 'out'); os.chdir('d' * 9)"
    top = tmp_path / "top"
    top.mkdir()
    subprocess.run([sys.executable, "-c", nest], cwd=top, check=True)
    clear(str(top))
    assert not top.exists()
    assert os.path.exists("/bin/sh")


def test_removing_follows_no_link_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("")
    case = Case(tmp_path)
    case.up("sh", "-c", f"ln -s {outside} /link; mkdir /d; ln -s {outside} /d/link; sleep 60", stop_signal="KILL")
    place = places.of(case.step())
    Path(place.upper, "planted").symlink_to(outside)
    (Path(case.pod.directory) / "pod.journal").write_text("kept")
    case.down()
    assert (outside / "precious").exists()
    assert os.listdir(case.pod.directory) == ["pod.journal"]


def test_two_containers_of_a_pod_and_two_pods_do_not_meet(tmp_path: Path) -> None:
    first, second, third = Case(tmp_path), Case(tmp_path, "side"), Case(tmp_path, pod="t-cont-main")
    for case in (first, second, third):
        case.up("sh", "-c", "echo mine > /mine; sleep 60", stop_signal="KILL")
    first.down()
    assert second.exec("cat", "/mine") == third.exec("cat", "/mine") == "mine"
    second.down()
    third.down()
    assert first.left() == second.left() == third.left() == []


def test_the_root_of_a_directory_image_is_used_as_it_is(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.layers = [str(busybox_root(tmp_path / "other"))]
    (tmp_path / "other/hello").write_text("hi\n")
    assert case.run("cat", "/hello") == "hi\n"
