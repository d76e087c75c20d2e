"""``podrun image ls``, ``inspect``, ``history`` and ``exists``: what the store knows of images."""

from __future__ import annotations

import fnmatch
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import completion, docker_names, fields, times
from podrun.cli.output import Guarded, human, say
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.launcher import pull
from podrun.launcher.commands import host_of
from podrun.options import unknown

_COLUMNS = ("ref", "digest", "id", "platform", "size", "pulled")
_FILTERS = ("reference", "before", "since", "after", "until", "label", "id", "dangling")
#: Docker's and podman's words for fields.
_SORTED_BY = {"repository": "ref"}


@click.command(cls=Guarded)
@click.option("--format", "form", default="table", metavar="FORMAT", help=fields.FORMATS)
@click.option("-q", "--quiet", is_flag=True, help="Digests only.")
@click.option("--no-trunc", is_flag=True, help="Digests in full.")
@click.option("--noheading", "-n", is_flag=True, help="Without the line of headings.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only these; see below.")
@click.option("--sort", default="", metavar="FIELD", help="By ref, tag, created, id, size or pulled.")
@click.option("-a", "--all", "every", is_flag=True, help="Accepted: there are no others.")
@click.option("--digests", is_flag=True, help="Accepted: they are shown.")
@click.argument("name", default="", shell_complete=completion.images)
@click.pass_context
def ls(
    ctx: click.Context,
    /,
    form: str,
    quiet: bool,
    no_trunc: bool,
    noheading: bool,
    filters: Sequence[str],
    sort: str,
    name: str,
    **_: bool,
) -> None:
    """List the images in the store; those of one NAME, with or without its tag, or of an id or a digest.

    Filters: reference (a name, or a pattern with *), before, since and until (an image, until: a time), label (KEY or
    KEY=VALUE), id (its beginning), dangling. Several values of one key: one of them; labels: all of them.
    """
    host = host_of(ctx.obj)
    rows = [row._asdict() for row in pull.store().ls(host.root)]
    if name:
        meant = pull.store("lookup").names(host.root, [name], os.getcwd())  # an id, a digest
        rows = [row for row in rows if row["ref"] in meant or _is_called(row, name)]
    rows = _filtered(rows, filters, host.root)
    if sort:
        rows = sorted(rows, key=lambda row: _order(row, _SORTED_BY.get(sort, sort)))
    if quiet:
        for row in rows:
            say(row["digest"])
        return
    if form == "table":
        rows = [
            {
                **row,
                "digest": row["digest"] if no_trunc else row["digest"][:19],
                "id": row["id"].removeprefix("sha256:")[: None if no_trunc else 12] or None,
                "size": human(row["size"]),
                "pulled": time.strftime("%Y-%m-%d %H:%M", time.localtime(row["pulled"])),
            }
            for row in rows
        ]
    elif no_trunc:
        rows = [{**row, "full": True} for row in rows]
    fields.write(rows, form, _COLUMNS, docker_names.image, heading=not noheading, kind="IMAGE")


def chosen(root: str, filters: Sequence[str]) -> set[str]:
    """The names of the images that filters of 'image ls' choose. Raises Failure (WRONG_FILE)."""
    rows = [row._asdict() for row in pull.store().ls(root)]
    return {row["ref"] for row in _filtered(rows, filters, root)}


def _filtered(rows: list[dict[str, Any]], filters: Sequence[str], root: str) -> list[dict[str, Any]]:
    for key, values in fields.conditions(filters, _FILTERS):
        rows = [row for row in rows if _meets(row, key, values, root)]
    return rows


def _is_called(row: dict[str, Any], name: str) -> bool:
    """Whether an image has a name, with or without its tag; * stands for anything."""
    if "*" in name:
        plain = row["ref"].removeprefix("docker.io/library/").removeprefix("docker.io/")
        return any(
            fnmatch.fnmatchcase(text, name) or fnmatch.fnmatchcase(text, f"{name}:*") for text in (row["ref"], plain)
        )
    wanted = pull.store().spelled(name)
    return wanted in (row["ref"], f"{row['ref'].rpartition(':')[0]}:latest")


