"""A pod in units of the booted host: its file, its units, and what is left when it has been stopped."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from support import objects

ETC = Path("/etc/podrun")
GENERATOR = Path("/etc/systemd/system-generators/podrun-generator")
RUN, ROOT = Path("/run/podrun"), Path("/var/lib/podrun")

#: A payload that ends when it is asked to.
PATIENT = "trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.05; done"


def sh(*argv: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout)


def systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return sh("systemctl", *words)


def container(script: str, name: str = "main", **more: str) -> str:
    """The [[chain]] table of a container that runs a shell script; ``more`` are its other keys, in TOML."""
    lines = ["[[chain]]", 'hook = "container"', f'name = "{name}"', f"command = ['''sh''', '''-c''', '''{script}''']"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in more.items())]) + "\n"


IMAGE = '[[chain]]\nhook = "image"\nref = "host:"\n'
NETWORK = '[[chain]]\nhook = "network"\n'


class Pods:
    """The host's pods with units. What a test makes here is gone when it ends, and that is checked."""

    #: When the latest test began, in seconds since 1970.
    began = 0.0

    def __init__(self) -> None:
        Pods.began = time.time()
        if not (RUN / "network/podrun0/base").exists():
            # The bridge stays for the next pod, and is nothing left behind.
            sh("podrun", "run", "--rm", "host:", "true")
        self.before = self.left()
        self.units: list[str] = []
        self.files: list[Path] = []

    def left(self) -> set[str]:
        """What pods are made of, and processes and cgroups of podrun beside."""
        cgroups = {f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob("*.slice/**/podrun")}
        # systemd's own namespace shows the mounts below /var/lib/podrun, which the host may have.
        found = {one for one in objects.listing(RUN, ROOT) if not one.startswith("process 1:")} | cgroups
        # v1 has hierarchies that systemd makes a unit's cgroup in when some other unit needs it: that of the tests, too.
        return {one for one in found if not one.endswith("/podrun-tests.service")}

    def file(self, name: str, text: str) -> Path:
        ETC.mkdir(exist_ok=True)
        path = ETC / f"{name}.toml"
        path.write_text(text)
        self.files.append(path)
        return path

    def install(self, name: str, *parts: str, stop_timeout: str = "3s", service: str = "", pod: str = "") -> list[str]:
        """Writes a pod file of these [[chain]] tables and installs its units; returns their names."""
        text = f'[pod]\nstop_timeout = "{stop_timeout}"\n{pod}\n' + "".join(parts)
        self.file(name, f"{text}\n[service]\n{service}\n" if service else text)
        done = sh("podrun", "unit", "--install", name)
        assert done.returncode == 0, done.stderr
        made = [Path(line) for line in done.stdout.splitlines() if line.startswith("/")]
        self.files += made
        made = [path for path in made if path.name != "podrun-gc.service"]  # the host's, not the pod's
        self.units += [path.name for path in made]
        # A unit that nothing refers to is forgotten when it ends, with its result.
        systemctl("add-wants", "multi-user.target", *(path.name for path in made if "@." not in path.name))
        return [path.name for path in made]

    def write(self, unit: str, text: str) -> None:
        """A unit of the test's own."""
        path = Path("/etc/systemd/system") / unit
        path.write_text(text)
        self.files.append(path)
        self.units.append(unit)
        systemctl("daemon-reload")
        systemctl("add-wants", "multi-user.target", unit)

    def close(self) -> None:
        names = [unit for unit in self.units if "@." not in unit]
        systemctl("stop", *names)
        for path in self.files:
            path.unlink(missing_ok=True)
            Path(f"/etc/systemd/system/multi-user.target.wants/{path.name}").unlink(missing_ok=True)
        systemctl("daemon-reload")
        systemctl("reset-failed")
        self.nothing_left()

    def nothing_left(self) -> None:
        """Asserts that no process, mount, network namespace, cgroup or file of a pod is there."""
        until(lambda: not self.left() - self.before, 5, lambda: f"left behind: {self.left() - self.before}")


def until(true: Callable[[], object], seconds: float = 10, why: Callable[[], str] = lambda: "") -> None:
    """Waits for a condition; an AssertionError with ``why`` when it does not come."""
    deadline = time.monotonic() + seconds * (6 if Path("/dev/vdb").exists() else 1)
    while not true():
        assert time.monotonic() < deadline, why() or "it did not come"
        time.sleep(0.02)


def show(unit: str, *properties: str) -> list[str]:
    """Properties of a unit, in the order asked for."""
    told = dict(line.partition("=")[::2] for line in systemctl("show", unit).stdout.splitlines())
    return [told.get(name, "") for name in properties]


def ended(unit: str) -> tuple[str, str, str]:
    """(Result, how the main process ended, its status) once the unit has come to rest."""
    until(lambda: show(unit, "ActiveState")[0] in ("inactive", "failed"), 20, lambda: systemctl("status", unit).stdout)
    result, code, status = show(unit, "Result", "ExecMainCode", "ExecMainStatus")
    # CLD_EXITED, CLD_KILLED, CLD_DUMPED of waitid(2)
    return result, {"1": "exited", "2": "killed", "3": "dumped"}.get(code, code), status


def main_pid(unit: str) -> int:
    return int(show(unit, "MainPID")[0])


def words(unit: str) -> str:
    """What the journal has of a unit, and of the test that is running."""
    sh("journalctl", "--sync")
    return sh("journalctl", "--no-pager", "-o", "cat", f"--since=@{Pods.began:.6f}", "-u", unit).stdout
