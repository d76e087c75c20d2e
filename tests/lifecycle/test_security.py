"""What a hostile payload, image, neighbour or local user tries, and does not get."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.engine import hook_loader
from podrun.errors import CANNOT_EXECUTE, NOT_ALLOWED, Failure
from podrun.hook import Pod, Step
from podrun.options import read
from podrun.podfile import loader
from podrun_hooks import register
from podrun_hooks.network import bridge, names
from support.container_case import Case
from support.launcher import Podrun
from support.network_case import Place, call, inside, outside_host, plain, run

HERE = Path(__file__).parents[1]
NOBODY = pwd.getpwnam("nobody").pw_uid

WAITS = 'trap "exit 0" TERM; while :; do sleep 0.05; done'


def pod(podrun: Podrun, script: Any = WAITS, name: str = "web", more: str = "", before: str = "") -> Any:
    return podrun.file(
        name,
        f'[pod]\nstop_timeout = "5s"\n[[chain]]\nhook = "image"\nref = "host:"\n{before}'
        f'[[chain]]\nhook = "container"\ncommand = {json.dumps(["sh", "-c", script])}\n{more}',
    )


def as_nobody(command: Any) -> Any:
    """Runs a command as a user of the host who has no rights and no capabilities."""
    return subprocess.run(["su", "-s", "/bin/sh", "nobody", "-c", command], capture_output=True, check=False)


def descriptors(text: Any) -> Any:
    """What ls -l /proc/self/fd shows, but for the directory that ls itself has open: {number: what it is}."""
    words = [line.split() for line in text.splitlines() if " -> " in line]
    return {int(line[-3]): line[-1] for line in words if not line[-1].endswith("/fd")}


# --- descriptors and the terminal ----------------------------------------------------------------------------------


@pytest.fixture
def leaky() -> Iterator[Any]:
    """A descriptor of a host directory that podrun's caller has left inheritable."""
    fd = os.open("/root", os.O_RDONLY | os.O_DIRECTORY)
    os.dup2(fd, 77)
    os.set_inheritable(77, True)
    yield 77
    os.close(77)
    os.close(fd)


def output(podrun: Podrun, *words: Any, **more: Any) -> Any:
    done = subprocess.run(
        podrun.argv(*words), env={**podrun.environ, **more}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        close_fds=False, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_payload_gets_three_descriptors_and_no_other(podrun: Podrun, leaky: Any, runtime: str) -> None:
    script = f"ls -l /proc/self/fd; {WAITS}"
    output(podrun, "up", "-d", pod(podrun, script, more=f'runtime = "{runtime}"\nready = {{ exec = ["true"] }}\n'))
    assert sorted(descriptors(podrun("logs", "web").stdout)) == [0, 1, 2]
    assert sorted(descriptors(output(podrun, "exec", "web", "ls", "-l", "/proc/self/fd"))) == [0, 1, 2]
    assert podrun("down", "web").returncode == 0


@pytest.mark.root
def test_a_payload_of_a_unit_gets_neither_systemds_socket_nor_its_variables(podrun: Podrun, leaky: Any) -> None:
    log = podrun.home / "log"
    file = pod(
        podrun, f"ls -l /proc/self/fd; env; {WAITS}", more=f'log = "file:{log}"\nready = {{ exec = ["true"] }}\n'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(podrun.home / "notify"))
        script = f"export SYSTEMD_EXEC_PID=$$; exec {' '.join(podrun.argv('up', file))}"
        unit = {"NOTIFY_SOCKET": str(podrun.home / "notify"), "INVOCATION_ID": "1" * 32}
        started = subprocess.Popen(
            ["sh", "-c", script], env={**podrun.environ, **unit}, stdin=subprocess.DEVNULL, close_fds=False
        )
        while b"READY=1" not in socket.recv_fds(systemd, 4096, 1)[0]:
            pass
        # Closing what came with BARRIER=1 lets podrun go; the loop above read the one before it.
        _, fds, _, _ = socket.recv_fds(systemd, 4096, 1)
        for fd in fds:
            os.close(fd)
        assert started.wait(10) == 0
    assert sorted(descriptors(log.read_text())) == [0, 1, 2]
    assert not {"NOTIFY_SOCKET", "INVOCATION_ID", "SYSTEMD_EXEC_PID"} & {
        line.partition("=")[0] for line in log.read_text().splitlines()
    }
    assert podrun("down", "web").returncode == 0


class Terminal:
    """A pseudo-terminal that a program has as its streams and as its controlling one."""

    def __init__(self, podrun: Podrun, *words: Any) -> None:
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            ["setsid", "-c", *podrun.argv(*words)], env=podrun.environ, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.text = ""

    def until(self, word: Any, patience: int = 15) -> None:
        deadline = time.monotonic() + patience
        while word not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 4096).decode()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_no_process_of_the_container_gets_hold_of_the_terminal_of_an_exec(podrun: Podrun, runtime: str) -> None:
    podrun("up", "-d", pod(podrun, more=f'runtime = "{runtime}"\n'), check=True)
    with Terminal(podrun, "exec", "web", "sh", "-c", "ls -l /proc/self/fd; cat /dev/tty 2>&1; echo END") as terminal:
        terminal.until("END\r\n")
        assert terminal.process.wait(10) == 0
        assert set(descriptors(terminal.text)) == {0, 1, 2}
        assert all(what.startswith("pipe:") for what in descriptors(terminal.text).values()), terminal.text
        assert "No such device or address" in terminal.text, "there is no controlling terminal to be opened"
    assert podrun("down", "web").returncode == 0


