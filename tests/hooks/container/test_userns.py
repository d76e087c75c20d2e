"""User namespaces of pods: ids of their own, files that keep their owners on the disk, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Step
from podrun.options import read
from podrun_hooks import container, network, storage
from podrun_hooks import userns as hook
from podrun_hooks.container import rootfs
from podrun_hooks.support import syscalls, userns
from support.container_case import Case

pytestmark = pytest.mark.root

RUNTIMES = pytest.mark.parametrize("runtime", ["crun", "runc"])
FIRST = 0x50000000


@pytest.fixture(autouse=True)
def ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranges that are this test's."""
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text(f"bob:100000:65536\npodrun:{FIRST}:{4 * userns.SIZE}\n")
    monkeypatch.setattr(userns, "_FILES", (str(tmp_path / "subuid"), str(tmp_path / "subgid")))


class InNamespace:
    """A container step in a user namespace."""

    def __init__(self, case: Case) -> None:
        case.pod = case.pod._replace(userns="auto")
        self.case = case
        self.step = Step(case.pod, "userns", "userns", hook.Options(), case.said.append)
        assert hook.check(self.step) == []
        self.facts = hook.up(self.step, {})

    @property
    def base(self) -> int:
        return int(self.facts["userns"]["uid"])

    def down(self) -> None:
        hook.down(self.step, self.facts)
        assert os.listdir(self.case.pod.directory) == []
        assert os.listdir(f"{self.case.pod.run}/userns") == []
        assert str(self.case.tmp) not in Path("/proc/self/mountinfo").read_text()
        if not os.path.exists(f"{self.case.pod.storage}/main/upper"):  # kept with persist
            assert self.case.left() == []


@pytest.fixture
def own(tmp_path: Path) -> Iterator[InNamespace]:
    found = InNamespace(Case(tmp_path))
    yield found
    found.down()


@RUNTIMES
def test_the_pods_root_is_nobody_on_the_host_and_files_keep_their_owners(own: InNamespace, runtime: str) -> None:
    case = own.case
    os.chown(case.layer / "tmp", 1000, 33)
    host = case.tmp / "host"
    host.mkdir()
    (host / "theirs").write_text("")
    os.chown(host / "theirs", 1000, 1000)
    script = (
        "id -u; cat /proc/self/uid_map; stat -c '%u %g %n' /bin/busybox /tmp /host/theirs /host /mem; "
        "touch /root/new /host/new /mem/new; chown 1000:33 /root/new; stat -c '%u %g %n' /root/new /host/new"
    )
    found = case.run(
        "sh", "-c", script, runtime=runtime, facts=own.facts, volumes=[f"{host}:/host"], tmpfs=["/mem"], persist=True
    )
    assert [line.split() for line in found.splitlines()] == [
        ["0"], ["0", str(own.base), "65536"], ["0", "0", "/bin/busybox"], ["1000", "33", "/tmp"],
        ["1000", "1000", "/host/theirs"], ["0", "0", "/host"], ["0", "0", "/mem"], ["1000", "33", "/root/new"],
        ["0", "0", "/host/new"],
    ]  # fmt: skip
    upper = Path(case.pod.storage, "main/upper")
    assert [(os.stat(path).st_uid, os.stat(path).st_gid) for path in (host / "new", upper / "root/new")] == [
        (0, 0),
        (1000, 33),
    ]
    # The next start has another range, perhaps: what is on the disk is as it was.
    own.down()
    own.facts = hook.up(own.step, {})
    found = case.run("stat", "-c", "%u %g", "/root/new", runtime=runtime, facts=own.facts, persist=True)
    assert found == "1000 33\n"
    case.run("true", facts=own.facts)


@RUNTIMES
def test_processes_have_the_ranges_ids_and_nothing_on_the_host(own: InNamespace, runtime: str) -> None:
    case = own.case
    case.up("sleep", "60", runtime=runtime, facts=own.facts, user="1000:1000")
    try:
        status = Path(f"/proc/{case.own['process']['pid']}/status").read_text()
        assert f"Uid:\t{own.base + 1000}\t" in status
        assert f"Gid:\t{own.base + 1000}\t" in status
        inside = os.readlink(f"/proc/{case.own['process']['pid']}/ns/user")
        assert inside != os.readlink("/proc/self/ns/user")
        assert case.exec("id", "-u") == "1000"
        assert case.exec("id", "-u", user="0") == "0"
    finally:
        case.down()


