"""What podrun is, what this machine is, and what the store takes: version, info, system df."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from typing import Any

import click

from podrun import __version__
from podrun.cli import docker_names, fields, images, volumes
from podrun.cli.output import Guarded, human, say
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.host import Host
from podrun.launcher import pull
from podrun.launcher.commands import host_of


@click.command(cls=Guarded)
@click.option("-f", "--format", "form", default="table", metavar="FORMAT", help="table, json or a Go template.")
@click.pass_context
def version(ctx: click.Context, form: str) -> None:
    """Print the version of podrun and of what it runs on."""
    about = {"podrun": __version__, "python": platform.python_version(), "kernel": platform.release()}
    if form == "json":
        say(json.dumps(about))
    elif form == "table":
        for key, value in about.items():
            say(f"{key:8}{value}")
    else:
        fields.write_one(about, form, docker_names.version)


@click.command(cls=Guarded)
@click.option("-f", "--format", "form", default="json", metavar="FORMAT", help="json, '{root} ...' or a Go template.")
@click.pass_context
def info(ctx: click.Context, form: str) -> None:
    """Print what podrun sees of this machine as JSON; 'podrun doctor' says what is wrong with it."""
    host = host_of(ctx.obj)
    store = f"{host.root}/images"
    whole = {
        "version": __version__,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cgroups": "v2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "v1",
        "systemd": os.path.isdir("/run/systemd/system"),
        "root": host.root,
        "run": host.run,
        "pods": len(journals.pods(host.run)),
        "images": len(os.listdir(f"{store}/refs")) if os.path.isdir(f"{store}/refs") else 0,
        "hooks": hook_loader.names(),
    }
    fields.write_one(whole, form, docker_names.host)


@click.group()
def system() -> None:
    """What podrun uses of this machine's disk, and how to have it back."""


@system.command(cls=Guarded)
@click.option("--format", "form", default="table", metavar="FORMAT", help=fields.FORMATS)
@click.pass_context
def df(ctx: click.Context, form: str) -> None:
    """Show what images, pods and volumes take of the disk, how many are in use, and what 'prune' and 'gc' free."""
    host = host_of(ctx.obj)
    rows = [_images(host), _pods(host), _volumes(host)]
    if form == "table":
        rows = [{**row, "size": human(row["size"]), "reclaimable": human(row["reclaimable"])} for row in rows]
    fields.write(rows, form, ("type", "count", "active", "size", "reclaimable"), docker_names.disk)


def _images(host: Host) -> dict[str, Any]:
    busy = images.used(host)
    rows = pull.store().ls(host.root)
    active = [row for row in rows if {row.ref, row.digest} & busy]
    size = disk_usage(f"{host.root}/images")
    # Layers that several images share count once on the disk.
    reclaimable = max(0, size - sum(row.size for row in active)) if active else size
    return {"type": "images", "count": len(rows), "active": len(active), "size": size, "reclaimable": reclaimable}


def _pods(host: Host) -> dict[str, Any]:
    names = journals.pods(host.run)
    active = [name for name in names if states.state(host.run, name) in ("up", "starting", "stopping")]
    unused = sum(disk_usage(f"{host.root}/pods/{name}") for name in {*names} - {*active})
    size = disk_usage(f"{host.root}/pods")
    return {"type": "pods", "count": len(names), "active": len(active), "size": size, "reclaimable": unused}


def _volumes(host: Host) -> dict[str, Any]:
    names = hook_loader.part("storage", "volumes").names(host.root)
    used = {*volumes.users(host)} & {*names}
    unused = sum(disk_usage(f"{host.root}/volumes/{name}") for name in {*names} - used)
    size = disk_usage(f"{host.root}/volumes")
    return {"type": "volumes", "count": len(names), "active": len(used), "size": size, "reclaimable": unused}


@system.command(cls=Guarded)
@click.option("-a", "--all", "unused", is_flag=True, help="Images that no pod uses, too, up or not.")
@click.option("--volumes", "with_volumes", is_flag=True, help="Volumes that no pod uses, too, up or not.")
@click.option("-f", "--force", is_flag=True, help="Do not ask, and skip pod files that cannot be read.")
@click.pass_context
def prune(ctx: click.Context, unused: bool, with_volumes: bool, force: bool) -> None:
    """Do what 'gc', 'image prune' and, with --volumes, 'volume prune' do."""
    group = ctx.find_root().command
    if isinstance(group, click.Group):
        collecting = group.get_command(ctx, "gc")
        with contextlib.suppress(click.exceptions.Exit):
            ctx.invoke(collecting, only_check=False) if collecting else None
    ctx.invoke(images.prune, unused=unused, force=force)
    if with_volumes:
        ctx.invoke(volumes.prune, named=True, force=force)


def disk_usage(top: str) -> int:
    """Bytes of disk space that a tree uses; hard links count once, other file systems do not count."""
    seen: set[tuple[int, int]] = set()
    total = 0
    try:
        device = os.lstat(top).st_dev
    except FileNotFoundError:
        return 0
    waiting = [top]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev != device or (status.st_dev, status.st_ino) in seen:
                        continue
                    if status.st_nlink > 1:
                        seen.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total


COMMANDS = (version, info, system)
