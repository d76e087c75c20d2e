"""The payload's output, opened anew by name: whatever is behind it, it works, loses nothing and destroys nothing."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from podrun_hooks.container import paths as places
from podrun_hooks.container import processes, stream_search
from podrun_hooks.support import stream_names
from podrun_hooks.support.rooted_tree import Tree
from support.container_case import Case

pytestmark = pytest.mark.root

WAYS = {
    "truncating": "echo word >/dev/stdout",
    "truncating stderr": "echo word >/dev/stderr",
    "appending": "echo word >>/dev/stderr",
    "by number": "echo word >/proc/self/fd/2",
    "of process 1": "echo word >/proc/1/fd/1",
    "/dev/fd": "echo word >/dev/fd/2",
    "tee": "echo word | tee -a /dev/stderr >/dev/null",
}

PROGRAM = """
import sys
from pathlib import Path
from support.container_case import Case
from podrun_hooks.container import processes
case = Case(Path(sys.argv[1]), **eval(sys.argv[2]))
own = case.up("sh", "-c", sys.argv[3], **eval(sys.argv[4]))
pidfd = processes.opened(processes.Process(**own["process"]))
if pidfd is not None:
    processes.ended(pidfd, 20)
case.down()
assert case.left() == [], case.left()
"""


def started(
    tmp_path: Path, script: str, pod: dict[str, Any], options: dict[str, Any], **streams: Any
) -> subprocess.Popen[bytes]:
    """A container that runs to its end, in a process whose streams are ``streams``."""
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path), repr(pod), script, repr(options)]
    return subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, **streams)


def told(tmp_path: Path, script: str, behind: str, **options: Any) -> str:
    """What arrives of a container's output: in a file, through a pipe, or at a socket as the journal's."""
    file = tmp_path / "script.log"
    file.write_text("before\n")
    pod = {"attached": True, **({"unit": "w.service"} if behind == "socket" else {})}
    if behind in ("socket", "pipe"):
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        reading, writing = os.pipe() if behind == "pipe" else (end.detach() for end in pair)
        program = started(tmp_path, script, pod, options, stdout=writing, stderr=writing)
        os.close(writing)
        with open(reading, "rb") as ours:
            text = ours.read()
    else:
        given = {**options, "log": f"file:{file}"} if behind == "file:" else options
        with file.open("ab") as target:
            program = started(tmp_path, script, pod, given, stdout=target, stderr=target)
        program.wait(60)
        text = file.read_bytes()
        assert text.startswith(b"before\n"), text
        text = text.removeprefix(b"before\n")
    assert program.wait(60) == 0, text
    return text.decode()


@pytest.mark.parametrize("behind", ["redirected file", "file:", "pipe", "socket"])
@pytest.mark.parametrize("user", ["root", "web"])
def test_output_can_be_opened_by_name_whatever_is_behind_it(tmp_path: Path, behind: str, user: str) -> None:
    # As another user the streams of process 1, its parent, are not the payload's to open: it is process 1 itself.
    script = "echo first; " + "; ".join(WAYS.values()) + "; echo last"
    text = told(tmp_path, script, behind, user=user)
    assert text.splitlines() == ["first", *["word"] * len(WAYS), "last"]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_detached_containers_log_is_never_emptied(tmp_path: Path, way: str) -> None:
    case = Case(tmp_path)
    assert case.run("sh", "-c", f"echo first; {WAYS[way]}; echo last") == "first\nword\nlast\n"


@pytest.mark.parametrize("behind", ["redirected file", "file:", "pipe", "socket"])
def test_a_line_of_a_megabyte_arrives_whole_and_byte_for_byte(tmp_path: Path, behind: str) -> None:
    script = "head -c 1000000 /dev/zero | tr '\\0' x >/dev/stderr; printf ' \\t<3>end  \\r\\n\\n' >/dev/stderr"
    text = told(tmp_path, script, behind)
    assert hashlib.sha256(text.encode()).digest() == hashlib.sha256(b"x" * 1_000_000 + b" \t<3>end  \r\n\n").digest()


def test_the_last_words_come_before_the_container_is_gone(tmp_path: Path) -> None:
    case = Case(tmp_path)
    for _ in range(5):
        assert case.run("sh", "-c", "seq 1 20000; echo LAST >&2; exit 3").endswith("20000\nLAST\n")


def test_a_unit_whose_output_nobody_opens_by_name_leaves_nothing_running(tmp_path: Path) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        program = PROGRAM.replace("case.down()", "assert 'copiers' not in own; case.down()")
        argv = [sys.executable, "-c", program, str(tmp_path), "{'attached': True, 'unit': 'w.service'}", "echo x", "{}"]
        tests = str(Path(__file__).parents[2])
        done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": tests}, stdout=there, stderr=subprocess.PIPE)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr


def test_what_is_read_cannot_be_written(tmp_path: Path) -> None:
    """A container's root could open the operator's file behind standard input for writing."""
    file = tmp_path / "precious"
    file.write_text("typed\n")
    with file.open("rb") as source:
        pod = {"attached": True, "interactive": True}
        assert started(tmp_path, "cat; echo bad >/proc/self/fd/0", pod, {}, stdin=source).wait(60) == 0
    assert file.read_text() == "typed\n"


# --- what is searched ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("etc/apache2/apache2.conf", "ErrorLog /proc/self/fd/2", True),
        ("usr/local/etc/php-fpm.d/docker.conf", "error_log = /proc/self/fd/2", True),
        ("entry.sh", "#!/bin/sh\necho x >/dev/stderr", True),
        ("app/run.py", "open('/dev/stdout', 'w')", True),
        ("etc/a.conf", "/dev/std", False),
        ("etc/a.conf", "\x7fELF /dev/stdout", False),
        ("usr/share/doc/x", "/dev/stderr", False),
        ("usr/local/lib/python3/x.py", "/dev/stderr", False),
        ("app/node_modules/x/index.js", "/dev/stderr", False),
    ],
)
def test_configurations_and_scripts_of_an_image_are_searched(path: str, text: str, found: bool) -> None:
    assert (stream_names.searched(path.encode()) and stream_names.mentioned(text.encode())) == found


def searched(case: Case, *args: str, env: tuple[str, ...] = (), mounts: tuple[Path, ...] = ()) -> bool:
    fds = [os.open(path, os.O_PATH) for path in (case.layer, *mounts)]
    try:
        tree = Tree(fds[0])
        tree.mounts += [("/etc/x", fd) for fd in fds[1:]]
        process = {"args": list(args), "env": ["PATH=/bin", *env], "cwd": "/"}
        return stream_search.opens_by_name({"digest": "sha256:1"}, {"process": process}, tree)
    finally:
        for fd in fds:
            os.close(fd)


def test_commands_environment_scripts_and_mounts_are_searched_at_the_start(tmp_path: Path) -> None:
    case = Case(tmp_path)
    script = case.layer / "bin/entry.sh"
    script.write_text("#!/bin/sh\nexec app >/dev/stderr")
    (tmp_path / "conf/deep").mkdir(parents=True)
    assert not searched(case, "sh", "-c", "true", mounts=(tmp_path / "conf",))
    assert searched(case, "sh", "-c", "echo >/dev/stderr")
    assert searched(case, "app", env=("LOG=/dev/stdout",))
    assert searched(case, "/bin/entry.sh")
    assert searched(case, "entry.sh")
    assert searched(case, "sh", "bin/entry.sh")
    (tmp_path / "conf/deep/nginx.conf").write_text("error_log /dev/stderr;")
    assert searched(case, "app", mounts=(tmp_path / "conf",))
    assert searched(case, "app", mounts=(tmp_path / "conf/deep/nginx.conf",))
    os.mkfifo(tmp_path / "conf/fifo")
    began = time.monotonic()
    assert searched(case, "app", mounts=(tmp_path / "conf",))
    assert time.monotonic() - began < 1


@pytest.mark.root
@pytest.mark.parametrize("named", [False, True])
def test_a_log_file_is_begun_anew_when_it_is_large_enough_and_some_are_kept(tmp_path: Path, named: bool) -> None:
    case = Case(tmp_path)
    file = tmp_path / "own.log" if named else Path(places.of(case.step()).log)
    log = {"log": f"file:{file}"} if named else {}
    script = "n=0; while [ $n -lt 1000 ]; do echo line-$n; n=$((n + 1)); done; echo LAST >&2"
    case.up("sh", "-c", script, log_size=2000, log_files=2, **log)
    try:
        process = processes.Process(**case.own["process"])
        pidfd = processes.opened(process)
        assert pidfd is None or processes.ended(pidfd, 10)
        deadline = time.monotonic() + 10
        while not file.exists() or "LAST" not in file.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kept = [f"{file}.2", f"{file}.1", str(file)]
        assert sorted(str(path) for path in file.parent.glob(f"{file.name}*")) == sorted(kept)
        assert [os.stat(path).st_size for path in kept[:2]] == [2000, 2000]
        assert all(os.stat(path).st_mode & 0o777 == 0o600 for path in kept)
        text = "".join(Path(path).read_text() for path in kept)
        assert text.endswith("line-998\nline-999\nLAST\n"), "in order, and to the last line"
    finally:
        case.down()
    assert [path.exists() for path in map(Path, kept)] == [named] * 3
    for path in kept if named else ():
        os.unlink(path)
    assert case.left() == []


@pytest.mark.root
def test_logs_shows_all_that_is_kept_and_follows_into_the_next_file(podrun: Any) -> None:
    script = "for n in 1 2 3 4 5 6 7 8; do echo line-$n; sleep 0.15; done"
    step = f'{{ hook = "container", log_size = "16", log_files = 9, command = {json.dumps(["sh", "-c", script])} }}'
    podrun("up", "-d", podrun.file("web", f'chain = [ {{ hook = "image", ref = "host:" }}, {step} ]'), check=True)
    wanted = "".join(f"line-{n}\n" for n in range(1, 9))
    assert podrun("logs", "-f", "web", check=True).stdout == wanted
    assert podrun("logs", "web", check=True).stdout == wanted
    podrun("down", "web", check=True)
    assert not list(podrun.root.rglob("*.log*"))
