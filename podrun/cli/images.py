"""``podrun image``: the store on the command line."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from podrun.cli import completion, image_listing, in_use
from podrun.cli.output import Group, Guarded, human, say
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.errors import WRONG_FILE, Failure
from podrun.hook_extras import UsesImages, offers
from podrun.host import Host
from podrun.launcher import pull, transient
from podrun.launcher.commands import host_of
from podrun.launcher.history import kept
from podrun.systemd import events


def used(host: Host) -> set[str]:
    """Digests and references of the images that pods were started from, a rollback would take, or that are mounted."""
    found = kept(host.root) | {*_mounts().mounted(host.run)}
    for text in filter(None, (transient.kept(name, host) for name in transient.created(host))):
        for step in text.steps:
            found |= _named(step.hook, step.options)
    for name in journals.pods(host.run):
        for entry in states.entries(journals.everything(host.run, name)):
            found |= _named(entry.step["hook"], entry.step["options"])
            found |= {image["digest"] for image in entry.facts.get("images", {}).values() if image.get("digest")}
    return found


def _named(hook: str, options: Mapping[str, Any]) -> set[str]:
    """The images that a step names; none where the hook's package has been removed since."""
    try:
        using = offers(hook_loader.load(hook), UsesImages)
    except Failure:
        return set()
    return {*using.images_of(options)} if using else set()


def _mounts() -> Any:
    """The storage hook's functions for images that are mounted on the host."""
    return hook_loader.part("storage", "image_mounts")


@click.group(cls=Group)
def image() -> None:
    """The image store."""


for command in image_listing.COMMANDS:
    image.add_command(command)


def _host(ctx: click.Context) -> Host:
    return host_of(ctx.obj)


@image.command("import", cls=Guarded)
@click.option("--name", default="", metavar="NAME", help="The image's name, where the archive has none.")
@click.argument("path", type=click.Path())
@click.pass_context
def import_(ctx: click.Context, path: str, name: str) -> None:
    """Import every image of an archive or an OCI layout under the names in it (-: standard input)."""
    with pull.teller(quiet=False) as teller:
        images = pull.store().import_(_host(ctx).root, path, teller.notify, name, teller.progress)
    for found in images:
        events.note(_host(ctx).run, "image", "import", found.ref, id=found.digest)
        say(f"{found.digest}  {found.ref}")


@image.command(cls=Guarded)
@click.argument("ref", shell_complete=completion.images)
@click.argument("name")
@click.pass_context
def tag(ctx: click.Context, ref: str, name: str) -> None:
    """Add a name to a stored image."""
    found = pull.store().tag(_host(ctx).root, ref, name, os.getcwd())
    events.note(_host(ctx).run, "image", "tag", found.ref, id=found.digest)
    say(f"{found.digest}  {found.ref}")


@image.command(cls=Guarded)
@click.argument("refs", nargs=-1, required=True, shell_complete=completion.images)
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
@click.argument("refs", metavar="REF...", nargs=-1, required=True, shell_complete=completion.images)
@click.argument("file", type=click.Path())
@click.pass_context
def export(ctx: click.Context, refs: Sequence[str], file: str, form: str) -> None:
    """Write images into FILE (-: standard output), for skopeo, podman load and docker load."""
    if file == "-" and sys.stdout.isatty():
        raise Failure("an archive cannot be written to a terminal", code=WRONG_FILE, hint="name a file or use a pipe")
    path = file if file == "-" else os.path.abspath(file)
    digests = pull.store().export(_host(ctx).root, list(refs), path, form, os.getcwd())
    for ref, digest in zip(refs, digests, strict=True):
        events.note(_host(ctx).run, "image", "export", ref, id=digest)
        say(digest, err=file == "-")


