"""What units are to start once instead of their pod's file: the generation that a rollback brings back.

The file <run>/requests/UNIT.start lies there from before the restart until the unit's podrun takes it.
"""

from __future__ import annotations

import os

from podrun.systemd import notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.host import Host
    from podrun.podfile.loader import PodText


def restart(units: Sequence[str], text: dict[str, Any], host: Host, *, wait: bool = True) -> int:
    """Has systemd restart units, which start ``text`` (history.table_of), this once; returns systemctl's status.

    With an empty ``text`` they start their file.
    """
    from podrun import atomic, jsontext

    paths = [_path(host.run, unit) for unit in units] if text else []
    for path in paths:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        atomic.replace(path, jsontext.dumps(text))
    code = notify.ask("restart", units, wait=wait)
    for path in paths if wait or code else ():
        atomic.remove(path)  # where the unit did not come to its start
    return code


def take(host: Host) -> PodText | None:
    """What this podrun, started by a unit, is to start instead of the pod's file; None: the file."""
    if not os.path.isdir(f"{host.run}/requests"):
        return None
    from podrun import atomic, jsontext
    from podrun.launcher import history

    path = _path(host.run, notify.own_unit())
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read()
    except FileNotFoundError:
        return None
    atomic.remove(path)
    return history.of_table(jsontext.loads(content))


def _path(run: str, unit: str) -> str:
    return f"{run}/requests/{unit}.start"
