"""Writes pod files: the standard library reads TOML and writes none."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    #: Writes a string: quoted(), after what the reader of the file substitutes in it has been escaped.
    String = Callable[[str], str]

#: Characters: longer arrays have a line for each item, longer tables of a step a header of their own.
_WIDTH = 110
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def pod_file(tables: Mapping[str, Any], string: String, settings: String) -> str:
    """The text of a pod file: "pod", "chain", and what else ``tables`` has, whose strings ``settings`` writes.

    Those are systemd's sections: podrun substitutes nothing in them.
    """
    parts = ["\n".join(["[pod]", *lines(tables["pod"], string)])]
    for step in tables["chain"]:
        inner = {name: value for name, value in step.items() if _is_long_table(name, value, string)}
        plain = {name: value for name, value in step.items() if name not in inner}
        parts.append("\n".join(["[[chain]]", *lines(plain, string)]))
        parts += ["\n".join([f"[chain.{key(name)}]", *lines(table, string)]) for name, table in inner.items()]
    for section, values in tables.items():
        if section not in ("pod", "chain"):
            parts.append("\n".join([f"[{section}]", *lines(values, settings)]))
    return "\n\n".join(parts) + "\n"


def lines(values: Mapping[str, Any], string: String) -> list[str]:
    """The lines of a table: "key = value"."""
    return [f"{key(name)} = {_value(value, string)}" for name, value in values.items()]


def quoted(text: str) -> str:
    """A basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(_SHORT.get(c, c) if c in _SHORT or c.isprintable() else _code(c) for c in escaped) + '"'


def literal(text: str) -> str:
    """A string of a pod file in which nothing is to be substituted; %i is substituted in templates alone."""
    return quoted(text.replace("${", "$${"))


def key(text: str) -> str:
    """A key, quoted where it has to be."""
    bare = text.replace("-", "a").replace("_", "a")
    return text if bare.isascii() and bare.isalnum() else quoted(text)


def _is_long_table(name: str, value: Any, string: String) -> bool:
    return isinstance(value, dict) and len(f"{name} = {_value(value, string)}") > _WIDTH


def _value(value: Any, string: String, *, one_line: bool = False) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return string(value)
    if isinstance(value, list):
        items = [_value(item, string, one_line=one_line) for item in value]
        line = f"[{', '.join(items)}]"
        if one_line or len(line) <= _WIDTH or len(items) < 2:
            return line
        return "[\n" + "".join(f"  {item},\n" for item in items) + "]"
    if isinstance(value, dict):
        # An inline table has no line breaks in TOML 1.0.
        inner = ", ".join(f"{key(name)} = {_value(item, string, one_line=True)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return repr(value)


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04X}" if number < 65536 else f"\\U{number:08X}"
