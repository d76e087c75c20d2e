"""What image, options and facts make of a container: docker's rules, and the refusals."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import STEP_FAILED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.options import Wrong, read
from podrun_hooks import container
from podrun_hooks.container import cgroups, spec, users
from podrun_hooks.container import paths as places
from podrun_hooks.container.options import signal_number
from podrun_hooks.support import subprocesses
from support.container_case import Case, netns

DISK_NODE = (
    os.makedev(*map(int, Path("/sys/class/block/vda/dev").read_text().split(":")))
    if os.path.exists("/sys/class/block/vda/dev")
    else os.makedev(8, 0)
)


def options(**table: Any) -> Any:
    return read(container.Options, table)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "given", "argv"),
    [
        (None, ["serve"], {}, ["serve"]),
        (["/run.sh"], None, {}, ["/run.sh"]),
        (["/run.sh"], ["serve"], {}, ["/run.sh", "serve"]),
        (["/run.sh"], ["serve"], {"command": ["test", "-v"]}, ["/run.sh", "test", "-v"]),
        (["/run.sh"], ["serve"], {"entrypoint": ["sh"]}, ["sh"]),
        (["/run.sh"], ["serve"], {"entrypoint": ["sh"], "command": ["-c", "x"]}, ["sh", "-c", "x"]),
        (["/run.sh"], ["serve"], {"entrypoint": [], "command": ["id"]}, ["id"]),
        (["/run.sh"], ["serve"], {"command": []}, ["/run.sh"]),
    ],
)
def test_entrypoint_and_command_combine_as_in_docker(
    entrypoint: list[str] | None, cmd: list[str] | None, given: dict[str, Any], argv: list[str]
) -> None:
    assert spec.arguments({"Entrypoint": entrypoint, "Cmd": cmd}, options(**given)) == argv


@pytest.mark.parametrize("given", [{}, {"command": []}, {"entrypoint": []}])
def test_a_container_without_any_command_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(Failure) as failure:
        spec.arguments({}, options(**given))
    assert failure.value.code == WRONG_FILE


def test_variables_of_the_pod_file_win_over_injected_ones_and_those_over_the_images() -> None:
    image = {"Env": ["A=image", "B=image", "C=image", "PATH=/only"]}
    found = spec.environment(
        image, options(env={"A": "pod", "N": 1, "Y": True}), {"env": ["A=fact", "B=fact"]}, "web", "/root"
    )
    assert found.pop("PATH") == "/only"
    assert found == {"HOSTNAME": "web", "A": "pod", "B": "fact", "C": "image", "N": "1", "Y": "true", "HOME": "/root"}


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGTERM", 15), ("sigquit", 3), ("9", 9), (28, 28), ("RTMIN+3", 37), ("SIGRTMAX", 64)],
)
def test_stop_signals_are_read_in_every_spelling(text: Any, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "SIGNOTHING", "0", "65", "-1", "RTMIN+40"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(Wrong):
        signal_number(text)


@pytest.mark.parametrize(
    "text", ["4294967295", "4294967296", "0:4294967295", "", ":", "a b", "a/b", "1:2:3", "-1", "1000:x y"]
)
def test_a_user_that_cannot_be_is_refused_in_the_pod_file(text: str) -> None:
    if text:
        with pytest.raises(Wrong):
            options(user=text)
    with pytest.raises(Wrong):
        users.spelled(text)


@pytest.mark.parametrize(
    "table",
    [
        {"cap_add": ["CAP_NONSENSE"]},
        {"memory": "much"},
        {"cpus": 0},
        {"pids": 0},
        {"log": "nowhere"},
        {"log": "file:relative"},
        {"seccomp": "profile.json"},
        {"ready": {}},
        {"ready": {"tcp": ":80", "http": ":80/"}},
        {"ready": {"tcp": ":0"}},
        {"ready": {"http": "80"}},
        {"ready": {"http": ":80/a b"}},
        {"env": {"A=B": "x"}},
        {"hostname": "not valid"},
        {"privileged": True},
        {"tty": "yes"},
        {"volumes": ["nothing"]},
        {"tmpfs": ["relative"]},
    ],
    ids=str,
)
def test_wrong_options_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(Wrong):
        options(**table)


@pytest.mark.root
@pytest.mark.parametrize("name", ["podrun", "pod", "mnt", "a/b", "..", ".hidden", "a.b", "x" * 64, "käse"])
def test_a_container_cannot_have_a_name_that_collides(tmp_path: Path, name: str) -> None:
    problems = container.check(Case(tmp_path, name).step())
    assert [(problem.code, problem.fatal) for problem in problems] == [(WRONG_FILE, True)]


@pytest.mark.root
def test_a_missing_runtime_or_init_is_found_by_check_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(program: str, package: str) -> str:
        raise Failure(f"{program} is not installed", code=UNAVAILABLE, hint=f"apt install {package}")

    monkeypatch.setattr(subprocesses, "find", nowhere)
    case = Case(tmp_path)
    problems = container.check(case.step(init=True, runtime="runc"))
    assert [(problem.code, problem.hint) for problem in problems] == [
        (UNAVAILABLE, "apt install runc"),
        (UNAVAILABLE, "apt install catatonit"),
    ]
    assert [problem.hint for problem in container.check(case.step(runtime="auto"))] == ["apt install crun"]


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_working_directory_and_home_are_the_images(tmp_path: Path, runtime: str) -> None:
    case = Case(tmp_path)
    case.config = {"WorkingDir": "/srv/made/for/me", "User": "web", "Cmd": ["sh", "-c", "pwd; echo $HOME; echo $PATH"]}
    assert case.run(runtime=runtime) == f"/srv/made/for/me\n/srv/web\n{spec.PATH}\n"
    assert case.run(workdir="/tmp", runtime=runtime).startswith("/tmp\n")
    assert case.left() == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("given", "mask"),
    [
        ({}, "a00405fb"),
        ({"capabilities": {"add": ["mknod"]}}, "a80405fb"),
        ({"cap_drop": ["ALL"]}, "00000000"),
        ({"cap_drop": ["ALL"], "cap_add": ["CAP_NET_BIND_SERVICE"]}, "00000400"),
        ({"cap_add": ["SYS_ADMIN"]}, "a02405fb"),
        ({"memory": "64M"}, "a80405fb"),
    ],
)
def test_capabilities_are_fewer_than_dockers(tmp_path: Path, given: dict[str, Any], mask: str) -> None:
    found = dict(
        line.split(":\t")
        for line in Case(tmp_path).run("cat", "/proc/self/status", **given).splitlines()
        if ":\t" in line
    )
    assert [found[name][-8:] for name in ("CapEff", "CapPrm", "CapBnd")] == [mask] * 3
    assert found["CapInh"] == found["CapAmb"] == "0000000000000000"
    assert found["NoNewPrivs"] == "1"


# What a program with file capabilities gains is bounded by what was permitted before (no_new_privs).
@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("way", ["up", "exec"])
@pytest.mark.parametrize(
    ("user", "program", "expected"),
    [
        ("1000", "/bin/busybox", "0000000000000000"),
        ("0", "/bin/busybox", "all"),
        ("1000", "/bound/busybox", "0000000000000400"),
        ("1000", "/over/busybox", "none"),
    ],
)
def test_a_user_who_is_not_root_has_the_programs_capabilities_alone(
    tmp_path: Path, runtime: str, way: str, user: str, program: str, expected: str
) -> None:
    case = Case(tmp_path)
    # NET_BIND_SERVICE is one of the container's own; SYS_ADMIN is not, and the kernel runs nothing that claims it.
    for name, capability in (("bound", "cap_net_bind_service"), ("over", "cap_sys_admin")):
        (case.layer / name).mkdir()
        shutil.copy(case.layer / "bin/busybox", case.layer / name)
        subprocess.run(["setcap", f"{capability}+ep", case.layer / name / "busybox"], check=True)
    command = [program, "grep", "Cap", "/proc/self/status"]
    try:
        if way == "up":
            found = case.run(*command, user=user, runtime=runtime)
        else:
            case.up("sleep", "60", runtime=runtime)
            ended = container.exec_and_wait(case.step(), case.own, command, user=user)
            found = ended.output
    except Failure:
        found = ""
    finally:
        case.down({})
    sets = dict(line.split(":\t") for line in found.splitlines() if ":\t" in line)
    if expected == "none":
        assert not int(sets.get("CapEff", "0"), 16)
    else:
        wanted = sets["CapBnd"] if expected == "all" else expected
        assert (sets["CapEff"], sets["CapPrm"]) == (wanted, wanted)
        assert sets["CapInh"] == sets["CapAmb"] == "0000000000000000"


@pytest.mark.root
@pytest.mark.parametrize("given", [{}, {"runtime": "runc"}, {"memory": "64M"}, {"read_only": True}], ids=str)
def test_a_node_of_the_hosts_disk_in_the_image_cannot_be_opened(tmp_path: Path, given: dict[str, Any]) -> None:
    case = Case(tmp_path)
    os.mknod(case.layer / "disk", 0o666 | stat.S_IFBLK, DISK_NODE)
    found = case.run("sh", "-c", "head -c 1 /disk && echo OPENED", **given)
    assert "OPENED" not in found
    assert "denied" in found or "not permitted" in found


@pytest.mark.root
@pytest.mark.parametrize("given", [{}, {"runtime": "runc"}, {"memory": "64M"}], ids=str)
def test_a_container_cannot_make_a_usable_node_of_the_hosts_disk(tmp_path: Path, given: dict[str, Any]) -> None:
    major, minor = os.major(DISK_NODE), os.minor(DISK_NODE)
    script = f"for d in /tmp /dev /dev/shm; do mknod $d/disk b {major} {minor}; head -c 1 $d/disk && echo OPENED; done"
    assert "OPENED" not in Case(tmp_path).run("sh", "-c", script, **given)


@pytest.mark.root
def test_a_device_that_is_injected_can_be_used(tmp_path: Path) -> None:
    case = Case(tmp_path)
    node = {"path": "/dev/injected", "hostPath": "/dev/zero"}
    for given in ({}, {"memory": "64M"}):
        found = case.run("sh", "-c", "head -c 3 /dev/injected; echo done", facts={"deviceNodes": [node]}, **given)
        assert found == "\0\0\0done\n"


@pytest.mark.root
def test_paths_of_proc_and_sys_are_masked_or_read_only(tmp_path: Path) -> None:
    script = """
    for path in /proc/kcore /proc/keys /proc/timer_list; do head -c 1 $path 2>/dev/null | grep -q . && echo $path; done
    ls /sys/firmware /proc/acpi 2>/dev/null | grep -q -v : | grep . && echo listed
    for path in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/uevent_helper; do
        (echo > $path) 2>/dev/null && echo written $path
    done; echo end"""
    assert Case(tmp_path).run("sh", "-c", script) == "end\n"


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_limits_are_in_force_and_the_cgroup_goes_with_the_container(tmp_path: Path, runtime: str) -> None:
    case = Case(tmp_path)
    script = "sleep 0.1 & sleep 0.1 & sleep 0.1 & sleep 0.1 & sleep 0.1 & echo never"
    told = case.run("sh", "-c", script, pids=4, runtime=runtime)
    assert "fork" in told
    assert "never" not in told
    assert case.left() == []
    case.up("sleep", "60", memory="64M", cpus=0.5, stop_signal="KILL", runtime=runtime)
    try:
        assert _limit(case, "memory.max", "memory.limit_in_bytes") == [str(64 << 20)]
        assert _limit(case, "cpu.max", "cpu.cfs_quota_us") in (["50000 100000"], ["50000"])
    finally:
        case.down()
    assert case.left() == []


def _limit(case: Case, *names: str) -> list[str]:
    """What the kernel has in the files of these names in the container's own cgroups."""
    files = [Path(path, name) for path in cgroups.of(places.of(case.step())) for name in names]
    return [file.read_text().strip() for file in files if file.exists()]


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize(("given", "most"), [({}, "2048"), ({"pids": 77}, "77"), ({"pids": -1}, "max")])
def test_processes_are_limited_unless_asked_otherwise_and_those_of_an_exec_count(
    tmp_path: Path, runtime: str, given: dict[str, Any], most: str
) -> None:
    case = Case(tmp_path)
    case.up("sleep", "60", runtime=runtime, **given)
    try:
        found = [_counted(Path(f"/proc/{case.own['process']['pid']}/cgroup").read_text())]
        found.append(_counted(case.exec("cat", "/proc/self/cgroup"), found[0][0]))
    finally:
        case.down()
    assert [limit for _, limit in found] == [most] * 2
    assert case.left() == []


