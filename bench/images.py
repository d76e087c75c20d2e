"""Pulls and stores in the run of everybody: the cases of bench/pull.py, and the disk that twenty images take."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
from pathlib import Path

import pull
from report import Figures

_CASES = {
    "gzip": "pull of 100 MB in five layers",
    "small": "pull of 6,000 small files",
    "noop": "pull when nothing is new",
}
_IMAGES = 20


def pulls_and_stores(figures: Figures, rounds: int) -> None:
    """Pulls from a registry of the bench's own, then twenty images that have all but their last layer in common."""
    pull.begin()
    place = Path(tempfile.mkdtemp(prefix="podrun-bench-", dir="/var/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["rm", "-rf", str(place)], check=False)
        stack.callback(subprocess.run, ["umount", "-q", f"{place}/podman/overlay"], check=False)
        peers = pull.peers_of(place, [], stack)
        host = stack.enter_context(pull.registry(place))
        given = argparse.Namespace(only=[*_CASES], size=100, files=6_000, rounds=rounds)
        for case, rows in pull.measured(place, host, peers, given).items():
            for name, taken in rows.items():
                for one in taken:
                    figures.add(_CASES[case], "s", name, one.wall)
        _store(figures, place, host, peers)


def _store(figures: Figures, place: Path, host: str, peers: dict[str, pull.Puller]) -> None:
    # What umoci unpacks is shared by nobody: there is no store of it.
    stores = {name: place / name for name in ("podrun", "podman", "docker") if name in peers}
    before = {name: _used(path) for name, path in stores.items()}
    (place / "twenty").mkdir()
    bases = pull.programs(place / "twenty", 20 << 20, "gzip")
    for number in range(_IMAGES):
        ref = f"{host}/bench/twenty:{number}"
        pull.push(place, bases, [*["base"] * (len(bases) - 1), f"own-{number}"], ref)
        for name in stores:
            peers[name](ref)
    for name, path in stores.items():
        figures.add(f"disk of {_IMAGES} images of 20 MB with a common base", "MB", name, _used(path) - before[name])


def _used(path: Path) -> float:
    """MB on the disk, each file once."""
    done = subprocess.run(["du", "-sx", "--block-size=1000", str(path)], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0]) / 1000
