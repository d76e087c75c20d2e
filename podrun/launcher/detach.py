"""Starting a pod that nobody waits for: by systemd where it runs, else with nothing around it."""

from __future__ import annotations

import os

from podrun.launcher import launch
from podrun.systemd import notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.host import Host
    from podrun.podfile.loader import PodText


def start(text: PodText, host: Host) -> int:
    """Starts a pod in the units made of its file, else as a transient unit, else as it is; returns the exit code."""
    if is_by_systemd(host):
        from podrun.launcher import foreground, pull, transient

        foreground.interruptible()
        pull.ahead(text, host)
        source = notify.made_of(text.name) if text.file else ""
        return transient.start_made(text, source, host) if source else transient.start(text, host)
    return launch.up(text, host, detach=True)


def is_by_systemd(host: Host) -> bool:
    """Whether a pod that nobody waits for becomes a unit."""
    wanted = host.environ.get("PODRUN_SYSTEMD") != "no" and not os.geteuid()
    return wanted and notify.booted() and not notify.takes_over(host.environ)
