"""What there is to see of pods: the rows of ``ps``, the JSON of ``inspect``, the lines of ``plan``."""

from __future__ import annotations

from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.processes import alive
from podrun.engine.segments import label_of, resolve, segments
from podrun.facts import merged
from podrun.hook_extras import Explains, offers
from podrun.options import without_secrets
from podrun.systemd import exit_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.engine.journal import Entry, Journal
    from podrun.hook import Pod
    from podrun.podfile.loader import PodText


def inspect(run: str, name: str) -> dict[str, Any] | None:
    """Everything that is known of a pod, as JSON; None when there is no such pod."""
    found = journals.journals(run, name)
    if not found:
        return None
    header = next((journal.header for journal in found if journal.header), None)
    entries = states.entries(found)
    given = merged([entry.facts for entry in entries])
    return {
        "name": name,
        "state": states.state(run, name),
        "file": header.file if header else None,
        "unit": (header.pod.unit or None) if header else None,
        "invocation": header.pod.invocation if header else None,
        "boot_id": header.boot_id if header else None,
        "netns": given.get("netns"),
        "addresses": given.get("addresses", []),
        "containers": [_container(entry, _image_of(entry, given)) for entry in entries if _is_resident(entry)],
        "steps": [_step(entry) for entry in entries],
    }


def rows(run: str) -> list[dict[str, Any]]:
    """One row for each pod that is not absent: name, state, pid, image, addresses, unit, file."""
    shown = []
    for name in journals.pods(run):
        whole = inspect(run, name)
        if whole is None:
            continue
        containers = whole["containers"]
        shown.append(
            {
                "name": name,
                "state": whole["state"],
                "containers": len(containers),
                "pid": next((container["pid"] for container in reversed(containers) if container["pid"]), None),
                "image": next((container["image"] for container in reversed(containers)), None),
                "addresses": whole["addresses"],
                "unit": whole["unit"],
                "file": whole["file"],
            }
        )
    return shown


def ended(run: str, name: str) -> dict[str, Any] | None:
    """What is known of a pod that has ended in its units, in the form of :func:`inspect`; None: nothing is."""
    found = exit_records.all_of(run, name)
    last = exit_records.last(run, name) or (found[-1] if found else None)
    if last is None:
        return None
    containers = [(ending, told) for ending in found for told in ending.containers]
    return {
        "name": name,
        "state": "ended",
        "file": last.file or None,
        "unit": last.unit or None,
        "invocation": last.invocation,
        "status": last.status,
        "ended": last.at,
        "netns": None,
        "addresses": [],
        "containers": [
            {**told, "pid": None, "state": "ended", "ready": False, "status": ending.status, "ended": ending.at}
            for ending, told in containers
        ],
        "steps": [],
    }


def ended_rows(run: str) -> list[dict[str, Any]]:
    """A row of ``ps -a`` for each pod that has ended in its units, and is not there any more."""
    there = set(journals.pods(run))
    known = [whole for name in exit_records.names(run) if name not in there and (whole := ended(run, name))]
    return [
        {
            "name": whole["name"],
            "state": "ended",
            "containers": len(whole["containers"]),
            "pid": None,
            "image": next((told["image"] for told in reversed(whole["containers"])), None),
            "addresses": [],
            "unit": whole["unit"],
            "file": whole["file"],
            "status": whole["status"],
        }
        for whole in known
    ]


def plan_up(text: PodText) -> list[dict[str, Any]]:
    """What ``up`` would do, in order."""
    lines = []
    for segment, members in segments(text.steps, hook_loader.load):
        for step in members:
            notes = [word for word, on in (("optional", step.optional), ("background", step.background)) if on]
            if step.for_:
                notes.append(f"for {', '.join(step.for_)}")
            label = label_of(step._asdict())
            path = hook_loader.executable(step.hook)
            options = without_secrets(hook_loader.load(step.hook).Options, step.options)
            row = {"segment": segment, "step": label, "options": options, "notes": notes}
            lines.append({**row, "path": path} if path else row)
    return lines


def explain(text: PodText, pod: Pod) -> list[list[str]]:
    """For each step the commands that do the same by hand; a hook that says nothing has none."""
    lines = []
    for step in text.steps:
        hook = hook_loader.load(step.hook)
        explaining = offers(hook, Explains)
        lines.append(list(explaining.explain(resolve(pod, hook, step._asdict()))) if explaining else [])
    return lines


def plan_down(found: Sequence[Journal]) -> list[dict[str, Any]]:
    """What ``down`` would undo, in order."""
    return [
        {"step": label_of(entry.step), "state": entry.at, "facts": entry.facts}
        for entry in reversed(states.entries(found))
        if entry.at != "down"
    ]


def trace(found: Sequence[Journal]) -> list[dict[str, Any]]:
    """Where the time of the last start went: step, milliseconds, and the share of the whole as a bar of 40 at most."""
    entries = [entry for entry in states.entries(found) if entry.milliseconds]
    whole = sum(entry.milliseconds for entry in entries) or 1.0
    return [
        {
            "step": label_of(entry.step),
            "milliseconds": entry.milliseconds,
            "share": "#" * max(1, round(40 * entry.milliseconds / whole)),
        }
        for entry in entries
    ]


def resident(run: str, name: str, container: str = "") -> tuple[Journal, Entry] | None:
    """The journal and the entry of a pod's container: the named one, else the last."""
    for journal in reversed(journals.journals(run, name)):
        for entry in reversed(journal.entries):
            if _is_resident(entry) and (not container or entry.step["name"] == container):
                return journal, entry
    return None


def _is_resident(entry: Entry) -> bool:
    return bool(entry.process or "process" in entry.facts)


def _image_of(entry: Entry, given: dict[str, Any]) -> str | None:
    """The reference of the image that a container was started from."""
    chosen = given.get("images", {}).get(entry.step["options"].get("image") or given.get("image"), {})
    ref: str | None = chosen.get("ref")
    return ref


def _container(entry: Entry, image: str | None) -> dict[str, Any]:
    process = entry.facts.get("process") or entry.process or {}
    running = bool(process) and alive(process["pid"], process["start"])
    return {
        "name": entry.step["name"],
        "pid": process.get("pid") if running else None,
        "state": "running" if running else "ended",
        "image": image,
        "ready": bool(entry.facts.get("ready")) and running,
    }


def _step(entry: Entry) -> dict[str, Any]:
    return {
        "hook": entry.step["hook"],
        "name": entry.step["name"],
        "state": entry.at,
        "facts": entry.facts,
        "milliseconds": entry.milliseconds,
        **({"why": entry.why} if entry.why else {}),
    }
