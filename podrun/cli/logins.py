"""``podrun login`` and ``logout``: credentials for registries, where docker keeps them."""

from __future__ import annotations

import sys

import click

from podrun.cli.output import Guarded, say
from podrun.errors import WRONG_FILE, Failure
from podrun.launcher import pull


@click.command(cls=Guarded)
@click.option("-u", "--username", default="", metavar="USER", help="The user name; asked for when it is not given.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.argument("registry", default="docker.io")
@click.pass_context
def login(ctx: click.Context, registry: str, username: str, password_stdin: bool) -> None:
    """Check a user name and password with a registry, and store them where docker does."""
    try:
        user = username or click.prompt("Username", err=True)
        if password_stdin:
            password = sys.stdin.read().rstrip("\r\n")
        else:
            password = click.prompt("Password", hide_input=True, err=True)
    except click.Abort:
        hint = "--username NAME --password-stdin"
        raise Failure("nobody is there to be asked", code=WRONG_FILE, hint=hint) from None
    place = pull.store().login(registry, user, password)
    say(f"{registry}: logged in; kept in {place}")


@click.command(cls=Guarded)
@click.argument("registry", default="docker.io")
@click.pass_context
def logout(ctx: click.Context, registry: str) -> None:
    """Forget the name and password for a registry."""
    found = pull.store().logout(registry)
    say(f"{registry}: {'logged out' if found else 'was not logged in'}")
