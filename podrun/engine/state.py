"""A pod's state, as its journals and the kernel tell it."""

from __future__ import annotations

import os

from podrun.engine import journal as journals
from podrun.engine import locks
from podrun.engine.journal import Entry, Journal
from podrun.engine.processes import alive, boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def state(run: str, name: str) -> str:
    """absent, starting, up, dead, stopping or failed; see section "States" of docs/reference/command-line.md."""
    return state_of(run, name, journals.journals(run, name))


def state_of(run: str, name: str, found: Sequence[Journal]) -> str:
    """The same for a caller that has already read the pod's journals."""
    if not found:
        return "absent"
    if locks.is_locked(run, name):
        if any(journal.stopping for journal in found):
            return "stopping"
        # While the next generation starts beside it, this one is up.
        return "up" if all(journal.ready for journal in found) else "starting"
    return standing(found)


def standing(found: Sequence[Journal]) -> str:
    """up, dead or failed: the state of a pod that no podrun is working on. The caller holds its lock."""
    if any(journal.stopping for journal in found) or not all(journal.ready for journal in found):
        return "failed"
    if any(journal.header and journal.header.boot_id != boot_id() for journal in found):
        return "dead"
    processes = [entry.facts["process"] for entry in entries(found) if "process" in entry.facts]
    if processes and not any(alive(process["pid"], process["start"]) for process in processes):
        return "dead"
    return "up"


def entries(found: Sequence[Journal]) -> list[Entry]:
    """The steps of all the pod's segments, in start order."""
    return [entry for journal in found for entry in journal.entries]


def file_of(run: str, path: str) -> list[str]:
    """The pods that were started from the pod file at ``path``."""
    wanted = os.path.realpath(path)
    return [
        name
        for name in journals.pods(run)
        if any(journal.header and journal.header.file == wanted for journal in journals.journals(run, name))
    ]


def resident(run: str, name: str, container: str = "") -> tuple[Journal, Entry] | None:
    """The journal and the entry of a pod's container: the named one, else the last."""
    for journal in reversed(journals.journals(run, name)):
        for entry in reversed(journal.entries):
            if is_resident(entry) and (not container or entry.step["name"] == container):
                return journal, entry
    return None


def is_resident(entry: Entry) -> bool:
    """Whether the step has left a process running, or was about to."""
    return bool(entry.process or "process" in entry.facts)
