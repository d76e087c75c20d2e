"""``podrun cp``: files into and out of a running container."""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from typing import IO

import click

from podrun.cli.output import Guarded
from podrun.cli.payload import Running
from podrun.engine import hook_loader
from podrun.errors import CANNOT_CREATE, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook_extras import CopiesFiles, offers
from podrun.host import Host
from podrun.launcher.commands import host_of


@click.command(cls=Guarded)
@click.option("-c", "--container", default="", metavar="NAME", help="Which container; default: the last.")
@click.option("-q", "--quiet", is_flag=True, help="Accepted.")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.pass_context
def cp(ctx: click.Context, source: str, target: str, container: str, quiet: bool) -> None:
    """Copy files between the host and a running container, or between two containers.

    NAME:PATH is a path in a container, anything else one of the host, - a tar stream. A directory is copied with all
    that is in it; links are copied as links. Files in the container belong to its root.
    """
    host = host_of(ctx.obj)
    outward, inward = _split(source), _split(target)
    if outward and inward:
        with tempfile.TemporaryFile() as spool:
            _Copying(host, outward[0], container).pack(outward[1], spool)
            _into(_Copying(host, inward[0], container).unpack, spool, inward[1])
    elif outward:
        copying = _Copying(host, outward[0], container)
        _out(lambda out: copying.pack(outward[1], out), outward[1], target)
    elif inward:
        _in(_Copying(host, inward[0], container).unpack, source, inward[1])
    else:
        raise Failure("one of the two has to be NAME:PATH, a path in a container", code=WRONG_FILE)


class _Copying:
    """What the hook of a running container can do. Raises Failure for one that can do nothing."""

    def __init__(self, host: Host, name: str, container: str) -> None:
        running = Running(host, name, container)
        copying = offers(hook_loader.load(running.entry.step["hook"]), CopiesFiles)
        if copying is None:
            raise Failure(f"{running.name}: its hook cannot do that")
        self._hook, self._running = copying, running
        self._own = {"process": {"pid": running.resident.pid, "start": running.resident.start}}

    def pack(self, path: str, out: IO[bytes]) -> None:
        """Writes what is at a path as a tar stream."""
        self._hook.pack(self._running.step(), self._own, path, out)

    def unpack(self, stream: IO[bytes], to: str, called: str) -> None:
        """Makes what is in a tar stream below a directory, the top entry under the name ``called``."""
        self._hook.unpack(self._running.step(), self._own, to, stream, called)


def _split(word: str) -> tuple[str, str] | None:
    """(pod, path) of NAME:PATH; None for a path of the host."""
    name, colon, path = word.partition(":")
    if not colon or "/" in name or name in ("", "."):
        return None
    if not path:
        raise Failure(f"{word!r} names no path in the container", code=WRONG_FILE)
    return name, path


def _out(pack: Callable[[IO[bytes]], None], path: str, target: str) -> None:
    """From the container: below a directory that is there, else under the name that the target gives."""
    if target == "-":
        pack(sys.stdout.buffer)
        return
    last = os.path.basename(path.rstrip("/"))
    whole = not last or last in (".", "..")
    below = os.path.isdir(target)
    parent = target if below or whole else os.path.dirname(os.path.abspath(target))
    if not whole and not os.path.isdir(parent):
        raise Failure(f"{parent} is not a directory", code=CANNOT_CREATE)
    if target.endswith("/") and not below and not whole:
        raise Failure(f"{target} is not a directory", code=CANNOT_CREATE)
    try:
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryFile() as spool:
            pack(spool)
            spool.seek(0)
            with tarfile.open(fileobj=spool, mode="r|") as archive:
                # Python 3.14 would refuse links that lead elsewhere; nothing is extracted through one here.
                archive.extraction_filter = lambda member, _path: member
                for member in archive:
                    if not below and not whole:
                        inner = member.name.partition("/")[2]
                        member.name = os.path.basename(os.path.abspath(target)) + (f"/{inner}" if inner else "")
                    archive.extract(_for_us(member), parent, set_attrs=not member.issym())
    except OSError as error:
        raise Failure(f"{error.filename or parent}: {error.strerror}", code=CANNOT_CREATE) from None


def _for_us(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """What pack() has made: names without "..", links of which nothing goes through; setuid is dropped."""
    member.mode &= 0o1777
    member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
    return member


def _in(unpack: Callable[[IO[bytes], str, str], None], source: str, path: str) -> None:
    """Into the container: below a directory that is there, else under the name that the path gives."""
    if source == "-":
        unpack(sys.stdin.buffer, path, "")
        return
    if not os.path.lexists(source):
        raise Failure(f"{source}: No such file or directory", code=UNAVAILABLE)
    last = os.path.basename(source.rstrip("/"))
    with tempfile.TemporaryFile() as spool:
        with tarfile.open(fileobj=spool, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            archive.add(source, arcname="." if source.rstrip("/").endswith("/.") or last == "." else last)
        _into(unpack, spool, path)


def _into(unpack: Callable[[IO[bytes], str, str], None], spool: IO[bytes], path: str) -> None:
    """Below a directory that is there, else under the name that the path gives."""
    parent, _, called = path.rstrip("/").rpartition("/")
    for to, name in ((path, ""), (parent or "/", called)):
        spool.seek(0)
        try:
            unpack(spool, to, name)
        except Failure as failure:
            if to != path or path.endswith("/") or failure.code != UNAVAILABLE or not called:
                raise
        else:
            return
