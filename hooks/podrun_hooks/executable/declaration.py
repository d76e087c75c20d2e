"""The declaration of an executable (its answer to describe), and checks of a step's options against it.

A start does not use it; ``podrun check``, ``plan``, ``schema`` and ``hook describe`` do.
"""

from __future__ import annotations

from podrun.options import Wrong, unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from podrun.hook import Facts, Where

_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "string": ((str,), "a string"),
    "integer": ((int,), "an integer"),
    "number": ((int, float), "a number"),
    "boolean": ((bool,), "true or false"),
    "array": ((list,), "an array"),
    "object": ((dict,), "a table"),
    "null": ((), "nothing"),
}


def plain(answer: Facts) -> Facts:
    """The well-formed parts of a description: doc, takes, gives, beside, options."""
    description: Facts = {}
    if isinstance(answer.get("doc"), str):
        description["doc"] = _line(answer["doc"])
    for key in ("takes", "gives"):
        words = answer.get(key)
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            description[key] = [_line(word) for word in words]
    if answer.get("beside") is True:
        description["beside"] = True
    if isinstance(answer.get("options"), dict):
        description["options"] = _object(answer["options"])
    return description


def _line(text: str) -> str:
    """A text as one line of printable characters, since it goes to terminals."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _object(schema: Facts) -> Facts:
    """A well-formed schema of a table, to become a part of the pod file's schema."""
    properties = schema.get("properties")
    required = schema.get("required")
    return {
        "type": "object",
        "properties": {key: one for key, one in _table(properties).items() if isinstance(one, dict)},
        "required": [key for key in required if isinstance(key, str)] if isinstance(required, list) else [],
        "additionalProperties": schema.get("additionalProperties") is not False,
    }


def wrong(schema: Any, options: Mapping[str, Any]) -> list[Wrong]:
    """The mistakes that a JSON Schema finds in a table of options, at most one for each key.

    It supports type, enum, const, properties, required, additionalProperties, items, minimum, maximum, minLength,
    maxLength, minItems, maxItems and pattern, and ignores other keywords. ``where`` of a result leads from the table to
    the wrong part.
    """
    if not isinstance(schema, dict):
        return []
    found: list[Wrong] = []
    properties = _table(schema.get("properties"))
    for key, value in options.items():
        if key not in properties and schema.get("additionalProperties") is False:
            found.append(Wrong(unknown(key, list(properties)), (key,)))
            continue
        try:
            _check(properties.get(key, schema.get("additionalProperties")), value, ())
        except Wrong as one:
            # The message names the innermost key that is wrong.
            named = any(isinstance(part, str) for part in one.where)
            found.append(Wrong(one.what if named else f"{_path(key, one.where)}: {one.what}", (key, *one.where)))
    required = schema.get("required")
    for key in required if isinstance(required, list) else ():
        if key not in options:
            found.append(Wrong(f"{key} is missing"))
    return found


def _check(schema: Any, value: Any, where: Where) -> None:
    """Raises Wrong for a value that the schema does not allow."""
    if not isinstance(schema, dict):
        return
    kinds = schema.get("type")
    kinds = [
        kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str) and kind in _TYPES
    ]
    if kinds and not any(_is(kind, value) for kind in kinds):
        raise Wrong(f"expected {' or '.join(_TYPES[kind][1] for kind in kinds)}, not {value!r}", where)
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        raise Wrong(f"expected one of {', '.join(map(str, schema['enum']))}, not {value!r}", where)
    if "const" in schema and value != schema["const"]:
        raise Wrong(f"expected {schema['const']!r}, not {value!r}", where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _within(schema, "minimum", "maximum", value, str(value), where)
    elif isinstance(value, str):
        _within(schema, "minLength", "maxLength", len(value), f"{len(value)} characters", where)
        if isinstance(schema.get("pattern"), str) and not _matches(schema["pattern"], value):
            raise Wrong(f"{value!r} does not match {schema['pattern']}", where)
    elif isinstance(value, list):
        _within(schema, "minItems", "maxItems", len(value), f"{len(value)} items", where)
        for index, item in enumerate(value):
            _check(schema.get("items"), item, (*where, index))
    elif isinstance(value, dict):
        for one in wrong(schema, value):
            raise Wrong(one.what, (*where, *one.where))


def _is(kind: str, value: Any) -> bool:
    # In Python, True is also an int.
    return isinstance(value, _TYPES[kind][0]) and (isinstance(value, bool) == (kind == "boolean"))


def _within(schema: Mapping[str, Any], least: str, most: str, number: float, shown: str, where: Where) -> None:
    low, high = schema.get(least), schema.get(most)
    if isinstance(low, (int, float)) and number < low:
        raise Wrong(f"expected at least {low}, not {shown}", where)
    if isinstance(high, (int, float)) and number > high:
        raise Wrong(f"expected at most {high}, not {shown}", where)


def _matches(pattern: str, text: str) -> bool:
    import re

    try:
        return re.search(pattern, text) is not None
    except (re.error, OverflowError, RecursionError):
        return True  # dialects of patterns differ, which is no reason to refuse a step


def _path(key: str, where: Where) -> str:
    return key + "".join(f"[{part}]" for part in where)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
