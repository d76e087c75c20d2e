"""Pods as resources and constraints of Pacemaker, in the words of crm(8).

Every word of the text goes through :func:`word`, and every pod's name through :func:`resource`.
Names of pods are lower case; what podrun adds to them is not, so that no name of a pod is taken for a constraint.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any, NamedTuple

from podrun.cluster.pods import repels
from podrun.options import Wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from podrun.cluster.pods import Pod

AGENT = "ocf:podrun:pod"
#: Keeps a pod where it is: more than any preference, so that nothing moves because a host comes back.
STICKINESS = 100
_PREFERENCES = (50, 40, 30, 20, 10)
#: What all pods have: five failures on a host before the pod goes to another one, forgotten after ten minutes.
_META = {"resource-stickiness": str(STICKINESS), "migration-threshold": "5", "failure-timeout": "600s"}
#: Meta attributes by which a pod is stopped or not managed: ``apply`` leaves them as they are.
KEPT = ("target-role", "is-managed", "maintenance")
_START, _MONITOR_TIMEOUT, _MONITOR = 30, 20, 10
#: Seconds that stop may take beyond systemd's own limits: the agent kills, then undoes what was left.
STOP_MARGIN = 30

_PLAIN = frozenset(string.ascii_letters + string.digits + "_.:=@+-")


class Statement(NamedTuple):
    """One statement of crm: the identifier that it defines ("" for properties) and its words, encoded."""

    id: str
    text: str


def word(text: str) -> str:
    """A word in crm's language. Raises Wrong for what it has no safe spelling for: blanks, quotes, braces."""
    if not text or not _PLAIN.issuperset(text):
        raise Wrong(f"{text!r} cannot stand in the cluster's configuration")
    return text


def resource(pod: str) -> str:
    """The identifier of a pod's resource, an XML name: "web", "web.blue" of web@blue, "_1st" of 1st."""
    name = pod.replace("@", ".", 1)
    return word(name if name[0] in string.ascii_lowercase else f"_{name}")


def pod_of(identifier: str) -> str:
    """The pod of a resource's identifier: the inverse of :func:`resource`; a clone's leads to its pod as well."""
    name = identifier.removesuffix("-Global").removeprefix("_")
    stem, dot, instance = name.partition(".")
    return f"{stem}@{instance}" if dot else stem


def placed(pod: Pod) -> str:
    """The identifier that constraints name: of a global pod its clone."""
    return f"{resource(pod.name)}-Global" if pod.placement.everywhere else resource(pod.name)


def statements(
    pods: Sequence[Pod], kept: Mapping[str, Mapping[str, str]] | None = None, *, fencing: bool = True
) -> list[Statement]:
    """The configuration of these pods, which are all there are. ``kept``: meta attributes to leave, by resource.

    Raises Wrong for a name or value that crm has no spelling for.
    """
    known = {pod.name: pod for pod in pods}
    found = [_properties(fencing)]
    for pod in pods:
        found.append(_primitive(pod, (kept or {}).get(resource(pod.name), {})))
        if pod.placement.everywhere:
            meta = (kept or {}).get(placed(pod), {})
            found.append(
                _statement("clone", placed(pod), resource(pod.name), *_pairs("meta", {"interleave": "true", **meta}))
            )
    for pod in pods:
        found += [*_beside(pod, known), *_after(pod, known), *_on(pod), *_prefers(pod)]
    return [*found, *_apart(pods)]


def text(found: Iterable[Statement]) -> str:
    """The statements as crm reads them."""
    return "".join(f"{statement.text}\n" for statement in found)


# --- statements -------------------------------------------------------------------------------------------------------


def _statement(kind: str, identifier: str, *words: str | list[str]) -> Statement:
    """``words``: a list is a resource set."""
    whole = [kind, *([identifier] if identifier else []), *words]
    texts = [word(one) if isinstance(one, str) else f"( {' '.join(map(word, one))} )" for one in whole]
    return Statement(identifier, " ".join(texts))


def _pairs(head: str, values: Mapping[str, str]) -> list[str]:
    return [head, *(f"{word(key)}={word(value)}" for key, value in values.items())]


def _properties(fencing: bool) -> Statement:
    # How many operations the cluster has under way at once, on all hosts together.
    values = {"batch-limit": "30", "no-quorum-policy": "stop"}
    if not fencing:
        values["stonith-enabled"] = "false"
    return _statement("property", "", *(f"{key}={value}" for key, value in values.items()))


