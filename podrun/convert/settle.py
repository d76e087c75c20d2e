"""Holds a draft against the declarations of this podrun: what a hook would refuse becomes a note, the rest stays.

A conversion guesses at values that podrun itself defines (a capability's name, a port's range). Nobody but the
declaration of the option knows whether it is one, so each value is read by it here.
"""

from __future__ import annotations

from typing import Any

from podrun.options import Option, Wrong, read

from .draft import OPEN, Draft, Origin, Pod, Step, is_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    #: The options of a hook by name, those that all steps have included; raises Failure for an unknown hook.
    Declared = Callable[[str], Mapping[str, Option]]


def settle(draft: Draft, declared: Declared, of_pod: Mapping[str, Option], of_network: type[Any]) -> None:
    """Removes from the draft what this podrun would refuse, with a note each.

    ``of_pod``: the keys of [pod]; ``of_network``: the declaration of [networks.NAME].
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
            pod.settings("unit", setting, [f"{name}.service" for name in pod.table.pop(key)])


def _fits(pod: Pod, step: Step, key: str, option: Option) -> bool:
    """Whether a key may stay; items and inner keys that are wrong are removed from its value."""
    value = step.values[key]
    if f"${OPEN}" in repr(value):
        pod.note(step.origin(key, None, pod.origin), "a '$' before a variable cannot be written in a pod file")
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
                pod.note(step.origin(key, None, pod.origin), f"left out: {key}: {wrong.what}")
                return False
            item = readable[inner]
            what = f"{inner}: {wrong.what}" if isinstance(value, dict) else f"{_shown(key, item)}: {wrong.what}"
            origin = step.origin(key, inner if isinstance(value, dict) else item, pod.origin)
            pod.note(origin, f"left out of {key}: {what}")
            if isinstance(value, dict):
                del value[inner]
            else:
                value.remove(item)
            if not value:
                return False
        else:
            return True


def _name(step: Step) -> str:
    return step.hook if step.hook == "[pod]" else f"the {step.hook} step"


def _shown(key: str, value: Any) -> str:
    text = "..." if key == "content" else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
