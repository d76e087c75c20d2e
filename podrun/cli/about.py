"""What podrun is, what this machine is, and what the store takes: version, info, system df."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import click

from podrun import __version__
from podrun.cli.output import Guarded, human, printed, say
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.launcher.commands import host_of

_format = click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")


@click.command(cls=Guarded)
@_format
@click.pass_context
def version(ctx: click.Context, form: str) -> None:
    """Print the version of podrun and of what it runs on."""
    about = {"podrun": __version__, "python": platform.python_version(), "kernel": platform.release()}
    if form == "json":
        say(json.dumps(about))
        return
    for key, value in about.items():
        say(f"{key:8}{value}")


@click.command(cls=Guarded)
@click.pass_context
def info(ctx: click.Context) -> None:
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
    say(json.dumps(whole, indent=2))


@click.group()
def system() -> None:
    """What podrun uses of this machine's disk."""


@system.command(cls=Guarded)
@_format
@click.pass_context
def df(ctx: click.Context, form: str) -> None:
    """Show how much disk space images, volumes and pods use, and how much 'prune' would free."""
    host = host_of(ctx.obj)
    rows: list[dict[str, Any]] = []
    for kind, path in (("images", "images"), ("volumes", "volumes"), ("pods", "pods")):
        top = f"{host.root}/{path}"
        inner = f"{top}/refs" if kind == "images" else top
        count = len(os.listdir(inner)) if os.path.isdir(inner) else 0
        size = disk_usage(top)
        rows.append({"type": kind, "count": count, "size": size if form == "json" else human(size)})
    printed(rows, form)


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
