"""A file in a pod's containers that lists a service's backends, for proxies and caches that want to know each of them.

``ADDRESS PORT WEIGHT`` a line, sorted by address; empty without a backend. Containers see its directory, so
that a new version appears at once and whole, by rename(2).
"""

from __future__ import annotations

import os

from podrun import atomic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.hook import Step
    from podrun_hooks.ambassador.targets import Target


def begin(step: Step) -> str:
    """Makes the file, empty; returns its path, "" when the step wants none."""
    if not step.options.backends:
        return ""
    os.makedirs(_directory(step), mode=0o755, exist_ok=True)
    os.chmod(_directory(step), 0o755)
    path = f"{_directory(step)}/{step.options.service}"
    write(path, [])
    return path


def mounts(step: Step) -> list[dict[str, Any]]:
    """The mount that shows it to the containers."""
    if not step.options.backends:
        return []
    restricted = ["bind", "ro", "nosuid", "nodev", "noexec"]
    return [
        {"hostPath": _directory(step), "containerPath": step.options.backends, "type": "bind", "options": restricted}
    ]


def write(path: str, targets: Sequence[Target]) -> None:
    """Replaces its content, unless the pod is going and the file with it."""
    text = "".join(f"{target.addr} {target.port} {target.weight}\n" for target in targets)
    try:
        with open(path, encoding="ascii") as before:
            if before.read() == text:
                return
    except FileNotFoundError:
        pass
    try:
        atomic.replace(path, text, 0o644)
    except FileNotFoundError:
        pass


def end(step: Step) -> None:
    """Removes the file and its directory."""
    atomic.remove(f"{_directory(step)}/{step.options.service}")
    try:
        os.rmdir(_directory(step))
    except FileNotFoundError:
        pass


def _directory(step: Step) -> str:
    return f"{step.pod.directory}/{step.name}.backends"
