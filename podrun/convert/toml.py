"""Writes a draft as the text of pod files and of networks.toml."""

from __future__ import annotations

from typing import Any

from podrun import tomltext
from podrun.messages import printable

from .draft import CLOSE, INSTANCE, OPEN, Draft, Pod


def pod_file(pod: Pod, *, comments: bool = True) -> str:
    """The text of a pod file; its notes are comments at its top."""
    name, at, _ = pod.name.partition("@")
    notes = "".join(f"# {printable(str(note))}\n" for note in pod.notes) if comments else ""
    tables: dict[str, Any] = {"pod": {"name": name, **pod.table}}
    tables["chain"] = [{"hook": step.hook, **step.values} for step in pod.steps]
    text = tomltext.pod_file({**tables, **pod.sections}, _in_template if at else _string, _setting)
    return f"{notes}\n{text}" if notes else text


def networks_file(draft: Draft) -> str:
    """The text of the [networks.NAME] tables; "" when there are none."""
    tables = [
        "\n".join([f"[networks.{tomltext.key(name)}]", *tomltext.lines(step.values, _setting)])
        for name, step in draft.networks.items()
    ]
    return "\n\n".join(tables) + "\n" if tables else ""


def keys(table: dict[str, Any]) -> list[str]:
    """The lines of a table of a pod file."""
    return tomltext.lines(table, _string)


def _string(text: str) -> str:
    return _setting(text.replace("${", "$${"))


def _in_template(text: str) -> str:
    return _setting(text.replace("${", "$${").replace("%", "%%"))


def _setting(text: str) -> str:
    """A string that podrun hands on as it is, but for what the draft has marked."""
    return tomltext.quoted(text.replace(OPEN, "${").replace(CLOSE, "}").replace(INSTANCE, "%i"))
