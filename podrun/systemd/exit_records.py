"""How containers ended whose unit systemd has undone: ``<run>/ended/POD``, the answer of ``podrun wait`` afterwards."""

from __future__ import annotations

import os

from podrun import jsontext
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Ending(NamedTuple):
    """The end of one invocation of a unit's main process. ``status`` is as a shell shows it: 128+n for signal n."""

    invocation: str
    status: int


def note(run: str, name: str, segment: str, invocation: str, environ: Mapping[str, str]) -> None:
    """Keeps what systemd tells an ExecStopPost= of the main process' end (EXIT_CODE, EXIT_STATUS: systemd.exec(5))."""
    told = environ.get("EXIT_STATUS", "")
    if environ.get("INVOCATION_ID") != invocation or not told:
        return
    if told.isdigit():
        status = int(told)
    else:
        import signal

        status = 128 + getattr(signal, f"SIG{told}", 0)
    path = _path(run, name, segment)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(jsontext.dumps([invocation, status]))
    os.rename(f"{path}.new", path)


def read(run: str, name: str, segment: str = "") -> Ending | None:
    """The last ending that was noted of a pod, or of one of its segments."""
    try:
        with open(_path(run, name, segment), encoding="utf-8") as file:
            return Ending(*jsontext.loads(file.read()))
    except FileNotFoundError:
        return None


def drop(run: str, name: str, segment: str = "") -> None:
    """Forgets the last ending: what is asked for from now on is that of the start under way."""
    try:
        os.unlink(_path(run, name, segment))
    except FileNotFoundError:
        pass


def last(run: str, name: str) -> Ending | None:
    """The latest ending that was noted of a pod, whichever of its containers it was."""
    try:
        with os.scandir(f"{run}/ended") as entries:
            found = [(entry.stat().st_mtime, entry.name) for entry in entries if entry.name.split(".")[0] == name]
    except FileNotFoundError:
        return None
    return read(run, name, max(found)[1].partition(".")[2]) if found else None


def forget(run: str, pods: Sequence[str]) -> None:
    """Removes the endings of what is none of ``pods``, and what their units were started from (podrun.transient)."""
    for place in ("ended", "units"):
        try:
            names = os.listdir(f"{run}/{place}")
        except FileNotFoundError:
            continue
        for name in names:
            if name.split(".")[0] not in pods:
                os.unlink(f"{run}/{place}/{name}")


def _path(run: str, name: str, segment: str) -> str:
    return f"{run}/ended/{name}.{segment}" if segment else f"{run}/ended/{name}"