def _counted(text: str, whole: str = "") -> tuple[str, str]:
    """The cgroup that counts a process, and its limit; ``whole``: how the host calls what is "/" in the container."""
    rows = [line.split(":", 2) for line in text.splitlines()]
    v1 = [path for _, names, path in rows if names == "pids"]
    path = v1[0] if v1 else next(path for number, _, path in rows if number == "0")
    path = whole if whole and path == "/" else path
    try:
        return path, Path(f"/sys/fs/cgroup/{'pids' if v1 else ''}{path}/pids.max").read_text().strip()
    except FileNotFoundError:
        return path, "max"  # the root has no limit


@pytest.mark.root
@pytest.mark.parametrize("key", ["apparmor", "selinux", "selinux_mount"])
def test_a_label_that_the_host_does_not_know_is_refused_by_check(tmp_path: Path, key: str) -> None:
    problems = container.check(Case(tmp_path).step(**{key: "podrun-no-such-profile"}))
    assert [(problem.code, problem.key) for problem in problems] == [(UNAVAILABLE, key)]


@pytest.mark.root
def test_labels_reach_the_runtimes_configuration(tmp_path: Path) -> None:
    case = Case(tmp_path)
    step = case.step(command=["true"], apparmor="own", selinux="a:b:c:s0", selinux_mount="a:b:d:s0")
    with pytest.raises(Failure, match="create"):
        container.up(step, case.facts())  # this host has neither
    config = json.loads(Path(places.of(step).config).read_text())
    assert config["process"]["apparmorProfile"] == "own"
    assert (config["process"]["selinuxLabel"], config["linux"]["mountLabel"]) == ("a:b:c:s0", "a:b:d:s0")
    case.down({})


