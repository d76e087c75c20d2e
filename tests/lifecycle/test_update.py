"""podrun update, history and rollback, with images of a registry of the test's own and of an archive."""

from __future__ import annotations

import fcntl
import json
import random
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.host import tag
from support.busy import SERVER, Busy
from support.image_builder import directory, docker_archive, file, image, layout, symlink, tar
from support.image_servers import Registry, docker_registry
from support.launcher import Podrun

pytestmark = pytest.mark.root

_PROGRAM = (
    'import os; os.environ["VERSION"] = open("/version").read().strip()\n'
    'import threading; timer = threading.Timer(float(open("/ends").read()), lambda: os._exit(9))\n'
    "timer.daemon = True; timer.start()\n" + SERVER.replace('"PORT", "80"', '"PORT", open("/port").read().strip()')
)


def built(version: str, *, ends: float = 1e6, port: int = 80, links: bool = True) -> Any:
    """An image of that version: it ends after so many seconds, and listens on that port; without links nothing runs."""
    return image(
        tar(
            *(directory(name) for name in ("usr", "etc")),
            *(symlink(name, f"usr/{name}") for name in ("bin", "lib", "lib64", "sbin") if links),
            file("version", version.encode()),
            file("ends", str(ends).encode()),
            file("port", str(port).encode()),
        )
    )


class Web:
    """A pod of an image named by a tag."""

    def __init__(self, podrun: Podrun, ref: str, *, update: str) -> None:
        self.podrun, self.port = podrun, random.randint(20000, 30000)
        self.path = podrun.file(
            "web",
            f"""
[pod]
reload = "swap"
stop_timeout = "3s"
[update]
{update}
[[chain]]
hook = "image"
ref = "{ref}"
[[chain]]
hook = "network"
publish = ["127.0.0.1:{self.port}:80"]
[[chain]]
hook = "container"
command = ["/usr/bin/python3", "-c", '''{_PROGRAM.replace("${", "$${")}''']
volumes = ["/usr:/usr:ro"]
ready = {{ http = ":80/", timeout = "2s" }}
""",
        )

    def get(self) -> str:
        argv = ["curl", "-s", "-m", "5", f"http://127.0.0.1:{self.port}/"]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def history(self) -> list[dict]:
        return json.loads(self.podrun("history", "web", "--format", "json", check=True).stdout)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def push(registry: Registry, tmp_path: Path) -> Any:
    number = iter(range(100))

    def pushed(version: str, **more: float) -> None:
        path = layout(str(tmp_path / f"layout{next(number)}"), {"web": built(version, **more)})
        registry.push(f"oci:{path}:web", "team/web:1")

    return pushed


@pytest.fixture
def web(podrun: Podrun, registry: Registry, push: Any) -> Iterator[Web]:
    push("one")
    own = Web(podrun, f"{registry.host}/team/web:1", update='watch = "1s"')
    podrun("up", "-d", own.path, check=True)
    assert own.get() == "one"
    yield own
    podrun("down", "web", check=True)


def test_an_update_swaps_to_what_the_tag_stands_for_now_and_a_rollback_back_again(web: Web, push: Any) -> None:
    assert "it is up to date" in web.podrun("update", "web", check=True).stderr
    push("two")
    assert "instead of" in web.podrun("update", "--check", "web", check=True).stderr
    assert "swapped" in web.podrun("update", "--dry-run", "--all", check=True).stderr
    client = Busy("127.0.0.1", web.port, keep=True)
    web.podrun("update", "web", check=True)
    assert web.get() == "two"
    assert "it is up to date" in web.podrun("update", "--all", check=True).stderr
    web.podrun("rollback", "web", check=True)
    assert web.get() == "one"
    count = client.stop()
    assert count.failed == 0, count
    assert [(row["how"], row["result"]) for row in web.history()] == [
        ("up", "ok"),
        ("update", "ok"),
        ("rollback", "ok"),
    ]
    # What is started again is what it was rolled back to, and what a rollback may need is not pruned.
    web.podrun("down", "web", check=True)
    web.podrun("image", "prune", check=True)
    web.podrun("up", "-d", web.path, check=True)
    assert web.get() == "one"
    web.podrun("rollback", "web", "2", check=True)
    assert web.get() == "two"
    where = web.podrun.root / "history" / "web"
    assert stat.S_IMODE(where.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"port": 81}, "ready"), ({"ends": 0.5}, "it ended 0."), ({"ends": 0.0}, "")],
    ids=["does not get ready", "ends when it has taken over", "ends at once"],
)
def test_a_version_that_is_not_well_is_left_again_and_not_tried_twice(
    web: Web, push: Any, wrong: Any, word: str
) -> None:
    push("bad", **wrong)
    ended = web.podrun("update", "web")
    assert ended.returncode == 76, ended.stderr
    assert "back on the previous version" in ended.stderr
    assert word in ended.stderr
    assert web.get() == "one"
    assert [row["result"].partition(":")[0] for row in web.history()] == ["ok", "failed"]
    assert "was tried and did not run well" in web.podrun("update", "web", check=True).stderr
    web.podrun("down", "web", check=True)
    web.podrun("up", "-d", web.path, check=True)
    assert web.get() == "one"
    push("two")
    web.podrun("update", "web", check=True)
    assert web.get() == "two"


