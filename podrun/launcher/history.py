"""What generations a pod has had: a line of JSON for each change, 0600, as it may hold what a pod file holds.

``<root>/history/<pod>``. It outlives the pod and the boot: a rollback takes from it the pod as it was, and from the
images what their names stood for.
"""

from __future__ import annotations

import os
import time

from podrun import jsontext
from podrun.engine import hook_loader
from podrun.engine.segments import resolve
from podrun.hook_extras import KeepsVersions, offers
from podrun.identity import Identity
from podrun.podfile.loader import PodText, StepText
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.hook import Pod
    from podrun.host import Host

#: What a reload may be, and how it may end.
OK, FAILED = "ok", "failed"
#: Lines beyond these are forgotten, the oldest first.
_MOST = 200


class Change(NamedTuple):
    """One change of a pod."""

    #: Counts the pod's changes; what ``podrun rollback`` is given.
    generation: int
    #: Seconds since 1970.
    at: float
    #: "up", "reload", "update" or "rollback".
    how: str
    #: "root", "anna (root)", "systemd".
    by: str
    result: str
    why: str
    #: How long it took.
    seconds: float
    #: The step's name and what its image was: see KeepsVersions.version.
    versions: dict[str, dict[str, Any]]
    #: The pod as it was meant, PodText as a table.
    text: dict[str, Any]

    @property
    def digests(self) -> dict[str, str]:
        """What each image step had."""
        return {name: str(version["digest"]) for name, version in self.versions.items()}


def path_of(root: str, pod: str) -> str:
    """The file of a pod's history."""
    return f"{root}/history/{Identity(pod).text}"


def read(root: str, pod: str) -> list[Change]:
    """The changes of a pod, oldest first; a torn line is left out."""
    try:
        with open(path_of(root, pod), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for line in lines:
        try:
            found.append(Change(**jsontext.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def note(
    host: Host,
    text: PodText,
    how: str,
    by: str,
    began: float,
    *,
    result: str = OK,
    why: str = "",
    restarted: bool = False,
) -> Change:
    """Writes a change down. ``began``: of time.monotonic(). A restart of the same is none: its line stays the last.

    ``restarted``: the pod was stopped and started for the change, whose line takes the place of that start's.
    """
    past = read(host.root, text.name)
    began_at = time.time() - (time.monotonic() - began)
    own = restarted and bool(past) and past[-1].how == "up" and past[-1].at >= began_at - 0.1
    if own:
        past.pop()
    number = past[-1].generation + 1 if past else 1
    change = Change(
        number, round(time.time(), 1), how, by, result, why, round(time.monotonic() - began, 2),
        versions_of(host.root, text), table_of(text),
    )  # fmt: skip
    now = current(past)
    if how == "up" and now and (now.text, now.digests) == (change.text, change.digests):
        return now
    try:
        _append(path_of(host.root, text.name), past, change, whole=own)
    except OSError as error:
        # The pod is what it is: a full disk must not end it.
        host.report(f"{path_of(host.root, text.name)}: {error.strerror}: its history lacks this change")
    return change


def _append(path: str, past: Sequence[Change], change: Change, *, whole: bool) -> None:
    """Adds a line to a pod's file; ``whole``: writes all of it, as it is to have lost one."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    if whole or len(past) >= _MOST:
        from podrun import atomic

        kept = [*past[max(0, len(past) + 1 - _MOST) :], change]
        atomic.replace(path, "".join(jsontext.dumps(change._asdict()) + "\n" for change in kept))
        return
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, (jsontext.dumps(change._asdict()) + "\n").encode())
    finally:
        os.close(fd)


def current(changes: Sequence[Change]) -> Change | None:
    """The latest change that went well: what the pod is."""
    return next((change for change in reversed(changes) if change.result == OK), None)


def versions_of(root: str, text: PodText) -> dict[str, dict[str, Any]]:
    """What the images of a pod's steps are now, by the steps' names."""
    found = {}
    for step in text.steps:
        hook = hook_loader.load(step.hook)
        keeping = offers(hook, KeepsVersions)
        if keeping:
            options = resolve(_nobodys(root, text), hook, step._asdict()).options
            if version := keeping.version(root, options):
                found[step.name] = version
    return found


def bring_back(root: str, text: PodText, versions: dict[str, dict[str, Any]]) -> None:
    """Makes the images' names stand for earlier versions again. Raises Failure, or OSError, when one is not there."""
    for step in text.steps:
        keeping = offers(hook_loader.load(step.hook), KeepsVersions)
        if keeping and step.name in versions:
            keeping.bring_back(root, versions[step.name])


def kept(root: str, keep: int = 3) -> set[str]:
    """The digests of the images that rollbacks may need: of each pod's latest generations that went well."""
    try:
        names = os.listdir(f"{root}/history")
    except FileNotFoundError:
        return set()
    found: set[str] = set()
    for name in names:
        good = [change for change in _of_file(root, name) if change.result == OK]
        wanted = int(good[-1].text.get("update", {}).get("keep", keep)) if good else keep
        found |= {digest for change in good[-wanted:] for digest in change.digests.values()}
    return found


def _of_file(root: str, name: str) -> list[Change]:
    from podrun.identity import of_text

    return read(root, of_text(name).pod)


def table_of(text: PodText) -> dict[str, Any]:
    """A pod as a table of JSON."""
    table: dict[str, Any] = jsontext.loads(
        jsontext.dumps({**text._asdict(), "steps": [step._asdict() for step in text.steps]})
    )
    return table


def of_table(table: dict[str, Any]) -> PodText:
    """The inverse of :func:`table_of`."""
    steps = [StepText(**{**step, "for_": tuple(step["for_"])}) for step in table["steps"]]
    return PodText(**{**table, "steps": tuple(steps)})


def who(environ: Any) -> str:
    """Who asks, for people who read the history later."""
    if environ.get("INVOCATION_ID") and environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        return "systemd"
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    asked = environ.get("SUDO_USER", "")
    return f"{asked} ({name})" if asked.isprintable() and asked else name


def _nobodys(root: str, text: PodText) -> Pod:
    from podrun.hook import Pod

    return Pod(text.name, root, "")
