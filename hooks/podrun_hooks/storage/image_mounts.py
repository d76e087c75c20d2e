"""Images that ``podrun image mount`` has mounted on the host, at <run>/images/DIGEST, read-only, until ``unmount``.

What is mounted is told by the directories there and the kernel; a reboot leaves neither.
"""

from __future__ import annotations

import os

from podrun_hooks.storage import host_mounts


def place_of(run: str, digest: str) -> str:
    """Where an image is, or would be, mounted."""
    return f"{run}/images/{digest.removeprefix('sha256:')}"


def mount(run: str, digest: str, layers: list[str]) -> str:
    """Mounts an image, whose ``layers`` are given lowest first, unless it is mounted; returns where."""
    place = place_of(run, digest)
    os.makedirs(place, mode=0o700, exist_ok=True)
    if not os.path.ismount(place):
        try:
            host_mounts.show(f"podrun-{digest[7:19]}", place, list(dict.fromkeys(reversed(layers))))
        except BaseException:
            os.rmdir(place)
            raise
    return place


def mounted(run: str) -> list[str]:
    """The digests of the mounted images. One whose directory is there is about to be mounted."""
    try:
        return [f"sha256:{name}" for name in sorted(os.listdir(f"{run}/images"))]
    except FileNotFoundError:
        return []


def unmount(run: str, digest: str) -> None:
    """Unmounts an image. Raises Failure (BUSY) naming who keeps it busy."""
    place = place_of(run, digest)
    host_mounts.unmount(place, f"image {digest[7:19]}")
    try:
        os.rmdir(place)
    except FileNotFoundError:
        pass
