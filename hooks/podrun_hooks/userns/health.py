"""What ``doctor`` says of user namespaces on this host."""

from __future__ import annotations

import os

from podrun.errors import UNAVAILABLE, Failure
from podrun.hook_extras import Finding
from podrun_hooks.support import userns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def findings(root: str, run: str) -> Iterator[Finding]:
    """One line: what there is, or what is in the way (the kernel, the file system of the layers, the ranges)."""
    try:
        userns.refuse_old_kernel()
        namespace = userns.opened(f"0 65536 {userns.SIZE}\n", f"0 65536 {userns.SIZE}\n")
    except (Failure, OSError) as error:
        what = error.what if isinstance(error, Failure) else str(error)
        yield Finding("warn", f"userns = 'auto' is not possible: {what}", getattr(error, "hint", ""), UNAVAILABLE)
        return
    try:
        where = root
        while not os.path.exists(where):
            where = os.path.dirname(where)
        try:
            os.close(userns.idmapped(where, namespace))
        except OSError:
            what = f"userns = 'auto' is not possible: the file system of {where} has no idmapped mounts"
            yield Finding("warn", what, "ext4, xfs or btrfs", UNAVAILABLE)
            return
    finally:
        os.close(namespace)
    try:
        pairs = userns.ranges()
    except Failure as failure:
        yield Finding("warn", f"userns = 'auto' is not possible: {failure.what}", failure.hint, UNAVAILABLE)
        return
    try:
        taken = len(os.listdir(f"{run}/userns"))
    except FileNotFoundError:
        taken = 0
    yield Finding("ok", f"user namespaces for {len(pairs)} pods, {taken} in use")
