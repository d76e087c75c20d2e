"""Hooks that do nothing, with options like those of the real ones, and a reader of pod files that knows them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from podrun.errors import WRONG_FILE, Failure
from podrun.options import (
    ABSOLUTE,
    INTEGER,
    PORT,
    SIZE,
    TEXT,
    Wrong,
    checked,
    choice,
    list_of,
    option,
    record,
    table_of,
    unknown,
)
from podrun.podfile import loader
from podrun.record import NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from podrun.podfile.loader import PodText


def _uid(value: int) -> int:
    if not 0 <= value < 1 << 32:
        raise Wrong(f"{value} is not a uid")
    return value


class Image(NamedTuple):
    ref: str = option(TEXT, "what to fetch")
    pull: str = option(choice("missing", "always", "never"), "when to fetch it", "missing")


class Storage(NamedTuple):
    target: str = option(ABSOLUTE, "where it is seen")
    source: str = option(TEXT, "what is seen", "tmpfs:")
    options: list[str] = option(list_of(TEXT), "mount options", ())


class Network(NamedTuple):
    mode: str = option(TEXT, "how it is attached", "bridge")
    publish: list[str] = option(list_of(TEXT), "ports", ())


class Ready(NamedTuple):
    port: int = option(PORT, "the port that answers")


class Container(NamedTuple):
    command: list[str] = option(list_of(TEXT), "what runs", ())
    env: dict[str, str] = option(table_of(TEXT), "its environment", {})
    user: int = option(checked(INTEGER, _uid), "its uid", 0)
    memory: int = option(SIZE, "its limit", 0)
    ready: Any = option(record(Ready), "when it is ready", None)


def fake(options: Any, **more: Any) -> Any:
    return SimpleNamespace(
        **{"Options": options, "takes": None, "gives": (), "resident": False, "default_name": "", **more}
    )


HOOKS: dict[str, Any] = {
    "image": fake(Image),
    "storage": fake(Storage),
    "network": fake(Network),
    "ambassador": fake(Ready, resident=True),
    "container": fake(Container, resident=True, default_name="main"),
}


def load_hook(name: str) -> Any:
    if name.startswith("exec:"):
        return fake(None)
    if name not in HOOKS:
        raise Failure(unknown(name, list(HOOKS), "hook"), code=WRONG_FILE)
    return HOOKS[name]


def write(directory: Path, text: str, name: str = "web.toml") -> Path:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def loaded(directory: Path, text: str, name: str = "web.toml", environ: Any = None, **more: Any) -> PodText:
    path = write(directory, text, name)
    return loader.load(str(path), environ={} if environ is None else environ, load_hook=load_hook, **more)
