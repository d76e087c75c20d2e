"""Exit records, ``<run>/ended/POD``: all that is known of containers whose unit systemd has undone."""

from __future__ import annotations

import os
import time

from podrun import atomic, jsontext
from podrun import identity as identities
from podrun.identity import Identity
from podrun.record import NamedTuple
from podrun.systemd import events, notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from podrun.engine.journal import Journal


#: Seconds that pass, at most, between what podrun writes for a transient unit and the unit.
_STARTING = 60.0


def created_path(root: str, name: str) -> str:
    """What ``podrun create`` has written for a start, in the form of podrun.launcher.transient; a reboot leaves it."""
    return f"{root}/created/{Identity(name).text}.json"


def is_created(root: str, name: str) -> bool:
    """Whether ``podrun create`` made the pod, and nobody has removed it."""
    return os.path.exists(created_path(root, name))


class Ending(NamedTuple):
    """The end of one invocation of a unit. ``status`` is as a shell shows it, 128+n for signal n; None: unknown yet."""

    invocation: str
    status: int | None
    unit: str = ""
    file: str = ""
    #: Seconds since 1970.
    at: float = 0.0
    #: Of each: "name", "image" (a reference, or None), "log" (a file, or "": systemd's journal has it), "dropped"
    #: (nobody has it), "command" and
    #: "labels" (of the pod file), "started" (seconds since 1970).
    containers: list[dict[str, Any]] = []


def note(
    run: str, name: str, segment: str, invocation: str, environ: Mapping[str, str], found: Sequence[Journal]
) -> None:
    """Keeps what the journals ``found`` say of a unit's containers before they are gone, and how the unit ended.

    systemd tells ExecStopPost= of the main process's end (EXIT_STATUS: systemd.exec(5)); ExecStop= comes before.
    """
    if environ.get("INVOCATION_ID") != invocation:
        return
    before = read(run, name, segment)
    if before is None or before.invocation != invocation:
        before = Ending(invocation, None)
    header = next((journal.header for journal in found if journal.header), None)
    if header and not header.pod.unit:
        return  # started by hand, by a process of some unit
    if header:
        before = before._replace(unit=header.pod.unit, file=header.file, containers=_containers(found))
    status = _status(environ.get("EXIT_STATUS", ""))
    ending = before._replace(status=before.status if status is None else status, at=time.time())
    if not (header or status is not None):
        return
    if before.status is None and status is not None:
        events.note(run, "pod", "died", name, segment=segment, id=invocation, exit=status)
    atomic.replace(_path(run, name, segment), jsontext.dumps(ending._asdict()), parents=0o700)


def _status(told: str) -> int | None:
    if not told or told.isdecimal():
        return int(told) if told else None
    import signal

    return 128 + getattr(signal, f"SIG{told}", 0)


def _containers(found: Sequence[Journal]) -> list[dict[str, Any]]:
    containers = []
    for journal in found:
        for entry in journal.entries:
            if entry.process or "process" in entry.facts:
                log = entry.facts.get("log", {}).get("file", "")
                options = entry.step["options"]
                containers.append(
                    {
                        "name": entry.step["name"],
                        "image": _image(found, entry.step),
                        "log": log,
                        "dropped": bool(entry.facts.get("log", {}).get("none")),
                        "command": options.get("command"),
                        "labels": options.get("labels"),
                        "started": time.time() - (time.monotonic() - entry.began / 1000) if entry.began else None,
                    }
                )
    return containers


def _image(found: Sequence[Journal], step: Mapping[str, Any]) -> str | None:
    from podrun.facts import merged

    given = merged([entry.facts for journal in found for entry in journal.entries])
    image = given.get("images", {}).get(step["options"].get("image") or given.get("image"), {})
    ref: str | None = image.get("ref")
    return ref


def read(run: str, name: str, segment: str = "") -> Ending | None:
    """The last ending that was noted of a pod, or of one of its segments."""
    try:
        with open(_path(run, name, segment), encoding="utf-8") as file:
            return Ending(**jsontext.loads(file.read()))
    except (FileNotFoundError, TypeError):
        return None


def drop(run: str, name: str, segment: str = "") -> None:
    """Forgets the last ending: from now on ``wait`` waits for that of the start under way."""
    for part in _segments(run, name) if segment in ("", "pod") else [segment]:
        atomic.remove(_path(run, name, part))


def all_of(run: str, name: str) -> list[Ending]:
    """The endings of a pod, in the order in which its containers ended."""
    found = [ending for part in _segments(run, name) if (ending := read(run, name, part))]
    return sorted(found, key=lambda ending: ending.at)


def last(run: str, name: str) -> Ending | None:
    """The pod's own end: its first failure if there was one, as in the foreground, else its last ending."""
    known = [ending for ending in all_of(run, name) if ending.status is not None]
    return next((ending for ending in known if ending.status), known[-1] if known else None)


def names(run: str) -> list[str]:
    """The pods of which an ending is known."""
    return sorted({identity.pod for identity in _identities(run)})


def forget(run: str, pods: Sequence[str]) -> None:
    """Removes the endings of what is none of ``pods``, and what their units were started from (launcher.transient).

    Of the latter, that of a unit that systemd still has is kept: between two starts of its Restart= there is no pod,
    only the unit.
    """
    for place in ("ended", "units"):
        try:
            found = os.listdir(f"{run}/{place}")
        except FileNotFoundError:
            continue
        for name in found:
            pod = identities.of_text(name.removesuffix(".json")).pod
            path = f"{run}/{place}/{name}"
            try:
                kept = pod in pods or name.startswith(".") or (place == "units" and _may_start(run, pod, path))
                if not kept:
                    os.unlink(path)
            except FileNotFoundError:
                continue


def _may_start(run: str, pod: str, path: str) -> bool:
    """True for what a unit is started from that systemd has, or will have in a moment. Raises FileNotFoundError."""
    if notify.is_transient(f"{Identity(pod).tag(run)}.service"):
        return True
    return time.time() - os.stat(path).st_mtime < _STARTING


def forget_start(run: str, name: str) -> None:
    """Removes what a transient unit of the pod was started from (podrun.launcher.transient): it may hold secrets."""
    text = Identity(name).text
    try:
        found = os.listdir(f"{run}/units")
    except FileNotFoundError:
        return
    for file in found:
        # A dot of a pod's name is doubled there.
        if file.startswith(f"{text}.") and not file.startswith(f"{text}.."):
            try:
                os.unlink(f"{run}/units/{file}")
            except FileNotFoundError:
                continue  # a gc was faster
    atomic.sweep(f"{run}/units")


def _identities(run: str) -> list[Identity]:
    try:
        return [identities.of_text(name) for name in os.listdir(f"{run}/ended") if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _segments(run: str, name: str) -> list[str]:
    return [identity.part for identity in _identities(run) if identity.pod == name]


def _path(run: str, name: str, segment: str) -> str:
    return f"{run}/ended/{Identity(name, segment).text}"
