"""What pods use, whether they are up or not: pod files with their drop-ins, units, transient units and journals.

A stopped database's volume is used, and so is the image that a unit will start from. ``prune`` and ``volume rm`` remove
neither.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

import click

from podrun.cli.output import say
from podrun.engine import hook_loader
from podrun.errors import BUSY, WRONG_FILE, Failure
from podrun.hook_extras import UsesImages, UsesVolumes, offers
from podrun.host import Host
from podrun.launcher import transient
from podrun.podfile import loader
from podrun.podfile.loader import PodText
from podrun.systemd import units
from podrun.systemd.following import NO_PODS

#: Where there may be units that name a pod file outside /etc/podrun (systemd.unit(5)).
_UNITS = (units.INSTALLED, "/run/systemd/system", "/run/systemd/transient", "/usr/local/lib/systemd/system")
_MADE = re.compile(r"# Made by podrun of (.+); 'podrun unit' shows it\.")
#: Stands for any instance of a template, and "*" for any value of a variable.
_INSTANCE = "podrun-any-instance"
_OPEN = re.compile(rf"\$\{{[^}}]*\}}|{_INSTANCE}")


def volumes(host: Host, *, force: bool = False) -> dict[str, str]:
    """Names, and patterns of names, of the volumes that some pod file or unit names, each with one pod that does.

    Raises Failure as texts().
    """
    return {_pattern(name): _pattern(text.name) for text in texts(host, force=force) for name in _of(text, UsesVolumes)}


def images(host: Host, *, force: bool = False) -> set[str]:
    """The same of images."""
    return {_pattern(name) for text in texts(host, force=force) for name in _of(text, UsesImages)}


def is_agreed(names: Sequence[str], what: str, *, force: bool, dry_run: bool) -> bool:
    """Says what would be removed, and asks; a pipe may answer. Raises Failure (WRONG_FILE) when nobody does."""
    for name in names:
        if dry_run or not force:
            say(f"would remove {what} {name}")
    if dry_run or not names:
        return not dry_run
    if force:
        return True
    if sys.stdin.isatty():
        return click.confirm("Remove?")
    answer = sys.stdin.readline(100).strip().lower()
    if not answer:
        raise Failure("there is no terminal to ask at", code=WRONG_FILE, hint="--force removes, --dry-run shows")
    return answer in ("y", "yes")


def user(name: str, patterns: dict[str, str]) -> str:
    """The pod behind the first pattern of :func:`volumes` that is about a volume; "" if there is none."""
    return next((pod for pattern, pod in patterns.items() if fnmatch.fnmatchcase(name, pattern)), "")


def is_in(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns is about a name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def texts(host: Host, *, force: bool = False) -> Iterator[PodText]:
    """Every pod of this host that is written down somewhere.

    Raises Failure (BUSY) for one that cannot be read: nobody knows what it needs. ``force`` passes over it.
    """
    for path in sorted(_files()):
        stem = path.removesuffix(".toml")
        word = f"{stem}{_INSTANCE}.toml" if stem.endswith("@") else path
        try:
            yield loader.load(word, environ=None, load_hook=hook_loader.load)
        except Failure as failure:
            if force:
                continue
            what = f"cannot tell what {path} needs: {failure.what}"
            raise Failure(what, code=BUSY, hint="correct it, or use --force") from None
    started = glob.glob(f"{glob.escape(host.run)}/units/*.json")
    for path in sorted([*started, *glob.glob(f"{glob.escape(host.root)}/created/*.json")]):
        try:
            yield transient.resolved(path)
        except (OSError, ValueError, TypeError, KeyError):
            if force:
                continue
            raise Failure(f"cannot tell what {path} needs", code=BUSY, hint="--force removes all the same") from None


def _files() -> set[str]:
    found = {path for path in glob.glob(f"{units.ETC}/*.toml") if os.path.basename(path) not in NO_PODS}
    for directory in _UNITS:
        for path in glob.glob(f"{directory}/*.service"):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    made = _MADE.match(file.readline(8192).strip())
            except OSError:
                continue
            if made and os.path.exists(made[1]):
                found.add(made[1])
    return {os.path.realpath(path) if os.path.exists(path) else path for path in found}


def _of(text: PodText, protocol: type[UsesImages] | type[UsesVolumes]) -> Iterator[str]:
    for step in text.steps:
        hook = hook_loader.load(step.hook)
        if protocol is UsesImages:
            using = offers(hook, UsesImages)
            yield from using.images_of(step.options) if using else ()
        else:
            having = offers(hook, UsesVolumes)
            yield from having.volumes_of(step.options) if having else ()


def _pattern(name: str) -> str:
    """A name with "*" for what only a start knows."""
    return _OPEN.sub("*", name)
