"""The storage step: a directory of the host, a volume, memory, a file or a file system, as a mount for the containers.

It only tells of mounts, in the spelling of the CDI specification; the container step makes them, in its own namespace.
What has to be mounted on the host first is real.py's business.
"""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure
from podrun.hook import Problem, Wrong

from . import words
from .words import OPTION
from .words import Options as Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.hook import Facts, Step

takes: Sequence[str] = ()
gives: Sequence[str] = ("mounts",)
resident = False
default_name = ""


def up(step: Step, facts: Facts) -> Facts:
    """Tells of the mount; a named volume that is not there is created, what needs a mount on the host gets one."""
    options: Options = step.options
    step.notify(f"STATUS=providing {options.target}")
    for problem in words.misplaced(options.source, options.options, options.type):
        raise Failure(problem.what, code=problem.code)
    kind = words.kind(options.source, options.type, options.options)
    new = provide(options.source, step.pod.root, fill="nocopy" not in options.options) if kind != "mount" else False
    if _is_real(options, kind):
        from . import real

        return real.up(step)
    return {"mounts": [_mount(options.source, options.target, options.options, step.pod.root, fill=new)]}


def down(step: Step, own: Facts) -> None:
    """Unmounts what was mounted on the host. A bind went with the container, and a named volume outlives its pods."""
    options: Options = step.options
    if _is_real(options, words.kind(options.source, options.type, options.options)):
        from . import real

        real.down(step, own)


def check(step: Step) -> list[Problem]:
    """A source that has to exist, and options that its kind of mount does not have."""
    options: Options = step.options
    kind = words.kind(options.source, options.type, options.options)
    problems = words.misplaced(options.source, options.options, options.type)
    only = {"content": ("file",), "credential": ("file",), "idmap": ("bind", "volume")}
    problems += [
        Problem(f"{key} is not for a source such as {options.source}", WRONG_FILE, key=key)
        for key, kinds in only.items()
        if getattr(options, key) and kind not in kinds
    ]
    if problems:
        return problems
    if _is_real(options, kind):
        from . import real

        return real.check(step)
    return missing(options.source)


def explain(step: Step) -> list[str]:
    """The mount(8) commands; ROOTFS is the container's root, in its mount namespace."""
    options: Options = step.options
    kind = words.kind(options.source, options.type, options.options)
    where = f"ROOTFS{options.target}"
    if kind == "tmpfs":
        mount = _mount(options.source, options.target, options.options, step.pod.root)
        return [f"mount -t tmpfs -o {','.join(mount['options'])} tmpfs {where}"]
    if _is_real(options, kind):
        from . import real

        place = real.place_of(step)
        more = f" -o {','.join(options.options)}" if options.options else ""
        first = f"mount{f' -t {options.type}' if options.type else ''}{more} {options.source} {place}"
        return [f"mkdir -p {place}", first, f"mount --rbind {place} {where}", f"# down: umount {place}"]
    mount = _mount(options.source, options.target, options.options, step.pod.root)
    made = [f"mkdir -p {mount['hostPath']}"] if kind == "volume" else []
    flags = ",".join(word for word in mount["options"] if word not in ("bind", "rbind"))
    return [*made, f"mount --rbind {mount['hostPath']} {where}", f"mount -o remount,bind,{flags} {where}"]


def from_docker(text: str, root: str = "", *, fill: bool = False) -> dict[str, Any]:
    """The mount (CDI) that docker's ``-v`` spells ``source:target[:options]``; a source without a slash is a volume.

    ``root`` is the pod's, for named volumes; ``fill`` what :func:`provide` returned. Without side effects: call
    :func:`missing` in a check and :func:`provide` before mounting, both with :func:`docker_source`. Raises Wrong.
    """
    source, target, given = words.split(text)
    if source.startswith(words.VOLUME) and not root:
        raise Wrong(f"expected an absolute path, not {text!r}")
    options = [OPTION.parse(word) for word in given]
    for problem in words.misplaced(source, options):
        raise Wrong(f"{problem.what} in {text!r}")
    if words.OVERLAY in options:
        raise Wrong(f"O is for a storage step, not for {text!r}")
    return _mount(source, target, options, root, fill=fill)


def docker_source(text: str) -> str:
    """The source of a docker-spelled volume as :func:`missing` and :func:`provide` take it. Raises Wrong."""
    return words.split(text)[0]


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
    if source.startswith(words.VOLUME):
        from . import volumes

        return volumes.provide(root, source[len(words.VOLUME) :], fill=fill)
    return False


def _is_real(options: Options, kind: str) -> bool:
    """Whether it takes a mount on the host."""
    return bool(options.idmap) or kind not in ("bind", "volume", "tmpfs")


def _mount(source: str, target: str, options: Sequence[str], root: str, *, fill: bool = False) -> dict[str, Any]:
    if source == words.TMPFS:
        given = words.resolved(["nosuid", "nodev", "mode=1777"], options)
        return {"hostPath": "tmpfs", "containerPath": target, "type": "tmpfs", "options": given}
    path = source
    if source.startswith(words.VOLUME):
        path = f"{root}/volumes/{source[len(words.VOLUME) :]}/data"
    given = [word for word in words.resolved(["rbind", "nosuid", "nodev"], options) if word != "nocopy"]
    mount: dict[str, Any] = {"hostPath": path, "containerPath": target, "type": "bind", "options": given}
    # Beyond CDI: the container step copies what the image has there before it mounts.
    return {**mount, "fill": True} if fill else mount
