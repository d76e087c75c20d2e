"""``podrun image``: the store on the command line."""

from __future__ import annotations

import fnmatch
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

from podrun.cli import fields, in_use
from podrun.cli.output import Guarded, human, printed, say
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook_extras import UsesImages, offers
from podrun.host import Host
from podrun.launcher import pull
from podrun.launcher.commands import host_of
from podrun.launcher.history import kept
from podrun.systemd import events


def used(host: Host) -> set[str]:
    """Digests and references of the images that pods were started from, and that a rollback would take."""
    found = kept(host.root)
    for name in journals.pods(host.run):
        for entry in states.entries(journals.everything(host.run, name)):
            try:
                using = offers(hook_loader.load(entry.step["hook"]), UsesImages)
            except Failure:
                using = None  # its package has been removed since
            found |= {*using.images_of(entry.step["options"])} if using else set()
            found |= {image["digest"] for image in entry.facts.get("images", {}).values() if image.get("digest")}
    return found


@click.group()
def image() -> None:
    """The image store."""


def _host(ctx: click.Context) -> Host:
    return host_of(ctx.obj)


@image.command("import", cls=Guarded)
@click.option("--name", default="", metavar="NAME", help="The image's name, where the archive has none.")
@click.argument("path")
@click.pass_context
def import_(ctx: click.Context, path: str, name: str) -> None:
    """Import every image of an archive or an OCI layout under the names in it (-: standard input)."""
    with pull.teller(quiet=False) as teller:
        images = pull.store().import_(_host(ctx).root, path, teller.notify, name)
    for found in images:
        events.note(_host(ctx).run, "image", "import", found.ref, id=found.digest)
        say(f"{found.digest}  {found.ref}")


@image.command(cls=Guarded)
@click.argument("ref")
@click.argument("name")
@click.pass_context
def tag(ctx: click.Context, ref: str, name: str) -> None:
    """Add a name to a stored image."""
    found = pull.store().tag(_host(ctx).root, ref, name, os.getcwd())
    events.note(_host(ctx).run, "image", "tag", found.ref, id=found.digest)
    say(f"{found.digest}  {found.ref}")


@image.command(cls=Guarded)
@click.argument("refs", nargs=-1, required=True)
@click.pass_context
def untag(ctx: click.Context, refs: Sequence[str]) -> None:
    """Remove names; an image without a name stays until 'podrun image prune'."""
    for ref in pull.store().untag(_host(ctx).root, list(refs), os.getcwd()):
        events.note(_host(ctx).run, "image", "untag", ref)
        say(ref)


@image.command(cls=Guarded)
@click.option(
    "--format",
    "form",
    type=click.Choice(["oci-archive", "docker-archive"]),
    default="oci-archive",
    help="docker-archive: plain layers, for docker before 23 and zstd.",
)
@click.argument("ref")
@click.argument("file")
@click.pass_context
def export(ctx: click.Context, ref: str, file: str, form: str) -> None:
    """Write an image into FILE (-: standard output), for skopeo, podman load and docker load."""
    if file == "-" and sys.stdout.isatty():
        raise Failure("an archive cannot be written to a terminal", code=WRONG_FILE, hint="name a file or use a pipe")
    path = file if file == "-" else os.path.abspath(file)
    digest = pull.store().export(_host(ctx).root, ref, path, form, os.getcwd())
    events.note(_host(ctx).run, "image", "export", ref, id=digest)
    say(digest, err=file == "-")


@image.command(cls=Guarded)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
@click.argument("ref")
@click.pass_context
def history(ctx: click.Context, ref: str, form: str) -> None:
    """Show how an image was made, the newest step first."""
    rows = [row._asdict() for row in pull.store().history(_host(ctx).root, ref, os.getcwd())]
    if form == "table":
        rows = [
            {
                "layer": row["layer"][7:19] or None,
                "created": row["created"][:19].replace("T", " "),
                "size": human(row["size"]),
                "created by": row["created_by"][:80],
            }
            for row in rows
        ]
    printed(rows, form)


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


@image.command(cls=Guarded)
@click.option("--format", "form", default="table", metavar="FORMAT", help="table, json, FIELD,FIELD or '{FIELD} ...'.")
@click.option("-q", "--quiet", is_flag=True, help="Digests only.")
@click.option("--no-trunc", is_flag=True, help="Digests in full.")
@click.option("--noheading", is_flag=True, help="Without the line of headings.")
@click.argument("name", default="")
@click.pass_context
def ls(ctx: click.Context, form: str, quiet: bool, no_trunc: bool, noheading: bool, name: str) -> None:
    """List the images in the store; those of one NAME, with or without its tag."""
    rows = [row._asdict() for row in pull.store().ls(_host(ctx).root)]
    if name:
        wanted = pull.store().spelled(name)
        rows = [row for row in rows if wanted in (row["ref"], f"{row['ref'].rpartition(':')[0]}:latest")]
    if quiet:
        for row in rows:
            say(row["digest"])
        return
    if form == "table":
        rows = [
            {
                **row,
                "digest": row["digest"] if no_trunc else row["digest"][:19],
                "id": row["id"].removeprefix("sha256:")[: None if no_trunc else 12] or None,
                "size": human(row["size"]),
                "pulled": time.strftime("%Y-%m-%d %H:%M", time.localtime(row["pulled"])),
            }
            for row in rows
        ]
    fields.write(rows, form, ("ref", "digest", "id", "platform", "size", "pulled"), heading=not noheading)


