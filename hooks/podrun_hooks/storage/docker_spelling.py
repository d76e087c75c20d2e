"""Volumes in docker's spelling: SOURCE:TARGET[:OPTIONS]."""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure
from podrun.hook import Problem
from podrun.options import Wrong
from podrun_hooks.storage.options import (
    OF_A_BIND,
    OPTION,
    OVERLAY,
    OWN,
    TMPFS,
    VOLUME,
    misplaced,
    resolved,
    split_docker,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def from_docker(text: str, root: str = "", *, fill: bool = False) -> dict[str, Any]:
    """The mount (CDI) that docker's ``-v`` spells ``source:target[:options]``; a source without a slash is a volume.

    ``root`` is the pod's, for named volumes; ``fill`` what :func:`provide` returned. Without side effects: call
    :func:`missing` in a check and :func:`provide` before mounting, both with :func:`docker_source`. Raises Wrong.
    """
    source, target, given = split_docker(text)
    if source.startswith(VOLUME) and not root:
        raise Wrong(f"expected an absolute path, not {text!r}")
    options = [OPTION.parse(word) for word in given]
    for problem in misplaced(source, options):
        raise Wrong(f"{problem.what} in {text!r}")
    if OVERLAY in options:
        raise Wrong(f"O is for a storage step, not for {text!r}")
    return mount_of(source, target, options, root, fill=fill)


def docker_source(text: str) -> str:
    """The source of a docker-spelled volume as :func:`missing` and :func:`provide` take it. Raises Wrong."""
    return split_docker(text)[0]


def missing(source: str) -> list[Problem]:
    """The problem with a source that is a path of the host and not there; docker would create a directory of root's."""
    if source.startswith("/") and not os.path.exists(source):
        hint = "create it, or use a named volume"
        return [Problem(f"there is no {source} on the host", WRONG_FILE, hint, key="source")]
    return []


def provide(source: str, root: str, *, fill: bool = True) -> bool:
    """Makes sure that a source is there: a named volume is created, 0755. True: it waits to be filled from the image.

    ``fill`` = False: it never is. Raises Failure (WRONG_FILE) for a path that is not there.
    """
    for problem in missing(source):
        raise Failure(problem.what, code=problem.code, hint=problem.hint)
    if source.startswith(VOLUME):
        from podrun_hooks.storage import volumes

        return volumes.provide(root, source[len(VOLUME) :], fill=fill)
    return False


def mount_of(source: str, target: str, options: Sequence[str], root: str, *, fill: bool = False) -> dict[str, Any]:
    """The mount of a source, as a fact (CDI); ``root`` is the pod's, for named volumes."""
    if source == TMPFS:
        given = resolved(["nosuid", "nodev", "mode=1777"], options)
        return {"hostPath": "tmpfs", "containerPath": target, "type": "tmpfs", "options": given}
    path = source
    if source.startswith(VOLUME):
        from podrun_hooks.storage import volumes

        name = source[len(VOLUME) :]
        path = volumes.path_of(root, name)
        if stands_for := volumes.about(root, name).options:
            return _instead(stands_for, target, options)
    given = [word for word in resolved(["rbind", "nosuid", "nodev"], options) if word not in ("nocopy", OWN)]
    mount: dict[str, Any] = {"hostPath": path, "containerPath": target, "type": "bind", "options": given}
    if OWN in options:
        mount["own"] = True  # beyond CDI, too: the container step knows the payload's user
    # Beyond CDI: the container step copies what the image has there before it mounts.
    return {**mount, "fill": True} if fill else mount


def _instead(volume: Mapping[str, str], target: str, options: Sequence[str]) -> dict[str, Any]:
    """The mount of a volume that ``podrun volume create -o`` has made to stand for something else."""
    words = [word for word in [*volume["o"].split(","), *options] if word not in ("", "nocopy", OWN)]
    if volume["type"] == "tmpfs":
        given = resolved(["nosuid", "nodev", "mode=1777"], [word for word in words if word not in OF_A_BIND])
        return {"hostPath": "tmpfs", "containerPath": target, "type": "tmpfs", "options": given}
    given = resolved(["rbind", "nosuid", "nodev"], words)
    mount: dict[str, Any] = {"hostPath": volume["device"], "containerPath": target, "type": "bind", "options": given}
    return {**mount, "own": True} if OWN in options else mount
