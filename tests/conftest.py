"""Fixtures: a podrun of the test's own (directories, command line), and a listing of everything it could leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# A shell has what it starts in the background ignore SIGINT, and so would everything that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("systemd_plugin",)


class Podrun:
    """A podrun with its own root and run directories; call it like the command line."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "root"
        self.run = home / "run"
        self.environ = {
            **{key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "INVOCATION_ID")},
            "PODRUN_ROOT": str(self.root),
            "PODRUN_RUN": str(self.run),
            # This podrun is installed nowhere: there is no path that a unit could start it by.
            "PODRUN_SYSTEMD": "no",
            "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}",
        }

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "podrun", *words]

    def __call__(
        self, *words: str, check: bool = False, timeout: float = 60, **more: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*words),
            env={**self.environ, **more},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def start(self, *words: str, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words),
            env=self.environ,
            stdin=subprocess.DEVNULL,
            text=True,
            **options,  # type: ignore[call-overload]
        )

    def file(self, name: str, text: str) -> str:
        """Writes a pod file; returns its path."""
        path = self.home / f"{name}.toml"
        path.write_text(text)
        return str(path)

    def journals(self) -> list[str]:
        return sorted(str(path.relative_to(self.run)) for path in self.run.glob("pods/*/*"))


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
    from network_case import Place

    found = Place()
    try:
        yield found
    finally:
        found.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if "root" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def pods() -> Iterator[object]:
    """Pods (systemd_case.Pods) on the booted host that the test runs on."""
    from systemd_case import Pods

    here = Pods()
    yield here
    here.close()
