"""Builds podrun.pyz: podrun and what it needs of pure Python in one file, which unpacks itself once.

Modules in an archive have no path, and podrun starts some of its files by their path: the probe of ``live``, the
generator. So the file unpacks itself into a cache at its first start, by the name of its own hash, and runs from there.
What is compiled (psutil, zstandard) is the host's: a module of one Python version would not do for the others.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
#: Compiled, or of use with compiled modules only.
COMPILED = frozenset({"psutil", "zstandard"})

MAIN = Path(__file__).with_name("unpack.py")


def build(output: Path) -> Path:
    """Builds the file into a directory; returns its path."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="podrun-pyz-") as place:
        files = {**_own(Path(place)), **_needed()}
        digest = hashlib.sha256()
        for name in sorted(files):
            digest.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
        main = MAIN.read_text().replace("@NAME@", digest.hexdigest()[:16])
        target = output / "podrun.pyz"
        with open(target, "wb") as file:
            file.write(b"#!/usr/bin/env python3\n")
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in sorted({**files, "__main__.py": main.encode()}.items()):
                    # The same sources give the same file.
                    archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
        target.chmod(0o755)
    return target


def _own(place: Path) -> dict[str, bytes]:
    """The files of the wheel, its metadata included: entry points are found by it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(place), str(CHECKOUT)], check=True)
    (wheel,) = place.glob("podrun-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".data/" not in name}


def _needed() -> dict[str, bytes]:
    """The Python files of what podrun requires, and of what those require; nothing that is compiled."""
    names, seen = ["podrun"], set()
    found: dict[str, bytes] = {}
    while names:
        name = names.pop()
        if name in seen or name in COMPILED:
            continue
        seen.add(name)
        about = distribution(name)
        for line in about.requires or []:
            if "extra ==" not in line and "platform" not in line:
                names.append(_name(line))
        for path in about.files or [] if name != "podrun" else []:
            if path.suffix in (".so", ".pyc") or path.parts[0] in ("..", "bin"):
                continue
            if ".dist-info" in path.parts[0] and path.name not in ("METADATA", "entry_points.txt"):
                continue
            place = Path(str(path.locate()))
            if place.is_file():
                found[str(path)] = place.read_bytes()
    return found


def _name(requirement: str) -> str:
    length = next((n for n, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), len(requirement))
    return requirement[:length]


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else CHECKOUT / "dist")))
