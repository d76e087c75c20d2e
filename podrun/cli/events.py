"""``podrun events``: what has happened, and what happens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from podrun.cli import fields, times
from podrun.cli.output import Guarded, say
from podrun.launcher.commands import host_of
from podrun.systemd.events import path_of

_FILTERS = ("type", "event", "name", "pod", "container", "image", "volume", "network", "label", "id")


@click.command(cls=Guarded)
@click.option("--since", default="", metavar="TIME", help="Only what happened from then on: 10m, 2026-11-26T17:30.")
@click.option("--until", default="", metavar="TIME", help="Only what happens up to then.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only these; see below.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new events.")
@click.option("--format", "form", default="", metavar="FORMAT", help="json, or '{event} {name}'.")
@click.pass_context
def events(ctx: click.Context, since: str, until: str, filters: Sequence[str], follow: bool, form: str) -> None:
    """Print what has happened to pods, images, volumes and networks.

    Filters: type, event, name, pod, image, volume, network, label, id. Several values of one key: one of them.
    """
    wanted = dict(fields.conditions(filters, _FILTERS))
    first = times.moment(since, "--since") if since else 0.0
    last = times.moment(until, "--until") if until else float("inf")
    reader = _Reader(host_of(ctx.obj).run)
    found = reader.past()
    while True:
        for line in found:
            if first <= line["time"] <= last and all(_meets(line, key, values) for key, values in wanted.items()):
                say(_shown(line, form))
        if not follow or time.time() > last:
            return
        time.sleep(0.1)
        found = reader.more()


def _meets(line: Mapping[str, Any], key: str, values: Sequence[str]) -> bool:
    if key == "label":
        return fields.has_labels(line.get("labels", {}), values)
    if key == "id":
        return any(str(line.get("id", "")).startswith(text) for text in values)
    if key in ("pod", "container", "volume", "network", "image"):
        kind = "pod" if key == "container" else key
        own = line["name"] if line["type"] == kind else line.get(kind)
        return own in values
    if key == "type":
        return line["type"] in ["pod" if text == "container" else text for text in values]
    return line[key] in values


def _shown(line: dict[str, Any], form: str) -> str:
    if form == "json":
        return json.dumps(line)
    if form:
        return fields.line(form, {"image": None, "labels": {}, "id": None, "exit": None, **line})
    notes = [f"{key}={fields.shown(value)}" for key, value in line.items() if key not in _HEAD]
    words = [times.stamp(line["time"]), line["type"], line["event"], line["name"]]
    return " ".join(words) + (f" ({', '.join(notes)})" if notes else "")


_HEAD = ("time", "type", "event", "name")


class _Reader:
    """Reads the lines in order; goes on in the next file when one has been begun."""

    def __init__(self, run: str) -> None:
        self._path = path_of(run)
        self._rest = b""
        self._fd = -1

    def past(self) -> Iterator[dict[str, Any]]:
        """The lines that there are, those of the file before included."""
        for path in (f"{self._path}.1", self._path):
            self._open(path)
            yield from self._lines()

    def more(self) -> Iterator[dict[str, Any]]:
        """The lines that have come since."""
        yield from self._lines()
        if self._fd < 0 or self._is_replaced():
            yield from self._lines()  # written between the two reads
            self._open(self._path)
            yield from self._lines()

    def _lines(self) -> Iterator[dict[str, Any]]:
        while self._fd >= 0 and (block := os.read(self._fd, 65536)):
            *whole, self._rest = (self._rest + block).split(b"\n")
            yield from filter(None, map(_read, whole))

    def _is_replaced(self) -> bool:
        try:
            return not os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _open(self, path: str) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._rest = b""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self._fd = -1


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None  # written while the disk was full
    return told if isinstance(told, dict) and {"time", "type", "event", "name"} <= told.keys() else None
