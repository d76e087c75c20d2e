"""Mutated values instead of mutated bytes: JSON, lines of JSON and TOML that parse still, and say something else."""

from __future__ import annotations

import copy
import functools
import json
import random
import tomllib
from collections.abc import Iterator
from typing import Any

#: What a value becomes.
_VALUES: list[Any] = [
    0, 1, -1, 2**31, 2**63, 2**64, 1.5, True, False, None, "", "a", "0", "..", "/", "/../../etc/passwd", "a" * 5000,
    "\0", "\n", "\ud800", "é" * 300, "${HOME}", "%i", "sha256:" + "0" * 64, "1:2:3:4:5", "[::1]:80", "-1s", "1e400",
    [], {}, [[]], [None], {"": None}, ["a"] * 300, {"a": {"b": {"c": []}}}, "YQ==", "tmpfs:", "volume:a", "65536",
]  # fmt: skip
_KEYS = ("", "a", "A" * 300, "\0", "hook", "name", "config", "digest", "mediaType", "size", "key", "value", "kvs", "0")


def reshaped(sample: bytes, other: bytes, chance: random.Random) -> bytes | None:
    """The sample with a few values, keys or whole parts changed; None for one that is no JSON and no TOML."""
    kind, trees = _read(sample)
    if kind is None:
        return None
    there, parts = _read(other)
    donor = json.loads(chance.choice(parts)) if there else None
    at = chance.randrange(len(trees))
    texts = [*trees]
    texts[at] = _changed(json.loads(trees[at]), donor, chance)
    if kind == "toml":
        return _toml(texts[at]).encode("utf-8", "surrogatepass")
    lines = [text if isinstance(text, str) and number != at else json.dumps(text) for number, text in enumerate(texts)]
    if kind == "lines" and chance.randrange(4) == 0:
        lines.insert(chance.randrange(len(lines) + 1), lines.pop(chance.randrange(len(lines))))
    return "\n".join(lines).encode()


@functools.cache
def _read(sample: bytes) -> tuple[str | None, list[str]]:
    """What a sample is, and what it holds as JSON."""
    try:
        text = sample.decode()
        return "json", [json.dumps(json.loads(text))]
    except ValueError:
        pass
    try:
        return "lines", [json.dumps(json.loads(line)) for line in text.splitlines()]
    except (ValueError, UnboundLocalError):
        pass
    try:
        return "toml", [json.dumps(tomllib.loads(text))]
    except (ValueError, TypeError, UnboundLocalError):
        return None, []


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each holder with each of its keys or indexes."""
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def _changed(tree: Any, donor: Any, chance: random.Random) -> Any:
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return copy.deepcopy(chance.choice(_VALUES))
        holder, key = chance.choice(places)
        how = chance.randrange(7)
        if how < 3:
            holder[key] = copy.deepcopy(chance.choice(_VALUES))
        elif how == 3:
            del holder[key]
        elif how == 4:
            there, name = chance.choice(list(_places(donor)) or places)
            holder[key] = copy.deepcopy(there[name])
        elif isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key]) for _ in range(chance.choice((1, 2, 100)))]
        else:
            holder[chance.choice((*_KEYS, *holder))] = holder.pop(key)
    return tree


def _toml(value: Any, top: bool = True) -> str:
    """TOML with inline tables only."""
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)} = {_toml(inner, False)}" for key, inner in value.items()]
        return "\n".join(pairs) if top else f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(inner, False) for inner in value)}]"
    return "''" if value is None else json.dumps(value)
