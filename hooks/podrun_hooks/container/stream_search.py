"""Whether anything that a start can see opens the container's output by name; what an image holds was searched once."""

from __future__ import annotations

import os
import stat

from podrun_hooks.support import stream_names
from podrun_hooks.support.rooted_tree import Elsewhere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from podrun.hook import Facts
    from podrun_hooks.support.rooted_tree import Tree

#: Directories and files that are looked at below one mounted or unpacked directory, and how deep.
_MOST, _DEEPEST = 400, 4
#: Where a directory that is an image ("dir:") has configurations and scripts.
_PLACES = ("/etc", "/usr/local/bin", "/usr/local/etc", "/docker-entrypoint.d", "/app", "/opt", "/srv")


def opens_by_name(image: Facts, config: Mapping[str, Any], tree: Tree) -> bool:
    """Looks at the command and the environment, at scripts in the command, and at the files that are mounted.

    ``config``: the runtime's configuration. An image that was never unpacked is searched as well.
    """
    process = config["process"]
    if stream_names.spoken_of([*process["args"], *process["env"]]):
        return True
    if any(stream_names.mentioned(text) for text in _scripts(process, tree)):
        return True
    if any(_mounted(destination, fd) for destination, fd in tree.mounts):
        return True
    if _logs_by_link(tree):
        return True
    return not image.get("digest") and any(_found(tree, place) for place in _PLACES)


def _scripts(process: Mapping[str, Any], tree: Tree) -> Iterator[bytes]:
    """The beginnings of the files that a command line names."""
    path = next((pair[5:] for pair in process["env"] if pair.startswith("PATH=")), "")
    for number, word in enumerate(process["args"][:16]):
        if number == 0 and "/" not in word:
            yield from (tree.read(f"{directory}/{word}", stream_names.SMALL) for directory in path.split(":"))
        elif word.startswith("/"):
            yield tree.read(word, stream_names.SMALL)
        elif "/" in word and not word.startswith("-"):
            yield tree.read(f"{process['cwd']}/{word}", stream_names.SMALL)


def _mounted(destination: str, fd: int) -> bool:
    """Whether the file or directory that is mounted there (``fd``: the detached mount) names the streams."""
    if not stream_names.searched(os.fsencode(f"{destination[1:]}/")):
        return False
    return any(map(stream_names.mentioned, _texts(f"/proc/self/fd/{fd}")))


def _found(tree: Tree, place: str) -> bool:
    try:
        fd, _ = tree.find(place)
    except (OSError, Elsewhere):
        return False
    try:
        return any(map(stream_names.mentioned, _texts(f"/proc/self/fd/{fd}")))
    finally:
        os.close(fd)


def _texts(top: str) -> Iterator[bytes]:
    """The content of the small files at or below a path, links not followed. No device or FIFO is opened."""
    waiting = [(top, 0)]
    seen = 0
    while waiting and seen < _MOST:
        path, depth = waiting.pop()
        seen += 1
        try:
            mode = (os.stat if not depth else os.lstat)(path).st_mode
            if stat.S_ISDIR(mode) and depth < _DEEPEST:
                waiting += [(f"{path}/{name}", depth + 1) for name in os.listdir(path)[:_MOST]]
            elif stat.S_ISREG(mode):
                yield _text(path)
        except OSError:
            continue


def _text(path: str) -> bytes:
    # It may be another file by now: one without a writer (fifo(7)) must not keep podrun waiting.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        small = stat.S_ISREG(status.st_mode) and status.st_size <= stream_names.SMALL
        return os.read(fd, stream_names.SMALL) if small else b""
    finally:
        os.close(fd)


def _logs_by_link(tree: Tree) -> bool:
    """Whether the image logs to /dev/stdout by a link in /var/log, one directory down included."""
    try:
        top, _ = tree.find("/var/log")
    except (OSError, Elsewhere):
        return False
    waiting, deeper = [top], []
    try:
        for level in range(2):
            for directory in waiting:
                for name in os.listdir(f"/proc/self/fd/{directory}")[:256]:
                    mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
                    if stat.S_ISLNK(mode) and os.fsencode(os.readlink(name, dir_fd=directory)) in stream_names.NAMES:
                        return True
                    if stat.S_ISDIR(mode) and not level:
                        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                        deeper.append(os.open(name, flags, dir_fd=directory))
            waiting = deeper
    except OSError:
        return False  # the image changes under our eyes: a directory that somebody else uses too
    finally:
        for fd in {top, *deeper}:
            os.close(fd)
    return False