@RUNTIMES
def test_the_hosts_dev_null_and_files_stay_the_hosts(own: InNamespace, runtime: str, tmp_path: Path) -> None:
    case = own.case
    case.pod = case.pod._replace(attached=True)
    ours, file = os.open("/dev/null", os.O_RDWR), os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY, 0o600)
    saved = os.dup(1), os.dup(2)
    try:
        os.dup2(ours, 1)
        os.dup2(file, 2)
        script = "chmod 0 /dev/null; chown 7 /dev/null; echo END >&2; sleep 60"
        case.up("sh", "-c", script, runtime=runtime, facts=own.facts)
        deadline = time.monotonic() + 10
        while "END" not in (tmp_path / "out").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        container.exec_and_wait(case.step(), case.own, ["chmod", "0", "/dev/null"])
    finally:
        for target, fd in zip((1, 2), saved, strict=True):
            os.dup2(fd, target)
        case.down()
        for fd in (ours, file, *saved):
            os.close(fd)
    null = os.stat("/dev/null")
    assert null.st_mode & 0o777 == 0o666
    assert not own.base <= null.st_uid < own.base + userns.SIZE
    assert os.stat(tmp_path / "out").st_uid == 0


@RUNTIMES
def test_a_new_volume_is_filled_with_the_owners_of_the_image(own: InNamespace, runtime: str) -> None:
    case = own.case
    (case.layer / "srv").mkdir()
    (case.layer / "srv/page").write_text("page\n")
    os.chown(case.layer / "srv/page", 33, 33)
    found = case.run("stat", "-c", "%u", "/srv/page", runtime=runtime, facts=own.facts, volumes=["site:/srv"])
    assert found == "33\n"
    data = Path(case.pod.root, "volumes/site/data")
    assert (os.stat(data / "page").st_uid, os.stat(data).st_uid) == (33, 0)


@RUNTIMES
def test_the_commands_mode_is_read_with_the_pods_ids(own: InNamespace, runtime: str) -> None:
    case = own.case
    (case.layer / "only").write_bytes((case.layer / "bin/busybox").read_bytes())
    (case.layer / "only").chmod(0o700)
    os.chown(case.layer / "only", 1000, 1000)
    (case.layer / "echo").mkdir()
    (case.layer / "only").rename(case.layer / "echo/echo")
    assert case.run("/echo/echo", "ran", user="1000", facts=own.facts, runtime=runtime) == "ran\n"
    with pytest.raises(Failure, match="not executable"):
        case.up("/echo/echo", user="1001", facts=own.facts, runtime=runtime)
    case.down({})