@image.command(cls=Guarded)
@click.option("-f", "--format", "form", default="json", metavar="FORMAT", help="json, or '{ref} {configuration.os}'.")
@click.argument("refs", nargs=-1, required=True)
@click.pass_context
def inspect(ctx: click.Context, refs: Sequence[str], form: str) -> None:
    """Print what the store knows of images, by name, id or digest, as JSON; or what is at paths of it."""
    found = [one for ref in refs for one in pull.store().inspect(_host(ctx).root, ref, os.getcwd())]
    if form == "json":
        say(json.dumps(found, indent=2))
    for one in found if form != "json" else ():
        say(fields.line(fields.braced(form), one))


@image.command(cls=Guarded)
@click.argument("ref")
@click.pass_context
def exists(ctx: click.Context, ref: str) -> int:
    """0 when an image is in the store, by name, id or digest; else 1. Nothing is printed."""
    try:
        pull.store().inspect(_host(ctx).root, ref, os.getcwd())
    except Failure as failure:
        if failure.code != UNAVAILABLE:
            raise
        return 1
    return 0


@click.command("load", cls=Guarded)
@click.option("-i", "--input", "path", default="-", metavar="FILE", help="The archive; default: standard input.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def load(ctx: click.Context, path: str, quiet: bool) -> None:
    """Bring every image of an archive into the store: 'image import' as docker spells it."""
    if path == "-" and sys.stdin.isatty():
        raise Failure("an archive is not typed at a terminal", code=WRONG_FILE, hint="-i FILE, or a pipe")
    with pull.teller(quiet=quiet) as teller:
        images = pull.store().import_(_host(ctx).root, path, teller.notify, "")
    for found in images:
        events.note(_host(ctx).run, "image", "import", found.ref, id=found.digest)
        say(f"Loaded image: {found.ref}")


@click.command("save", cls=Guarded)
@click.option("-o", "--output", "path", default="-", metavar="FILE", help="Where to; default: standard output.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["oci-archive", "docker-archive"]),
    default="docker-archive",
    help="Default: docker-archive, which is what docker load takes.",
)
@click.option("-q", "--quiet", is_flag=True, help="Accepted.")
@click.argument("ref")
@click.pass_context
def save(ctx: click.Context, ref: str, path: str, form: str, quiet: bool) -> None:
    """Write an image into an archive: 'image export' as docker spells it."""
    ctx.invoke(export, ref=ref, file=path, form=form)


@image.command(cls=Guarded)
@click.argument("refs", nargs=-1, required=True)
@click.pass_context
def rm(ctx: click.Context, refs: Sequence[str]) -> None:
    """Remove images; one that a pod uses stays."""
    host = _host(ctx)
    removed = pull.store().rm(host.root, list(refs), lambda: used(host), os.getcwd())
    for ref in removed.refs:
        events.note(host.run, "image", "rm", ref)
    _removed(removed)


@image.command(cls=Guarded)
@click.option("-a", "--all", "unused", is_flag=True, help="Also images that no pod uses, up or not.")
@click.option("-f", "--force", is_flag=True, help="Do not ask, and skip pod files that cannot be read.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.pass_context
def prune(ctx: click.Context, unused: bool, force: bool, dry_run: bool) -> None:
    """Remove what no image needs; with -a every image that no pod uses, up or not."""
    host = _host(ctx)
    store = pull.store()
    if not unused:
        if not dry_run:
            _removed(store.prune(host.root, lambda: used(host)))
        return
    patterns = in_use.images(host, force=force)

    def wanted() -> set[str]:
        by_files = {row.ref for row in store.ls(host.root) if _is_meant(row.ref, patterns)}
        return used(host) | by_files

    now = wanted()
    gone = [row.ref for row in store.ls(host.root) if not {row.ref, row.digest} & now]
    if in_use.is_agreed(gone, "image", force=force, dry_run=dry_run):
        _removed(store.prune(host.root, wanted, True))


def _is_meant(ref: str, patterns: Iterable[str]) -> bool:
    """Whether a stored image is one that a pod file names, in full or short: a variable may be any part of it."""
    for pattern in patterns:
        if "*" in pattern:
            ends = f"*{pattern}" if ":" in pattern.rpartition("/")[2] or "@" in pattern else f"*{pattern}:*"
            if fnmatch.fnmatchcase(ref, ends):
                return True
        elif pull.store().spelled(pattern) == ref:
            return True
    return False


def _removed(removed: Any) -> None:
    for ref in removed.refs:
        say(f"removed {ref}")
    say(f"freed {human(removed.freed)}")
