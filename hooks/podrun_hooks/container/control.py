"""What can be done to a running container: freeze it, change its limits, see what it has written."""

from __future__ import annotations

import os
import stat

from podrun.errors import STEP_FAILED, UNAVAILABLE, Failure
from podrun_hooks.container import cgroups, processes
from podrun_hooks.support import mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from podrun_hooks.container.paths import Place

#: The kernel writes overlay's own marks as these (fs/overlayfs/overlayfs.h).
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


def freeze(place: Place, on: bool) -> None:
    """Stops every process of the container's cgroup, or lets it run again. Raises Failure without such a cgroup."""
    try:
        if cgroups.freeze(place, on):
            return
    except OSError as error:
        raise Failure(f"{place.cgroup}: {error.strerror}", code=STEP_FAILED) from None
    raise Failure(
        "the container has no cgroup of its own",
        code=UNAVAILABLE,
        hint="a limit such as pids gives it one, and so does running it as a unit",
    )


def limit(place: Place, wanted: Mapping[str, float]) -> None:
    """Changes limits of the running container: memory and pids (bytes, count), cpus. Raises Failure."""
    for key, value in wanted.items():
        quota = int(value * 100_000)
        spelled = {
            "memory": (("memory.max", int(value)), ("memory.limit_in_bytes", int(value))),
            "pids": (("pids.max", int(value)),),
            "cpus": (("cpu.max", f"{quota} 100000"), ("cpu.cfs_quota_us", quota)),
        }[key]
        places = [(f"{path}/{name}", word) for path in cgroups.of(place) for name, word in spelled]
        there = next(((file, word) for file, word in places if os.path.exists(file)), None)
        if there is None:
            what = f"the container has no cgroup of its own with the controller for {key}"
            raise Failure(what, code=UNAVAILABLE, hint="a limit in the pod file gives it one, and so does a unit")
        _put(there[0], str(there[1]))


def _put(path: str, word: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(word)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=STEP_FAILED) from None


def changes(place: Place, layers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What the container has changed in its image: ("A", "C" or "D", path), a directory before what is in it.

    As docker's diff: A is new, C is changed (a directory with a change in it, too), D is removed. Mounts are not in it,
    nor what was made to mount them on.
    """
    try:
        top = os.open(place.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        yield from _below(top, "", [layer for layer in reversed(layers) if os.path.isdir(layer)], _targets(place))
    finally:
        os.close(top)


def _targets(place: Place) -> set[str]:
    """The paths in the container that something is mounted on, as its own process sees them."""
    process = processes.of_container(place, {})
    if process is None:
        return set()
    try:
        return {*mountinfo.points(process.pid)}
    except OSError:
        return set()


def _below(directory: int, path: str, lower: Sequence[str], targets: set[str]) -> Iterator[tuple[str, str]]:
    for name in sorted(os.listdir(directory)):
        here = f"{path}/{name}"
        if here in targets:
            continue
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        was = any(_is_in(layer, here) for layer in lower)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            # overlayfs' whiteout (Documentation/filesystems/overlayfs.rst).
            yield "D", here
            continue
        changed = [("C" if was else "A", here)]
        if stat.S_ISDIR(status.st_mode):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                changed += _below(inner, here, [] if _is_opaque(inner) else lower, targets)
                if len(changed) == 1 and os.listdir(inner) and any(one.startswith(f"{here}/") for one in targets):
                    changed = []  # there is nothing in it but what is mounted on
            finally:
                os.close(inner)
        yield from changed


def _is_in(layer: str, path: str) -> bool:
    try:
        status = os.lstat(f"{layer}{path}")
    except OSError:
        return False
    return not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0)


def _is_opaque(directory: int) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(directory, name) == b"y":
                return True
        except OSError:
            continue
    return False
