"""Fixtures: a podrun of the test's own (directories, command line), and a listing of everything it could leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.launcher import Podrun
from support.objects import listing, settled

# A shell has what it starts in the background ignore SIGINT, and so would everything that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("support.systemd_plugin", "support.parallel_plugin")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that only root can change, on a short path: executables as hooks are refused elsewhere."""
    place = Path(tempfile.mkdtemp(prefix="podrun-test-", dir="/var/lib" if os.geteuid() == 0 else None))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def podrun(home: Path) -> Iterator[Podrun]:
    """A podrun of the test's own. Afterwards ``gc`` takes away what its pods shared (the bridge), and that is checked."""
    own = Podrun(home)
    yield own
    if own.run.exists() and os.geteuid() == 0:
        for name in os.listdir(own.run / "pods") if (own.run / "pods").exists() else ():
            own("down", "--force", name)
        own("gc", check=True)
        links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
        assert str(own.run) not in links, "gc left a link behind"


@pytest.fixture
def place() -> Iterator[object]:
    """The network step on its own; see network_case. A module that needs more of it has a fixture of this name."""
    from support.network_case import Place

    found = Place()
    try:
        yield found
    finally:
        found.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A booted host is given the tests by name.
    if not (os.environ.get("PODRUN_PROVE") or os.environ.get("PODRUN_TEST_REPORTS")):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("prove")])
        items[:] = [item for item in items if not item.get_closest_marker("prove")]
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def pods() -> Iterator[object]:
    """Pods (systemd_case.Pods) on the booted host that the test runs on."""
    from support.systemd_case import Pods

    here = Pods()
    yield here
    here.close()


@pytest.fixture
def nothing_left(podrun: Podrun) -> Iterator[Any]:
    podrun("run", "--rm", "--name", "warm", "host:", "true", check=True)
    before = listing(podrun.run, podrun.root)
    yield
    assert not settled(podrun.run, podrun.root, before)


@pytest.fixture(scope="module")
def dockerd() -> Iterator[None]:
    """A dockerd of the test's own, on a socket with a short name, without a network."""
    if not shutil.which("dockerd"):
        pytest.skip("dockerd is not installed")
    pytest.importorskip("docker")
    place = Path(tempfile.mkdtemp(prefix="t-image-"))
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = f"unix://{place}/sock"
    # In a network of its own: one without a bridge removes docker0, which may be somebody's.
    argv = ["unshare", "--net", "dockerd", "--bridge=none"]
    argv += ["--data-root", str(place / "data"), "--exec-root", str(place / "exec")]
    argv += ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--pidfile", str(place / "pid")]
    with (place / "log").open("wb") as log:
        daemon = subprocess.Popen([*argv, "-H", os.environ["DOCKER_HOST"]], stdout=log, stderr=log)
    try:
        for _ in range(200):
            if daemon.poll() is not None or subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        if daemon.poll() is not None:
            pytest.skip(f"dockerd does not start here: {(place / 'log').read_text()[-500:]}")
        yield
    finally:
        daemon.terminate()
        daemon.wait()
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if str(place) in line:
                subprocess.run(["umount", "-l", line.split()[1]])
        shutil.rmtree(place)