def test_a_version_that_ends_before_it_has_taken_over_costs_no_request(web: Web, push: Any) -> None:
    Path(web.path).write_text(Path(web.path).read_text().replace('watch = "1s"', 'watch = "0s"\nsoak = "2s"'))
    push("bad", ends=0.8)
    client = Busy("127.0.0.1", web.port, keep=False)
    ended = web.podrun("update", "web")
    count = client.stop()
    assert ended.returncode == 76, ended.stderr
    assert "after it was ready" in ended.stderr
    assert (count.failed, {*count.versions}) == (0, {"one"}), count


def test_a_pod_that_cannot_be_swapped_is_watched_as_well(web: Web, push: Any) -> None:
    path = Path(web.path)
    path.write_text(path.read_text().replace("ready =", "persist = true\nready ="))
    web.podrun("restart", "web", check=True)
    push("bad", ends=0.5)
    assert "stopped and started" in web.podrun("update", "--dry-run", "web", check=True).stderr
    ended = web.podrun("update", "web")
    assert (ended.returncode, web.get()) == (76, "one"), ended.stderr
    web.podrun("down", "web", check=True)
    shutil.rmtree(web.podrun.root / "pods")


def test_a_history_that_cannot_be_written_keeps_no_pod_from_starting(web: Web) -> None:
    web.podrun("down", "web", check=True)
    where = web.podrun.root / "history"
    shutil.rmtree(where)
    where.write_text("")
    ended = web.podrun("up", "-d", web.path, check=True)
    assert "its history lacks this change" in ended.stderr
    where.unlink()


@pytest.mark.parametrize("then", ["reload", "down"])
def test_an_update_that_is_killed_while_it_watches_leaves_the_new_version_and_one_command_cleans_up(
    web: Web, push: Any, then: str
) -> None:
    Path(web.path).write_text(Path(web.path).read_text().replace('watch = "1s"', 'watch = "30s"'))
    push("two")
    updating = web.podrun.start("update", "web")
    deadline = time.monotonic() + 20
    while web.get() != "two":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    updating.kill()
    updating.wait()
    assert web.get() == "two"
    assert len(_namespaces(web)) == 2
    web.podrun(then, "web", check=True)
    assert web.get() == ("two" if then == "reload" else "")
    assert len(_namespaces(web)) == (1 if then == "reload" else 0)


def _namespaces(web: Web) -> list[str]:
    own = tag("web", str(web.podrun.run))
    return [one.name for one in Path("/run/netns").iterdir() if one.name.startswith(own)]


def test_an_image_that_is_not_there_changes_nothing(web: Web, registry: Registry) -> None:
    path = Path(web.path)
    path.write_text(path.read_text().replace("team/web:1", "team/none:1"))
    client = Busy("127.0.0.1", web.port, keep=False)
    ended = web.podrun("reload", "web")
    assert ended.returncode == 69, ended.stderr
    count = client.stop()
    assert (count.failed, {*count.versions}) == (0, {"one"}), count


