"""What pods that are gone have left on the disk: /run, and with it their journals, does not outlive a power cut.

Below $PODRUN_ROOT/pods a pod has a directory, and a later generation of it one below that. What lies in these ends with
the pod where it has the link that rooted_tree.claim makes. Nothing else is a leftover: a layer that persists has none.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from podrun_hooks.support.rooted_tree import OWNER, names

if TYPE_CHECKING:
    from collections.abc import Iterator, Set


class Leftover(NamedTuple):
    """A directory of a step of a pod that is gone."""

    pod: str
    generation: int
    #: Its name below the pod's directory, and its path.
    name: str
    path: str


def of(root: str, run: str, pods: Set[str]) -> list[Leftover]:
    """The leftovers of this run directory's pods; ``pods``: those that there are."""
    found = []
    for pod in names(f"{root}/pods"):
        if pod in pods:
            continue
        above = f"{root}/pods/{pod}"
        later = [name for name in names(above) if name[0] == "+" and name[1:].isdecimal()]
        for generation, directory in [(1, above), *((int(name[1:]), f"{above}/{name}") for name in later)]:
            found += [Leftover(pod, generation, name, f"{directory}/{name}") for name in _claimed(directory, run)]
    return found


def forget(leftover: Leftover) -> None:
    """Removes the directories that held only the leftover, itself included; what else they hold stays."""
    above = os.path.dirname(leftover.path)
    for directory in (leftover.path, above, *([os.path.dirname(above)] if leftover.generation > 1 else ())):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _claimed(directory: str, run: str) -> Iterator[str]:
    for name in names(directory):
        try:
            if os.readlink(f"{directory}/{name}/{OWNER}") == run:
                yield name
        except OSError:
            continue
