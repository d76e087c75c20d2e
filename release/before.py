"""Builds the wheel of the version before from the repository's history: python release/before.py DIR [COMMIT].

A release is tried with it: pods that the version before has started are listed, stopped and undone by this one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
#: The last commit of the version before; RELEASING.md says when it moves on.
COMMIT = "bde67cee2261a400521bef013121c8f0a5c64dda"
# A checkout may belong to somebody else, in a container of CI for one.
_GIT = ("git", "-c", "safe.directory=*", "-C", str(CHECKOUT))


def lacking() -> str:
    """Why the wheel cannot be built here, or ""."""
    done = subprocess.run(
        [*_GIT, "cat-file", "-e", f"{COMMIT}^{{commit}}"], capture_output=True, text=True, check=False
    )
    return f"the history of this checkout does not reach {COMMIT[:7]}: {done.stderr.strip()}" if done.returncode else ""


def build(output: Path, commit: str = COMMIT) -> Path:
    """Builds the wheel into a directory; returns its path."""
    with tempfile.TemporaryDirectory(prefix="podrun-before-") as place:
        archive = subprocess.run([*_GIT, "archive", commit], stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", place], input=archive, check=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
        subprocess.run([*pip, "--wheel-dir", str(output), place], check=True)
    (wheel,) = output.glob("podrun-*.whl")
    return wheel


if __name__ == "__main__":
    if problem := lacking():
        sys.exit(problem)
    print(build(Path(sys.argv[1]), *sys.argv[2:3]))
