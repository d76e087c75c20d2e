"""A running container: when it is ready, where its output goes, exec, socket activation, and what its start costs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import STEP_FAILED, Failure
from podrun_hooks.container import runtime as runtimes
from podrun_hooks.container.probes import targets
from support.container_case import Case, netns

pytestmark = pytest.mark.root

SERVER = "mkdir -p /www; echo hi > /www/index.html; trap 'exit 0' TERM; httpd -f -p {address}80 -h /www & wait"


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a script in which Case can be imported, with podrun's output apart from the test's."""
    paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        text=True,
        env=dict(os.environ, PYTHONPATH=":".join(paths)),
        **{"capture_output": True, **options},
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":80", ("", 80, "/")),
        ("127.0.0.1:80", ("127.0.0.1", 80, "/")),
        ("[::1]:8080/a/b?c=d", ("::1", 8080, "/a/b?c=d")),
        ("http://localhost:80/x", ("localhost", 80, "/x")),
    ],
)
def test_probe_targets_are_read(text: str, expected: tuple[str, int, str]) -> None:
    assert tuple(targets.target(text)) == expected


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize(
    "probe",
    [
        {"tcp": ":80"},
        {"tcp": "127.0.0.1:80"},
        {"http": ":80/"},
        {"http": ":80/index.html"},
        {"exec": ["wget", "-q", "-O", "-", "127.0.0.1:80"]},
    ],
    ids=str,
)
def test_up_returns_when_the_server_answers(tmp_path: Path, probe: dict[str, Any], runtime: str) -> None:
    case = Case(tmp_path)
    script = "sleep 0.2; " + SERVER.format(address="")
    # Without a network step the container has a namespace of its own, in which lo is down: httpd listens all the same.
    name = f"t-cont-r{os.getpid()}"
    path = netns(name)
    try:
        began = time.monotonic()
        case.up("sh", "-c", script, ready=probe, facts={"netns": path}, runtime=runtime)
        assert 0.2 < time.monotonic() - began < 10
        assert case.exec("wget", "-q", "-O", "-", "127.0.0.1:80") == "hi"
        case.down()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert case.left() == []


def test_a_server_on_the_pods_address_only_is_found(tmp_path: Path) -> None:
    name = f"t-cont-a{os.getpid()}"
    path = netns(name)
    try:
        subprocess.run(["ip", "-n", name, "addr", "add", "10.99.0.7/24", "dev", "lo"], check=True)
        case = Case(tmp_path)
        facts = {"netns": path, "addresses": ["10.99.0.7/24"]}
        case.up("sh", "-c", SERVER.format(address="10.99.0.7:"), ready={"tcp": ":80"}, facts=facts)
        case.down()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.parametrize(
    ("probe", "error"),
    [
        ({"tcp": ":81"}, "127.0.0.1:81: (Connection refused|Network is unreachable)"),
        ({"http": ":80/missing"}, "/missing answers 404"),
        ({"exec": ["false"]}, "false ended with status 1"),
        ({"exec": ["sleep", "60"]}, "the first attempt has not ended"),
        ({"exec": ["no-such-program"]}, "no-such-program"),
        ({"notify": True}, "READY=1 has not come"),
    ],
    ids=str,
)
def test_a_ready_probe_that_never_succeeds_ends_with_its_last_error(
    tmp_path: Path, probe: dict[str, Any], error: str
) -> None:
    name = f"t-cont-n{os.getpid()}"
    path = netns(name)
    case = Case(tmp_path)
    try:
        began = time.monotonic()
        with pytest.raises(Failure, match=error) as failure:
            case.up("sh", "-c", SERVER.format(address=""), ready={**probe, "timeout": "500ms"}, facts={"netns": path})
        assert failure.value.code == STEP_FAILED
        assert "not ready after 0.5 s" in failure.value.what
        assert 0.5 <= time.monotonic() - began < 10
        case.down({})
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert case.left() == []


@pytest.mark.parametrize("probe", [{"tcp": ":80"}, {"http": ":80"}, {"exec": ["false"]}, {"notify": True}], ids=str)
def test_a_payload_that_ends_ends_the_waiting_with_its_last_words(tmp_path: Path, probe: dict[str, Any]) -> None:
    case = Case(tmp_path)
    began = time.monotonic()
    with pytest.raises(Failure, match="ended") as failure:
        case.up("sh", "-c", "sleep 0.1; echo no such configuration >&2; exit 3", ready=probe)
    assert time.monotonic() - began < 10
    assert failure.value.code == STEP_FAILED
    assert "no such configuration" in failure.value.hint
    case.down({})
    assert case.left() == []


