"""``podrun network``: bridges, addresses and published ports on the command line."""

from __future__ import annotations

import json
from typing import Any

import click

from podrun.cli.output import Guarded, printed, say
from podrun.engine import hook_loader
from podrun.errors import UNAVAILABLE, Failure
from podrun.launcher.commands import host_of


def _hook(module: str) -> Any:
    """A part of the network hook."""
    return hook_loader.part("network", module)


@click.group(name="network")
def group() -> None:
    """Bridges, addresses and published ports."""


@group.command(cls=Guarded)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.pass_context
def ls(ctx: click.Context, form: str, quiet: bool) -> None:
    """List the bridges."""
    rows = _hook("inspect").networks(host_of(ctx.obj).run)
    if quiet:
        for row in rows:
            say(row["name"])
        return
    if form == "table":
        keys = ("name", "subnet", "subnet6", "leases")
        rows = [{**{key: row[key] for key in keys}, "state": _state(row)} for row in rows]
    printed(rows, form)


def _state(row: dict[str, Any]) -> str:
    return "up" if row["up"] and row["guarded"] else "no rules" if row["up"] else "down"


@group.command(cls=Guarded)
@click.argument("name", required=False)
@click.pass_context
def inspect(ctx: click.Context, name: str | None) -> None:
    """Print what there is on a bridge, or on all of them, as JSON."""
    run = host_of(ctx.obj).run
    known = _hook("inspect")
    leases, links, published = known.leases(run), known.links(run), known.published(run)
    whole = []
    for row in known.networks(run):
        addresses = {lease["address"] for lease in leases if lease["bridge"] == row["name"]}
        whole.append(
            {
                **row,
                "leases": [lease for lease in leases if lease["bridge"] == row["name"]],
                "ports": [link for link in links if link["bridge"] == row["name"]],
                "published": [port for port in published if port["address"] in addresses],
            }
        )
    if name is None:
        say(json.dumps(whole, indent=2))
        return
    found = next((row for row in whole if row["name"] == name), None)
    if found is None:
        raise Failure(f"there is no bridge {name}", code=UNAVAILABLE, hint="'podrun network ls' lists those there are")
    say(json.dumps(found, indent=2))


@group.command(cls=Guarded)
@click.pass_context
def reload(ctx: click.Context) -> None:
    """Make bridges, rules and published ports whole again, after somebody else has flushed the ruleset."""
    host = host_of(ctx.obj)
    for name in _hook("health").reload(host.run):
        say(name)
    for problem in _hook("health").problems(host.run):
        say(f"warning: {problem.what}{'; ' + problem.hint if problem.hint else ''}", err=True)


@group.command(cls=Guarded)
@click.argument("name")
@click.pass_context
def gc(ctx: click.Context, name: str) -> None:
    """Have the plugins of CNI network NAME drop every attachment that is not a living pod's (CNI 1.1)."""
    for plugin in _hook("cni").collect(host_of(ctx.obj).run, name):
        say(f"warning: {plugin} was not asked: it does not announce CNI 1.1", err=True)
