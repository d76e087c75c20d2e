"""Writable layers and logs of containers that a power cut has ended."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from podrun.identity import Identity
from podrun_hooks.container import paths, processes
from podrun_hooks.support import leftovers
from podrun_hooks.support.rooted_tree import OWNER, clear

if TYPE_CHECKING:
    from collections.abc import Set

    from podrun_hooks.support.leftovers import Leftover


def collect(root: str, run: str, pods: Set[str], *, only_look: bool) -> list[str]:
    """Removes them, or with ``only_look`` looks for them; returns their names. ``pods``: those that there are."""
    found = []
    for left in leftovers.of(root, run, pods):
        # No container's name has a dot; what storage steps leave has one.
        if "." in left.name or processes.with_mount(_mark(left, run)):
            continue
        found.append(f"writable layer of {left.name} of {left.pod}")
        if not only_look:
            paths.remove_logs(f"{left.path}.log")
            for name in os.listdir(left.path):
                if name != OWNER:
                    clear(f"{left.path}/{name}")
            # The last of it: what a kill leaves before this is found again.
            os.unlink(f"{left.path}/{OWNER}")
            leftovers.forget(left)
    return found


def _mark(left: Leftover, run: str) -> str:
    """What shows that a process lives in the container, whoever has removed the pod's journal."""
    key = left.pod if left.generation == 1 else f"{left.pod}/+{left.generation}"
    tag = Identity(left.pod).tag(run, left.generation)
    return paths.mark_of(f"{tag}.{left.name}", f"{run}/pods/{key}/{left.name}")
