"""Pod files on every host of a cluster, the same everywhere, and a manifest of what the cluster put there.

A host is sent everything at once, as JSON on the standard input of ``podrun cluster receive``: no name or text of it
is ever part of a command line. What arrives is checked (names, sizes, digests), written to a temporary name, synced
and renamed, mode 0600. Only what the host's own manifest lists is ever removed or replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from podrun import atomic
from podrun.errors import BUSY, CANNOT_CREATE, MALFORMED, Failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION = 1
MANIFEST = "cluster.manifest"
#: Bytes of one file, as for any pod file, and of all of them.
LIMIT, LIMIT_OF_ALL = 1 << 20, 32 << 20
_NAME = re.compile(
    r"[a-z0-9][a-z0-9-]{0,62}(@([a-z0-9][a-z0-9_.-]{0,62})?)?\.toml(\.d/[A-Za-z0-9_][A-Za-z0-9_.@-]{0,120}\.toml)?"
)
_POD = re.compile("[a-z0-9][a-z0-9-]{0,62}(@[a-z0-9][a-z0-9_.-]{0,62})?")


class Manifest(NamedTuple):
    """What the cluster has put into a host's /etc/podrun."""

    #: SHA-256 by name below /etc/podrun: "web.toml", "web.toml.d/10-more.toml".
    files: dict[str, str]
    #: The names of the files by pod.
    pods: dict[str, list[str]]
    #: Grows with every change: of two hosts that differ, the one with the higher number is right.
    generation: int = 0


#: The manifest of a host to which nothing was ever applied.
NOTHING = Manifest({}, {})


class Received(NamedTuple):
    """What a host did with what it was sent."""

    written: list[str]
    removed: list[str]


def digest(text: str) -> str:
    """The SHA-256 of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def manifest(etc: str) -> Manifest:
    """The manifest of this host; empty where nothing was ever applied. Raises Failure for a broken one."""
    try:
        with open(f"{etc}/{MANIFEST}", encoding="utf-8") as file:
            return _manifest(json.loads(file.read(LIMIT_OF_ALL)))
    except FileNotFoundError:
        return NOTHING
    except (ValueError, UnicodeDecodeError):
        raise Failure(f"{etc}/{MANIFEST} is not what podrun wrote", code=MALFORMED, hint="remove it") from None


def fingerprint(etc: str) -> str:
    """The generation, and a digest of what this host really has of the files: equal where hosts have the same."""
    known = manifest(etc)
    there = {name: _has(etc, name, wanted) for name, wanted in known.files.items()}
    return f"{known.generation} {digest(json.dumps([known.files, known.pods, there], sort_keys=True))[:12]}"


def _manifest(told: Any) -> Manifest:
    """Raises ValueError for what is not a manifest."""
    if not isinstance(told, dict) or told.get("version") != VERSION:
        raise ValueError("the version")
    files, pods, generation = told.get("files"), told.get("pods"), told.get("generation")
    if not isinstance(files, dict) or not isinstance(pods, dict) or type(generation) is not int:
        raise ValueError("the tables")
    for name, sum_ in files.items():
        if not _NAME.fullmatch(name) or not isinstance(sum_, str):
            raise ValueError(f"the file {name!r}")
    for pod, names in pods.items():
        if not _POD.fullmatch(pod) or not isinstance(names, list) or not all(name in files for name in names):
            raise ValueError(f"the pod {pod!r}")
    return Manifest(files, pods, generation)


def message(pods: Mapping[str, Mapping[str, str]], before: Manifest) -> str:
    """The input of ``receive``: the files (name and text) of each pod of the cluster.

    ``before``: the manifest that these are a change of.
    """
    texts = {name: text for files in pods.values() for name, text in files.items()}
    sums = {name: digest(text) for name, text in texts.items()}
    names = {pod: sorted(files) for pod, files in pods.items()}
    same = before.generation and (sums, names) == (before.files, before.pods)
    wanted = Manifest(sums, names, before.generation if same else before.generation + 1)
    return json.dumps({"version": VERSION, "texts": texts, **wanted._asdict()})


def receive(sent: str, etc: str) -> Received:
    """Makes this host's files those that were sent. Raises Failure before it changes anything, or when the disk fails.

    After a kill at any moment every file is whole, and the manifest lists at least those that the cluster put there.
    """
    try:
        told = json.loads(sent)
        wanted = _manifest(told)
        texts = told.get("texts")
        if not isinstance(texts, dict) or texts.keys() != wanted.files.keys():
            raise ValueError("the texts")
        for name, text in texts.items():
            if not isinstance(text, str) or len(text.encode()) > LIMIT or digest(text) != wanted.files[name]:
                raise ValueError(f"the digest of {name}")
    except (ValueError, AttributeError) as error:
        hint = "is podrun the same everywhere?"
        raise Failure(f"what was sent is broken: {error}", code=MALFORMED, hint=hint) from None
    os.makedirs(etc, mode=0o755, exist_ok=True)
    before = manifest(etc)
    if wanted.generation < before.generation or (wanted.generation == before.generation and wanted != before):
        raise Failure(
            f"it has newer files of the cluster (change {before.generation}, not {wanted.generation})",
            code=BUSY,
            hint=f"apply them on {os.uname().nodename}, or try again",
        )
    changed = [name for name in sorted(texts) if not _has(etc, name, wanted.files[name])]
    for name in changed:
        if name not in before.files and os.path.lexists(f"{etc}/{name}"):
            hint = "remove it there, or give the pod another name"
            raise Failure(f"{etc}/{name} is not the cluster's and differs", code=CANNOT_CREATE, hint=hint)
    gone = sorted(before.files.keys() - wanted.files.keys())
    # A kill between the two leaves the older number: whoever applies again may finish it.
    both = Manifest({**before.files, **wanted.files}, {**before.pods, **wanted.pods}, before.generation)
    _write(etc, MANIFEST, _text(both))
    for name in changed:
        _write(etc, name, texts[name])
    for name in gone:
        _remove(etc, name)
    _write(etc, MANIFEST, _text(wanted))
    return Received(changed, gone)


def _text(known: Manifest) -> str:
    return json.dumps({"version": VERSION, **known._asdict()}, sort_keys=True, indent=1) + "\n"


@contextlib.contextmanager
def _directory(etc: str, name: str, *, create: bool) -> Iterator[tuple[int, str]]:
    """A descriptor of the directory that a file is in, and the file's name there. Links are not followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(etc, flags)
    try:
        above, _, last = name.rpartition("/")
        if above:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(above, 0o755, dir_fd=fd)
            below = os.open(above, flags | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, last
    finally:
        os.close(fd)


def _has(etc: str, name: str, wanted: str) -> bool:
    """Whether a plain file of root's has these contents."""
    try:
        with _directory(etc, name, create=False) as (fd, last):
            file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return False
    with open(file, "rb") as opened:
        status = os.fstat(file)
        plain = status.st_uid == os.geteuid() and not status.st_mode & 0o022
        return plain and hashlib.sha256(opened.read(LIMIT + 1)).hexdigest() == wanted


def _write(etc: str, name: str, text: str) -> None:
    with _directory(etc, name, create=True) as (fd, last):
        atomic.replace(last, text, dir_fd=fd, sync=True)


def _remove(etc: str, name: str) -> None:
    with contextlib.suppress(FileNotFoundError), _directory(etc, name, create=False) as (fd, last):
        os.unlink(last, dir_fd=fd)
    above = name.rpartition("/")[0]
    if above:
        with contextlib.suppress(OSError):  # not empty, or gone
            os.rmdir(f"{etc}/{above}")
