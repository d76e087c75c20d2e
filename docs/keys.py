"""Writes docs/reference/steps.md: every key of every first-party step, from the hooks' own declarations.

Usage: python docs/keys.py. The page is committed; a test compares it with what this prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from podrun.engine import hook_loader
from podrun.options import REQUIRED, Option

PAGE = Path(__file__).resolve().parent / "reference" / "steps.md"
HEAD = """# Every key of every step

Made from the hooks' own declarations by `./dev docs`, as `podrun hook describe NAME` and `podrun schema` are. The keys
that all steps have (`hook`, `name`, `optional`, `background`, `for`, `timeout`) are on the page of
[the pod file](pod-file.md#chain).
"""
#: Where a step is explained.
PAGES = {"image": "images.md", "storage": "storage.md", "network": "network.md"}


def page() -> str:
    """The whole page."""
    return HEAD + "".join(section(name) for name in hook_loader.FIRST_PARTY)


def section(name: str) -> str:
    """One step: a table of its keys, then the tables that some of them hold."""
    options: Any = hook_loader.load(name).Options
    lines = ["", f"## {name}", ""]
    lines += [f"See [{PAGES[name].removesuffix('.md')}]({PAGES[name]}).", ""] if name in PAGES else []
    return "\n".join([*lines, *table(options._field_defaults)]) + "\n"


def table(declared: dict[str, Option]) -> list[str]:
    """The rows of a declaration."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, option in declared.items():
        meaning = option.doc.replace("|", "\\|")
        rows.append(f"| `{key}` | {kind(option.kind.schema)} | {default(option)} | {meaning} |")
    return rows


def kind(schema: Any) -> str:
    """A JSON Schema in few words."""
    if "enum" in schema and len(schema["enum"]) <= 8:
        return ", ".join(f"`{word}`" if type(word) is str else str(word).lower() for word in schema["enum"])
    names = {"array": "list", "object": "table", "boolean": "true or false"}
    types = schema.get("type", "any")
    words = " or ".join(names.get(word, word) for word in ([types] if type(types) is str else types))
    if types == "array":
        words = f"list of {kind(schema['items'])}" if schema.get("items") else words
    if types == "object" and schema.get("properties"):
        words = f"table: {', '.join(f'`{key}`' for key in schema['properties'])}"
    examples = schema.get("examples") or ()
    return f"{words}, e.g. `{examples[0]}`" if examples and type(examples[0]) is str else words


def default(option: Option) -> str:
    """How the default is written; empty where there is none to speak of."""
    value = option.default
    if value is REQUIRED:
        return "required"
    if (value in (None, "", 0, [], {}, ()) and value is not False) or isinstance(value, tuple):
        return ""
    if type(value) is int and value and not value % (1 << 20):
        return f"`{value >> 20}M`"
    return f"`{str(value).lower() if type(value) is bool else value}`"


if __name__ == "__main__":
    PAGE.write_text(page())
