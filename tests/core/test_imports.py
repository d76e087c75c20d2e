"""What a start may import: a list, not a clock. Whoever adds a module here adds its cost to every start."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from support import image_builder as build
from support.image_servers import faulty
from support.launcher import Podrun

pytestmark = pytest.mark.root

SPY = """
import json, sys
before = set(sys.modules)
from podrun.launcher import arguments, commands as acts
command, given = arguments.plain(sys.argv[2:])
code = acts.act(command, given)
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "modules": sorted(set(sys.modules) - before)}, file)
"""

#: Built into the interpreter or a few hundred lines of C each, and what they bring along.
CHEAP = {
    "__future__", "_blake2", "_ctypes", "_json", "_operator", "_posixshmem", "_socket", "_struct", "binascii",
    "errno", "fcntl", "select", "time", "types", "math", "_signal", "array",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_defaults(request: pytest.FixtureRequest) -> None:
    """A host without podrun.toml: reading one costs what reading a pod file costs."""
    if "podrun" in request.fixturenames:
        request.getfixturevalue("podrun").environ["PODRUN_CONFIG"] = "/nonexistent"


PATIENT = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


def imported(podrun: Podrun, *words: Any) -> Any:
    path = podrun.home / "imports.json"
    done = subprocess.run(
        [sys.executable, "-c", SPY, str(path), *words], env=podrun.environ, capture_output=True, text=True, timeout=60
    )
    told = json.loads(path.read_text())
    assert told["code"] == 0, done.stderr
    return {name for name in told["modules"] if name.partition(".")[0] not in ("podrun", "podrun_hooks")}


def test_run_and_down_of_a_cached_image_import_only_what_is_cheap(podrun: Podrun) -> None:
    podrun("run", "--rm", "--name", "warm", "host:", "true", check=True)
    assert imported(podrun, "run", "-d", "--name", "web", "host:", "sh", "-c", PATIENT) <= CHEAP
    assert imported(podrun, "down", "web") <= CHEAP


def test_up_of_a_pod_file_adds_what_reading_toml_needs_and_nothing_the_second_time(podrun: Podrun) -> None:
    path = podrun.file(
        "web",
        'chain = [ { hook = "image", ref = "host:" }, { hook = "network" }, { hook = "container", command = ["sleep", "60"], stop_signal = "KILL" } ]',
    )
    podrun("run", "--rm", "host:", "true", check=True)
    probe = "import sys; before = set(sys.modules); import tomllib; print(*set(sys.modules) - before)"
    toml = set(subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout.split())
    assert imported(podrun, "up", "-d", path) <= CHEAP | toml
    podrun("down", "web", check=True)
    assert imported(podrun, "up", "-d", path) <= CHEAP
    podrun("down", "web", check=True)


def test_exec_and_ps_import_only_what_is_cheap(podrun: Podrun) -> None:
    podrun("run", "-d", "--name", "web", "host:", "sh", "-c", PATIENT, check=True)
    for words, output in ((("exec", "web", "echo", "said"), "said"), (("ps",), "web")):
        argv = [sys.executable, "-X", "importtime", "-m", "podrun", *words]
        done = subprocess.run(argv, env=podrun.environ, capture_output=True, text=True, timeout=60)
        assert (done.returncode, output in done.stdout) == (0, True), done.stderr
        rows = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line]
        # Before podrun comes what the interpreter itself needs, runpy for one.
        own = {name.partition(".")[0] for name in rows[rows.index("podrun.bundle") :]}
        assert own <= CHEAP | {"podrun", "podrun_hooks", "gc", "_collections"}, words
    podrun("down", "web", check=True)


def calls(podrun: Podrun, *words: Any) -> dict[str, list[str]]:
    """The programs that podrun runs, its forks, the bytecode of its own that it opens, the cgroups that it moves to."""
    path = podrun.home / "calls"
    traced = "trace=execve,clone,clone3,fork,vfork,openat"
    argv = ["strace", "-f", "-qq", "-e", traced, "-e", "signal=none", "-o", str(path), *podrun.argv(*words)]
    done = subprocess.run(
        argv, env=podrun.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = path.read_text().splitlines()
    own = lines[0].split()[0]
    # A call that was interrupted is told twice; the first time it has its arguments.
    first = [line for line in lines if "resumed>" not in line and "ENOENT" not in line]
    return {
        "execs": [line for line in first if "execve(" in line],
        "forks": [line for line in first if line.split()[0] == own and ("clone" in line or "fork(" in line)],
        "bytecode": [line for line in first if "openat(" in line and "/podrun" in line and ".pyc" in line],
        "moves": [line for line in first if "cgroup.procs" in line and "O_WRONLY" in line],
    }


def test_a_start_and_its_undoing_run_fork_and_open_no_more_than_they_need(podrun: Podrun) -> None:
    """Counts, as no clock is the same twice; what each of them would cost is in docs/adr."""
    podrun.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    words = ("run", "--rm", "--name", "web", "host:", "true")
    for _ in range(2):
        podrun(*words, check=True)
    start = calls(podrun, *words)
    podrun("run", "-d", *words[2:-1], "sh", "-c", PATIENT, check=True)
    podrun("down", "web", check=True)
    podrun("run", "-d", *words[2:-1], "sh", "-c", PATIENT, check=True)
    down = calls(podrun, "down", "web")
    # podrun, the runtime, the payload; children that make the network, become the runtime, forbid device nodes.
    assert (len(start["execs"]), len(start["forks"])) == (3, 3)
    assert (len(down["execs"]), len(down["forks"])) == (1, 0)
    # The packages themselves, __main__, the module of the bundle and the bundle.
    assert max(len(start["bytecode"]), len(down["bytecode"])) <= 5, "\n".join(start["bytecode"] + down["bytecode"])
    assert not start["moves"], "moving a process makes a start wait for a grace period of RCU, 10 ms"


@pytest.mark.server
def test_a_pull_that_finds_nothing_to_do_imports_no_http_client(podrun: Podrun) -> None:
    built = build.image(build.tar(build.file("a", b"a")))

    def change(request: Any) -> Any:
        if request.command == "HEAD":
            request.reply(200, built.manifest, Docker_Content_Digest=built.digest)
        return request.command == "HEAD"

    with faulty(built, change) as server:
        ref = f"{server.host}/web"
        podrun("image", "pull", ref, check=True)
        first = len(server.seen)
        assert imported(podrun, "image", "pull", ref) <= CHEAP
        assert [path for _, path, _ in server.seen[first:]] == ["/v2/web/manifests/latest"]


def test_first_party_hooks_do_not_scan_entry_points(podrun: Podrun) -> None:
    code = "import sys; from podrun.engine import hook_loader; hook_loader.load('register'); print('importlib.metadata' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], env=podrun.environ, capture_output=True, text=True)
    assert told.stdout.strip() == "False"