@pytest.mark.parametrize("count", [1, 3])
def test_older_kernels_stack_mapped_layers_in_one_string(
    own: InNamespace, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    made = syscalls.fsmount

    def without_detached_layers(fstype: str, options: Any, attributes: int = 0) -> int:
        if fstype == "overlay":
            raise OSError(22, "Invalid argument")
        return made(fstype, options, attributes)

    monkeypatch.setattr(syscalls, "fsmount", without_detached_layers)
    monkeypatch.setattr(rootfs, "_release", lambda: (6, 1))
    case = own.case
    for number in range(count):
        (case.tmp / f"layers/{number}").mkdir(parents=True)
        (case.tmp / f"layers/{number}/of-{number}").write_text("")
        case.layers.append(str(case.tmp / f"layers/{number}"))
    found = case.run("sh", "-c", "stat -c %u /of-*; touch /x && stat -c %u /x", facts=own.facts)
    assert found.split() == ["0"] * (count + 1)


@RUNTIMES
def test_a_secret_is_readable_for_the_pods_root_alone(own: InNamespace, runtime: str) -> None:
    case = own.case
    options = read(storage.Options, {"source": "file:", "target": "/secret", "content": "s3cret"})
    step = Step(case.pod, "storage", "secret", options, case.said.append)
    assert storage.check(step) == []
    facts = storage.up(step, {})
    try:
        found = case.run(
            "sh", "-c", "cat /secret; stat -c ' %u %a' /secret", runtime=runtime, facts={**own.facts, **facts}
        )
        assert found == "s3cret 0 400\n"
    finally:
        storage.down(step, facts)


def test_without_its_namespace_such_a_container_does_not_start(own: InNamespace) -> None:
    with pytest.raises(Failure, match="no step has made one"):
        container.up(own.case.step(command=["true"]), own.case.facts())


def test_containers_with_units_of_their_own_are_in_one_namespace(podrun: Any, subids: None) -> None:
    script = "read a b c < /proc/self/uid_map; echo $b; sleep 60"
    steps = [
        {"hook": "image", "ref": "host:"},
        *({"hook": "container", "name": name, "command": ["sh", "-c", script]} for name in ("one", "two")),
    ]
    lines = ['[pod]\nuserns = "auto"\nstop_timeout = "0s"']
    lines += [
        "[[chain]]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in step.items()) for step in steps
    ]
    path = podrun.file("web", "\n".join(lines))
    for segment in ("pod", "one", "two"):
        podrun("up", "-d", "--segment", segment, path, check=True)
    inside = [
        os.readlink(f"/proc/{one['pid']}/ns/user") for one in json.loads(podrun("inspect", "web").stdout)["containers"]
    ]
    assert len(inside) == 2 and inside[0] == inside[1] != os.readlink("/proc/self/ns/user")
    podrun("down", "web", check=True)
    assert os.listdir(podrun.run / "userns") == []


def test_files_go_in_and_out_of_such_a_container(podrun: Any, subids: None) -> None:
    podrun("up", "-d", pod(podrun, "crun", "sleep 60"), check=True)
    (podrun.home / "in").mkdir()
    (podrun.home / "in/file").write_text("content\n")
    podrun("cp", str(podrun.home / "in"), "web:/root/copied", check=True)
    found = podrun("exec", "web", "stat", "-c", "%u %n", "/root/copied", "/root/copied/file", check=True).stdout
    assert found == "0 /root/copied\n0 /root/copied/file\n"
    podrun("cp", "web:/root/copied", str(podrun.home / "out"), check=True)
    assert (podrun.home / "out/file").read_text() == "content\n"


# --- what cannot be ------------------------------------------------------------------------------------------------


def test_what_cannot_have_other_owners_is_refused_by_check_and_by_up(own: InNamespace, tmp_path: Path) -> None:
    case = own.case
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "podrun-test", tmp_path / "merged"], check=True)
    try:
        volumes = [f"{tmp_path}/merged:/data"]
        [problem] = container.check(case.step(volumes=volumes))
        assert (problem.code, problem.key) == (UNAVAILABLE, "volumes")
        assert "no idmapped mounts" in problem.what
        with pytest.raises(Failure, match="no idmapped mounts"):
            container.up(case.step(command=["true"], volumes=volumes), case.facts(**own.facts))
        case.down({})
        bound = Step(
            case.pod, "storage", "data", read(storage.Options, {"source": f"{tmp_path}/merged", "target": "/data"})
        )
        assert [problem.code for problem in storage.check(bound)] == [UNAVAILABLE]
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)


@pytest.mark.parametrize(
    "given", [{"source": "image:x"}, {"source": "/etc", "options": ["O"]}, {"source": "nfs:h:/e"}, {"source": "/etc", "idmap": ["0:1:1"]}]
)  # fmt: skip
def test_storage_that_has_owners_of_its_own_is_refused_by_check(own: InNamespace, given: dict[str, Any]) -> None:
    step = Step(own.case.pod, "storage", "data", read(storage.Options, {"target": "/data", **given}))
    assert [problem.code for problem in storage.check(step)] == [UNAVAILABLE]


@pytest.mark.parametrize("kind", ["pid", "ipc"])
def test_the_hosts_namespaces_are_refused_by_check(own: InNamespace, kind: str) -> None:
    assert [problem.key for problem in container.check(own.case.step(**{kind: "host"}))] == [kind]