def _primitive(pod: Pod, kept: Mapping[str, str]) -> Statement:
    meta = {**_META, **({"priority": str(pod.placement.priority)} if pod.placement.priority else {}), **kept}
    stop = round(pod.stop_seconds) + STOP_MARGIN
    words = [AGENT, *_pairs("params", {"pod": pod.name})]
    words += ["op", *_pairs("start", {"timeout": f"{_START}s", "interval": "0s"})]
    words += ["op", *_pairs("stop", {"timeout": f"{stop}s", "interval": "0s"})]
    words += ["op", *_pairs("monitor", {"interval": f"{_MONITOR}s", "timeout": f"{_MONITOR_TIMEOUT}s"})]
    return _statement("primitive", resource(pod.name), *words, *_pairs("meta", meta))


def _beside(pod: Pod, known: Mapping[str, Pod]) -> Iterator[Statement]:
    """On the machine of another pod: of the one that machine_of names, and of a global one that it needs."""
    for other in dict.fromkeys([*filter(None, [pod.placement.machine_of]), *pod.requires]):
        if other in known:
            name = f"{resource(pod.name)}-With-{resource(other)}"
            yield _statement("colocation", name, "inf:", placed(pod), placed(known[other]))


def _apart(pods: Sequence[Pod]) -> Iterator[Statement]:
    """Pods that must not share a machine, in as few statements as say it.

    The scheduler looks at each pair anyhow, but crm takes minutes for thousands of statements. So those that all repel
    one another are one set, of which Pacemaker keeps every member from every other one, and pods that repel the same
    others are two sets. What stands first gives way; in a set of one kind the later ones do.
    """
    apart: set[tuple[str, str]] = set()
    for alike in _alike(pods, lambda pod: tuple(sorted({*pod.placement.conflicts}))):
        each = [pod for pod in alike if repels(pod, pod)]
        if len(each) > 2:
            apart |= {(one.name, other.name) for one in each for other in each}
            yield _statement("colocation", f"{resource(each[0].name)}-Apart", "-inf:", *map(placed, each))
    known = {pod.name: pod for pod in pods}
    order = {name: number for number, name in enumerate(known)}

    def others(pod: Pod) -> tuple[str, ...]:
        return tuple(name for name, other in known.items() if gives_way(pod, other) and (pod.name, name) not in apart)

    def gives_way(pod: Pod, other: Pod) -> bool:
        # Once for each pair: of two that name each other, the later one gives way.
        both = repels(other, pod) and order[pod.name] < order[other.name]
        return pod.name != other.name and repels(pod, other) and not both

    repelled = {pod.name: others(pod) for pod in pods if pod.placement.conflicts}
    for alike in _alike(pods, lambda pod: repelled.get(pod.name, ())):
        targets = [known[name] for name in repelled[alike[0].name]]
        name = f"{resource(alike[0].name)}-Apart-{resource(targets[0].name)}"
        yield _statement("colocation", name, "-inf:", _set(alike), _set(targets))


def _alike(pods: Sequence[Pod], key: Callable[[Pod], tuple[Any, ...]]) -> Iterator[list[Pod]]:
    """The pods grouped by key; those with an empty one are left out."""
    found: dict[tuple[Any, ...], list[Pod]] = {}
    for pod in pods:
        if told := key(pod):
            found.setdefault(told, []).append(pod)
    yield from found.values()


def _set(pods: Sequence[Pod]) -> str | list[str]:
    """Pods in a constraint; several are a set, which says nothing of how they relate to one another."""
    names = [placed(pod) for pod in pods]
    return names if len(names) > 1 else names[0]


def _after(pod: Pod, known: Mapping[str, Pod]) -> Iterator[Statement]:
    """Optional: when both are about to start. What has to be waited for, the chain waits for (wait-for, ambassador)."""
    near = [
        pod.placement.machine_of,
        *pod.requires,
        *(name for name in pod.after if name in known and known[name].placement.everywhere),
    ]
    for other in dict.fromkeys(filter(None, near)):
        if other in known:
            name = f"{resource(pod.name)}-After-{resource(other)}"
            yield _statement("order", name, "Optional:", placed(known[other]), placed(pod))


def _on(pod: Pod) -> Iterator[Statement]:
    """Only on machines with these node attributes."""
    if not pod.placement.metadata:
        return
    words: list[str] = []
    for key, value in pod.placement.metadata.items():
        words += [*(["or"] if words else []), "not_defined", key, "or", key, "ne", value]
    yield _statement("location", f"{resource(pod.name)}-On", placed(pod), "rule", "-inf:", *words)


def _prefers(pod: Pod) -> Iterator[Statement]:
    for number, machine in enumerate(pod.placement.prefer):
        score = _PREFERENCES[min(number, len(_PREFERENCES) - 1)]
        yield _statement("location", f"{resource(pod.name)}-Prefers-{machine}", placed(pod), f"{score}:", machine)
