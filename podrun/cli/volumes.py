"""``podrun volume``: named volumes on the command line."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import backups, completion, docker_names, fields, in_use, times
from podrun.cli.output import Group, Guarded, say
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.journal import Entry
from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook_extras import UsesVolumes, offers
from podrun.host import Host
from podrun.launcher.commands import host_of
from podrun.systemd import events


def _volumes() -> Any:
    """The storage hook's functions for named volumes."""
    return hook_loader.part("storage", "volumes")


@click.group(name="volume", cls=Group)
def group() -> None:
    """Named volumes."""


for command in backups.COMMANDS:
    group.add_command(command)


def users(host: Host) -> dict[str, list[str]]:
    """The pods that use each volume, by their journals."""
    found: dict[str, list[str]] = {}
    for pod in journals.pods(host.run):
        for entry in states.entries(journals.everything(host.run, pod)):
            for name in _volumes_of(entry) if entry.at != "down" else ():
                if pod not in found.setdefault(name, []):
                    found[name].append(pod)
    return found


def _volumes_of(entry: Entry) -> Sequence[str]:
    try:
        using = offers(hook_loader.load(entry.step["hook"]), UsesVolumes)
    except Failure:
        return ()  # its package has been removed since
    return using.volumes_of(entry.step["options"]) if using else ()


def row_of(host: Host, name: str, used: dict[str, list[str]]) -> dict[str, Any]:
    """What is known of a volume; ``used`` is what :func:`users` has found."""
    path = _volumes().content_of(host.root, name)
    told = _volumes().about(host.root, name)
    modified = os.stat(path).st_mtime if os.path.isdir(path) else None
    return {
        "name": name,
        "path": path,
        "modified": modified,
        "pods": used.get(name, []),
        "created": told.created,
        "labels": told.labels,
        "options": told.options,
    }


_FILTERS = ("name", "label", "dangling", "driver", "scope", "until")


def _meets(row: dict[str, Any], key: str, values: Sequence[str]) -> bool:
    """Whether a volume is among those that a filter asks for."""
    if key == "label":
        return fields.has_labels(row["labels"], values)
    if key == "dangling":
        return bool(row["pods"]) != (values[-1] in ("true", "1"))
    if key == "until":
        return all(row["created"] <= times.moment(text, "--filter until") for text in values)
    if key in ("driver", "scope"):
        return "local" in values
    return any(fields.matches(text, row["name"]) for text in values)


@group.command(cls=Guarded)
@click.option("--format", "form", default="table", metavar="FORMAT", help=fields.FORMATS)
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only these; see below.")
@click.option("--noheading", "-n", is_flag=True, help="Without the line of headings.")
@click.pass_context
def ls(ctx: click.Context, form: str, quiet: bool, filters: Sequence[str], noheading: bool) -> None:
    """List the volumes.

    Filters: name (a regular expression), label (KEY or KEY=VALUE), dangling (true: no pod that is there uses it), until
    (a time). Several values of one key: one of them; labels: all of them.
    """
    host = host_of(ctx.obj)
    used = users(host)
    rows = [row_of(host, name, used) for name in _volumes().names(host.root)]
    for key, values in fields.conditions(filters, _FILTERS):
        rows = [row for row in rows if _meets(row, key, values)]
    if quiet:
        for row in rows:
            say(row["name"])
        return
    if form == "table":
        rows = [{**row, "modified": _minute(row["modified"])} for row in rows]
    fields.write(
        rows, form, ("name", "path", "modified", "pods"), docker_names.volume, heading=not noheading, kind="VOLUME"
    )


def _minute(seconds: float | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds is not None else None


@group.command(cls=Guarded)
@click.option("-f", "--format", "form", default="json", metavar="FORMAT", help="json, '{path} ...' or a Go template.")
@click.option("-a", "--all", "every", is_flag=True, help="All volumes.")
@click.argument("names", nargs=-1, shell_complete=completion.volumes)
@click.pass_context
def inspect(ctx: click.Context, names: Sequence[str], form: str, every: bool) -> None:
    """Print what is known of volumes as JSON, one object each; or what is at paths of it."""
    host = host_of(ctx.obj)
    if bool(names) == every:
        raise Failure("name the volumes, or use --all", code=WRONG_FILE)
    names = _volumes().names(host.root) if every else names
    _known(host, names)
    used = users(host)
    for name in names:
        fields.write_one(row_of(host, name, used), form, docker_names.volume)


@group.command(cls=Guarded)
@click.argument("name", shell_complete=completion.volumes)
@click.pass_context
def exists(ctx: click.Context, name: str) -> int:
    """0 when there is such a volume, else 1. Nothing is printed."""
    return int(name not in _volumes().names(host_of(ctx.obj).root))


@group.command(cls=Guarded)
@click.argument("names", nargs=-1, shell_complete=completion.volumes)
@click.option("-f", "--force", is_flag=True, help="Also one that only a pod that is down uses; none is no error.")
@click.option("-a", "--all", "every", is_flag=True, help="All volumes.")
@click.pass_context
def rm(ctx: click.Context, names: Sequence[str], force: bool, every: bool) -> None:
    """Remove volumes with what is in them; one that a pod uses, up or not, stays."""
    host = host_of(ctx.obj)
    if bool(names) == every:
        raise Failure("name the volumes, or use --all", code=WRONG_FILE)
    known = _volumes().names(host.root)
    names = known if every else [name for name in names if name in known] if force else names
    _known(host, names)
    used = users(host)
    patterns = {} if force else in_use.volumes(host)
    for name in names:
        if name in used:
            pods = ", ".join(used[name])
            raise Failure(f"volume {name} is used by {pods}", code=BUSY, hint=f"'podrun down {used[name][0]}' first")
        if pod := in_use.user(name, patterns):
            raise Failure(f"volume {name} belongs to pod {pod}, which is down", code=BUSY, hint="--force removes it")
    for name in names:
        _volumes().remove(host.root, name)
        events.note(host.run, "volume", "rm", name)
        say(f"removed {name}")


@group.command(cls=Guarded)
@click.option("-a", "--all", "named", is_flag=True, help="Named volumes too: podrun makes no others.")
@click.option("-f", "--force", is_flag=True, help="Do not ask, and skip pod files that cannot be read.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only these, as of 'volume ls'.")
@click.pass_context
def prune(ctx: click.Context, named: bool, force: bool, dry_run: bool, filters: Sequence[str]) -> None:
    """Remove volumes that no pod uses, up or not, with what is in them."""
    host = host_of(ctx.obj)
    patterns = in_use.volumes(host, force=force)
    used = users(host)
    wanted = dict(fields.conditions(filters, _FILTERS))
    rows = [row_of(host, name, used) for name in _volumes().names(host.root)]
    chosen = [row["name"] for row in rows if all(_meets(row, key, values) for key, values in wanted.items())]
    gone = [name for name in chosen if name not in used and not in_use.is_in(name, patterns)]
    if gone and not named:
        say(f"no pod uses {', '.join(gone)}; --all removes named volumes")
        return
    if in_use.is_agreed(gone, "volume", force=force, dry_run=dry_run):
        for name in gone:
            _volumes().remove(host.root, name)
            events.note(host.run, "volume", "rm", name)
            say(f"removed {name}")


def _known(host: Host, names: Sequence[str]) -> None:
    for name in names:
        if name not in _volumes().names(host.root):
            raise Failure(f"there is no volume {name}", code=UNAVAILABLE, hint="'podrun volume ls' lists them")