def _meets(row: dict[str, Any], key: str, values: Sequence[str], root: str) -> bool:
    if key == "label":
        return fields.has_labels(row["labels"], values)
    if key == "reference":
        return any(_is_called(row, text) for text in values)
    if key == "id":
        return any(row["id"].removeprefix("sha256:").startswith(text.removeprefix("sha256:")) for text in values)
    if key == "dangling":
        return ("@" in row["ref"].rpartition("/")[2]) == (values[-1] in ("true", "1"))
    created = docker_names.seconds_of(row["created"]) or 0.0
    if key == "until":
        return all(created <= times.moment(text, "--filter until") for text in values)
    others = [_created(root, text) for text in values]
    return all(created < other if key == "before" else created > other for other in others)


def _created(root: str, ref: str) -> float:
    """When an image in the store was built, in seconds since 1970. Raises Failure (UNAVAILABLE)."""
    [one, *_] = pull.store().inspect(root, ref, os.getcwd())
    return docker_names.seconds_of(str(one["configuration"].get("created") or "")) or 0.0


def _order(row: dict[str, Any], field: str) -> Any:
    if field == "tag":
        return docker_names.name_and_tag(row["ref"])[1]
    if field not in row or field == "labels":
        raise Failure(unknown(field, [key for key in row if key != "labels"], "field"), code=WRONG_FILE)
    return row[field]


@click.command(cls=Guarded)
@click.option("-f", "--format", "form", default="json", metavar="FORMAT", help="json, '{ref} ...' or a Go template.")
@click.argument("refs", nargs=-1, required=True, shell_complete=completion.images)
@click.pass_context
def inspect(ctx: click.Context, refs: Sequence[str], form: str) -> None:
    """Print what the store knows of images, by name, id or digest, as JSON; or what is at paths of it."""
    found = [one for ref in refs for one in pull.store().inspect(host_of(ctx.obj).root, ref, os.getcwd())]
    if form == "json":
        say(json.dumps(found, indent=2))
    for one in found if form != "json" else ():
        fields.write_one(one, form, docker_names.image_inspected)


@click.command(cls=Guarded)
@click.argument("ref", shell_complete=completion.images)
@click.pass_context
def exists(ctx: click.Context, ref: str) -> int:
    """0 when an image is in the store, by name, id or digest; else 1. Nothing is printed."""
    return int(not is_there(host_of(ctx.obj).root, ref))


def is_there(root: str, ref: str) -> bool:
    """Whether an image is in the store. Raises Failure (MALFORMED) for one that is there by half."""
    try:
        pull.store().inspect(root, ref, os.getcwd())
    except Failure as failure:
        if failure.code != UNAVAILABLE:
            raise
        return False
    return True


@click.command(cls=Guarded)
@click.option("--format", "form", default="table", metavar="FORMAT", help=fields.FORMATS)
@click.option("--no-trunc", is_flag=True, help="Digests and commands in full.")
@click.option("-q", "--quiet", is_flag=True, help="Layers' digests only.")
@click.option("-H", "--human", "readable", is_flag=True, help="Accepted.")
@click.argument("ref", shell_complete=completion.images)
@click.pass_context
def history(ctx: click.Context, ref: str, form: str, no_trunc: bool, quiet: bool, readable: bool) -> None:
    """Show how an image was made, the newest step first."""
    root = host_of(ctx.obj).root
    [whole, *_] = pull.store().inspect(root, ref, os.getcwd())
    rows: list[dict[str, Any]] = [row._asdict() for row in pull.store().history(root, ref, os.getcwd())]
    # As docker: the image is what its last step made; what the steps before it made has no id any more.
    for number, row in enumerate(rows):
        row["id"] = "" if number else whole["id"].removeprefix("sha256:")[: None if no_trunc else 12]
    if quiet:
        for row in rows:
            say(row["layer"] or "-")
        return
    if form == "table":
        rows = [
            {
                "layer": (row["layer"] if no_trunc else row["layer"][7:19]) or None,
                "created": row["created"][:19].replace("T", " "),
                "size": human(row["size"]),
                "created by": row["created_by"][: None if no_trunc else 80],
            }
            for row in rows
        ]
    fields.write(rows, form, ("layer", "created", "size", "created by"), docker_names.made)


COMMANDS = (ls, inspect, exists, history)
