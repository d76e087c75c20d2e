"""The units that a host has once, whatever pods it has: the registries' follower, the timer of updates, gc at boot."""

from __future__ import annotations

from podrun.unit_needs import at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.unit_needs import Path

UNIT = "podrun-follow.service"
UPDATE = "podrun-update"
GC = "podrun-gc.service"
#: Units that several pods may ask for.
OF_ALL = (UNIT, f"{UPDATE}.timer", f"{UPDATE}.service", GC)
#: Files of /etc/podrun that are no pods.
NO_PODS = ("podrun.toml", "networks.toml", "registries.toml")

_SCHEMES = ("etcd:", "etcds:", "consul:", "consuls:")
_TEXT = """# Made by podrun for all pods of this host; 'podrun unit' shows it.
[Unit]
Description=podrun: records and services of this host
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
SyslogIdentifier=podrun-follow
Restart=always
RestartSec=100ms
WatchdogSec=8s
WatchdogSignal=SIGKILL
OOMScoreAdjust=-500
CapabilityBoundingSet=CAP_NET_ADMIN CAP_SYS_ADMIN CAP_DAC_OVERRIDE
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=net
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service setns
SystemCallErrorNumber=EPERM
UMask=0077
"""


_UPDATE_TIMER = """# Made by podrun for all pods of this host; 'podrun unit' shows it.
[Unit]
Description=podrun: updates of the pods that have an [update]

[Timer]
OnCalendar=daily
RandomizedDelaySec=1h
Persistent=true

[Install]
WantedBy=timers.target
"""
_UPDATE_SERVICE = """# Made by podrun for all pods of this host; 'podrun unit' shows it.
[Unit]
Description=podrun: updates of the pods that have an [update]
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={command}
SyslogIdentifier=podrun-update
TimeoutStartSec=infinity
"""

# Pods' units come after it, and do not need it: they start all the same when it fails. It is started at boot and never
# by a pod: later there are living pods, which it must not touch.
_GC = """# Made by podrun for all pods of this host.
[Unit]
Description=podrun: removal of what pods have left when the power went
RequiresMountsFor=/var/lib/podrun
ConditionDirectoryNotEmpty=/var/lib/podrun/pods

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command}
SyslogIdentifier=podrun-gc
TimeoutStartSec=5min

[Install]
WantedBy=multi-user.target
"""


def collecting(command: str) -> str:
    """The unit that removes at boot what the last one has left on the disk; nothing after an orderly shutdown."""
    return _GC.format(command=command)


def updating(command: str) -> dict[str, str]:
    """The timer, and what it starts. Another time of day: systemctl edit podrun-update.timer."""
    return {f"{UPDATE}.timer": _UPDATE_TIMER, f"{UPDATE}.service": _UPDATE_SERVICE.format(command=command)}


def text(command: str) -> str:
    """The unit's text; it has to be back before the leases that it renews are over, however often it ends."""
    return _TEXT.format(command=command)


def uses_server(step: dict[str, Any], paths: Sequence[Path], default: Any) -> bool:
    """Whether one of the step's options at ``paths`` names a registry with a server; ``default``: what none means."""
    for path in paths:
        given = at(step, path) or default
        url = given.get("url") if type(given) is dict else given
        if type(url) is str and url.startswith(_SCHEMES):
            return True
    return False
