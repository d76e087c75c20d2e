"""``podrun ps``: which pods there are, or were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from podrun.cli import docker_names, fields, pod_table, views
from podrun.cli.output import Guarded, say
from podrun.engine import hook_loader
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.launcher.commands import host_of
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