def test_a_notification_makes_it_ready_and_nothing_dangerous_is_passed_on(tmp_path: Path) -> None:
    case = Case(tmp_path)
    client = (
        "import os, socket, time\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.connect(os.environ['NOTIFY_SOCKET'])\n"
        "s.send(b'STATUS=warming up\\nMAINPID=1')\ns.send(b'FDSTORE=1')\ns.send(b'READY=1')\ntime.sleep(60)"
    )
    mounts = [
        {"hostPath": path, "containerPath": path, "type": "bind", "options": ["ro"]}
        for path in ("/usr", "/lib", "/lib64")
    ]
    case.up(
        "/usr/bin/python3",
        "-c",
        client,
        ready={"notify": True},
        user="web",
        facts={"mounts": mounts},
        stop_signal="KILL",
    )
    case.down()
    assert "STATUS=warming up" in case.said
    assert not any("FDSTORE" in line or line == "MAINPID=1" for line in case.said)
    assert case.left() == []


def test_the_process_is_announced_before_the_payload_runs(tmp_path: Path) -> None:
    case = Case(tmp_path)
    seen = []

    def announce(pid: int) -> None:
        seen.append((pid, Path(case.pod.storage, "main.log").read_text()))

    from podrun_hooks import container

    step = case.step(command=["echo", "ran"])._replace(announce=announce)
    case.own = container.up(step, case.facts())
    time.sleep(0.1)
    assert seen == [(case.own["process"]["pid"], "")]
    assert case.log() == "ran\n"
    case.down()


def test_the_facts_tell_the_process_and_where_the_output_is(tmp_path: Path) -> None:
    case = Case(tmp_path)
    own = case.up("sleep", "60", stop_signal="KILL")
    fields = Path(f"/proc/{own['process']['pid']}/stat").read_text().rpartition(")")[2].split()
    assert own["process"]["start"] == int(fields[19])
    assert (own["id"], own["runtime"], own["ready"]) == (f"{case.pod.tag}.main", "crun", True)
    assert os.stat(own["log"]["file"]).st_mode & 0o777 == 0o600
    case.down()


def test_output_goes_to_the_file_that_is_named_and_stays_there(tmp_path: Path) -> None:
    case = Case(tmp_path, attached=True)
    log = tmp_path / "my.log"
    log.write_text("before\n")
    case.run("sh", "-c", "echo out; echo err >&2", log=f"file:{log}")
    assert log.read_text() == "before\nout\nerr\n"
    victim = tmp_path / "victim"
    victim.write_text("")
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        case.up("echo", "x", log=f"file:{tmp_path / 'link'}")
    case.down({})
    assert victim.read_text() == ""


ATTACHED = """
import sys, time
from pathlib import Path
from support.container_case import Case
from podrun_hooks.container import processes
options = eval(sys.argv[2])
case = Case(Path(sys.argv[1]), attached=True)
if options.pop("nginx", False):
    (case.layer / "var/log/nginx").mkdir(parents=True)
    (case.layer / "var/log/nginx/access.log").symlink_to("/dev/stdout")
    (case.layer / "var/log/nginx/error.log").symlink_to("/dev/stderr")
own = case.up(*eval(sys.argv[3]), **options)
assert own["log"] == {}
pidfd = processes.opened(processes.Process(**own["process"]))
if pidfd is not None:
    processes.ended(pidfd, 10)
time.sleep(0.05)
case.down()
assert case.left() == [], case.left()
"""


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("log", ["auto", "direct", "pipe"])
def test_an_attached_container_writes_where_podrun_does(tmp_path: Path, log: str, runtime: str) -> None:
    run = python(
        ATTACHED,
        str(tmp_path),
        repr({"log": log, "runtime": runtime}),
        "['sh', '-c', 'echo out; echo err >&2; read x; echo [$x]']",
    )
    assert (run.stdout, run.stderr, run.returncode) == ("out\n[]\n", "err\n", 0)


def test_an_interactive_container_reads_podruns_input(tmp_path: Path) -> None:
    run = python(ATTACHED, str(tmp_path), repr({"interactive": True}), "['cat']", input="typed\n")
    assert (run.stdout, run.stderr) == ("typed\n", "")


