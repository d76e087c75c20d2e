"""Puts the pages of the site together: this directory, the README as the first page, what lies beside it, the examples.

Usage: python docs/assemble.py DIRECTORY. Links that lead through the repository become links within the site.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")


def assemble(to: Path) -> None:
    """Writes the pages below ``to``, which is emptied first."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(ROOT / "docs", to, ignore=shutil.ignore_patterns("*.py", "draw", "*.dot", "*.msc"))
    shutil.copytree(ROOT / "examples", to / "examples")
    for name in BESIDE:
        shutil.copy(ROOT / name, to / name)
    shutil.copy(ROOT / "README.md", to / "index.md")
    for page in to.rglob("*.md"):
        page.write_text(within(page.read_text(), str(page.relative_to(to))))


def within(text: str, page: str) -> str:
    """The page's text with its links as they are within the site."""
    if page.startswith("examples/"):
        return text.replace("](../../docs/", "](../../")
    if "/" not in page:
        return text.replace("](docs/", "](")
    return text.replace("](../../examples/", "](../examples/").replace("](../../README.md", "](../index.md")


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
