"""Writes a draft as the text of pod files and of networks.toml."""

from __future__ import annotations

from typing import Any

from podrun.messages import printable

from .draft import CLOSE, INSTANCE, OPEN, Draft, Pod

_WIDTH = 110


def pod_file(pod: Pod, *, comments: bool = True) -> str:
    """The text of a pod file; its notes are comments at its top."""
    template = "@" in pod.name
    lines = [f"# {printable(str(note))}" for note in pod.notes] if comments else []
    if lines:
        lines.append("")
    name = pod.name.partition("@")[0]
    lines += ["[pod]", f"name = {_string(name, template)}", *keys(pod.table, template)]
    for step in pod.steps:
        inner = {key: value for key, value in step.values.items() if _is_long_table(key, value, template)}
        plain = {key: value for key, value in step.values.items() if key not in inner}
        lines += ["", "[[chain]]", f"hook = {_string(step.hook, template)}", *keys(plain, template)]
        for key, table in inner.items():
            lines += ["", f"[chain.{_key(key)}]", *keys(table, template)]
    for section, settings in pod.sections.items():
        # Nothing is substituted in what is systemd's.
        lines += ["", f"[{section}]", *keys(settings, None)]
    return "\n".join(lines) + "\n"


def networks_file(draft: Draft) -> str:
    """The text of the [networks.NAME] tables; "" when there are none."""
    tables = [
        "\n".join([f"[networks.{_key(name)}]", *keys(step.values, None)]) for name, step in draft.networks.items()
    ]
    return "\n\n".join(tables) + "\n" if tables else ""


def keys(table: dict[str, Any], template: bool | None = False) -> list[str]:
    """The lines of a table. ``template``: see :func:`_string`."""
    return [f"{_key(key)} = {_value(value, template)}" for key, value in table.items()]


def _is_long_table(key: str, value: Any, template: bool) -> bool:
    return isinstance(value, dict) and len(f"{key} = {_value(value, template)}") > _WIDTH


def _key(text: str) -> str:
    bare = text.replace("-", "a").replace("_", "a")
    return text if bare.isascii() and bare.isalnum() else _quoted(text)


def _value(value: Any, template: bool | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value, template)
    if isinstance(value, list):
        items = [_value(item, template) for item in value]
        line = f"[{', '.join(items)}]"
        return (
            line if len(line) <= _WIDTH or len(items) < 2 else "[\n" + "".join(f"  {item},\n" for item in items) + "]"
        )
    if isinstance(value, dict):
        # An inline table has no line breaks in TOML 1.0.
        inner = ", ".join(f"{_key(key)} = {_one_line(item, template)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return repr(value)


def _one_line(value: Any, template: bool | None) -> str:
    return (
        f"[{', '.join(_one_line(item, template) for item in value)}]"
        if isinstance(value, list)
        else _value(value, template)
    )


def _string(text: str, template: bool | None) -> str:
    """A string; ``template`` = None for what podrun hands on as it is, True where %i is substituted."""
    if template is not None:
        text = text.replace("${", "$${")
        if template:
            text = text.replace("%", "%%")
    return _quoted(text.replace(OPEN, "${").replace(CLOSE, "}").replace(INSTANCE, "%i"))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(short.get(c, c) if c in short or c.isprintable() else _code(c) for c in escaped) + '"'


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04X}" if number < 65536 else f"\\U{number:08X}"
