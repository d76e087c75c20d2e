"""Pods as people see them: the rows of ``ps``, the JSON of ``inspect``, the lines of ``plan``."""

from __future__ import annotations

import time

from podrun.cli import details, times
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

    from podrun.engine.journal import Entry, Header, Journal
    from podrun.hook import Pod
    from podrun.host import Host
    from podrun.podfile.loader import PodText


def inspect(run: str, name: str, *, limits: bool = True) -> dict[str, Any] | None:
    """Everything that is known of a pod, as JSON; None when there is no such pod.

    ``limits``: those that the kernel holds, too, which is a dozen files for each container.
    """
    found = journals.journals(run, name)
    if not found:
        return None
    header = next((journal.header for journal in found if journal.header), None)
    entries = states.entries(found)
    given = merged([entry.facts for entry in entries])
    residents = [entry for entry in entries if states.is_resident(entry)]
    return {
        "name": name,
        "state": states.state_of(run, name, found),
        "started": details.began(header, (residents or entries)[-1]) if entries else None,
        "file": header.file if header else None,
        "unit": (header.pod.unit or None) if header else None,
        "invocation": header.pod.invocation if header else None,
        "boot_id": header.boot_id if header else None,
        "netns": given.get("netns"),
        "addresses": given.get("addresses", []),
        "networks": details.networks(entries),
        "hostname": given.get("hostname"),
        "ports": details.ports(given),
        "containers": [_container(header, entry, given, limits=limits) for entry in residents],
        "steps": [_step(entry) for entry in entries],
    }


def rows(run: str) -> list[dict[str, Any]]:
    """One row for each pod that is not absent; of several containers the last one counts."""
    shown = []
    for name in journals.pods(run):
        whole = inspect(run, name, limits=False)
        if whole is None:
            continue
        last = whole["containers"][-1] if whole["containers"] else {}
        state = "paused" if whole["state"] == "up" and details.is_frozen(last.get("pid"), last["name"]) else ""
        shown.append(
            {
                "name": name,
                "state": whole["state"],
                "status": _status(state or whole["state"], last, whole["started"]),
                "health": last.get("health"),
                "containers": len(whole["containers"]),
                "pid": next((one["pid"] for one in reversed(whole["containers"]) if one["pid"]), None),
                "image": last.get("image"),
                "command": " ".join(last.get("command", ())),
                "ports": whole["ports"],
                "addresses": whole["addresses"],
                "labels": last.get("labels", {}),
                "started": whole["started"],
                "exit": None,
                "unit": whole["unit"],
                "file": whole["file"],
                "id": whole["invocation"],
            }
        )
    return shown


def _status(state: str, last: dict[str, Any], started: float | None) -> str:
    """ "Up 3 minutes (healthy)", as people know it from elsewhere; podrun's own word where that says more."""
    if state not in ("up", "paused") or started is None:
        return state.capitalize()
    notes = [word for word in ("paused" if state == "paused" else "", last.get("health") or "") if word]
    return f"Up {times.age(time.time() - started)}" + (f" ({', '.join(notes)})" if notes else "")


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
        "started": next((told.get("started") for _, told in reversed(containers)), None),
        "file": last.file or None,
        "unit": last.unit or None,
        "invocation": last.invocation,
        "status": last.status,
        "ended": last.at,
        "netns": None,
        "addresses": [],
        "networks": [],
        "hostname": None,
        "ports": [],
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
    rows = []
    for whole in known:
        last = whole["containers"][-1] if whole["containers"] else {}
        rows.append(
            {
                "name": whole["name"],
                "state": "ended",
                "status": f"Exited ({whole['status']}) {times.age(time.time() - whole['ended'])} ago",
                "health": None,
                "containers": len(whole["containers"]),
                "pid": None,
                "image": last.get("image"),
                "command": " ".join(last.get("command") or ()),
                "ports": [],
                "addresses": [],
                "labels": last.get("labels") or {},
                "started": last.get("started"),
                "exit": whole["status"],
                "unit": whole["unit"],
                "file": whole["file"],
                "id": whole["invocation"],
            }
        )
    return rows


def created(host: Host, name: str) -> dict[str, Any] | None:
    """What is known of a pod that ``podrun create`` made and nobody has started, in the form of :func:`inspect`."""
    from podrun.launcher import transient  # here: 'ps' does without units

    text = transient.kept(name, host) if exit_records.is_created(host.root, name) else None
    if text is None:
        return None
    images = [step.options.get("ref") for step in text.steps if "ref" in step.options]
    return {
        **dict.fromkeys(("started", "file", "unit", "invocation", "netns", "hostname")),
        "name": name,
        "state": "created",
        **{key: [] for key in ("addresses", "networks", "ports", "steps")},
        "containers": [
            {
                "name": step.name,
                "pid": None,
                "state": "created",
                "ready": False,
                "image": images[-1] if images else None,
                "command": [*(step.options.get("entrypoint") or ()), *(step.options.get("command") or ())],
                "labels": step.options.get("labels") or {},
            }
            for step in text.steps
            if step.hook == "container"
        ],
    }


def created_rows(host: Host) -> list[dict[str, Any]]:
    """A row of ``ps -a`` for each pod that ``podrun create`` made, and that has not been started since."""
    from podrun.launcher import transient  # here: 'ps' does without units

    started = {*journals.pods(host.run), *exit_records.names(host.run)}
    known = [whole for name in transient.created(host) if name not in started and (whole := created(host, name))]
    rows = []
    for whole in sorted(known, key=lambda whole: str(whole["name"])):
        last = whole["containers"][-1] if whole["containers"] else {}
        nothing = dict.fromkeys(("health", "pid", "started", "exit", "unit", "file", "id"))
        rows.append(
            {
                **nothing,
                "name": whole["name"],
                "state": "created",
                "status": "Created",
                "containers": len(whole["containers"]),
                "image": last.get("image"),
                "command": " ".join(last.get("command") or ()),
                "ports": [],
                "addresses": [],
                "labels": last.get("labels") or {},
            }
        )
    return rows


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


def _container(header: Header | None, entry: Entry, given: dict[str, Any], *, limits: bool = True) -> dict[str, Any]:
    process = entry.facts.get("process") or entry.process or {}
    running = bool(process) and alive(process["pid"], process["start"])
    options = entry.step["options"]
    return {
        "name": entry.step["name"],
        "pid": process.get("pid") if running else None,
        "state": "running" if running else "ended",
        "image": details.image(entry, given).get("ref"),
        "digest": details.image(entry, given).get("digest"),
        "ready": bool(entry.facts.get("ready")) and running,
        "health": details.health(entry),
        "started": details.began(header, entry),
        "command": details.command(entry, given),
        "env": details.environment(entry, given),
        "user": options.get("user") or None,
        "workdir": options.get("workdir") or None,
        "labels": details.labels(entry, given),
        "mounts": details.mounts(entry, given),
        "limits": details.limits(entry, process.get("pid") if running and limits else None),
        "log": entry.facts.get("log", {}).get("file"),
        "runtime": entry.facts.get("runtime"),
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
