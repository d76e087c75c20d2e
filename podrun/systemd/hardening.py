"""What a unit takes away from its processes: all that the chain does not need, and nothing that it needs.

No setting here makes a mount namespace: a network namespace that ExecStart= pins would be invisible to the host.
"""

from __future__ import annotations

import os

from podrun.podfile.known_hooks import HOOKS
from podrun.unit_needs import at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeAlias

    from podrun.unit_needs import UnitNeeds

    #: A step's table as the pod file has it, and what a unit has to know of its hook.
    Step: TypeAlias = tuple[dict[str, Any], UnitNeeds]
    Lines: TypeAlias = list[tuple[str, str]]

# What the launcher needs, and what docker leaves to a container: the runtime can pass on no more than podrun has.
_LAUNCHER = "SYS_ADMIN NET_ADMIN SYS_PTRACE SETUID SETGID SETPCAP DAC_OVERRIDE MKNOD KILL CHOWN FOWNER".split()
_CONTAINER = "FSETID NET_BIND_SERVICE SYS_CHROOT AUDIT_WRITE SETFCAP".split()
#: Other architectures whose programs the processor runs: what a container may run in the foreground it may run here.
_ALSO = {"x86_64": " x86 x32", "aarch64": " arm"}


def hardened(steps: Sequence[Step]) -> Lines:
    """The settings of [Service]."""
    added = {str(word).upper().removeprefix("CAP_") for word in _words(steps, "capabilities")}
    tables = [table for table in _values(steps, "limits") if type(table) is dict]
    limits = {str(name): value for table in tables for name, value in table.items()}
    settings = _devices(steps)
    if False not in _values(steps, "gains"):
        settings.append(("NoNewPrivileges", "yes"))
    if not added & {"ALL", "SYS_TIME", "WAKE_ALARM"}:
        settings.append(("ProtectClock", "yes"))
    if not added & {"ALL", "SYS_NICE"} and "rtprio" not in limits:
        settings.append(("RestrictRealtime", "yes"))
    settings.append(("SystemCallArchitectures", f"native{_ALSO.get(os.uname().machine, '')}"))
    if not added & {"ALL", "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_RAWIO"}:
        # What the containers' own seccomp profile forbids as well.
        settings += [
            ("SystemCallFilter", "~@module @obsolete @raw-io @reboot @swap"),
            ("SystemCallErrorNumber", "EPERM"),
        ]
    settings += [(f"Limit{name.upper()}", _limit(value)) for name, value in limits.items() if name.isalpha()]
    if "ALL" in added:
        return settings
    if settings[0][0] != "DevicePolicy":
        # The runtime's own device rules are a BPF program; loading it makes crun raise RLIMIT_MEMLOCK.
        added.add("SYS_RESOURCE")
    names = [*_LAUNCHER, *_CONTAINER, *sorted(added - {*_LAUNCHER, *_CONTAINER})]
    words = [f"CAP_{name}" for name in names if name.replace("_", "").isalnum()]
    return [*settings, ("CapabilityBoundingSet", " ".join(words))]


def _devices(steps: Sequence[Step]) -> Lines:
    """Which devices the unit's processes may open; no setting where a foreign hook may add some."""
    if any(step.get("hook") not in HOOKS for step, _ in steps):
        return []
    if any("=" in text and not text.startswith("/") for text in map(str, _words(steps, "devices"))):
        return []  # what a name of CDI's brings is known at the start; the container's own device rules hold
    allowed: list[str] = []
    for text in map(str, _words(steps, "devices")):
        source, _, rest = text.partition(":")
        access = rest.rpartition(":")[2]
        access = access if access and not access.startswith("/") else "rwm"
        fine = source.startswith("/dev") and source.isprintable() and not set(source) & set(' "\\%')
        if not fine or set(access) - set("rwm"):
            continue  # the start says what is wrong with it
        whole = [f"char-* {access}", f"block-* {access}"]
        allowed += whole if source == "/dev" or os.path.isdir(source) else [f"{source} {access}"]
    for text in map(str, _words(steps, "device_rules")):
        allowed += _ruled(text)
    return [("DevicePolicy", "closed"), *(("DeviceAllow", word) for word in dict.fromkeys(allowed))]


def _ruled(text: str) -> list[str]:
    """A rule such as "c 189:* rwm" for DeviceAllow=, which knows majors only; the container has rules of its own."""
    kinds = {"a": ("char", "block"), "c": ("char",), "b": ("block",)}
    kind, _, rest = text.partition(" ")
    numbers, _, access = rest.partition(" ")
    major = numbers.partition(":")[0]
    if kind not in kinds or not (major == "*" or (major.isascii() and major.isdecimal())) or set(access) - set("rwm"):
        return []  # the start says what is wrong with it
    return [f"{word}-{major} {access}" for word in kinds[kind]]


def _limit(value: Any) -> str:
    """A limit in systemd's spelling (systemd.exec(5), "Process Properties")."""
    words = str(value).split(":")
    known = ["infinity" if word in ("-1", "unlimited") else word for word in words]
    return ":".join(word for word in known if word == "infinity" or (word.isascii() and word.isdigit()))


def _values(steps: Sequence[Step], need: str) -> list[Any]:
    found = [at(step, path) for step, needs in steps for path in getattr(needs, need)]
    return [value for value in found if value is not None]


def _words(steps: Sequence[Step], need: str) -> list[Any]:
    return [word for words in _values(steps, need) if type(words) is list for word in words]
