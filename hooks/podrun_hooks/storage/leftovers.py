"""Overlays, snapshots and removed volumes that a power cut, or a kill, has left on the disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from podrun.errors import Failure
from podrun.identity import Identity
from podrun_hooks.storage import btrfs, volumes
from podrun_hooks.storage.host_mounts import OVERLAY, SNAPSHOT_NOTE
from podrun_hooks.support import leftovers
from podrun_hooks.support.rooted_tree import OWNER, clear

if TYPE_CHECKING:
    from collections.abc import Set

    from podrun_hooks.support.leftovers import Leftover


def collect(root: str, run: str, pods: Set[str], *, only_look: bool) -> list[str]:
    """Removes them, or with ``only_look`` looks for them; returns their names. ``pods``: those that there are."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = file.read()
    for left in leftovers.of(root, run, pods):
        step, _, kind = left.name.rpartition(".")
        own = f"{Identity(left.pod).tag(run, left.generation)}.{step}"
        # Still mounted: somebody has removed the pod's journal, and it lives.
        if f".{kind}" not in (OVERLAY, SNAPSHOT_NOTE) or f" - overlay {own} " in mounts:
            continue
        try:
            if not only_look:
                _remove(left, own)
        except Failure:  # a snapshot in use
            continue
        found.append(f"{kind} of {step} of {left.pod}")
    return found + volumes.collect(root, only_look=only_look)


def _remove(left: Leftover, own: str) -> None:
    """``own``: the name of the step's objects outside the pod's directory. Raises Failure (BUSY)."""
    if left.name.endswith(SNAPSHOT_NOTE):
        btrfs.remove(os.readlink(f"{left.path}/source"), own)
        os.unlink(f"{left.path}/source")
    else:
        clear(f"{left.path}/upper")
        clear(f"{left.path}/work")
    # The last of it: what a kill leaves before this is found again.
    os.unlink(f"{left.path}/{OWNER}")
    leftovers.forget(left)