@click.command("load", cls=Guarded)
@click.option("-i", "--input", "path", default="-", metavar="FILE", help="The archive; default: standard input.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def load(ctx: click.Context, path: str, quiet: bool) -> None:
    """Bring every image of an archive into the store: 'image import' as docker spells it."""
    if path == "-" and sys.stdin.isatty():
        raise Failure("standard input is a terminal, not an archive", code=WRONG_FILE, hint="-i FILE, or a pipe")
    if "://" in path:
        raise Failure(f"{path} is not a file", code=WRONG_FILE, hint=f"curl -fsSL {path} | podrun load")
    with pull.teller(quiet=quiet) as teller:
        images = pull.store().import_(_host(ctx).root, path, teller.notify, "", teller.progress)
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
@click.option("-m", "--multi-image-archive", "several", is_flag=True, help="Accepted: there may always be several.")
@click.argument("refs", metavar="REF...", nargs=-1, required=True, shell_complete=completion.images)
@click.pass_context
def save(ctx: click.Context, refs: Sequence[str], path: str, form: str, quiet: bool, several: bool) -> None:
    """Write images into an archive: 'image export' as docker spells it."""
    ctx.invoke(export, refs=refs, file=path, form=form)


@image.command(cls=Guarded)
@click.option("-a", "--all", "every", is_flag=True, help="All images.")
@click.argument("refs", nargs=-1, shell_complete=completion.images)
@click.pass_context
def mount(ctx: click.Context, refs: Sequence[str], every: bool) -> None:
    """Mount images on the host, read-only, and print where; without REFS list what is mounted."""
    host = _host(ctx)
    if every and refs:
        raise Failure("name the images, or use --all", code=WRONG_FILE)
    for row in pull.store().ls(host.root) if not (refs or every) else ():
        if row.digest in _mounts().mounted(host.run):
            say(f"{row.ref}  {_mounts().place_of(host.run, row.digest)}")
    wanted = refs or [row.ref for row in pull.store().ls(host.root) if every]
    for ref in wanted:
        found = pull.store().inspect(host.root, ref, os.getcwd())[0]
        place = _mounts().mount(host.run, found["digest"], found["layers"])
        say(place if len(refs) == 1 else f"{found['ref']}  {place}")


@image.command(cls=Guarded)
@click.option("-a", "--all", "every", is_flag=True, help="All that are mounted.")
@click.option("-f", "--force", is_flag=True, help="Accepted.")
@click.argument("refs", nargs=-1, shell_complete=completion.images)
@click.pass_context
def unmount(ctx: click.Context, refs: Sequence[str], every: bool, force: bool) -> None:
    """Unmount images that 'image mount' has mounted, and print their ids; one that is not mounted is no mistake."""
    host = _host(ctx)
    if bool(refs) == every:
        raise Failure("name the images, or use --all", code=WRONG_FILE)
    mounted = _mounts().mounted(host.run)
    wanted = [pull.store().inspect(host.root, ref, os.getcwd())[0]["digest"] for ref in refs] if refs else mounted
    ids = {row.digest: row.id.removeprefix("sha256:") for row in pull.store().ls(host.root)}
    for digest in wanted:
        if digest in mounted:
            _mounts().unmount(host.run, digest)
            say(ids.get(digest, digest))


image.add_command(load)
image.add_command(save)


@image.command(cls=Guarded)
@click.option("-a", "--all", "every", is_flag=True, help="All that no pod uses, up or not: 'image prune -a -f'.")
@click.option("-f", "--force", is_flag=True, help="One that does not exist is no error; what a pod uses stays.")
@click.option("-i", "--ignore", is_flag=True, help="One that does not exist is no error.")
@click.argument("refs", nargs=-1, shell_complete=completion.images)
@click.pass_context
def rm(ctx: click.Context, refs: Sequence[str], every: bool, force: bool, ignore: bool) -> None:
    """Remove images; one that a pod uses stays."""
    host = _host(ctx)
    if bool(refs) == every:
        raise Failure("name the images, or use --all", code=WRONG_FILE)
    if every:
        ctx.invoke(prune, unused=True, force=True)
        return
    if force or ignore:
        refs = [ref for ref in refs if image_listing.is_there(host.root, ref)]
    if refs:
        removed = pull.store().rm(host.root, list(refs), lambda: used(host), os.getcwd())
        for ref in removed.refs:
            events.note(host.run, "image", "rm", ref)
        _removed(removed)


@image.command(cls=Guarded)
@click.option("-a", "--all", "unused", is_flag=True, help="Also images that no pod uses, up or not.")
@click.option("-f", "--force", is_flag=True, help="Do not ask, and skip pod files that cannot be read.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="With -a: only these, as of 'image ls'.")
@click.pass_context
def prune(ctx: click.Context, unused: bool, force: bool, dry_run: bool, filters: Sequence[str] = ()) -> None:
    """Remove what no image needs; with -a every image that no pod uses, up or not."""
    host = _host(ctx)
    chosen = image_listing.chosen(host.root, filters)
    store = pull.store()
    if not unused:
        if not dry_run:
            _removed(store.prune(host.root, lambda: used(host)))
        return
    patterns = in_use.images(host, force=force)

    def wanted() -> set[str]:
        by_files = {row.ref for row in store.ls(host.root) if _is_meant(row.ref, patterns)}
        by_files |= pull.store("lookup").names(host.root, patterns)  # an id, a digest
        others = {row.ref for row in store.ls(host.root)} - chosen if filters else set()
        return used(host) | by_files | others

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
