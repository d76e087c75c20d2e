"""Facts: what a step hands to later steps and to its own undo; how they merge, and which have a meaning.

The types below are for the type checker and, read as data, what a start and the conformance kit check facts with.
"""

from __future__ import annotations

from podrun import jsontext
from podrun.errors import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, NotRequired, TypeAlias, TypedDict

    Facts: TypeAlias = dict[str, Any]
else:
    Facts = dict

    class TypedDict:  # noqa: D101
        def __init_subclass__(cls, **_):
            pass


# --- the facts that have a meaning ---------------------------------------------------------------------------------


class Process(TypedDict):
    """A process, told from others that had its pid: by its start time (field 22 of proc(5) stat, clock ticks)."""

    pid: int
    start: int


class Mount(TypedDict):
    """A mount of a container (CDI)."""

    containerPath: str
    hostPath: NotRequired[str]
    type: NotRequired[str]
    options: NotRequired[list[str]]
    #: Beyond CDI: a new volume, which gets what the image has at containerPath.
    fill: NotRequired[bool]


class Device(TypedDict):
    """A device of a container (CDI). What is left out is as on the host."""

    path: str
    hostPath: NotRequired[str]
    type: NotRequired[str]
    major: NotRequired[int]
    minor: NotRequired[int]
    fileMode: NotRequired[int]
    permissions: NotRequired[str]
    uid: NotRequired[int]
    gid: NotRequired[int]


class OciHook(TypedDict):
    """A hook of the OCI runtime (CDI); ``when`` has the conditions of oci-hooks(5), of which one has to hold."""

    hookName: str
    path: str
    args: NotRequired[list[str]]
    env: NotRequired[list[str]]
    timeout: NotRequired[int]
    when: NotRequired[list[dict[str, Any]]]


class Image(TypedDict):
    """An image that is ready for containers."""

    ref: str
    #: Of the manifest; "" for a directory and for the host.
    digest: str
    #: Directories, the lowest first.
    layers: list[str]
    config: dict[str, Any]
    mounts: NotRequired[list[Mount]]
    #: Paths in the image that are links to its standard output or error.
    stdio: NotRequired[list[str]]


class Published(TypedDict):
    """A port of the pod's that others reach at the host."""

    host: int
    port: int
    ip: NotRequired[str]
    proto: NotRequired[str]


class Log(TypedDict):
    """Where a container's output goes; empty: where podrun's own goes."""

    file: NotRequired[str]


class KnownFacts(TypedDict, total=False):
    """Every fact that somebody acts on. A hook may give others, under names of its own."""

    env: list[str]
    mounts: list[Mount]
    deviceNodes: list[Device]
    hooks: list[OciHook]
    additionalGids: list[int]
    annotations: dict[str, str]
    #: The path of the pod's network namespace, or "host".
    netns: str
    #: With the length of the prefix: "10.160.0.2/16".
    addresses: list[str]
    hostname: str
    #: The pod's user namespace: its ``path``, a ``netns`` that it owns, the host's ids (``uid``, ``gid``) of its 0.
    userns: dict[str, Any]
    published: list[Published]
    #: By the names of image steps; ``image`` is the nearest one's.
    images: dict[str, Image]
    image: str
    #: Of a resident step.
    process: Process
    #: What watches it. SIGUSR1 has it answer the unit's watchdog, SIGUSR2 has it leave that to another generation's.
    prober: Process
    #: What copies the payload's output, which ends after it, and podrun's input.
    copiers: list[Process]
    feeders: list[Process]
    ready: bool
    id: str
    runtime: str
    log: Log
    #: Where a service is registered, and what its undo and the host's follower need to know of it.
    record: str
    registration: dict[str, Any]
    #: Of an ambassador: the backends by service, and how long a connection waits for one, by the pod's address.
    backends: dict[str, Any]
    syn_timer: dict[str, list[int]]
    #: Milliseconds by service.
    waited: dict[str, float]


#: What people call these facts who come from elsewhere.
_OTHER_NAMES = {
    "environment": "env", "environ": "env", "devices": "deviceNodes", "gids": "additionalGids", "ip": "addresses",
    "ips": "addresses", "volumes": "mounts", "labels": "annotations", "host": "hostname", "networknamespace": "netns",
}  # fmt: skip


