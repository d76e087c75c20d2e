"""``podrun inspect``: everything that is known of pods, and, as with docker, of images, volumes and networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from podrun.cli import completion, details, docker_names, fields, networks, views, volumes
from podrun.cli.output import Guarded
from podrun.engine import hook_loader
from podrun.errors import UNAVAILABLE, Failure
from podrun.host import Host
from podrun.launcher import pull
from podrun.launcher.commands import host_of, name_of


@click.command(cls=Guarded)
@click.option("-f", "--format", "form", default="json", metavar="FORMAT", help="json, '{name} ...' or a Go template.")
@click.option(
    "-t",
    "--type",
    "kind",
    type=click.Choice(["pod", "container", "image", "volume", "network"]),
    help="Only one of these; default: the first that there is.",
)
@click.argument("words", metavar="FILE|NAME...", nargs=-1, required=True, shell_complete=completion.words)
@click.pass_context
def inspect(ctx: click.Context, words: Sequence[str], form: str, kind: str | None) -> None:
    """Print everything that is known of pods as JSON, one object each; or what is at paths of it.

    Where there is no such pod: of an image, a volume or a network of that name.
    """
    host = host_of(ctx.obj)
    found = [one for word in words for one in _named(host, word, "pod" if kind == "container" else kind or "")]
    for record, naming in found:
        fields.write_one(record, form, naming)


def _named(host: Host, word: str, kind: str) -> list[tuple[dict[str, Any], fields.Naming]]:
    """What is called by a word, of a kind or of the first that there is. Raises Failure, the pod's."""
    lacking: Failure | None = None
    for one in (kind,) if kind else _READERS:
        read, naming = _READERS[one]
        try:
            return [(record, naming) for record in read(host, word)]
        except Failure as failure:
            lacking = lacking or failure
    raise lacking or Failure(word)


def _pods(host: Host, word: str) -> list[dict[str, Any]]:
    name = name_of(word, host)
    whole = views.inspect(host.run, name) or views.ended(host.run, name) or views.created(host, name)
    if whole is None:
        raise Failure(f"there is no pod {name}", code=UNAVAILABLE, hint="'podrun ps -a' lists the pods")
    whole["restarts"] = details.restarts(whole["unit"]) if whole["unit"] else None
    return [whole]


def _images(host: Host, word: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pull.store().inspect(host.root, word, os.getcwd())
    return found


def _volumes(host: Host, word: str) -> list[dict[str, Any]]:
    if word not in hook_loader.part("storage", "volumes").names(host.root):
        raise Failure(f"there is no volume {word}", code=UNAVAILABLE, hint="'podrun volume ls' lists them")
    return [volumes.row_of(host, word, volumes.users(host))]


def _networks(host: Host, word: str) -> list[dict[str, Any]]:
    return [networks.described(host.run, word)]


_READERS: dict[str, tuple[Callable[[Host, str], list[dict[str, Any]]], fields.Naming]] = {
    "pod": (_pods, docker_names.container),
    "image": (_images, docker_names.image_inspected),
    "volume": (_volumes, docker_names.volume),
    "network": (_networks, docker_names.network),
}
