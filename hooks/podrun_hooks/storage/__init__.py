"""The storage step: a directory of the host, a volume, memory, a file or a file system, as a mount for the containers.

It only describes mounts, in the form of the CDI specification; the container step makes them, in its own namespace.
host_mounts.py makes those that have to be mounted on the host first.
"""

from __future__ import annotations

from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Problem
from podrun_hooks.storage.docker_spelling import missing, mount_of, provide
from podrun_hooks.storage.options import IMAGE, NFS, OWN, VOLUME, kind_of, misplaced
from podrun_hooks.storage.options import Options as Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence, Set
    from typing import Any

    from podrun.hook import Facts, Step
    from podrun.hook_extras import Exposure

takes: Sequence[str] = ()
gives: Sequence[str] = ("mounts",)
resident = False
default_name = ""


def up(step: Step, facts: Facts) -> Facts:
    """Describes the mount; creates a missing named volume, and mounts on the host what has to be mounted there."""
    options: Options = step.options
    step.status(f"providing {options.target}")
    for problem in misplaced(options.source, options.options, options.type):
        raise Failure(problem.what, code=problem.code)
    kind = kind_of(options.source, options.type, options.options)
    new = provide(options.source, step.pod.root, fill="nocopy" not in options.options) if kind != "mount" else False
    if _is_real(options, kind):
        from podrun_hooks.storage import host_mounts

        return host_mounts.up(step)
    return {"mounts": [mount_of(options.source, options.target, options.options, step.pod.root, fill=new)]}


def down(step: Step, own: Facts) -> None:
    """Unmounts what was mounted on the host. A bind has gone with the container; a named volume outlives its pods."""
    options: Options = step.options
    if _is_real(options, kind_of(options.source, options.type, options.options)):
        from podrun_hooks.storage import host_mounts

        host_mounts.down(step, own)


def check(step: Step) -> list[Problem]:
    """Finds missing sources, and options that the kind of mount does not have."""
    options: Options = step.options
    kind = kind_of(options.source, options.type, options.options)
    problems = misplaced(options.source, options.options, options.type)
    only = {"content": ("file",), "credential": ("file",), "secret": ("file",), "idmap": ("bind", "volume")}
    problems += [
        Problem(f"{key} is not for a source such as {options.source}", WRONG_FILE, key=key)
        for key, kinds in only.items()
        if getattr(options, key) and kind not in kinds
    ]
    if problems:
        return problems
    if options.idmap and OWN in options.options:
        what = "idmap and U would both say whose the files are"
        return [Problem(what, WRONG_FILE, "leave out one", key="idmap")]
    if step.pod.userns == "auto":
        problems = _in_a_user_namespace(options, kind)
        if problems:
            return problems
    if _is_real(options, kind):
        from podrun_hooks.storage import host_mounts

        return host_mounts.check(step)
    return missing(options.source)


def exclusive(step: Step) -> str:
    """What two generations cannot have mounted at once: they would write to the same blocks, or the same snapshot."""
    options: Options = step.options
    kind = kind_of(options.source, options.type, options.options)
    if kind in ("snapshot", "overlay"):
        return f"{options.source} at {options.target}: a {kind} is one generation's"
    if _is_real(options, kind) and options.source.startswith("/dev/"):
        return f"the block device {options.source}"
    return ""


def local_data(options: dict[str, Any]) -> list[str]:
    """The step's source where it is on this machine only: it does not follow a pod that a cluster moves."""
    source, kind, given = (options.get(key) for key in ("source", "type", "options"))
    sort = kind_of(str(source), str(kind or ""), given if isinstance(given, list) else ())
    return [str(source)] if sort in ("bind", "volume", "snapshot", "overlay") else []


def _in_a_user_namespace(options: Options, kind: str) -> list[Problem]:
    """What cannot have the owners of the pod's user namespace."""
    if options.idmap:
        what, key = "idmap and userns = 'auto' would both say whose the files are", "idmap"
    elif kind in ("image", "overlay") or options.source.startswith(NFS):
        what, key = f"{options.source} cannot have the owners of the pod's user namespace", "source"
    else:
        from podrun_hooks.support import userns

        what, key = userns.refusal(options.source) if kind == "bind" else "", "source"
    return [Problem(what, UNAVAILABLE, 'userns = "host" in [pod]', key=key)] if what else []


def exposes(step: Step) -> Iterator[Exposure]:
    """Reports what the mount shows of the host."""
    from podrun_hooks.storage import exposure

    return exposure.of(step)


def collect(root: str, run: str, pods: Set[str], only_look: bool) -> list[str]:
    """Removes what a power cut has left of overlays, snapshots and volumes; returns what it was."""
    from podrun_hooks.storage import leftovers

    return leftovers.collect(root, run, pods, only_look=only_look)


def explain(step: Step) -> list[str]:
    """The mount(8) commands; ROOTFS is the container's root, in its mount namespace."""
    options: Options = step.options
    kind = kind_of(options.source, options.type, options.options)
    where = f"ROOTFS{options.target}"
    if kind == "tmpfs":
        mount = mount_of(options.source, options.target, options.options, step.pod.root)
        return [f"mount -t tmpfs -o {','.join(mount['options'])} tmpfs {where}"]
    if _is_real(options, kind):
        from podrun_hooks.storage import host_mounts

        place = host_mounts.place_of(step)
        more = f" -o {','.join(options.options)}" if options.options else ""
        first = f"mount{f' -t {options.type}' if options.type else ''}{more} {options.source} {place}"
        return [f"mkdir -p {place}", first, f"mount --rbind {place} {where}", f"# down: umount {place}"]
    mount = mount_of(options.source, options.target, options.options, step.pod.root)
    made = [f"mkdir -p {mount['hostPath']}"] if kind == "volume" else []
    flags = ",".join(word for word in mount["options"] if word not in ("bind", "rbind"))
    return [*made, f"mount --rbind {mount['hostPath']} {where}", f"mount -o remount,bind,{flags} {where}"]


def images_of(options: Mapping[str, Any]) -> list[str]:
    """The name of the image that a step mounts, as the step spells it."""
    source = str(options.get("source", ""))
    return [source.removeprefix(IMAGE)] if source.startswith(IMAGE) else []


def bring(root: str, options: Any, notify: Callable[[str], None]) -> None:
    """Pulls the image now that the step would pull in a unit."""
    if kind_of(options.source) == "image":
        from podrun.options import read
        from podrun_hooks import image

        image.bring(root, read(image.Options, {"ref": options.source.removeprefix(IMAGE)}), notify)


def volumes_of(options: Mapping[str, Any]) -> list[str]:
    """The volume that is the source."""
    kind, _, name = str(options.get("source", "")).partition(":")
    return [name] if f"{kind}:" == VOLUME else []


def _is_real(options: Options, kind: str) -> bool:
    """Whether the source has to be mounted on the host first."""
    return bool(options.idmap) or kind not in ("bind", "volume", "tmpfs")
