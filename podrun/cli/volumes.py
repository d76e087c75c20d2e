"""``podrun volume``: named volumes on the command line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import backups, in_use
from podrun.cli.output import Guarded, printed, say
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.journal import Entry
from podrun.errors import BUSY, UNAVAILABLE, Failure
from podrun.hook_extras import UsesVolumes, offers
from podrun.host import Host
from podrun.launcher.commands import host_of
from podrun.systemd import events


def _volumes() -> Any:
    """The storage hook's functions for named volumes."""
    return hook_loader.part("storage", "volumes")


@click.group(name="volume")
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


def _row(host: Host, name: str, used: dict[str, list[str]]) -> dict[str, Any]:
    path = _volumes().path_of(host.root, name)
    return {"name": name, "path": path, "modified": os.stat(path).st_mtime, "pods": used.get(name, [])}


@group.command(cls=Guarded)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.pass_context
def ls(ctx: click.Context, form: str, quiet: bool) -> None:
    """List the volumes."""
    host = host_of(ctx.obj)
    used = users(host)
    rows = [_row(host, name, used) for name in _volumes().names(host.root)]
    if quiet:
        for row in rows:
            say(row["name"])
        return
    if form == "table":
        rows = [{**row, "modified": time.strftime("%Y-%m-%d %H:%M", time.localtime(row["modified"]))} for row in rows]
    printed(rows, form)


@group.command(cls=Guarded)
@click.argument("name")
@click.pass_context
def inspect(ctx: click.Context, name: str) -> None:
    """Print what is known of a volume as JSON."""
    host = host_of(ctx.obj)
    _known(host, [name])
    say(json.dumps(_row(host, name, users(host)), indent=2))


@group.command(cls=Guarded)
@click.argument("names", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Also one that only a pod that is down uses.")
@click.pass_context
def rm(ctx: click.Context, names: Sequence[str], force: bool) -> None:
    """Remove volumes with what is in them; one that a pod uses, up or not, stays."""
    host = host_of(ctx.obj)
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
@click.pass_context
def prune(ctx: click.Context, named: bool, force: bool, dry_run: bool) -> None:
    """Remove volumes that no pod uses, up or not, with what is in them."""
    host = host_of(ctx.obj)
    patterns = in_use.volumes(host, force=force)
    used = users(host)
    gone = [name for name in _volumes().names(host.root) if name not in used and not in_use.is_in(name, patterns)]
    if gone and not named:
        say(f"no pod uses {', '.join(gone)}; --all removes named volumes")
        return
    if in_use.is_agreed(gone, "volume", force=force, dry_run=dry_run):
        for name in gone:
            _volumes().remove(host.root, name)
            say(f"removed {name}")


def _known(host: Host, names: Sequence[str]) -> None:
    for name in names:
        if name not in _volumes().names(host.root):
            raise Failure(f"there is no volume {name}", code=UNAVAILABLE, hint="'podrun volume ls' lists them")
