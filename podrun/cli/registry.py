"""``podrun registry``: what services are where, on the command line."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from podrun.cli.output import Guarded, printed, say
from podrun.engine import hook_loader
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import DURATION, Pod, Step, Wrong, read
from podrun.launcher.commands import host_of

_REGISTRY = click.option("--registry", "url", default="", help="Its URL; default: this host's.")
_FORM = click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")


@click.group(name="registry")
def group() -> None:
    """Services and where they are."""


@group.command(cls=Guarded)
@_REGISTRY
@_FORM
@click.option("-q", "--quiet", is_flag=True, help="Services only.")
@click.pass_context
def ls(ctx: click.Context, url: str, form: str, quiet: bool) -> None:
    """List the records of all services."""
    asking, source = _opened(ctx, url)
    names = asking.services(source)
    if quiet:
        for name in names:
            say(name)
        return
    printed([_row(record) for name in names for record in _records(asking, source, name)], form)


@group.command(cls=Guarded)
@click.argument("service")
@_REGISTRY
@_FORM
@click.pass_context
def get(ctx: click.Context, service: str, url: str, form: str) -> None:
    """Print the records of SERVICE; fails with 69 when none is ready."""
    asking, source = _opened(ctx, url)
    records = _records(asking, source, service)
    printed([_row(record) for record in records], form)
    if not any(record.ready for record in records):
        what = f"{len(records)} registered, none ready" if records else "it is not registered"
        raise Failure(f"{service}: {what}", code=UNAVAILABLE, hint=f"'podrun registry wait {service}' waits for it")


@group.command(cls=Guarded)
@click.argument("service")
@_REGISTRY
@click.option("--min", "least", default=1, help="How many instances have to be ready.")
@click.option("--timeout", default="infinity", help="How long to wait, 30s for instance.")
@click.pass_context
def wait(ctx: click.Context, service: str, url: str, least: int, timeout: str) -> None:
    """Return when SERVICE is ready."""
    host = host_of(ctx.obj)
    hook = hook_loader.load("wait-for")
    assert hook.Options is not None
    try:
        options = read(hook.Options, {"service": service, "min": least, "registry": url})
        seconds = DURATION.parse(timeout)
    except Wrong as wrong:
        raise Failure(wrong.what, code=WRONG_FILE) from None
    pod = Pod(f"registry-wait-{os.getpid()}", host.root, host.run)
    hook.up(Step(pod, "wait-for", "wait-for", options, timeout=seconds), {})


@group.command(cls=Guarded)
@click.argument("service", default="")
@_REGISTRY
@click.pass_context
def watch(ctx: click.Context, service: str, url: str) -> None:
    """Print a line of JSON each time the records of SERVICE, or of any service, change."""
    asking, source = _opened(ctx, url)
    for name, records in asking.changes(source, service):
        say(json.dumps({"service": name, "records": [_row(record) for record in records]}))


@group.command(cls=Guarded)
@click.argument("service")
@click.argument("id")
@_REGISTRY
@click.pass_context
def rm(ctx: click.Context, service: str, id: str, url: str) -> None:
    """Remove the record ID of SERVICE. The record of a running pod is written again where a follower runs."""
    asking, source = _opened(ctx, url)
    if not asking.remove(host_of(ctx.obj).run, source, service, id):
        raise Failure(f"{service} has no record {id}", code=UNAVAILABLE, hint=f"'podrun registry get {service}'")


def _opened(ctx: click.Context, url: str) -> tuple[Any, Any]:
    asking = hook_loader.registry("ask")
    return asking, asking.opened(url, host_of(ctx.obj).run)


def _records(asking: Any, source: Any, service: str) -> list[Any]:
    """The records of a service; what is no record is told on standard error."""
    wrong: list[str] = []
    records: list[Any] = asking.records(source, service, wrong)
    for line in wrong:
        say(f"warning: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in line)}", err=True)
    return records


def _row(record: Any) -> dict[str, Any]:
    place = f"[{record.addr}]" if ":" in record.addr else record.addr
    return {
        "service": record.service,
        "id": record.id,
        "host": record.host,
        "place": f"{place}:{record.port}/{record.proto}",
        "ready": record.ready,
        "pod": record.unit,
    }