def test_what_the_policy_no_longer_accepts_is_not_swapped_to(web: Web, push: Any, tmp_path: Path) -> None:
    policy, path = tmp_path / "policy.json", Path(web.path)
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    path.write_text(
        path.read_text()
        .replace('watch = "1s"', 'watch = "0s"')
        .replace('[[chain]]\nhook = "network"', f'verify = {{ policy = "{policy}" }}\n[[chain]]\nhook = "network"')
    )
    web.podrun("reload", "web", check=True)
    push("two")
    web.podrun("update", "web", check=True)
    policy.write_text('{"default": [{"type": "reject"}]}')
    push("three")
    client = Busy("127.0.0.1", web.port, 2, keep=False)
    for word, code in (("reload", 65), ("update", 65), ("rollback", 76)):
        ended = web.podrun(word, "web")
        assert ended.returncode == code, (word, ended.stderr)
        assert "reject" in ended.stderr
    count = client.stop()
    assert (count.failed, {*count.versions}) == (0, {"two"}), count
    # The name stands for what the pod has: that is what a restart takes.
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    web.podrun("restart", "web", check=True)
    assert web.get() == "two"


def test_one_pod_of_the_host_pulls_at_a_time(web: Web, push: Any) -> None:
    push("two")
    with (web.podrun.run / "locks" / ".update").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        updating = web.podrun.start("update", "web", stderr=subprocess.PIPE)
        assert updating.stderr
        while "waiting for another pod's pull" not in (line := updating.stderr.readline()):
            assert line, "it ended"
        time.sleep(0.3)
        assert (updating.poll(), web.get()) == (None, "one")
    updating.communicate(timeout=30)
    assert (updating.returncode, web.get()) == (0, "two")


def test_a_new_version_comes_from_an_archive_too(podrun: Podrun, tmp_path: Path) -> None:
    archive = str(tmp_path / "web.tar")
    docker_archive(archive, {"web:1": built("one")})
    web = Web(podrun, f"docker-archive:{archive}:web:1", update='from = "local"\nmode = "restart"\nwatch = "500ms"')
    podrun("up", "-d", web.path, check=True)
    docker_archive(archive, {"web:1": built("two")})
    podrun("image", "pull", "-q", f"docker-archive:{archive}:web:1", check=True)
    podrun("update", "web", check=True)
    assert web.get() == "two"
    Path(archive).unlink()
    podrun("rollback", "web", check=True)
    assert web.get() == "one"
    # One line for each change, though the pod was started for it; what had been tried is remembered.
    lines = json.loads(podrun("history", "web", "--format", "json").stdout)
    assert [line["how"] for line in lines] == ["up", "update", "rollback"]
    time.sleep(0.1)
    podrun("down", "web", check=True)


@pytest.mark.prove
@pytest.mark.parametrize(
    ("what", "image", "update", "lost"),
    [
        ("does not get ready", {"port": 81}, 'watch = "0s"', False),
        ("ends 5 s after its start, watched", {"ends": 5.0}, 'watch = "20s"', True),
        ("ends 5 s after its start, soak = 8s", {"ends": 5.0}, 'watch = "0s"\nsoak = "8s"', False),
        ("its program cannot run", {"links": False}, 'watch = "0s"', False),
        ("is missing", None, 'watch = "0s"', False),
    ],
)
def test_the_figures_of_versions_that_do_not_work(
    web: Web, push: Any, what: str, image: Any, update: str, lost: bool
) -> None:
    path = Path(web.path)
    path.write_text(path.read_text().replace('watch = "1s"', update))
    if image is None:
        path.write_text(path.read_text().replace("team/web:1", "team/none:1"))
    else:
        push("bad", **image)
    kept, one = Busy("127.0.0.1", web.port, 16, keep=True), Busy("127.0.0.1", web.port, 16, keep=False)
    began = time.monotonic()
    ended = web.podrun("update" if image else "reload", "web")
    took = time.monotonic() - began
    counts = {"kept": kept.stop(), "one a connection": one.stop()}
    print(f"\na new version that {what}: exit {ended.returncode} after {took:.1f} s")
    for name, count in counts.items():
        print(
            f"  {name:17} {count.requests:7} requests {count.failed:5} failed  p99 {count.p99:6.1f} ms  longest gap {count.gap:6.1f} ms"
        )
    assert ended.returncode, "it was taken"
    assert web.get() == "one"
    assert counts["kept"].failed == 0
    assert bool(counts["one a connection"].failed) <= lost