@pytest.mark.root
def test_the_payload_in_the_foreground_writes_to_the_terminal_and_cannot_read_it(podrun: Podrun) -> None:
    script = "ls -l /proc/self/fd; seq 20000; echo LAST; exit 7"
    with Terminal(podrun, "run", "--rm", "host:", "sh", "-c", script) as terminal:
        terminal.until("LAST\r\n")
        assert terminal.process.wait(10) == 7
    found = descriptors(terminal.text)
    assert set(found) == {0, 1, 2}
    assert not [what for what in found.values() if "pts" in what], terminal.text[:1000]
    assert "\r\n20000\r\nLAST" in terminal.text


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("asked", ["run -i", "interactive", "interactive, detached"])
def test_a_payload_that_reads_podruns_input_does_not_get_the_terminal(podrun: Podrun, runtime: str, asked: str) -> None:
    script = "ls -l /proc/self/fd; cat /dev/tty 2>&1; echo END; read x; echo got $x; sleep 60"
    if asked == "run -i":
        words = ["run", "-i", "--name", "web", "host:", "sh", "-c", script]
    else:
        words = ["up", pod(podrun, script, more=f'interactive = true\nruntime = "{runtime}"\n')]
        words[1:1] = ["-d"] if "detached" in asked else []
    with Terminal(podrun, *words) as terminal:
        if "detached" in asked:
            assert terminal.process.wait(15) == 0
            until_logged(podrun, "END")
            text = podrun("logs", "web").stdout
        else:
            terminal.until("END\r\n")
            text = terminal.text
            os.write(terminal.master, b"hello\n")
            terminal.until("got hello")
        found = descriptors(text)
        assert set(found) == {0, 1, 2}
        assert not [what for what in found.values() if "pts" in what or "tty" in what], text
        assert "No such device or address" in text, "there is no controlling terminal to be opened"
    podrun("down", "web", check=True)


def until_logged(podrun: Podrun, word: Any) -> None:
    deadline = time.monotonic() + 10
    while word not in podrun("logs", "web").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.root
def test_ctrl_c_takes_no_input_from_a_payload_that_reads_on(podrun: Podrun) -> None:
    script = "trap 'echo CAUGHT' INT; echo BEGUN; read x; read x; echo got $x"
    with Terminal(podrun, "run", "-i", "--rm", "host:", "sh", "-c", script) as terminal:
        terminal.until("BEGUN")
        os.write(terminal.master, b"\x03")
        terminal.until("CAUGHT")
        os.write(terminal.master, b"hello\nhello\n")
        terminal.until("got hello")


