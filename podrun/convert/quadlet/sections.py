"""The sections of a Quadlet unit that are systemd's: [Unit], [Service], [Install]."""

from __future__ import annotations

from ..draft import INSTANCE, Pod
from . import unitfile
from .objects import Units
from .unitfile import Unit

_SECTIONS = {"Unit": "unit", "Service": "service", "Install": "install"}
#: Settings that podrun's units have from podrun.
_OWN = frozenset(
    "ExecStart ExecStop ExecStopPost ExecReload NotifyAccess Delegate KillMode OOMPolicy RemainAfterExit "
    "SyslogIdentifier FileDescriptorStoreMax BusName PIDFile".split()
)
#: Settings that make no sense for podrun itself, which mounts, makes namespaces and writes below /run.
_USERS = frozenset({"User", "Group", "DynamicUser", "SupplementaryGroups"})
#: Settings of [Unit] that name other units.
_UNITS = frozenset(
    "After Before Requires Wants BindsTo PartOf Requisite Upholds Conflicts OnFailure OnSuccess PropagatesStopTo "
    "StopPropagatedFrom PropagatesReloadTo ReloadPropagatedFrom JoinsNamespaceOf".split()
)
_QUADLET = (".container", ".pod", ".kube", ".volume", ".network", ".image", ".build", ".artifact")


def convert(unit: Unit, units: Units, pod: Pod) -> None:
    """Hands the sections on to the pod; what podrun decides itself is noted."""
    for section, table in _SECTIONS.items():
        for key in unit.keys(section):
            # Specifiers stay: the pod's unit is called like the Quadlet's.
            values = [entry.value for entry in unit.assignments if (entry.section, entry.key) == (section, key)]
            while "" in values:
                values = values[values.index("") + 1 :]
            for value, (_, origin) in zip(values, unit.all(section, key), strict=True):
                place = origin._replace(key=f"[{section}] {key}")
                if section == "Service" and key == "Type":
                    if value == "oneshot":
                        pod.table["type"] = "job"
                    elif value not in ("notify", "exec", "simple"):
                        pod.note(place, f"{value}: the pod's unit is of Type=notify", by_hand=False)
                elif section == "Service" and key in _USERS:
                    pod.note(place, f"{value}: podrun itself runs as root", "set user in the container step")
                elif section == "Service" and key in _OWN:
                    pod.note(
                        place,
                        f"{value}: podrun's unit has its own {key}=",
                        "see docs/reference/systemd.md",
                        by_hand=False,
                    )
                elif section == "Unit" and key in _UNITS:
                    _add(pod, table, key, _services(value, unit, units))
                else:
                    _add(pod, table, key, [value.replace(INSTANCE, "%i")])
    for section in unit.sections():
        if section == "Quadlet":
            for value, origin in unit.all("Quadlet", "DefaultDependencies"):
                if not unitfile.boolean(value):
                    pod.note(
                        origin, "podrun's units do not wait for network-online.target by themselves", by_hand=False
                    )
        elif section not in (*_SECTIONS, unit.kind.title()) and not section.startswith("X-"):
            for key in unit.keys(section):
                pod.note(
                    unit.all(section, key)[-1][1] if unit.all(section, key) else pod.origin,
                    f"[{section}] {key}= has no equivalent",
                )


def of_member(unit: Unit, pod: Pod) -> None:
    """The sections of a container that shares a .pod: the pod's units take [service] from one place."""
    for section, table in _SECTIONS.items():
        for key in unit.keys(section):
            for value, origin in unit.all(section, key):
                place = origin._replace(key=f"[{section}] {key}")
                if (
                    section == "Service"
                    and key not in (*_OWN, *_USERS, "Type")
                    and key not in pod.sections.get(table, {})
                ):
                    pod.setting(table, key, value)
                elif pod.sections.get(table, {}).get(key) != value:
                    pod.note(place, f"{value}: the settings of all containers stand in one [{table}]", "say it there")


def _add(pod: Pod, section: str, key: str, values: list[str]) -> None:
    for value in values:
        before = pod.sections.setdefault(section, {}).get(key)
        if before is None:
            pod.setting(section, key, value)
        else:
            pod.setting(section, key, [*(before if isinstance(before, list) else [before]), value])


def _services(value: str, unit: Unit, units: Units) -> list[str]:
    """The units that a list names, Quadlet's by the name that podrun gives them."""
    names = [units.service(word, unit) if word.endswith(_QUADLET) else word for word in value.split()]
    line = " ".join(dict.fromkeys(name for name in names if name))
    return [line] if line else []
