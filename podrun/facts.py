"""Facts: what a step hands to later steps and to its own undo; how they merge, and which have a meaning."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, TypeAlias

    Facts: TypeAlias = dict[str, Any]
else:
    Facts = dict


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


_MOUNT = {"hostPath": str, "containerPath": str, "type": str, "options": list}


_DEVICE = {"path": str, "hostPath": str, "type": str, "permissions": str, "major": int, "minor": int}


_OCI_HOOK = {"hookName": str, "path": str, "args": list, "env": list, "timeout": int, "when": list}


#: The facts with a meaning for others: the type, of lists the type of an item or the fields that an item may have, and
#: those that it must have.
VOCABULARY: dict[str, tuple[type, Any, tuple[str, ...]]] = {
    "env": (list, str, ()),
    "mounts": (list, _MOUNT, ("containerPath",)),
    "deviceNodes": (list, _DEVICE, ("path",)),
    "hooks": (list, _OCI_HOOK, ("hookName", "path")),
    "additionalGids": (list, int, ()),
    "annotations": (dict, None, ()),
    "netns": (str, None, ()),
    "addresses": (list, str, ()),
    "hostname": (str, None, ()),
    "images": (dict, None, ()),
    "process": (dict, None, ("pid", "start")),
    "published": (list, {"ip": str, "host": int, "port": int, "proto": str}, ("host", "port")),
}


def wrong_facts(facts: Facts, gives: Sequence[str] | None) -> Iterator[str]:
    """What is wrong with a hook's facts: undeclared ones (``gives``; None: any), and known ones of another shape."""
    for key, value in facts.items():
        if gives is not None and key not in gives:
            yield f"fact {key} is not among its 'gives'"
        if key in VOCABULARY:
            yield from _wrong(key, value, *VOCABULARY[key])


def _wrong(key: str, value: Any, kind: type, item: Any, needed: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(value, kind):
        yield f"fact {key} is {_called(type(value))}, not {_called(kind)}"
        return
    items: list[Any] = list(value) if isinstance(value, list) else [value]
    for one in items:
        if isinstance(item, type) and not isinstance(one, item):
            yield f"fact {key} holds {_called(type(one))}, not {_called(item)}"
        elif isinstance(item, dict) and not isinstance(one, dict):
            yield f"fact {key} holds {_called(type(one))}, not an object"
        elif isinstance(one, dict):
            yield from (f"fact {key} lacks {field}" for field in needed if field not in one)
            for field, value in one.items():
                wanted = item.get(field) if isinstance(item, dict) else None
                if wanted and not isinstance(value, wanted):
                    yield f"fact {key}: {field} is {_called(type(value))}, not {_called(wanted)}"


def _called(kind: type) -> str:
    return {str: "a string", int: "a number", list: "an array", dict: "an object", bool: "a boolean"}.get(kind, "null")
