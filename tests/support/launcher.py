"""A podrun of the test's own: its directories and its command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: The directory of the tests.
HERE = Path(__file__).parents[1]
_PATH = [str(HERE.parent), str(HERE.parent / "hooks")]


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
            # Most payloads of tests have no handler for SIGTERM: each would take the usual 20 s to be stopped.
            "PODRUN_CONFIG": str(HERE / "support" / "podrun.toml"),
            # This podrun is installed nowhere: there is no path that a unit could start it by.
            "PODRUN_SYSTEMD": "no",
            "PYTHONPATH": ":".join(_PATH),
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


class AsInstalled(Podrun):
    """The same, begun the way the installed command is (#!/usr/bin/python3 -IS): -m and site take as long as a pod."""

    def argv(self, *words: str) -> list[str]:
        begin = f"import sys; sys.path[:0] = {_PATH}; import podrun; podrun.SITE_LEFT_OUT = True"
        program = f"{begin}; from podrun.__main__ import run; sys.exit(run(sys.argv[1:]))"
        return [sys.executable, "-IS", "-c", program, *words]
