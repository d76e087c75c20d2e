"""Commands about what runs in a pod: kill, top, port, pause, set, diff, cp, and docker's words for podrun's commands."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.launcher import Podrun
from support.pods import until

pytestmark = pytest.mark.root

SCRIPT = (
    "mkdir -p /opt/d/e; echo hi >/opt/d/f; ln -s /etc/passwd /opt/d/out; ln -s / /opt/d/up; trap 'echo usr1' USR1; "
)
SCRIPT += "echo ready; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podrun]:
    """A podrun with one pod, cc, that has written some files."""
    home = Path("/var/lib") / f"podrun-test-payload-{os.getpid()}"
    home.mkdir(mode=0o755)
    podrun = Podrun(home)
    words = ["--name", "cc", "--init", "--pids-limit", "100", "-p", "127.0.0.1::80"]
    words += ["--tmpfs", "/opt/mounted/here"]
    podrun("run", "-d", *words, "host:", "sh", "-c", SCRIPT, check=True)
    until(lambda: "ready" in podrun("logs", "cc").stdout)
    yield podrun
    podrun("down", "cc", check=True)
    podrun("gc", check=True)
    subprocess.run(["rm", "-rf", str(home)], check=True)


def test_a_signal_reaches_the_payload(running: Podrun) -> None:
    assert running("kill", "-s", "SIGUSR1", "cc").stdout == "cc\n"
    until(lambda: "usr1" in running("logs", "cc").stdout)


@pytest.mark.parametrize("signal", ["NOSUCH", "0", "65", "RTMIN+99"])
def test_what_is_no_signal_is_refused(running: Podrun, signal: str) -> None:
    done = running("kill", "-s", signal, "cc")
    assert done.returncode == 78
    assert "is not a signal" in done.stderr


def test_top_lists_the_containers_processes_by_their_own_numbers(running: Podrun) -> None:
    rows = [json.loads(line) for line in running("top", "--format", "json", "cc").stdout.splitlines()]
    assert rows[0]["pid"] == 1
    assert any("while" in row["command"] for row in rows)


def test_port_says_where_a_port_is_published(running: Podrun) -> None:
    [line] = running("port", "cc").stdout.splitlines()
    assert line.startswith("80/tcp -> 127.0.0.1:")
    assert running("port", "cc", "80/tcp").stdout.strip() == line.partition("-> ")[2]
    assert running("port", "cc", "81").returncode == 69


def test_a_paused_pod_stands_still_and_can_be_stopped(podrun: Podrun, nothing_left: None) -> None:
    podrun("run", "-d", "--name", "web", "--init", "--pids-limit", "100", "host:", "sleep", "60", check=True)
    pid = json.loads(podrun("inspect", "web").stdout)["containers"][0]["pid"]

    def waits_in() -> str:
        return Path(f"/proc/{pid}/wchan").read_text()

    assert podrun("pause", "web").stdout == "web\n"
    until(lambda: "refrigerator" in waits_in() or "freez" in waits_in())
    podrun("unpause", "web", check=True)
    until(lambda: "refrigerator" not in waits_in())
    podrun("pause", "web", check=True)
    podrun("down", "web", check=True, timeout=15)


def test_limits_of_a_running_container_change(running: Podrun) -> None:
    assert running("set", "--pids", "77", "--memory", "96M", "cc").returncode == 0
    assert running("set", "cc").returncode == 78
    assert running("set", "--memory", "nonsense", "cc").returncode == 78


def test_diff_tells_what_was_written(running: Podrun) -> None:
    lines = running("diff", "cc").stdout.splitlines()
    assert {"A /opt/d", "A /opt/d/f", "A /opt/d/out"} <= set(lines)
    assert not [line for line in lines if "/opt/mounted" in line]  # made for the mount


def test_files_come_out_as_they_are_and_links_as_links(running: Podrun, tmp_path: Path) -> None:
    running("cp", "cc:/opt/d", str(tmp_path / "copy"), check=True)
    assert (tmp_path / "copy" / "f").read_text() == "hi\n"
    assert os.readlink(tmp_path / "copy" / "out") == "/etc/passwd"
    running("cp", "cc:/opt/d/f", str(tmp_path), check=True)
    assert (tmp_path / "f").read_text() == "hi\n"
    running("cp", "cc:/opt/d/f", str(tmp_path / "g"), check=True)
    assert (tmp_path / "g").read_text() == "hi\n"
    stream = subprocess.run(running.argv("cp", "cc:/opt/d", "-"), env=running.environ, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(stream.stdout)) as archive:
        assert {"d", "d/e", "d/f", "d/out", "d/up"} == set(archive.getnames())


def test_a_link_inside_leads_to_the_containers_own_files_and_never_to_the_hosts(
    running: Podrun, tmp_path: Path
) -> None:
    # /opt/d/up leads to the container's root.
    running("cp", "cc:/opt/d/up/opt/d/f", str(tmp_path / "f"), check=True)
    assert (tmp_path / "f").read_text() == "hi\n"
    (tmp_path / "mark").write_text("from the host")
    running("cp", str(tmp_path / "mark"), "cc:/opt/d/up/opt/d/mark", check=True)
    assert running("exec", "cc", "cat", "/opt/d/mark").stdout == "from the host"
    assert not Path("/opt/d").exists()


def test_files_go_from_a_container_to_another(running: Podrun) -> None:
    running("cp", "cc:/opt/d/f", "cc:/tmp/g", check=True)
    running("cp", "cc:/opt/d", "cc:/tmp", check=True)
    assert running("exec", "cc", "cat", "/tmp/g", "/tmp/d/f").stdout == "hi\nhi\n"
    assert running("cp", "cc:/opt/d/f", "nosuch:/tmp").returncode == 69
    assert running("cp", "-q", "/etc/hosts", "/tmp/x").returncode == 78


def test_a_directory_in_an_archive_that_is_a_link_inside_is_not_walked(running: Podrun, tmp_path: Path) -> None:
    (tmp_path / "up" / "tmp").mkdir(parents=True)
    (tmp_path / "up" / "tmp" / "x").write_text("x")
    done = running("cp", str(tmp_path / "up"), "cc:/opt/d")
    assert done.returncode == 73, done.stderr
    assert running("exec", "cc", "ls", "/tmp/x").returncode != 0


def test_files_go_in_below_a_directory_or_under_a_name(running: Podrun, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_text("content")
    (tmp_path / "tree" / "script").write_text("#!/bin/sh\n")
    (tmp_path / "tree" / "script").chmod(0o755)
    running("cp", str(tmp_path / "tree"), "cc:/opt/d", check=True)
    running("cp", str(tmp_path / "tree"), "cc:/opt/d/other", check=True)
    assert running("exec", "cc", "cat", "/opt/d/tree/deep/file").stdout == "content"
    assert running("exec", "cc", "stat", "-c", "%a %u", "/opt/d/other/script").stdout == "755 0\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["a", "b"], 78),
        (["cc:/x", "cc:/y"], 69),
        (["cc:", "/tmp"], 78),
        (["cc:/no/such", "/tmp"], 69),
        (["/no/such", "cc:/tmp"], 69),
        (["nosuch:/x", "/tmp"], 69),
    ],
)
def test_what_cannot_be_copied_is_told(running: Podrun, words: list[str], code: int) -> None:
    done = running("cp", *words)
    assert done.returncode == code
    assert done.stderr.startswith("podrun: ")


def test_an_archive_that_leads_elsewhere_is_refused(running: Podrun) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO())
    done = subprocess.run(
        running.argv("cp", "-", "cc:/opt"), env=running.environ, input=stream.getvalue(), capture_output=True
    )
    assert done.returncode == 69
    assert b"leads elsewhere" in done.stderr


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("build", "buildah"),
        ("compose", "podrun convert compose"),
        ("push", "podrun image export"),
        ("swarm", "cluster"),
        ("export", "podrun cp NAME:/ -"),
        ("mount", "podrun image mount"),
    ],
)
def test_a_peers_word_says_what_podrun_has_instead(podrun: Podrun, word: str, what: str) -> None:
    done = podrun(word, "x")
    assert done.returncode == 78
    assert what in done.stderr


def test_words_of_docker_that_mean_the_same_do_the_same(podrun: Podrun, nothing_left: None) -> None:
    path = podrun.file("web", '[[chain]]\nhook = "storage"\nsource = "tmpfs:"\ntarget = "/x"\n')
    assert podrun("start", path).stdout == f"{path}\n"
    assert podrun("stop", "web", "nosuch").stdout == "web\n"
    assert podrun("images").returncode == 0
    assert podrun("stop").returncode == 78
    assert json.loads(podrun("info").stdout)["root"] == str(podrun.root)
    assert podrun("system", "df").returncode == 0
    assert podrun("version").stdout.startswith("podrun")
    version = podrun("-v").stdout.split()[-1]
    for form in ("{{.Server.Version}}", "{{.Client.Version}}", "{{.Version}}"):
        assert podrun("version", "--format", form).stdout == f"{version}\n"
    assert podrun("info", "-f", "{{.DockerRootDir}} {{.Host.Arch}}").stdout == f"{podrun.root} {os.uname().machine}\n"


def test_docker_s_longer_words_are_podrun_s(podrun: Podrun, nothing_left: None) -> None:
    words = ["container", "run", "--detach=true", "--name", "web", "--network", "none", "host:", "sleep", "1000"]
    podrun(*words, check=True)
    assert podrun("container", "ls", "-q", check=True).stdout == podrun("container", "list", "-q").stdout == "web\n"
    assert podrun("container", "inspect", "-f", "{{.State.Running}}", "web").stdout == "true\n"
    assert [podrun("container", "exists", name).returncode for name in ("web", "nosuch")] == [0, 1]
    assert podrun("container", "exec", "web", "echo", "there").stdout == "there\n"
    podrun("container", "stop", "-t", "0", "web", check=True)
    podrun("container", "prune", check=True)
    podrun("volume", "create", "data", check=True)
    assert podrun("volume", "list", "-q").stdout == "data\n"
    assert podrun("volume", "remove", "data").stdout == "removed data\n"
    assert podrun("container", "export", "web").returncode == 78


@pytest.mark.parametrize("way", [["--rm"], ["-d"]], ids=["foreground", "detached"])
def test_ipc_none_has_no_shared_memory(podrun: Podrun, way: list[str], nothing_left: None) -> None:
    script = "ls -d /dev/shm /dev/mqueue /dev/null 2>/dev/null; readlink /proc/self/ns/ipc"
    done = podrun("run", *way, "--name", "a", "--network", "none", "--ipc", "none", "host:", "sh", "-c", script)
    if way == ["-d"]:
        podrun("wait", "a")
        done = podrun("logs", "a", check=True)
        podrun("down", "a", check=True)
    [null, namespace] = done.stdout.splitlines()[-2:]
    assert (null, "/dev/shm" in done.stdout) == ("/dev/null", False)
    assert namespace != os.readlink("/proc/self/ns/ipc")
