"""Reads YAML as plain values that know their lines. The only file that imports PyYAML.

A safe loader: no tag makes an object. Plain scalars are those of YAML 1.2's core schema, as compose and Kubernetes read
them: "no" is a string and 22:80 no number of seconds. Aliases are expanded, so the whole has a limit, as has its depth.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from podrun.errors import WRONG_FILE, Failure

#: Of one document, aliases expanded; a compose file of a hundred services has about 5,000.
_NODES = 50_000
_DEPTH = 60
_TAG = "tag:yaml.org,2002:"
_KINDS = frozenset({"map", "seq", "str", "int", "float", "bool", "null", "merge"})


class Table(dict[str, Any]):
    """A mapping: its keys are strings, ``places`` has where each stands, ``file`` is where the mapping was read."""

    def __init__(self, file: str = "") -> None:
        super().__init__()
        self.file = file
        self.places: dict[str, str] = {}

    def where(self, key: str) -> str:
        """The place of a key: "compose.yaml:12"."""
        return self.places.get(key, self.file)


class Tagged:
    """A value with a tag of the application's, such as compose's !reset and !override."""

    def __init__(self, tag: str, value: Any) -> None:
        self.tag = tag
        self.value = value


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))


def documents(text: str, file: str) -> list[Any]:
    """The documents of a YAML text. ``file`` is what messages begin with. Raises Failure (WRONG_FILE)."""
    loader = _Loader(text)
    found = []
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                found.append(_Reader(file).value(node, 0))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        raise Failure(f"{place}: {error.problem or error.context}", code=WRONG_FILE) from None
    except yaml.YAMLError as error:
        raise Failure(f"{file}: {' '.join(str(error).split())}", code=WRONG_FILE) from None
    except RecursionError:
        raise Failure(f"{file}: nested too deeply", code=WRONG_FILE) from None
    finally:
        loader.dispose()
    return found


def _integer(text: str) -> int:
    """An integer as the readers in Go have it, which take 0440 for octal as YAML 1.1 does. Raises ValueError."""
    digits = text.lstrip("+-")
    if digits[:2] in ("0o", "0x"):
        return int(text, 0)
    return int(text, 8) if digits.startswith("0") and not set(digits) & set("89") else int(text)


class _Reader:
    """Makes plain values of one document's nodes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.left = _NODES

    def value(self, node: yaml.Node, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.wrong(node, f"more than {_NODES} values, aliases expanded")
        if depth > _DEPTH:
            raise self.wrong(node, f"nested more than {_DEPTH} levels deep")
        if node.tag.startswith(_TAG) and node.tag.removeprefix(_TAG) not in _KINDS:
            raise self.wrong(node, f"the tag {node.tag} is not known")
        if isinstance(node, yaml.MappingNode):
            plain: Any = self.table(node, depth)
        elif isinstance(node, yaml.SequenceNode):
            plain = [self.value(item, depth + 1) for item in node.value]
        else:
            plain = self.scalar(node)
        if node.tag.startswith("!") and len(node.tag) > 1:
            return Tagged(node.tag, plain)
        return plain

    def table(self, node: yaml.MappingNode, depth: int) -> Table:
        table = Table(self.file)
        merged: list[Table] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{_TAG}merge":
                value = self.value(value_node, depth + 1)
                for part in value if isinstance(value, list) else [value]:
                    if not isinstance(part, Table):
                        raise self.wrong(key_node, "<< takes a mapping, or a list of mappings")
                    merged.append(part)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.wrong(key_node, "a key has to be a plain word")
            key = str(key_node.value)
            if key in table:
                raise self.wrong(key_node, f"{key!r} stands here twice (also at {table.where(key)})")
            table[key] = self.value(value_node, depth + 1)
            table.places[key] = f"{self.file}:{line}"
        # Keys of the mapping itself go before merged ones, earlier merged ones before later.
        for part in merged:
            for key in part:
                if key not in table:
                    table[key] = part[key]
                    table.places[key] = part.where(key)
        return table

    def scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return _integer(text)
            if kind == "float":
                return float(text)
        except ValueError:
            raise self.wrong(node, f"{text[:40]!r} is not a number") from None
        return text

    def wrong(self, node: yaml.Node, what: str) -> Failure:
        mark = node.start_mark
        return Failure(f"{self.file}:{mark.line + 1}:{mark.column + 1}: {what}", code=WRONG_FILE)
