"""``podrun ps`` and ``podrun inspect``: which pods there are, or were, and everything that is known of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from podrun.cli import completion, details, docker_names, fields, pod_table, views
from podrun.cli.output import Guarded, say
from podrun.engine import hook_loader
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.host import Host
from podrun.launcher.commands import host_of, name_of
from podrun.options import unknown

_FILTERS = (
    "name",
    "id",
    "label",
    "status",
    "state",
    "exited",
    "health",
    "image",
    "ancestor",
    "unit",
    "file",
    "volume",
    "network",
    "since",
    "before",
)
#: Docker's words for states.
_STATES = {"running": "up", "exited": "ended", "stopped": "ended", "removing": "stopping"}
_SORTED_BY = {"names": "name", "created": "started", "runningfor": "started", "size": "name"}


@click.command(cls=Guarded)
@click.option(
    "-a", "--all", "also_ended", is_flag=True, help="Also those that have ended in their units or were only created."
)
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only these; see below.")
@click.option("--sort", default="", metavar="FIELD", help="By name, started, status, image, command, ...")
@click.option("-n", "--last", type=int, default=0, metavar="NUMBER", help="The last started, ended ones too.")
@click.option("-l", "--latest", is_flag=True, help="The last one started.")
@click.option("--no-trunc", is_flag=True, help="Commands in full.")
@click.option("--noheading", is_flag=True, help="Without the line of headings.")
@click.option("--format", "form", default="table", metavar="FORMAT", help=fields.FORMATS)
@click.pass_context
def ps(
    ctx: click.Context,
    also_ended: bool,
    quiet: bool,
    filters: Sequence[str],
    sort: str,
    last: int,
    latest: bool,
    no_trunc: bool,
    noheading: bool,
    form: str,
) -> None:
    """List pods; with -a also those that have ended in their units or were only created.

    Filters: name (a regular expression), id, label (KEY or KEY=VALUE), status, exited (a code), health, image, unit,
    file, volume (its name, or the path in the container), network, since and before (started later or earlier than
    that pod). Several values of one key: one of them; labels: all of them.
    """
    host = host_of(ctx.obj)
    wanted: dict[str, list[Any]] = dict(fields.conditions(filters, _FILTERS))
    last = 1 if latest else last
    rows = views.rows(host.run)
    ended = {"ended", "exited", "stopped"} & {*wanted.get("status", ()), *wanted.get("state", ())}
    if also_ended or last or ended or "exited" in wanted:
        rows += views.ended_rows(host.run)
    if also_ended or last or "created" in {*wanted.get("status", ()), *wanted.get("state", ())}:
        rows += views.created_rows(host)
    for key in {"image", "ancestor"} & wanted.keys():
        # An id or a digest stands for the image's names.
        wanted[key] = [*wanted[key], *hook_loader.part("image", "lookup").names(host.root, wanted[key])]
    wanted |= {
        key: [_start_of(rows, key, name) for name in wanted[key]] for key in ("since", "before") if key in wanted
    }
    rows = [row for row in rows if all(_meets(host.run, row, key, values) for key, values in wanted.items())]
    if last:
        rows = sorted(rows, key=lambda row: row["started"] or 0.0, reverse=True)[:last]
    if sort:
        rows = sorted(rows, key=lambda row: _order(row, _SORTED_BY.get(sort, sort)))
    if quiet:
        for row in rows:
            say(row["name"])
        return
    if form == "table" and not no_trunc:
        rows = [*map(pod_table.shortened, rows)]
    fields.write(rows, form, pod_table.COLUMNS, docker_names.pod, heading=not noheading, kind="CONTAINER")


def _order(row: dict[str, Any], field: str) -> tuple[bool, Any]:
    if field not in row:
        raise Failure(unknown(field, [*row], "field"), code=WRONG_FILE)
    found = row[field]
    return (found is None, found if isinstance(found, (int, float)) else str(found))


def _start_of(rows: Sequence[dict[str, Any]], key: str, name: str) -> float:
    """When a pod was started that others are compared with. Raises Failure (UNAVAILABLE)."""
    found = [row["started"] for row in rows if row["name"] == name and row["started"] is not None]
    if not found:
        hint = "of one that has ended: with -a"
        raise Failure(f"--filter {key}={name}: it is not known when that pod was started", code=UNAVAILABLE, hint=hint)
    return float(found[0])


def _meets(run: str, row: dict[str, Any], key: str, values: Sequence[Any]) -> bool:
    """Whether a row is among those that a filter asks for."""
    if key in ("since", "before"):
        began = row["started"]
        return began is not None and any(began > at if key == "since" else began < at for at in values)
    if key == "network":
        return bool(
            {network["name"] for network in (views.inspect(run, row["name"]) or {}).get("networks", [])} & {*values}
        )
    if key == "volume":
        return bool({*_mounted(views.inspect(run, row["name"]) or {})} & {*values})
    if key == "label":
        return fields.has_labels(row["labels"], values)
    if key == "name":
        return any(fields.matches(text, row["name"]) for text in values)
    if key == "id":
        return any(str(row["id"]).startswith(text) for text in values)
    if key in ("status", "state"):
        own = {row["state"], "paused" if "(paused" in row["status"] else row["state"]}
        return any(_STATES.get(text, text) in own for text in values)
    if key == "exited":
        return str(row["exit"]) in values
    if key in ("image", "ancestor"):
        image = str(row["image"])
        return any(text in (image, image.rpartition(":")[0], image.rpartition("/")[2]) for text in values)
    return str(row[key] if row[key] is not None else "none") in values


def _mounted(whole: Mapping[str, Any]) -> Iterator[str]:
    """Names and sources of what is mounted into a pod's containers, and where."""
    for container in whole.get("containers", []):
        for mount in container["mounts"]:
            yield mount["target"]
            source = mount["source"] or ""
            yield from (source, source.removesuffix("/data").rpartition("/")[2])


@click.command(cls=Guarded)
@click.option("-f", "--format", "form", default="json", metavar="FORMAT", help="json, '{name} ...' or a Go template.")
@click.argument("words", metavar="FILE|NAME...", nargs=-1, required=True, shell_complete=completion.words)
@click.pass_context
def inspect(ctx: click.Context, words: Sequence[str], form: str) -> None:
    """Print everything that is known of pods as JSON, one object each; or what is at paths of it.

    A word that is no pod may be an image of the store, of which it prints what 'image inspect' does.
    """
    host = host_of(ctx.obj)
    found: list[tuple[dict[str, Any], Any]] = []
    for word in words:
        try:
            found.append((_whole(word, host, alone=len(words) == 1), docker_names.container))
        except Failure as failure:
            try:
                images = hook_loader.part("image", "commands").inspect(host.root, word, os.getcwd())
            except Failure:
                raise failure from None
            found += [(one, docker_names.image_inspected) for one in images]
    for whole, names in found:
        fields.write_one(whole, form, names)


def _whole(word: str, host: Host, *, alone: bool) -> dict[str, Any]:
    """All of a pod. Raises Failure (UNAVAILABLE, WRONG_FILE) where there is none; ``alone``: it has been named."""
    name = name_of(word, host)
    whole = views.inspect(host.run, name) or views.ended(host.run, name) or views.created(host, name)
    if whole is None:
        what = "there is no such pod" if alone else f"there is no pod {name}"
        raise Failure(what, code=UNAVAILABLE, hint="'podrun ps -a' lists the pods")
    whole["restarts"] = details.restarts(whole["unit"]) if whole["unit"] else None
    return whole
