"""Holds a draft against the declarations of this podrun: what a hook would refuse becomes a note, the rest stays.

A conversion guesses at values that podrun itself defines (a capability's name, a port's range). Nobody but the
declaration of the option knows whether it is one, so each value is read by it here.
"""

from __future__ import annotations

from typing import Any

from podrun.identity import Identity
from podrun.options import REQUIRED, Option, Wrong, read

from .draft import OPEN, Draft, Origin, Pod, Step, is_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    #: The options of a hook by name, those that all steps have included; raises Failure for an unknown hook.
    Declared = Callable[[str], Mapping[str, Option]]


def settle(
    draft: Draft,
    declared: Declared,
    of_file: Mapping[str, Option],
    of_pod: Mapping[str, Option],
    of_network: type[Any],
) -> None:
    """Removes from the draft what this podrun would refuse, with a note each.

    ``of_file``: the tables of a pod file; ``of_pod``: the keys of [pod]; ``of_network``: those of [networks.NAME].
    """
    for pod in draft.pods:
        _dependencies(pod, of_pod)
        table = Step("[pod]")
        table.values = pod.table
        for step in [table, *pod.steps]:
            known = of_pod if step is table else declared(step.hook)
            for key in list(step.values):
                if key not in known:
                    what = f"{_name(step)} of this podrun has no key {key!r} for {_shown(key, step.values[key])}"
                    pod.note(step.origin(key, None, pod.origin), what)
                    del step.values[key]
                elif not _fits(pod, step, key, known[key]):
                    del step.values[key]
        pod.steps = [step for step in pod.steps if _is_whole(pod, step, declared(step.hook))]
        for section in list(pod.sections):
            _settings(pod, section, of_file[section])
    for name, network in draft.networks.items():
        for key in list(network.values):
            try:
                read(of_network, {key: network.values[key]})
            except Wrong as wrong:
                draft.note(network.origins.get(key, Origin("", f"networks.{name}.{key}")), f"left out: {wrong.what}")
                del network.values[key]


def _dependencies(pod: Pod, of_pod: Mapping[str, Option]) -> None:
    """Where [pod] does not know other pods, systemd does."""
    for key, setting in (("requires", "Requires"), ("after", "After")):
        if key in pod.table and key not in of_pod:
            pod.settings("unit", setting, [Identity(name).unit() for name in pod.table.pop(key)])


def _fits(pod: Pod, step: Step, key: str, option: Option) -> bool:
    """Whether a key may stay; items and inner keys that are wrong are removed from its value."""
    value = step.values[key]
    unwritable = _unwritable(step, value)
    if unwritable:
        pod.note(step.origin(key, None, pod.origin), unwritable, left_out=f"left out: {key}")
        return False
    while True:
        # What waits for the start cannot be read yet.
        if isinstance(value, list):
            readable: Any = [item for item in value if not is_open(item)]
        elif is_open(value):
            return True
        else:
            readable = value
        try:
            option.kind.parse(readable)
        except Wrong as wrong:
            inner = wrong.where[0] if wrong.where else None
            if not isinstance(value, dict | list) or inner is None:
                pod.note(step.origin(key, None, pod.origin), wrong.what, left_out=f"left out: {key}")
                return False
            item = readable[inner]
            what = f"{inner}: {wrong.what}" if isinstance(value, dict) else f"{_shown(key, item)}: {wrong.what}"
            origin = step.origin(key, inner if isinstance(value, dict) else item, pod.origin)
            pod.note(origin, what, left_out=f"left out of {key}")
            if isinstance(value, dict):
                del value[inner]
            else:
                value.remove(item)
            if not value:
                return False
        else:
            return True


def _unwritable(step: Step, value: Any) -> str:
    """Why a pod file cannot say it at all."""
    if f"${OPEN}" in repr(value):
        return "a '$' before a variable cannot be written in a pod file"
    if is_open(value) and step.hook == "[pod]":
        return "a variable is not for [pod], which is read before the start"
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        return f"{value} has more than 64 bits"
    return ""


def _is_whole(pod: Pod, step: Step, known: Mapping[str, Option]) -> bool:
    """Whether a step still has what it cannot be without."""
    missing = [key for key, option in known.items() if option.default is REQUIRED and key not in (*step.values, "hook")]
    if missing:
        origin = next(iter(step.origins.values()), pod.origin)
        pod.note(origin, f"left out: a {step.hook} step without {' and '.join(missing)}")
    return not missing


def _settings(pod: Pod, section: str, option: Option) -> None:
    """Removes settings that no unit can have."""
    table = pod.sections[section]
    for key in list(table):
        try:
            option.kind.parse({key: table[key]})
        except Wrong as wrong:
            pod.note(Origin(pod.origin.where, f"[{section.title()}] {key}"), f"left out: {wrong.what}")
            del table[key]
    if not table:
        del pod.sections[section]


def _name(step: Step) -> str:
    return step.hook if step.hook == "[pod]" else f"the {step.hook} step"


def _shown(key: str, value: Any) -> str:
    text = "..." if key == "content" else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
