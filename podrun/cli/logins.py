"""``podrun login`` and ``logout``: credentials for registries, where docker keeps them."""

from __future__ import annotations

import os
import sys

import click

from podrun.cli.output import Guarded, say
from podrun.errors import NOT_ALLOWED, WRONG_FILE, Failure
from podrun.launcher import pull
from podrun.messages import tell

_AUTHFILE = click.option(
    "--authfile",
    default="",
    metavar="FILE",
    help="Another file than docker's config.json; as REGISTRY_AUTH_FILE, which pulls read, too.",
)


@click.command(cls=Guarded)
@click.option("-u", "--username", default="", metavar="USER", help="The user name; asked for when it is not given.")
@click.option("-p", "--password", default="", metavar="PASSWORD", help="Seen by every user of this host: do not.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--get-login", "only_tell", is_flag=True, help="Print the user name that is stored, and stop.")
@_AUTHFILE
@click.option("-v", "--verbose", is_flag=True, help="Accepted.")
@click.argument("registry", default="docker.io")
@click.pass_context
def login(
    ctx: click.Context,
    registry: str,
    username: str,
    password: str,
    password_stdin: bool,
    only_tell: bool,
    authfile: str,
    verbose: bool,
) -> None:
    """Check a user name and password with a registry, and store them where docker does."""
    _choose(authfile)
    if only_tell:
        if not (name := pull.store().user_of(registry)):
            raise Failure(f"{registry}: not logged in", code=NOT_ALLOWED)
        say(name)
        return
    if password and password_stdin:
        raise Failure("--password and --password-stdin: say one of them", code=WRONG_FILE)
    if password:
        tell("podrun: --password is seen by every user of this host; --password-stdin is not")
    if password_stdin and not username:
        raise Failure("--password-stdin needs --username", code=WRONG_FILE)
    try:
        user = username or click.prompt("Username", err=True)
        if password_stdin:
            password = sys.stdin.read().rstrip("\r\n")
        elif not password:
            password = click.prompt("Password", hide_input=True, err=True)
    except click.Abort:
        hint = "--username NAME --password-stdin"
        raise Failure("there is no terminal to ask at", code=WRONG_FILE, hint=hint) from None
    place = pull.store().login(registry, user, password)
    say(f"{registry}: logged in; kept in {place}")


@click.command(cls=Guarded)
@click.option("-a", "--all", "every", is_flag=True, help="Of all registries.")
@_AUTHFILE
@click.argument("registry", default="")
@click.pass_context
def logout(ctx: click.Context, registry: str, every: bool, authfile: str) -> None:
    """Forget the name and password for a registry (docker.io)."""
    _choose(authfile)
    if every and registry:
        raise Failure("name a registry, or use --all", code=WRONG_FILE)
    for name in pull.store().registries() if every else [registry or "docker.io"]:
        found = pull.store().logout(name)
        say(f"{name}: {'logged out' if found else 'was not logged in'}")


def _choose(authfile: str) -> None:
    if authfile:
        os.environ["REGISTRY_AUTH_FILE"] = os.path.abspath(authfile)