@pytest.mark.parametrize("mode", ["host", "netns:/run/netns/x", "pod:other"])
def test_a_network_that_is_not_the_pods_is_refused_by_check_and_by_up(own: InNamespace, mode: str) -> None:
    step = Step(own.case.pod, "network", "network", read(network.Options, {"mode": mode}), own.case.said.append)
    assert [problem.code for problem in network.check(step)] == [WRONG_FILE]
    with pytest.raises(Failure, match="not its own"):
        network.up(step, own.facts)


@pytest.mark.parametrize(
    "text", ["", "bob:100000:65536\n", "podrun:100000:65535\n", "podrun:0:65536\n", "podrun:x:y\n"]
)
def test_without_ids_set_aside_check_says_what_to_add(tmp_path: Path, text: str) -> None:
    (tmp_path / "subuid").write_text(text)
    case = Case(tmp_path)
    [problem] = hook.check(Step(case.pod, "userns", "userns", hook.Options()))
    assert problem.code == UNAVAILABLE
    assert problem.hint.startswith("echo podrun:")


def test_an_older_kernel_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:2], "5.10.0-9-amd64", *real[3:])))
    with pytest.raises(Failure, match=r"5\.10.*5\.19") as failure:
        userns.refuse_old_kernel()
    assert failure.value.code == UNAVAILABLE


# --- leases --------------------------------------------------------------------------------------------------------


def test_every_pod_has_a_range_of_its_own_and_the_same_again(tmp_path: Path) -> None:
    run, pairs = str(tmp_path / "run"), userns.ranges()
    assert [pair.uid for pair in pairs] == [FIRST + n * userns.SIZE for n in range(4)]
    ledgers = [f"{tmp_path}/{number}" for number in range(5)]
    given = [userns.claim(run, ledger, f"pod{n}", pairs) for n, ledger in enumerate(ledgers[:4])]
    assert sorted(given) == pairs
    with pytest.raises(Failure, match="all 4 ranges") as failure:
        userns.claim(run, ledgers[4], "late", pairs)
    assert failure.value.code == BUSY
    userns.release(run, ledgers[4])
    userns.release(run, ledgers[2])
    assert userns.claim(run, ledgers[2], "pod2", pairs) == given[2]
    assert len(os.listdir(f"{run}/userns")) == 4


def test_a_dead_lease_is_taken_over_and_gc_finds_it(tmp_path: Path) -> None:
    run, pairs = str(tmp_path / "run"), userns.ranges()[:1]
    ledger, boot = f"{tmp_path}/first", Path("/proc/sys/kernel/random/boot_id").read_text()
    userns.claim(run, ledger, "first", pairs)
    assert userns.collect(run) == []
    os.unlink(ledger)
    assert userns.collect(run, keep=True) == [str(FIRST)]
    assert userns.claim(run, f"{tmp_path}/second", "second", pairs) == pairs[0]
    # Of an earlier boot, in a run directory that outlived it.
    with open(f"{tmp_path}/second", "r+") as file:
        file.write("0" * (len(boot) - 1))
    assert hook.collect("", run, set(), False) == [f"range of ids {FIRST}"]
    assert os.listdir(f"{run}/userns") == []


# --- by the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def subids() -> Iterator[None]:
    """A range for podrun in the machine's own files, where it has none."""
    before = {}
    for path in map(Path, ("/etc/subuid", "/etc/subgid")):
        text = path.read_text() if path.exists() else ""
        if "podrun:" not in text and "containers:" not in text:
            before[path] = text
            path.write_text(f"{text}podrun:1073741824:16777216\n")
    yield
    for path, text in before.items():
        path.write_text(text)


def pod(podrun: Any, runtime: str, script: str, userns: str = "auto", more: str = "") -> str:
    return str(
        podrun.file(
            "web",
            f'[pod]\nuserns = "{userns}"\nstop_timeout = "0s"\n[[chain]]\nhook = "image"\nref = "host:"\n'
            f'[[chain]]\nhook = "network"\n{more}[[chain]]\nhook = "container"\nruntime = "{runtime}"\n'
            f"command = {json.dumps(['sh', '-c', script])}\n",
        )
    )