# --- the log file ---------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("trick", ["link", "hard link", "fifo", "directory of theirs", "link of theirs on the way"])
@pytest.mark.parametrize("detached", [False, True])
def test_a_log_file_that_somebody_else_could_lead_elsewhere_is_refused(
    podrun: Podrun, trick: str, detached: bool
) -> None:
    theirs, victim = podrun.home / "theirs", podrun.home / "victim"
    theirs.mkdir()
    victim.write_text("kept\n")
    log = theirs / "web.log"
    if trick == "link":
        log.symlink_to(victim)
    elif trick == "hard link":
        os.link(victim, log)
    elif trick == "fifo":
        os.mkfifo(log)
    elif trick == "directory of theirs":
        os.chown(theirs, NOBODY, -1)
    else:
        os.chown(theirs, NOBODY, -1)
        (theirs / "logs").symlink_to(podrun.home)
        log = theirs / "logs/web.log"
    path = pod(podrun, "echo written", more=f'log = "file:{log}"\n')
    done = podrun("up", *(["-d"] if detached else []), path, timeout=20)
    assert done.returncode not in (0, 125), done.stderr
    assert victim.read_text() == "kept\n"
    assert not (podrun.home / "web.log").exists()
    assert podrun.journals() == []


@pytest.mark.root
def test_an_exec_at_a_terminal_reads_and_writes_and_ends_as_everywhere(podrun: Podrun) -> None:
    podrun("up", "-d", pod(podrun), check=True)
    script = "read word; echo got $word; echo oops >&2; sleep 60 & exit 7"
    with Terminal(podrun, "exec", "-i", "web", "sh", "-c", script) as terminal:
        os.write(terminal.master, b"hello\n")
        terminal.until("got hello\r\n")
        terminal.until("oops\r\n")
        assert terminal.process.wait(10) == 7, "what is left behind in the container is not waited for"
    with Terminal(podrun, "exec", "web", "sh", "-c", "echo BEGUN; exec sleep 60") as terminal:
        terminal.until("BEGUN")
        os.write(terminal.master, b"\x03")
        assert terminal.process.wait(10) == 130
    assert podrun("down", "web").returncode == 0


@pytest.mark.root
def test_a_link_from_passwd_to_a_file_that_blocks_does_not_hold_up_an_exec(podrun: Podrun) -> None:
    podrun("up", "-d", pod(podrun, f"rm /etc/passwd; ln -s /proc/kmsg /etc/passwd; echo LINKED; {WAITS}"), check=True)
    while "LINKED" not in podrun("logs", "web").stdout:
        time.sleep(0.02)
    assert podrun("exec", "-u", "0", "web", "true", timeout=10).returncode == 0
    assert podrun("down", "web").returncode == 0


# --- the file system -----------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("workdir", ["/proc/self/fd/5", "/../proc/self/fd/5", "/link", "/link/below"])
def test_nothing_starts_in_a_directory_that_the_runtime_has_open(tmp_path: Path, workdir: str) -> None:
    case = Case(tmp_path)
    (case.layer / "link").symlink_to("/proc/self/fd/5")
    case.config = {"WorkingDir": workdir, "Cmd": ["pwd"]}
    with pytest.raises(Failure, match="leads to '/proc/self/fd/5") as refused:
        case.up()
    assert refused.value.code == CANNOT_EXECUTE
    case.down({})


@pytest.mark.root
def test_a_program_that_a_payload_made_setuid_in_a_volume_is_out_of_the_hosts_users_reach(podrun: Podrun) -> None:
    script = "cp /bin/sh /data/shell; chmod 4755 /data/shell"
    podrun("run", "-v", "tools:/data", "host:", "sh", "-c", script, check=True)
    shell = podrun.root / "volumes/tools/data/shell"
    assert shell.stat().st_mode & 0o4000
    assert as_nobody(f"{shell} -p -c true").returncode == 126
    podrun("volume", "rm", "tools", check=True)


@pytest.mark.root
def test_what_pods_write_and_keep_is_out_of_the_hosts_users_reach(podrun: Podrun) -> None:
    podrun("up", "-d", pod(podrun), check=True)
    kept = ["root/images/layers", "root/seccomp", "root/pods/web/main/upper", "root/pods/web/main.log"]
    for place in [*kept, "run/runtime", "run/pods/web", "run/pods/web/pod.journal", "run/locks/web", "run/parsed"]:
        path = podrun.home / place
        assert path.exists(), place
        assert as_nobody(f"ls {path}/ || cat {path}").returncode, place
    assert podrun("down", "web").returncode == 0


