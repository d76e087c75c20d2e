"""``podrun volume create``, ``export`` and ``import``: volumes as tar archives, with owners, links and attributes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import click

from podrun import atomic
from podrun.cli import completion
from podrun.cli.output import Guarded, say
from podrun.engine import hook_loader
from podrun.errors import BUSY, CANNOT_CREATE, MALFORMED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.launcher.commands import host_of
from podrun.options import Wrong, unknown
from podrun.systemd import events

#: GNU tar; numbers instead of names, because another host's passwd is not this one's.
_TAR = ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"]


def _path(root: str, name: str, *, there: bool) -> str:
    """The directory of a volume that exists, or does not yet. Raises Failure."""
    volumes = hook_loader.part("storage", "volumes")
    try:
        hook_loader.part("storage", "options").volume_name(name)
    except Wrong as wrong:
        raise Failure(wrong.what, code=WRONG_FILE) from None
    path: str = volumes.content_of(root, name)
    if there and not os.path.isdir(path):
        raise Failure(f"there is no volume {name}", code=UNAVAILABLE, hint="'podrun volume ls' lists them")
    if not there and os.path.isdir(volumes.path_of(root, name)):
        raise Failure(f"volume {name} already exists", code=BUSY)
    return path


@click.command(cls=Guarded)
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label, for 'volume ls --filter'.")
@click.option("-o", "--opt", "options", multiple=True, metavar="KEY=VALUE", help="type, device or o; see below.")
@click.option("-d", "--driver", type=click.Choice(["local"]), default="local", help="Accepted: there is no other.")
@click.option("--ignore", is_flag=True, help="Do nothing for one that already exists.")
@click.argument("names", nargs=-1)
@click.pass_context
def create(
    ctx: click.Context,
    /,
    names: Sequence[str],
    labels: Sequence[str],
    options: Sequence[str],
    driver: str,
    ignore: bool,
) -> None:
    """Create volumes, without a NAME one with a random name; the first container that uses one fills it from its image.

    -o type=none -o o=bind -o device=/DIRECTORY: it stands for a directory of the host. -o type=tmpfs -o device=tmpfs
    [-o o=size=64M]: for memory that each container gets empty. Other file systems are a storage step's.
    """
    host = host_of(ctx.obj)
    volumes = hook_loader.part("storage", "volumes")
    names = names or [os.urandom(32).hex()]
    told = volumes.About(_labels(labels), _stands_for(options), time.time())
    there = {name for name in names if ignore and name in volumes.names(host.root)}
    for name in {*names} - there:
        _path(host.root, name, there=False)
    for name in names:
        if name not in there:
            volumes.make(host.root, name, told)
            events.note(host.run, "volume", "create", name)
        say(name)


def _labels(texts: Sequence[str]) -> dict[str, str]:
    found = {key: value for key, _, value in (text.partition("=") for text in texts)}
    if "" in found:
        raise Failure("--label: expected KEY or KEY=VALUE", code=WRONG_FILE)
    return found


def _stands_for(texts: Sequence[str]) -> dict[str, str]:
    """Docker's options of a volume, as they are kept. Raises Failure (WRONG_FILE)."""
    if not texts:
        return {}
    given = {key: value for key, _, value in (text.partition("=") for text in texts)}
    if unknown_keys := [key for key in given if key not in ("type", "device", "o")]:
        raise Failure(f"--opt: {unknown(unknown_keys[0], ['type', 'device', 'o'], 'option')}", code=WRONG_FILE)
    kind, device, words = given.get("type", ""), given.get("device", ""), given.get("o", "").split(",")
    bind = kind in ("", "none", "bind") and (kind == "bind" or {"bind", "rbind"} & {*words})
    if not bind and kind != "tmpfs":
        hint = "a storage step with source = 'nfs:HOST:/EXPORT', or a device and its type, mounts it for its pod"
        raise Failure(
            f"--opt type={kind or '(none)'}: a volume stands for a directory or tmpfs", code=WRONG_FILE, hint=hint
        )
    if bind and not (device.startswith("/") and os.path.isdir(device)):
        raise Failure(f"--opt device={device}: there is no such directory", code=WRONG_FILE, hint="an absolute path")
    source = device if bind else "tmpfs:"
    for problem in hook_loader.part("storage", "options").misplaced(source, [word for word in words if word]):
        raise Failure(f"--opt o: {problem.what}", code=WRONG_FILE)
    return {"type": "bind" if bind else kind, "device": device, "o": ",".join(word for word in words if word)}


@click.command("export", cls=Guarded)
@click.option("-o", "--output", default="-", metavar="FILE", help="Where to; default: standard output.")
@click.argument("name", shell_complete=completion.volumes)
@click.pass_context
def export(ctx: click.Context, name: str, output: str) -> None:
    """Write the content of a volume as a tar archive. Stop a database first, or have it write a dump instead."""
    path = _path(host_of(ctx.obj).root, name, there=True)
    if output == "-":
        if sys.stdout.isatty():
            raise Failure("an archive cannot be written to a terminal", code=WRONG_FILE, hint="-o FILE")
        _run([*_TAR, "-C", path, "-c", "."])
        return
    if os.path.exists(output) and not os.path.isfile(output):
        raise Failure(f"{output} is not a plain file", code=WRONG_FILE, hint="'-o -' writes to standard output")
    try:
        atomic.replace(output, lambda fd: _run([*_TAR, "-C", path, "-c", "."], stdout=fd), None, sync=True)
    except OSError as error:
        code = BUSY if error.errno == errno.EBUSY else CANNOT_CREATE
        raise Failure(f"{output}: {error.strerror}", code=code) from None


@click.command("import", cls=Guarded)
@click.argument("name", shell_complete=completion.volumes)
@click.argument("file", metavar="FILE", type=click.Path())
@click.pass_context
def import_(ctx: click.Context, name: str, file: str) -> None:
    """Fill a new or an empty volume from a tar archive (-: standard input)."""
    root = host_of(ctx.obj).root
    volumes = hook_loader.part("storage", "volumes")
    path = volumes.path_of(root, name) if name else ""
    if name and os.path.isdir(path):
        path = _path(root, name, there=True)
        if volumes.about(root, name).options:
            raise Failure(f"volume {name} stands for {path}", code=BUSY, hint=f"tar -C {path} -x")
        if os.listdir(path):
            raise Failure(f"volume {name} is not empty", code=BUSY, hint="import into a new one")
    else:
        path = _path(root, name, there=False)
    source = sys.stdin.fileno() if file == "-" else _opened(file)
    try:
        volumes.put(root, name, lambda place: _run([*_TAR, "-C", place, "-x", "-p", "-f", "-"], stdin=source))
    finally:
        if file != "-":
            os.close(source)
    say(name)


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=UNAVAILABLE) from None


def _run(argv: list[str], stdin: int | None = None, stdout: int | None = None) -> None:
    """Runs tar. Raises Failure with tar's own message: MALFORMED or CANNOT_CREATE."""
    sys.stdout.flush()
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=stdout, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"tar ended with {done.returncode}"]
        space = any("No space left" in word for word in words)
        raise Failure(words[0].removeprefix("tar: "), code=CANNOT_CREATE if space or "-c" in argv else MALFORMED)


COMMANDS = (create, export, import_)
