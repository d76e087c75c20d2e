"""``podrun image``: the store on the command line."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from podrun import chain, find
from podrun import journal as journals
from podrun.acts import guarded, host_of
from podrun.launch import Host


def _store() -> Any:
    """The store's functions; the image hook brings them."""
    from importlib import import_module

    return import_module(f"{find.FIRST_PARTY['image']}.commands")


def used(host: Host) -> set[str]:
    """Digests and references of the images that pods were started from."""
    found: set[str] = set()
    for name in journals.pods(host.run):
        for entry in chain.entries(journals.journals(host.run, name)):
            if entry.step["hook"] == "image":
                found.add(entry.step["options"]["ref"])
            found |= {image["digest"] for image in entry.facts.get("images", {}).values() if image.get("digest")}
    return found


@click.group()
def image() -> None:
    """The image store."""


def _host(ctx: click.Context) -> Host:
    return host_of(ctx.obj)


class _Guarded(click.Command):
    """A command whose failures are told as every command's are."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.exit(guarded(lambda: super(_Guarded, self).invoke(ctx), ctx.obj))


def _progress() -> Any:
    """A line of progress that overwrites itself on a terminal, and one line a second elsewhere."""
    last = 0.0
    terminal = sys.stderr.isatty()

    def notify(assignments: str) -> None:
        nonlocal last
        status = next((line[7:] for line in assignments.splitlines() if line.startswith("STATUS=")), "")
        if not status or time.monotonic() - last < (0.1 if terminal else 1.0):
            return
        last = time.monotonic()
        click.echo(f"\r\x1b[K{status}" if terminal else status, err=True, nl=not terminal)

    return notify


@image.command(cls=_Guarded)
@click.option("--platform", default="", metavar="OS/ARCH[/VARIANT]", help="Which one of a multi-platform image.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("ref")
@click.pass_context
def pull(ctx: click.Context, ref: str, platform: str, quiet: bool) -> None:
    """Bring an image of any kind into the store; print the digest of its manifest."""
    notify = (lambda _: None) if quiet else _progress()
    found = _store().pull(_host(ctx).root, ref, platform=platform, notify=notify, cwd=os.getcwd())
    if sys.stderr.isatty() and not quiet:
        click.echo("\r\x1b[K", err=True, nl=False)
    click.echo(found.digest)


@image.command("import", cls=_Guarded)
@click.argument("path")
@click.pass_context
def import_(ctx: click.Context, path: str) -> None:
    """Bring every image of an archive or an OCI layout into the store."""
    for found in _store().import_(_host(ctx).root, os.path.abspath(path), _progress()):
        click.echo(f"{found.digest}  {found.ref}")


@image.command(cls=_Guarded)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
@click.option("-q", "--quiet", is_flag=True, help="Digests only.")
@click.pass_context
def ls(ctx: click.Context, form: str, quiet: bool) -> None:
    """List the images in the store."""
    from podrun.cli import printed

    rows = [row._asdict() for row in _store().ls(_host(ctx).root)]
    if quiet:
        for row in rows:
            click.echo(row["digest"])
        return
    if form == "table":
        rows = [
            {
                **row,
                "digest": row["digest"][:19],
                "size": human(row["size"]),
                "pulled": time.strftime("%Y-%m-%d %H:%M", time.localtime(row["pulled"])),
            }
            for row in rows
        ]
    printed(rows, form)


@image.command(cls=_Guarded)
@click.argument("ref")
@click.pass_context
def inspect(ctx: click.Context, ref: str) -> None:
    """Print what the store knows of an image as JSON."""
    click.echo(json.dumps(_store().inspect(_host(ctx).root, ref, os.getcwd()), indent=2))


@image.command(cls=_Guarded)
@click.argument("refs", nargs=-1, required=True)
@click.pass_context
def rm(ctx: click.Context, refs: Sequence[str]) -> None:
    """Remove images; one that a pod uses stays."""
    host = _host(ctx)
    _removed(_store().rm(host.root, list(refs), lambda: used(host), os.getcwd()))


@image.command(cls=_Guarded)
@click.option("-a", "--all", "unused", is_flag=True, help="Also images that no pod uses.")
@click.pass_context
def prune(ctx: click.Context, unused: bool) -> None:
    """Remove what no image needs; with -a every image that no pod uses."""
    host = _host(ctx)
    _removed(_store().prune(host.root, lambda: used(host), unused))


def _removed(removed: Any) -> None:
    for ref in removed.refs:
        click.echo(f"removed {ref}")
    click.echo(f"freed {human(removed.freed)}")


def human(size: float) -> str:
    """A size for people: "12.3M", to the base 1024."""
    units = iter("BKMGT")
    unit = next(units)
    while size >= 1024 and unit != "T":
        size, unit = size / 1024, next(units)
    return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"
