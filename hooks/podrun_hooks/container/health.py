"""What ``podrun doctor`` says of containers: the runtime, cgroup controllers, and the place of writable layers."""

from __future__ import annotations

import os
from collections.abc import Iterator

from podrun.errors import CANNOT_CREATE, UNAVAILABLE, Failure
from podrun.hook_extras import Finding
from podrun_hooks.container import limits, rootfs
from podrun_hooks.container import runtime as runtimes
from podrun_hooks.support import subprocesses


def findings(root: str, run: str) -> Iterator[Finding]:
    """Looks at the runtime, at the kernel's cgroup controllers, and at the file systems of ``root`` and ``run``."""
    if _type_of(root) == "overlay":
        what, hint = f"{root} is on an overlay: no writable layer can be there", "--root on a disk, a volume or a tmpfs"
        if _type_of(run) == "tmpfs":
            what += f"; containers that persist nothing have theirs in memory, in {run}"
            yield Finding("warn", what, hint)
        else:
            yield Finding(
                "fail", what, f"{hint}; or mount -t tmpfs tmpfs {run}, which has them in memory", CANNOT_CREATE
            )
    missing = limits.missing_controllers(("memory", "cpu", "pids"))
    if missing:
        yield Finding("warn", f"the kernel has no cgroup controller {', '.join(missing)}: such limits are refused")
    try:
        chosen = runtimes.choose("auto")
    except Failure as lacking:
        yield Finding("fail", lacking.what, lacking.hint, lacking.code)
        return
    ended = subprocesses.run([chosen.path, "--version"])
    if ended.status:
        yield Finding("fail", f"{chosen.path} does not run: {ended.errors.strip()}", "", UNAVAILABLE)
    else:
        yield Finding("ok", f"{ended.output.splitlines()[0]} at {chosen.path}")


def _type_of(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return rootfs.type_of(path)
