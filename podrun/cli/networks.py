"""``podrun network``: bridges, addresses and published ports on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import completion, docker_names, fields
from podrun.cli.output import Group, Guarded, say
from podrun.engine import hook_loader
from podrun.errors import CANNOT_CREATE, UNAVAILABLE, WRONG_FILE, Failure
from podrun.launcher.commands import host_of, name_of
from podrun.options import unknown
from podrun.systemd import events


def _hook(module: str) -> Any:
    """A part of the network hook."""
    return hook_loader.part("network", module)


@click.group(name="network", cls=Group)
def group() -> None:
    """Bridges, addresses and published ports."""


@group.command(cls=Guarded)
@click.option("--format", "form", default="table", metavar="FORMAT", help=fields.FORMATS)
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only these: name, id, driver.")
@click.option("--noheading", "-n", is_flag=True, help="Without the line of headings.")
@click.option("--no-trunc", is_flag=True, help="Accepted: names are not cut.")
@click.pass_context
def ls(ctx: click.Context, form: str, quiet: bool, filters: Sequence[str], noheading: bool, no_trunc: bool) -> None:
    """List the networks that a pod may name: bridges, and those that the first pod on them makes."""
    rows = _hook("inspect").known(host_of(ctx.obj).run)
    for key, values in fields.conditions(filters, ("name", "id", "driver")):
        rows = [row for row in rows if _meets(row, key, values)]
    if quiet:
        for row in rows:
            say(row["name"])
        return
    rows = [{**row, "state": _state(row)} for row in rows] if form != "json" else rows
    fields.write(rows, form, _COLUMNS, docker_names.network, heading=not noheading, kind="NETWORK")


_COLUMNS = ("name", "subnet", "subnet6", "leases", "state")


def _meets(row: dict[str, Any], key: str, values: Sequence[str]) -> bool:
    if key == "driver":
        return "bridge" in values
    return any(fields.matches(text, row["name"]) if key == "name" else row["name"].startswith(text) for text in values)


def _state(row: dict[str, Any]) -> str:
    if not row["made"]:
        return "unused"
    return "up" if row["up"] and row["guarded"] else "no rules" if row["up"] else "down"


@group.command(cls=Guarded)
@click.argument("name", shell_complete=completion.networks)
@click.pass_context
def exists(ctx: click.Context, name: str) -> int:
    """0 when there is such a network, else 1. Nothing is printed."""
    return int(all(row["name"] != name for row in _hook("inspect").known(host_of(ctx.obj).run)))


@group.command(cls=Guarded)
@click.option("-f", "--format", "form", default="json", metavar="FORMAT", help="json, '{subnet} ...' or a Go template.")
@click.argument("names", nargs=-1, shell_complete=completion.networks)
@click.pass_context
def inspect(ctx: click.Context, names: Sequence[str], form: str) -> None:
    """Print what there is on networks, or on all of them, as JSON; or what is at paths of it."""
    run = host_of(ctx.obj).run
    if not names and form == "json":
        say(json.dumps(_all(run), indent=2))
        return
    rows = [described(run, name) for name in names] if names else _all(run)
    for row in rows:
        fields.write_one(row, form, docker_names.network)


def described(run: str, name: str) -> dict[str, Any]:
    """What there is on a network. Raises Failure (UNAVAILABLE)."""
    found = next((row for row in _all(run) if row["name"] == name), None)
    if found is None:
        raise Failure(f"there is no network {name}", code=UNAVAILABLE, hint="'podrun network ls' lists them")
    return found


def _all(run: str) -> list[dict[str, Any]]:
    """The networks, with what there is on them."""
    known = _hook("inspect")
    leases, links, published = known.leases(run), known.links(run), known.published(run)
    whole = []
    for row in known.known(run):
        addresses = {lease["address"] for lease in leases if lease["bridge"] == row["name"]}
        whole.append(
            {
                **row,
                "leases": [lease for lease in leases if lease["bridge"] == row["name"]],
                "ports": [link for link in links if link["bridge"] == row["name"]],
                "published": [port for port in published if port["address"] in addresses],
            }
        )
    return whole


@group.command(cls=Guarded)
@click.option("--subnet", "subnets", multiple=True, metavar="NETWORK", help="Its subnet; repeat it for IPv6.")
@click.option("--mtu", type=int, metavar="BYTES", help="The MTU of the pods' interfaces.")
@click.option("--dns", multiple=True, metavar="ADDRESS", help="A name server of the pods.")
@click.option("--dns-search", "search", multiple=True, metavar="DOMAIN", help="A search domain of the pods.")
@click.option("--route", "routes", multiple=True, metavar="ROUTE", help="A static route of the pods.")
@click.option("--reach", multiple=True, metavar="NAME", help="A network whose pods these may call.")
@click.option("--routed", is_flag=True, help="Other machines route the subnets to this host.")
@click.option("--internal", is_flag=True, help="Its pods reach each other and this host, and nobody else.")
@click.option("-d", "--driver", type=click.Choice(["bridge"]), default="bridge", help="Accepted: there is no other.")
@click.option("--ignore", is_flag=True, help="Do nothing when it already exists.")
@click.argument("name")
@click.pass_context
def create(ctx: click.Context, /, name: str, subnets: Sequence[str], driver: str, ignore: bool, **given: Any) -> None:
    """Declare a network in networks.toml; its bridge is made with its first pod."""
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items() if value}
    for subnet in subnets:
        key = "subnet6" if ":" in subnet else "subnet"
        if key in settings:
            raise Failure(f"--subnet {subnet}: there is one of its family already", code=WRONG_FILE)
        settings[key] = subnet
    try:
        _hook("declaring").create(name, settings, host_of(ctx.obj).run)
    except Failure as failure:
        if not (ignore and failure.code == CANNOT_CREATE and "already" in failure.what):
            raise
    events.note(host_of(ctx.obj).run, "network", "create", name)
    say(name)


@group.command(cls=Guarded)
@click.option("-f", "--force", is_flag=True, help="Do nothing when it does not exist.")
@click.argument("names", nargs=-1, required=True, shell_complete=completion.networks)
@click.pass_context
def rm(ctx: click.Context, names: Sequence[str], force: bool) -> None:
    """Remove networks that no pod uses from networks.toml, and their bridges."""
    for name in names:
        try:
            _hook("declaring").remove(name, host_of(ctx.obj).run)
        except Failure as failure:
            if not (force and failure.code == UNAVAILABLE):
                raise
        events.note(host_of(ctx.obj).run, "network", "rm", name)
        say(name)


@group.command(cls=Guarded)
@click.option("--ip", "address", metavar="ADDRESS", help="Its IPv4 address there.")
@click.option("--ip6", "address6", metavar="ADDRESS", help="Its IPv6 address there.")
@click.option("--mac-address", "mac", metavar="MAC", help="The hardware address of the interface.")
@click.option("--interface", metavar="NAME", help="The interface's name in the pod; default: eth1, eth2, ...")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="One more name of the pod there.")
@click.argument("network", shell_complete=completion.networks)
@click.argument("word", metavar="FILE|NAME", shell_complete=completion.words)
@click.pass_context
def connect(ctx: click.Context, /, network: str, word: str, **given: Any) -> None:
    """Connect a pod that is up to one more network, until 'disconnect' or its end."""
    from podrun.launcher import connect as steps

    host = host_of(ctx.obj)
    known = {*_hook("options").networks(), *(row["name"] for row in _hook("inspect").networks(host.run))}
    if network not in known:
        raise Failure(
            unknown(network, sorted(known), "network"), code=WRONG_FILE, hint=f"podrun network create {network}"
        )
    wanted = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items() if value}
    facts = steps.connect(name_of(word, host), "network", network, {"bridge": network, **wanted}, host)
    say(" ".join(facts.get("addresses", ())))


@group.command(cls=Guarded)
@click.option("-f", "--force", is_flag=True, help="Accepted.")
@click.argument("network", shell_complete=completion.networks)
@click.argument("word", metavar="FILE|NAME", shell_complete=completion.words)
@click.pass_context
def disconnect(ctx: click.Context, network: str, word: str, force: bool) -> None:
    """Take a pod off a network that 'connect' has connected it to."""
    from podrun.launcher import connect as steps

    host = host_of(ctx.obj)
    steps.disconnect(name_of(word, host), "network", network, host)


@group.command(cls=Guarded)
@click.pass_context
def reload(ctx: click.Context) -> None:
    """Restore bridges, rules and published ports after somebody has flushed the ruleset."""
    host = host_of(ctx.obj)
    for name in _hook("health").reload(host.run):
        say(name)
    for problem in _hook("health").problems(host.run):
        say(f"warning: {problem.what}{'; ' + problem.hint if problem.hint else ''}", err=True)


@group.command(cls=Guarded)
@click.pass_context
def refresh(ctx: click.Context) -> None:
    """Give pods the host's resolv.conf and hosts as they are now; where systemd runs, it does so by itself."""
    for path in _hook("host_files").refresh(host_of(ctx.obj).run):
        say(path)


@group.command(cls=Guarded)
@click.argument("name")
@click.pass_context
def gc(ctx: click.Context, name: str) -> None:
    """Have the plugins of CNI network NAME drop every attachment that is not a living pod's (CNI 1.1)."""
    for plugin in _hook("cni").collect(host_of(ctx.obj).run, name):
        say(f"warning: {plugin} was not asked: it does not announce CNI 1.1", err=True)
