"""Steps that join and leave a pod that is up, in the journal like all others: ``podrun network connect``."""

from __future__ import annotations

import time

from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.segments import label_of, resolve
from podrun.errors import BUSY, UNAVAILABLE, Failure
from podrun.facts import accepted, merged
from podrun.launcher import launch
from podrun.systemd import events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from podrun.engine.journal import Entry, Journal
    from podrun.host import Host

#: What the names of joined steps begin with, before what tells them apart.
_PREFIX = "joined-"


def connect(name: str, hook: str, key: str, options: Mapping[str, Any], host: Host) -> dict[str, Any]:
    """Adds a step of ``hook`` behind all others of the pod; returns its facts. ``key`` tells it from others.

    Raises Failure: UNAVAILABLE when the pod is not up, BUSY when it has that step, or what the hook says.
    """
    with launch.patient_lock(name, host):
        journal = _serving(name, host)
        label = _PREFIX + key
        if any(entry.step["name"] == label and entry.at == "up" for entry in journal.entries):
            raise Failure(f"it is already connected to {key}", code=BUSY)
        record = {
            "hook": hook, "name": label, "optional": False, "background": False, "for_": (), "timeout": None,
            "options": dict(options),
        }  # fmt: skip
        assert journal.header is not None
        loaded = hook_loader.load(hook)
        step = resolve(journal.header.pod, loaded, record, report=host.report)
        for problem in loaded.check(step):
            if problem.fatal:
                raise Failure(problem.what, code=problem.code, hint=problem.hint)
        everything = states.entries(journals.journals(host.run, name))
        given = merged([entry.facts for entry in everything if entry.at == "up"])
        n = max(entry.n for entry in everything) + 1
        with journals.Writer(journal.path) as writer:
            writer.starting(n, record)
            began = time.monotonic()
            try:
                facts = accepted(loaded.up(step, given))
            except BaseException:
                loaded.down(step, {})
                writer.down(n)
                raise
            writer.up(n, facts, (time.monotonic() - began) * 1000)
        events.note(host.run, hook, "connect", key, pod=name)
        return facts


def disconnect(name: str, hook: str, key: str, host: Host) -> None:
    """Removes the step that :func:`connect` has made. Raises Failure (UNAVAILABLE) when there is none."""
    with launch.patient_lock(name, host):
        journal = _serving(name, host)
        entry = next((one for one in reversed(journal.entries) if _is(one, hook, key)), None)
        if entry is None or journal.header is None:
            raise Failure(
                f"it is not connected to {key} by 'network connect'", code=UNAVAILABLE, hint=_why(journal, key)
            )
        loaded = hook_loader.load(hook)
        step = resolve(journal.header.pod, loaded, entry.step, report=host.report)
        with journals.Writer(journal.path) as writer:
            writer.stopping(entry.n)
            loaded.down(step, entry.facts)
            writer.down(entry.n)
        events.note(host.run, hook, "disconnect", key, pod=name)


def _is(entry: Entry, hook: str, key: str) -> bool:
    return entry.step["hook"] == hook and entry.step["name"] == _PREFIX + key and entry.at != "down"


def _why(journal: Journal, key: str) -> str:
    own = [label_of(entry.step) for entry in journal.entries if entry.step["options"].get("bridge") == key]
    return f"its own step {own[0]} stays as long as the pod" if own else "'podrun inspect' shows its networks"


def _serving(name: str, host: Host) -> Journal:
    """The first journal of the generation that serves: what stands in it is undone last, when nothing uses it."""
    found = journals.journals(host.run, name)
    if not found or states.standing(found) != "up" or found[0].header is None:
        raise Failure(f"{name}: the pod is not up", code=UNAVAILABLE, hint=f"podrun up -d {name}")
    return found[0]