def merged(parts: Sequence[Facts]) -> Facts:
    """The facts of several steps as one: lists grow, tables take the later key, anything else is the later value."""
    whole: Facts = {}
    for part in parts:
        for key, value in part.items():
            before = whole.get(key)
            if isinstance(before, list) and isinstance(value, list):
                whole[key] = [*before, *value]
            elif isinstance(before, dict) and isinstance(value, dict):
                whole[key] = {**before, **value}
            else:
                whole[key] = value
    return whole


# --- checking ------------------------------------------------------------------------------------------------------


def accepted(facts: Any) -> Facts:
    """What a hook's ``up`` returned, None for nothing. Raises Failure for what nobody could use, or is not JSON."""
    facts = {} if facts is None else facts
    if wrong := list(wrong_facts(facts)):
        raise Failure("; ".join(wrong), hint="docs/reference/hooks.md has the shapes of facts")
    try:
        jsontext.dumps(facts)
    except (TypeError, ValueError, RecursionError) as error:
        raise Failure(f"its facts are not JSON: {error}") from None
    whole: Facts = facts
    return whole


def wrong_facts(facts: Any, gives: Sequence[str] | None = None) -> Iterator[str]:
    """What is wrong with a hook's facts: known ones of another shape, and undeclared ones (``gives``; None: any)."""
    if type(facts) is not dict:
        yield f"facts are {_called(facts)}, not an object"
        return
    known = KnownFacts.__annotations__
    for key, value in facts.items():
        if gives is not None and key not in gives:
            yield f"fact {key} is not among its 'gives'"
        if key in known:
            yield from _wrong(f"fact {key}", value, known[key])


def unknown_facts(facts: Facts) -> Iterator[tuple[str, str]]:
    """The facts without a meaning whose names come close to one with a meaning, and those."""
    known = {_plain(name): name for name in KnownFacts.__annotations__}
    for key in facts:
        if key not in KnownFacts.__annotations__:
            name = _plain(key)
            meant = _OTHER_NAMES.get(name) or next((known[word] for word in known if _is_near(name, word)), "")
            if meant:
                yield key, meant


def _wrong(what: str, value: Any, kind: str) -> Iterator[str]:
    """What is wrong with a value of a type that is written as ``kind``, as an annotation above is."""
    # "NotRequired[list[str]]" -> "list", "str"
    outer, _, inner = (kind[12:-1] if kind.startswith("NotRequired[") else kind).partition("[")
    inner = inner[:-1]
    wanted: Any = _JSON.get(outer, dict)
    if outer == "Any":
        return
    if type(value) is not wanted:
        yield f"{what} is {_called(value)}, not {_NAMES[wanted]}"
    elif outer == "list":
        for item in value:
            yield from _wrong_inside(f"{what} holds", what, item, inner)
    elif outer == "dict":
        for key, item in value.items():
            yield from _wrong_inside(f"{what}: {key} is", f"{what}: {key}", item, inner.partition(", ")[2])
    elif outer not in _JSON:
        fields: Mapping[str, str] = globals()[outer].__annotations__
        for field, declared in fields.items():
            if field in value:
                yield from _wrong(f"{what}: {field}", value[field], declared)
            elif not declared.startswith("NotRequired["):
                yield f"{what} lacks {field}"


def _wrong_inside(says: str, what: str, value: Any, kind: str) -> Iterator[str]:
    """The same for an item of a list or table."""
    wanted: Any = _JSON.get(kind.partition("[")[0], dict)
    if kind != "Any" and type(value) is not wanted:
        yield f"{says} {_called(value)}, not {_NAMES[wanted]}"
    else:
        yield from _wrong(what, value, kind)


_JSON = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict, "float": float}
_NAMES = {
    str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object", bool: "a boolean",
    type(None): "null",
}  # fmt: skip


def _called(value: Any) -> str:
    return _NAMES.get(type(value)) or f"a {type(value).__name__}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _is_near(word: str, known: str) -> bool:
    """Whether a word is a known one, but for case and one letter; short words have to be the same."""
    if word == known:
        return True
    longer, shorter = (word, known) if len(word) >= len(known) else (known, word)
    if len(shorter) < 5 or len(longer) - len(shorter) > 1:
        return False
    first = next((n for n, letter in enumerate(shorter) if letter != longer[n]), len(shorter))
    rest, other = longer[first + 1 :], shorter[first:]
    return rest in (other, other[1:])