@pytest.mark.root
def test_an_annotation_of_facts_and_options_reaches_the_runtime(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.up(
        "sleep",
        "60",
        stop_signal="KILL",
        annotations={"a": "1"},
        labels={"b": "2"},
        facts={"annotations": {"c": "3", "a": "0"}},
    )
    config = Path(case.pod.directory, "main/config.json")
    assert config.stat().st_mode & 0o777 == 0o600
    assert '"a":"1"' in config.read_text() and '"b":"2"' in config.read_text() and '"c":"3"' in config.read_text()
    case.down()


@pytest.mark.root
def test_hooks_of_facts_run(tmp_path: Path) -> None:
    case = Case(tmp_path)
    script = tmp_path / "hook.sh"
    script.write_text(f"#!/bin/sh\ncat > {tmp_path}/seen-$1\n")
    script.chmod(0o755)
    hooks = [{"hookName": name, "path": str(script), "args": ["hook", name]} for name in ("createRuntime", "poststart")]
    case.run("true", facts={"hooks": hooks})
    assert all(
        f'"{case.pod.tag}.main"' in (tmp_path / f"seen-{name}").read_text() for name in ("createRuntime", "poststart")
    )
    assert case.left() == []


@pytest.mark.root
def test_the_network_namespace_is_the_facts(tmp_path: Path) -> None:
    name = f"t-cont-{os.getpid()}"
    path = netns(name)
    try:
        subprocess.run(["ip", "-n", name, "link", "add", "t-cont0", "type", "veth"], check=True)
        case = Case(tmp_path)
        assert "t-cont0" in case.run("ls", "/sys/class/net", facts={"netns": path})
        assert case.run("ls", "/sys/class/net").split() == ["lo"]
        host = case.run("readlink", "/proc/self/ns/net", facts={"netns": "host"})
        assert host == os.readlink("/proc/self/ns/net") + "\n"
        low = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
        assert case.run("sh", "-c", low, user="web") == "0\n"
        assert case.run("sh", "-c", low, facts={"netns": path}) != "0\n", "what somebody else has made stays as it is"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.root
@pytest.mark.parametrize(
    ("facts", "given", "name"),
    [
        ({}, {}, "t-cont"),
        ({"hostname": "web-7"}, {}, "web-7"),
        ({"hostname": "web-7"}, {"hostname": "mine"}, "mine"),
        ({"netns": "host"}, {}, os.uname().nodename),
    ],
)
def test_the_host_name_is_the_options_or_the_pods(tmp_path: Path, facts: Any, given: Any, name: str) -> None:
    assert Case(tmp_path).run("sh", "-c", "hostname; echo $HOSTNAME", facts=facts, **given) == f"{name}\n{name}\n"


@pytest.mark.root
def test_an_image_that_is_not_there_is_said(tmp_path: Path) -> None:
    case = Case(tmp_path)
    for facts, given in (({"image": "", "images": {}}, {}), ({}, {"image": "other"})):
        with pytest.raises(Failure) as failure:
            case.up("id", facts=facts, **given)
        assert failure.value.code == WRONG_FILE
        case.down({})


@pytest.mark.root
def test_what_the_runtime_says_is_in_the_failure(tmp_path: Path) -> None:
    case = Case(tmp_path)
    with pytest.raises(Failure, match=r"crun create: .*/dev/null: Is a directory") as failure:
        case.up("id", facts={"deviceNodes": [{"path": "/dev/null/below", "hostPath": "/dev/null"}]})
    assert failure.value.code == STEP_FAILED
    case.down({})
    assert case.left() == []


@pytest.mark.parametrize(
    ("image", "command", "argv"),
    [
        ({"Entrypoint": [""], "Cmd": ["a", "b"]}, None, ["a", "b"]),
        ({"Entrypoint": [""], "Cmd": ["a"]}, ["c"], ["c"]),
        # docker does not split a string: it is one word.
        ({"Cmd": "echo hi"}, None, ["echo hi"]),
        ({"Entrypoint": "/bin/app", "Cmd": ["x"]}, None, ["/bin/app", "x"]),
    ],
)
def test_entrypoint_and_command_of_every_shape_are_as_in_docker(image: Any, command: Any, argv: Any) -> None:
    given = {} if command is None else {"command": command}
    assert spec.arguments(image, read(container.Options, given)) == argv