@pytest.mark.parametrize("user", ["root", "web"])
def test_an_image_that_logs_by_link_to_stdout_works_under_a_socket(tmp_path: Path, user: str) -> None:
    """The journal's socket cannot be opened by a path: a pipe is put in between."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    options = {"nginx": True, "user": user}
    command = ["sh", "-c", "echo to access > /var/log/nginx/access.log && echo to error > /var/log/nginx/error.log"]
    run = python(
        ATTACHED, str(tmp_path), repr(options), repr(command), capture_output=False, stdout=there, stderr=there
    )
    there.close()
    here.settimeout(5)
    text = b""
    while chunk := here.recv(4096):
        text += chunk
    here.close()
    assert run.returncode == 0, text
    assert sorted(text.decode().splitlines()) == ["to access", "to error"]


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_command_is_executed_in_the_running_container(tmp_path: Path, runtime: str) -> None:
    case = Case(tmp_path)
    case.up("sleep", "60", env={"A": "1"}, stop_signal="KILL", runtime=runtime)
    try:
        assert (
            case.exec("sh", "-c", "echo $A $B; pwd; id -u; id -g", env={"B": "2"}, workdir="/tmp", user="web")
            == "1 2\n/tmp\n1000\n1000"
        )
        assert case.exec("cat", "/proc/1/comm") == "sleep"
        payload = Path(f"/proc/{case.own['process']['pid']}/status").read_text()
        [effective] = [line for line in payload.splitlines() if line.startswith("CapEff:")]
        assert effective in case.exec("cat", "/proc/self/status").splitlines()
        with pytest.raises(Failure, match="nobody-here"):
            case.exec("id", user="nobody-here")
    finally:
        case.down()


def test_exec_into_becomes_the_command_and_returns_its_status(tmp_path: Path) -> None:
    case = Case(tmp_path)
    own = case.up("sleep", "60", stop_signal="KILL")
    code = (
        "import sys\nfrom pathlib import Path\nfrom support.container_case import Case\nfrom podrun_hooks import container\n"
        "case = Case(Path(sys.argv[1]))\n"
        "container.exec_into(case.step(), eval(sys.argv[2]), ['sh', '-c', 'cat; exit 7'])"
    )
    run = python(code, str(tmp_path), repr(own), input="typed")
    assert (run.returncode, run.stdout) == (7, "typed")
    case.down()
    run = python(code, str(tmp_path), repr(own), input="typed")
    assert "main is not running" in run.stderr
    assert case.left() == []


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("init", [False, True])
def test_sockets_of_socket_activation_reach_the_payload(tmp_path: Path, runtime: str, init: bool) -> None:
    code = f"""
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.bind("\\0t-cont-" + str(os.getpid()))
sock.listen()
other = os.open("/etc/hostname", os.O_RDONLY)
os.dup2(sock.fileno(), 3, inheritable=True)
os.dup2(other, 4, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="web", NOTIFY_SOCKET="/nowhere")
exec({ATTACHED!r})
"""
    script = "echo $LISTEN_FDS $LISTEN_FDNAMES [$NOTIFY_SOCKET] $((LISTEN_PID)) $$; ls -l /proc/self/fd | grep -c socket; ls /proc/self/fd | grep -c ^4"
    run = python(code, str(tmp_path), repr({"runtime": runtime, "init": init}), repr(["sh", "-c", script]))
    assert run.returncode == 0, run.stderr
    first, sockets, others = run.stdout.splitlines()
    words = first.split()
    assert words[:3] == ["1", "web", "[]"]
    assert words[3] == words[4]
    assert (sockets, others) == ("1", "1")  # 3, and ls' own descriptor of the directory at 4


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_no_descriptor_of_podrun_reaches_the_payload(tmp_path: Path, runtime: str) -> None:
    leaked = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    os.dup2(leaked, 77, inheritable=True)
    try:
        found = Case(tmp_path).run("ls", "-l", "/proc/self/fd", runtime=runtime)
    finally:
        os.close(leaked)
        os.close(77)
    assert len([line for line in found.splitlines() if "->" in line]) == 3


def test_the_start_path_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
sys.path[:0] = sys.argv[2:]
from podrun.hook import Pod, Step, read
from podrun_hooks import container
pod = Pod("t-cont", sys.argv[1] + "/root", sys.argv[1] + "/run", "podrun-t-imports", attached=False)
import os; os.makedirs(pod.directory)
image = {"layers": [sys.argv[1] + "/layer"], "config": {}}
for turn in range(2):
    step = Step(pod, "container", "main", read(container.Options, {"command": ["true"]}))
    assert not container.check(step)
    own = container.up(step, {"image": "image", "images": {"image": image}})
    container.down(step, own)
    if not turn:
        for name in ("json", "re", "typing", "enum", "json.decoder"):
            sys.modules.pop(name, None)
heavy = {"typing", "re", "json", "enum", "signal", "collections", "dataclasses", "subprocess", "tomllib", "pathlib",
         "shutil", "tempfile", "functools", "hashlib", "socket", "selectors"}
print(sorted(heavy & set(sys.modules)))
"""
    case = Case(tmp_path)
    case.run("true")  # the seccomp filter is compiled at the first start ever
    (tmp_path / "run/pods/t-cont").rmdir()
    import podrun
    import podrun_hooks

    paths = [str(Path(module.__file__).parents[1]) for module in (podrun, podrun_hooks)]
    run = subprocess.run(["/usr/bin/python3", "-I", "-c", code, str(tmp_path), *paths], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr


def test_where_keyctl_is_forbidden_the_failure_says_what_forbids_it() -> None:
    words = "create keyring `podrun-web.main`: Operation not permitted"
    assert "keyctl(2)" in runtimes._hint_for(words)
    assert runtimes._hint_for("cannot open /x: Operation not permitted") == ""
