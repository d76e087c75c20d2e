"""networks.toml written by ``podrun network create`` and ``rm``; what people have written in it stays as it is."""

from __future__ import annotations

import os
import tomllib

from podrun import atomic, jsontext
from podrun.errors import BUSY, CANNOT_CREATE, UNAVAILABLE, WRONG_FILE, Failure
from podrun.options import Wrong, read
from podrun_hooks.network import inspect, options
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def create(name: str, settings: Mapping[str, Any], run: str) -> None:
    """Adds the table [networks.NAME]. Raises Failure: WRONG_FILE for settings, CANNOT_CREATE for a taken name."""
    try:
        read(options.Network, settings)
        options.link_name(name)
    except Wrong as wrong:
        raise Failure(f"network {name}: {wrong.what}", code=WRONG_FILE) from None
    if name in options.networks() or any(row["name"] == name for row in inspect.networks(run)):
        raise Failure(f"there is a network {name} already", code=CANNOT_CREATE)
    if os.path.exists(f"/sys/class/net/{name}"):
        raise Failure(
            f"the host has a link {name}, which is not podrun's", code=CANNOT_CREATE, hint="choose another name"
        )
    key = name if "." not in name else jsontext.dumps(name)
    lines = [f"[networks.{key}]", *(f"{one} = {jsontext.dumps(value)}" for one, value in settings.items())]
    before = _text()
    _write(before + ("\n" if before else "") + "\n".join(lines) + "\n")


def remove(name: str, run: str) -> None:
    """Removes the network's table, and its bridge. Raises Failure: UNAVAILABLE when there is none, BUSY naming pods."""
    declared = name in options.networks()
    if not declared and not any(row["name"] == name for row in inspect.networks(run)):
        raise Failure(f"there is no network {name}", code=UNAVAILABLE, hint="'podrun network ls' lists the networks")
    if holders := sorted({row["pod"] for row in inspect.leases(run) if row["bridge"] == name and row["alive"]}):
        raise Failure(f"network {name} is in use by {', '.join(holders)}", code=BUSY, hint="stop them first")
    if declared:
        text = _without(_text(), name)
        _write(text)
    inspect.remove_bridges(run, only=name)


def _text() -> str:
    try:
        return trusted.text(options.NETWORKS, "/etc/podrun")
    except FileNotFoundError:
        return ""


def _without(text: str, name: str) -> str:
    """The same without the table. Raises Failure where it is not a table of its own with a heading."""
    kept, within = [], False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            heading = line.strip().partition("#")[0].strip()
            within = heading in (f"[networks.{name}]", f'[networks."{name}"]')
        if not within:
            kept.append(line)
    result = "".join(kept)
    try:
        now, then = tomllib.loads(result), tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        now, then = {}, {"": ""}
    then.get("networks", {}).pop(name, None)
    if now.get("networks", {}) != then.get("networks", {}):
        what = f"{options.NETWORKS}: the table of {name} is not one with a heading [networks.{name}]"
        raise Failure(what, code=WRONG_FILE, hint="remove it with an editor")
    return result.rstrip("\n") + "\n" if result.strip() else ""


def _write(text: str) -> None:
    """In the place of the old one, in one step."""
    directory, name = os.path.split(options.NETWORKS)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    place = trusted.directory(directory, "/etc/podrun")
    try:
        atomic.replace(name, text, 0o644, dir_fd=place)
    except OSError as error:
        raise Failure(f"{options.NETWORKS}: {error.strerror}", code=CANNOT_CREATE) from None
    finally:
        os.close(place)
