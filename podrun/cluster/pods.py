"""What a pod file asks of a cluster, what a cluster cannot do for it, and what its operator should know."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from podrun.engine import hook_loader
from podrun.errors import WRONG_FILE, Failure
from podrun.hook_extras import KeepsLocalData, offers
from podrun.options import DURATION, Wrong
from podrun.podfile import files as podfiles
from podrun.podfile import loader
from podrun.systemd import units
from podrun.systemd.generator import declared

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from podrun.podfile.loader import PodText

ETC = "/etc/podrun"
#: Settings of [unit] that have systemd start another unit, on this very machine.
_STARTS = ("Requires", "BindsTo", "Wants", "Upholds", "Requisite")


class Placement(NamedTuple):
    """[placement], with its defaults."""

    conflicts: tuple[str, ...] = ()
    everywhere: bool = False
    machine_of: str = ""
    metadata: Mapping[str, str] = {}
    prefer: tuple[str, ...] = ()
    priority: int = 0


class Pod(NamedTuple):
    """A pod as a cluster needs to know it."""

    name: str
    #: The pod file, which need not be the one in /etc/podrun (yet).
    file: str
    placement: Placement = Placement()
    #: Pods that systemd starts with it, because it requires them.
    requires: tuple[str, ...] = ()
    #: Pods that it is to be started after.
    after: tuple[str, ...] = ()
    #: How long systemd may take to stop all of its units; infinity: there is no limit.
    stop_seconds: float = 35.0
    #: What keeps a cluster from running it, whatever the other pods are.
    obstacles: tuple[str, ...] = ()
    #: What is only on the machine where it runs, for people.
    local_data: tuple[str, ...] = ()


def repels(pod: Pod, other: Pod) -> bool:
    """Whether a pod's ``conflicts`` names the other one."""
    return any(fnmatchcase(other.name, pattern) for pattern in pod.placement.conflicts)


def read(word: str) -> Pod:
    """The pod of a pod file, or of a pod's name in /etc/podrun. Raises Failure for a wrong pod file."""
    text = loader.load(word, environ=None, load_hook=hook_loader.load, etc=ETC)
    known = declared({step.hook for step in text.steps})
    try:
        unit = units.read(text.file, known, strictly=False)
        made = units.units(unit, units.Command())
    except Wrong as error:
        raise Failure(f"{text.file}: {error}", code=WRONG_FILE) from None
    return Pod(
        name=text.name,
        file=text.file,
        placement=_placement(text),
        requires=tuple(dict.fromkeys([*getattr(text, "requires", ()), *_started(text)])),
        after=tuple(dict.fromkeys([*getattr(text, "after", ()), *_units_of(text, ("After",))])),
        stop_seconds=sum(_stop_limits(made)),
        obstacles=tuple(_obstacles(text, made)),
        local_data=tuple(_local_data(text)),
    )


def sources(word: str) -> dict[str, str]:
    """The files of a pod by their names below /etc/podrun: "web.toml", "web.toml.d/10-more.toml"."""
    found = {}
    for source in podfiles.find(word, ETC, in_unit=False).texts:
        directory, name = os.path.split(source.path)
        above = os.path.basename(directory)
        found[f"{above}/{name}" if above.endswith(".toml.d") else name] = source.text or ""
    return found


def _placement(text: PodText) -> Placement:
    told: dict[str, Any] = text.placement
    if not told:
        return Placement()
    return Placement(
        conflicts=tuple(told["conflicts"]),
        everywhere=told["global"],
        machine_of=told["machine_of"],
        metadata=told["metadata"],
        prefer=tuple(told["prefer"]),
        priority=told["priority"],
    )


def _units_of(text: PodText, settings: Iterable[str]) -> Iterator[str]:
    """Pods whose units the [unit] table names."""
    for setting in settings:
        value = text.sections.get("unit", {}).get(setting, ())
        for word in " ".join(map(str, value if isinstance(value, list) else [value])).split():
            if word.endswith(".service"):
                yield word.removesuffix(".service")


def _started(text: PodText) -> Iterator[str]:
    return _units_of(text, _STARTS)


def _stop_limits(made: Mapping[str, str]) -> Iterator[float]:
    for unit in made.values():
        for line in unit.splitlines():
            key, _, value = line.partition("=")
            if key == "TimeoutStopSec":
                try:
                    yield DURATION.parse(value.strip())
                except Wrong:
                    yield 90.0  # systemd's own default, which it takes for what it cannot read


