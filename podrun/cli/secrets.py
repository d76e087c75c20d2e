"""``podrun secret``: what pods get as files in memory, and nobody else gets to see."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from podrun.cli.output import Group, Guarded, printed, say
from podrun.engine import hook_loader
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.launcher.commands import host_of


def _secrets() -> Any:
    """The storage hook's store of secrets."""
    return hook_loader.part("storage", "secrets")


@click.group(name="secret", cls=Group)
def group() -> None:
    """Secrets: encrypted on the disk, files in memory for the pods that name them."""


@group.command(cls=Guarded)
@click.option("--replace", is_flag=True, help="Replace an existing one; pods see it when they start again.")
@click.argument("name")
@click.argument("file", default="-")
@click.pass_context
def create(ctx: click.Context, name: str, file: str, replace: bool) -> None:
    """Store FILE, or standard input, as the secret NAME."""
    store = _secrets()
    if file == "-":
        if sys.stdin.isatty():
            hint = f"printf %s WORD is in the shell's history; use a file or a pipe: podrun secret create {name} < FILE"
            raise Failure("a secret cannot be typed here: the terminal would show it", code=WRONG_FILE, hint=hint)
        content = sys.stdin.buffer.read(store.MOST + 1)
    else:
        try:
            with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as source:
                content = source.read(store.MOST + 1)
        except OSError as error:
            raise Failure(f"{file}: {error.strerror}", code=UNAVAILABLE) from None
    made = store.create(host_of(ctx.obj).root, name, content, replace=replace)
    if not made.encrypted:
        say("warning: this host has no systemd-creds: the secret is on the disk as it is, 0600", err=True)
    say(name)


@group.command(cls=Guarded)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.pass_context
def ls(ctx: click.Context, form: str, quiet: bool) -> None:
    """List the secrets; nothing prints their content."""
    rows = [row._asdict() for row in _secrets().listed(host_of(ctx.obj).root)]
    if quiet:
        for row in rows:
            say(row["name"])
        return
    if form == "table":
        rows = [
            {
                "name": row["name"],
                "created": time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"])),
                "encrypted": "yes" if row["encrypted"] else "no",
            }
            for row in rows
        ]
    printed(rows, form)


@group.command(cls=Guarded)
@click.option("-a", "--all", "every", is_flag=True, help="All secrets.")
@click.argument("names", nargs=-1)
@click.pass_context
def rm(ctx: click.Context, names: Sequence[str], every: bool) -> None:
    """Forget secrets; pods that are up keep theirs until they end."""
    root = host_of(ctx.obj).root
    if bool(names) == every:
        raise Failure("name the secrets, or use --all", code=WRONG_FILE)
    for name in [row.name for row in _secrets().listed(root)] if every else names:
        _secrets().remove(root, name)
        say(name)
