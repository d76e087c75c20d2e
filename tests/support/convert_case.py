"""Conversions as a test sees them: the pod files by name, read back, and the lines that people are told."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from podrun.cli import convert


class Converted:
    """What one ``podrun convert`` did."""

    def __init__(self, code: int, directory: Path, told: str) -> None:
        self.code = code
        self.told = told.splitlines()
        self.text = {path.name: path.read_text() for path in sorted(directory.iterdir())} if directory.exists() else {}
        self.files: dict[str, Any] = {name: tomllib.loads(text) for name, text in self.text.items()}

    def step(self, name: str, hook: str = "container", number: int = 0) -> dict[str, Any]:
        """A step of a pod."""
        return [step for step in self.files[f"{name}.toml"]["chain"] if step["hook"] == hook][number]

    def notes(self, *words: str) -> list[str]:
        """The lines that hold all of the words."""
        return [line for line in self.told if all(word in line for word in words)]


class Converter:
    """Runs ``podrun convert`` in a directory of the test's own, which ``write`` fills."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._count = 0

    def write(self, name: str, text: str) -> str:
        """Writes a file; returns its path."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def __call__(self, *words: str, stdin: str = "", environ: dict[str, str] | None = None) -> Converted:
        """Converts; the pod files are written to a directory, and read back from there."""
        self._count += 1
        output = self.directory / f"output-{self._count}"
        kind, *rest = words
        done = CliRunner().invoke(
            convert.group,
            [kind, "-o", str(output), *rest],
            input=stdin,
            obj={"debug": False, "root": "", "run": ""},
            env={"COMPOSE_PROJECT_NAME": None, **(environ or {})},
        )
        return Converted(done.exit_code, output, done.output)

    def compose(self, text: str, *words: str, **more: Any) -> Converted:
        """Converts the text of a compose file of a project called "shop"."""
        path = self.write("shop/compose.yaml", text)
        return self("compose", path, *words, **more)

    def unit(self, name: str, text: str, *others: str) -> Converted:
        """Converts the text of a Quadlet unit."""
        return self("quadlet", self.write(f"units/{name}", text), *others)
