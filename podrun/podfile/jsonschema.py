"""The JSON Schema (2020-12) of a pod file, built from the declarations of its own keys and of the hooks' options."""

from __future__ import annotations

from podrun.options import schema_of
from podrun.podfile.tables import COMMON, FileTable, PlacementTable, PodTable, StepTable, UpdateTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from podrun.hook import Hook

#: A string with a variable: its shape can only be checked once the variable has been substituted.
_VARIABLE = {"type": "string", "pattern": r"\$\{|%i"}


def schema(hooks: Mapping[str, Hook], described: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The schema of the whole file for these hooks ("image": its module, ...), and for "exec:" hooks with any keys.

    ``described``: what executables among them say their options are, a JSON Schema each.
    It accepts every pod file that podrun accepts without drop-ins. What takes more than the shape of one table (unique
    names, ``for``) only podrun checks.
    """
    whole = schema_of(FileTable)
    properties = whole["properties"]
    for key, table in (("pod", PodTable), ("placement", PlacementTable), ("update", UpdateTable)):
        properties[key] = {**_open(schema_of(table)), "description": properties[key]["description"]}
    common = _open(schema_of(StepTable))["properties"]
    common["hook"]["anyOf"] = [{"enum": list(hooks)}, {"pattern": "^exec:"}, _VARIABLE]
    properties["chain"] |= {"minItems": 1, "items": {"$ref": "#/$defs/step"}}
    step = {
        "type": "object",
        "properties": common,
        "required": ["hook"],
        "allOf": [
            {
                "if": {"properties": {"hook": {"const": name}}, "required": ["hook"]},
                "then": _table(hook, (described or {}).get(name)),
            }
            for name, hook in hooks.items()
        ],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "podrun pod file",
        **whole,
        "required": ["chain"],
        "$defs": {"step": step},
    }


def _table(hook: Hook, told: Any = None) -> dict[str, Any]:
    """One ``[[chain]]`` table of a hook: its own keys, and by name those that every step has."""
    doc = (getattr(hook, "__doc__", None) or "").strip().partition("\n")[0]
    about = {"description": doc} if doc else {}
    if hook.Options is None and not told:
        return about
    own = schema_of(hook.Options) if hook.Options is not None else told
    known = own.get("properties")
    properties = {key: _open(value) for key, value in known.items()} if isinstance(known, dict) else {}
    return {**own, **about, "properties": {**dict.fromkeys(COMMON, True), **properties}}


def _open(declared: Any) -> Any:
    """The same schema, but a string that holds a variable passes for any word and pattern."""
    if isinstance(declared, list):
        return [_open(item) for item in declared]
    if not isinstance(declared, dict):
        return declared
    inner = {}
    for key, value in declared.items():
        if key == "properties":
            inner[key] = {name: _open(item) for name, item in value.items()}
        else:
            inner[key] = value if key in ("enum", "const", "examples", "propertyNames") else _open(value)
    if "enum" not in inner and "pattern" not in inner:
        return inner
    about = {key: inner.pop(key) for key in ("description", "examples") if key in inner}
    return {**about, "anyOf": [inner, _VARIABLE]}