def _obstacles(text: PodText, made: Mapping[str, str]) -> Iterator[str]:
    if text.type == "job":
        yield "a job ends by itself, and the cluster would start it again and again; give it a timer on one machine"
    if text.sections.get("install"):
        yield "[install] has systemd start the pod at boot, behind the cluster's back; remove the table"
    if text.sections.get("socket"):
        yield "[socket] has systemd start the pod on a connection, behind the cluster's back; remove the table"
    if any(name.endswith(".timer") for name in made):
        yield "[timer] has systemd start the pod, behind the cluster's back; remove the table"
    if float("inf") in _stop_limits(made):
        yield "TimeoutStopSec=infinity: the cluster could never tell a machine that hangs; set a limit"


def _local_data(text: PodText) -> Iterator[str]:
    for step in text.steps:
        keeping = offers(hook_loader.load(step.hook), KeepsLocalData)
        for what in keeping.local_data(step.options) if keeping else ():
            yield f"{step.name}: {what}"


# --- all pods together ------------------------------------------------------------------------------------------------


def mistakes(pods: Sequence[Pod]) -> list[str]:
    """What is wrong with these pods, which are all of the cluster's: a line each, all at once."""
    known = {pod.name: pod for pod in pods}
    found = []
    for pod in pods:
        lines = [*pod.obstacles, *_contradictions(pod, known), *_behind(pod, known)]
        found += [f"{pod.file}: {line}" for line in lines]
    return found


def _contradictions(pod: Pod, known: Mapping[str, Pod]) -> Iterator[str]:
    placement = pod.placement
    other = known.get(placement.machine_of)
    if placement.everywhere:
        for key, value in (("machine_of", placement.machine_of), ("prefer", placement.prefer)):
            if value:
                yield f"[placement] {key}: the pod is global, it runs on every machine"
    if placement.machine_of == pod.name:
        yield "[placement] machine_of: the pod names itself"
    elif placement.machine_of and other is None:
        yield f"[placement] machine_of: there is no pod {placement.machine_of} among the files"
    elif _in_circle(pod, known):
        yield "[placement] machine_of: the pods follow one another in a circle"
    for repelled in known.values():
        if repelled.name == pod.name or not repels(pod, repelled):
            continue
        if placement.everywhere or repelled.placement.everywhere:
            name = pod.name if placement.everywhere else repelled.name
            yield f"[placement] conflicts: {name} is global, so {repelled.name} and {pod.name} cannot be apart"
        elif _leader(pod, known) == _leader(repelled, known):
            yield f"[placement] conflicts: {repelled.name} is on the same machine because of machine_of"


def _leader(pod: Pod, known: Mapping[str, Pod]) -> str:
    """The pod whose machine it is in the end, by machine_of; a global one is on every machine and leads nobody."""
    for _ in known:
        leader = known.get(pod.placement.machine_of)
        if leader is None or leader.placement.everywhere:
            break
        pod = leader
    return pod.name


def _in_circle(pod: Pod, known: Mapping[str, Pod]) -> bool:
    seen, name = set(), pod.name
    while name in known and name not in seen:
        seen.add(name)
        name = known[name].placement.machine_of
    return name == pod.name


def _behind(pod: Pod, known: Mapping[str, Pod]) -> Iterator[str]:
    """What a unit requires, systemd starts on the same machine, whatever the cluster has decided."""
    for other in pod.requires:
        if other in known and not known[other].placement.everywhere and pod.placement.machine_of != other:
            yield (
                f"the pod requires {other}, which may be placed elsewhere: systemd would start a second {other} here; "
                f"wait for it with a wait-for step, or say machine_of = {other!r} in [placement]"
            )


def notes(pods: Sequence[Pod], *, fencing: bool) -> list[str]:
    """What an operator should know of these pods in a cluster."""
    names = {pod.name for pod in pods}
    found = []
    for pod in pods:
        if not pod.placement.everywhere:
            found += [
                f"{pod.name}: {what} stays on the machine: after a move the pod finds another one, or none; "
                "keep it on a network file system or on a device that follows, or pin the pod with metadata"
                for what in pod.local_data
            ]
        for pattern in pod.placement.conflicts:
            if not any(repels(pod._replace(placement=Placement((pattern,))), other) for other in pods if other != pod):
                found.append(f"{pod.name}: conflicts: no pod is called {pattern}")
        found += [
            f"{pod.name}: after {other} orders nothing between machines; a wait-for step does"
            for other in pod.after
            if other in names and other != pod.placement.machine_of and not _global(other, pods)
        ]
    if not fencing and any(not pod.placement.everywhere for pod in pods):
        found.append(
            "without fencing a machine that is cut off may run a second copy of a pod until it stops by itself; "
            "set up stonith or sbd"
        )
    return found


def _global(name: str, pods: Sequence[Pod]) -> bool:
    return any(pod.name == name and pod.placement.everywhere for pod in pods)
