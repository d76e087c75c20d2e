"""``podrun update``, ``history`` and ``rollback``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import click

from podrun.cli import completion
from podrun.cli.output import Guarded, printed, say
from podrun.errors import UNAVAILABLE, Failure
from podrun.launcher.commands import host_of, name_of


@click.command(cls=Guarded)
@click.argument("words", nargs=-1, metavar="[FILE|NAME]...", shell_complete=completion.words)
@click.option("--all", "everything", is_flag=True, help="Every pod that is up and whose file has an [update].")
@click.option("--check", "look", is_flag=True, help="Only say what is new.")
@click.option("--dry-run", "dry", is_flag=True, help="Say what is new, and how the pod would get it.")
@click.pass_context
def update(ctx: click.Context, words: Sequence[str], everything: bool, look: bool, dry: bool) -> int:
    """Update pods to the images that their references name now; go back when a new version does not run well."""
    from podrun.launcher import update as updates

    updates.refuse_nothing(words, everything)
    host = host_of(ctx.obj)
    names = updates.pods_with_updates(host) if everything else [name_of(word, host) for word in words]
    if len(names) == 1:
        return updates.update(names[0], host_of({**ctx.obj, "name": names[0]}), look=look, dry=dry)
    return updates.each(names, lambda name: host_of({**ctx.obj, "name": name}), look=look, dry=dry)


@click.command(cls=Guarded)
@click.argument("word", metavar="FILE|NAME", shell_complete=completion.words)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
@click.pass_context
def history(ctx: click.Context, word: str, form: str) -> None:
    """List a pod's generations: when, what, by whom, how it went and how long it took."""
    from podrun.launcher import history as histories

    host = host_of(ctx.obj)
    name = name_of(word, host)
    past = histories.read(host.root, name)
    if not past:
        raise Failure(f"{name} has no history", code=UNAVAILABLE, hint='reload = "swap" or an [update] keeps one')
    now = histories.current(past)
    rows = [
        {
            "generation": f"{change.generation}{' *' if change is now and form == 'table' else ''}",
            "at": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change.at)),
            "how": change.how,
            "by": change.by,
            "result": f"{change.result}: {change.why}" if change.why else change.result,
            "seconds": change.seconds,
            "images": " ".join(f"{step}={digest[:19]}" for step, digest in change.digests.items()) or "-",
            "file": change.text.get("file") or "-",
        }
        for change in past
    ]
    if form == "json":
        say(json.dumps(rows, indent=2))
    else:
        printed(rows, form)


@click.command(cls=Guarded)
@click.argument("word", metavar="FILE|NAME", shell_complete=completion.words)
@click.argument("generation", type=int, default=0, required=False)
@click.pass_context
def rollback(ctx: click.Context, word: str, generation: int) -> int:
    """Bring a pod back to an earlier generation; default: the one before."""
    from podrun.launcher import update as updates

    host = host_of(ctx.obj)
    name = name_of(word, host)
    return updates.rollback(name, host_of({**ctx.obj, "name": name}), generation)