@pytest.mark.root
@pytest.mark.parametrize("file", ["hosts", "resolv.conf", "hostname"])
@pytest.mark.parametrize("mode", ["bridge", "none", "host"])
def test_a_payload_cannot_fill_the_hosts_run_through_a_generated_file(podrun: Podrun, mode: str, file: str) -> None:
    done = podrun("run", "--network", mode, "host:", "sh", "-c", f"cat /etc/{file} && echo more >> /etc/{file}")
    assert done.returncode == 2
    assert "Read-only file system" in done.stderr


# --- the network ---------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Any]:
    found = Place()
    yield found
    found.close()


@pytest.mark.root
def test_the_host_does_not_take_a_pod_for_its_router(place: Any) -> None:
    place.up("web")
    conf = "/proc/sys/net/{}/conf/{}/{}"
    for family, word in (("ipv6", "accept_ra"), ("ipv6", "accept_redirects"), ("ipv4", "accept_redirects")):
        assert Path(conf.format(family, place.bridge(), word)).read_text() == "0\n", (family, word)


@pytest.mark.root
def test_making_the_host_a_router_leaves_other_bridges_alone(tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()
    code = f'from podrun_hooks.network import bridge; bridge._forward("{tmp_path}", ipv6=True)'
    shell = (
        f"ip link add other type bridge && ip link set other up && {sys.executable} -c '{code}' && "
        "cd /proc/sys/net/ipv6/conf && cat all/forwarding other/accept_ra"
    )
    environ = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}"}
    done = subprocess.run(["unshare", "-n", "sh", "-c", shell], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.root
def test_a_neighbour_who_routes_the_pods_subnet_here_reaches_no_port_that_is_not_published_to_him(place: Any) -> None:
    facts = place.up("web", publish=["127.0.0.1:18099:80", "0.0.0.0:18098:81"])
    for port in (80, 81, 82):
        place.serve(facts["netns"], port, f"port-{port}")
    with outside_host() as (netns, _, here):
        run(*inside(netns), "ip", "route", "add", f"{plain(facts)}/32", "via", here)
        assert [call(netns, plain(facts), port, timeout=0.5) for port in (80, 81, 82)] == ["", "", ""]
        assert call(netns, here, 18098).startswith("port-81")
        place.serve(netns, 80, "outside")
        assert call(facts["netns"], "198.51.100.2", 80).startswith("outside"), "answers come back"


@pytest.mark.root
def test_a_payload_that_locks_the_names_of_all_pods_holds_up_nobody(place: Any) -> None:
    place.up("web")
    with open(names.path_of(bridge.directory(place.run, place.bridge()))) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = time.monotonic()
        place.up("other")
        place.down("other")
        assert time.monotonic() - before < 5


# --- local users ---------------------------------------------------------------------------------------------------


def registering(tmp_path: Path, directory: Any) -> Any:
    step = Pod("web", f"{tmp_path}/root", f"{tmp_path}/run", invocation="1")
    table = {"service": "web", "port": 80, "registry": f"file:{directory}"}
    return Step(step, "register", "register", read(register.Options, table))


@pytest.mark.root
@pytest.mark.parametrize(("mode", "uid", "gid"), [(0o1777, 0, 0), (0o775, 0, NOBODY), (0o755, NOBODY, 0)])
def test_root_does_not_register_where_others_can_write(tmp_path: Path, mode: int, uid: Any, gid: Any) -> None:
    directory = tmp_path / "registry"
    directory.mkdir()
    os.chown(directory, uid, gid)
    directory.chmod(mode)
    assert [problem.code for problem in register.check(registering(tmp_path, directory))] == [NOT_ALLOWED]


def test_a_record_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "registry/web").mkdir(parents=True)
    step = registering(tmp_path, tmp_path / "registry")
    path = Path(tmp_path / "registry/web" / f"web.register@{os.uname().nodename}.json")
    for link in (path, path.parent / f".{path.name}.new"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / "victim")
        with contextlib.suppress(OSError):
            register.up(step, {})
        assert not (tmp_path / "victim").exists()


@pytest.mark.root
def test_drop_ins_behind_another_users_link_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text('[[chain]]\nhook = "image"\nref = "host:"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "more.toml").write_text('[[chain]]\nhook = "network"\n')
    link = tmp_path / "web.toml.d"
    link.symlink_to(elsewhere)
    assert len(loader.load(str(file), environ={}, load_hook=hook_loader.load).steps) == 2
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(Failure, match=f"belongs to uid {NOBODY}"):
        loader.load(str(file), environ={}, load_hook=hook_loader.load)