@RUNTIMES
@pytest.mark.parametrize("detached", [False, True])
def test_a_pod_on_a_bridge_has_its_own_ids_network_and_low_ports(
    podrun: Any, subids: None, runtime: str, detached: bool
) -> None:
    serve = "import socket; s = socket.create_server(('0.0.0.0', 80)); s.accept()[0].send(b'hi')"
    script = (
        f'cat /proc/self/uid_map; ls /sys/class/net; ip link set lo mtu 1400 || echo no; exec python3 -Ic "{serve}"'
    )
    more = 'publish = ["127.0.0.1:18131:80"]\n'
    path = pod(podrun, runtime, script, more=more)
    podrun("check", path, check=True)
    started = podrun.start("up", *(["-d"] if detached else []), path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline, answer = time.monotonic() + 15, b""
        while not answer and time.monotonic() < deadline:
            try:
                import socket

                with socket.create_connection(("127.0.0.1", 18131), 1) as client:
                    answer = client.recv(10)
            except OSError:
                time.sleep(0.05)
        assert answer == b"hi"
    finally:
        podrun("down", "web", check=True)
        output = started.communicate(timeout=15)[0]
    if not detached:
        first = output.splitlines()[0].split()
        assert first[0] == "0" and first[1] != "0" and first[2] == "65536", output
        assert "eth0\nlo\n" in output
    assert not (podrun.run / "pods/web").exists()
    assert os.listdir(podrun.run / "userns") == []


@RUNTIMES
def test_a_kill_at_any_moment_leaves_no_pin_and_no_lease(podrun: Any, subids: None, runtime: str) -> None:
    path = pod(podrun, runtime, "sleep 60")
    killed = 0
    for _ in range(8):
        process = podrun.start("up", "-d", path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.02, 0.25))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        podrun("down", "web", check=True)
        assert str(podrun.home) not in Path("/proc/self/mountinfo").read_text()
        assert not (podrun.run / "pods/web").exists()
        assert not (podrun.run / "userns").exists() or os.listdir(podrun.run / "userns") == []
    assert killed


def test_the_default_for_all_pods_is_in_podrun_toml_and_a_pod_file_wins(podrun: Any, subids: None) -> None:
    config = podrun.home / "podrun.toml"
    config.write_text('[defaults]\nuserns = "auto"\n[defaults.container]\nenv = { WHO = "default" }\n')
    podrun.environ["PODRUN_CONFIG"] = str(config)
    script = "read first second third < /proc/self/uid_map; echo $third $WHO"
    one = podrun.file(
        "one",
        f'chain = [ {{ hook = "image", ref = "host:" }}, {{ hook = "container", command = {json.dumps(["sh", "-c", script])} }} ]',
    )
    assert podrun("up", one).stdout == "65536 default\n"
    assert podrun("run", "--rm", "host:", "sh", "-c", script).stdout == "65536 default\n"
    assert podrun("up", pod(podrun, "crun", script, "host")).stdout == "4294967295 default\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[default]\n", "podrun.toml:1: unknown table 'default'"),
        ("[defaults]\nusern = 'auto'\n", "podrun.toml:2: unknown key 'usern'"),
        ("[defaults]\nuserns = 'maybe'\n", "podrun.toml:2: "),
        ("[defaults.container]\n\npids = 'many'\n", "podrun.toml:3: "),
        ("[defaults.container]\nname = 'x'\n", "podrun.toml:2: name is not an option"),
        ("[defaults\n", "podrun.toml:1:"),
    ],
)
def test_what_is_wrong_in_podrun_toml_is_told_with_its_line(podrun: Any, text: str, words: str) -> None:
    (podrun.home / "podrun.toml").write_text(text)
    podrun.environ["PODRUN_CONFIG"] = str(podrun.home / "podrun.toml")
    done = podrun("check", pod(podrun, "crun", "true", "host"))
    assert done.returncode == WRONG_FILE
    assert words in done.stdout + done.stderr
