"""The machine as podrun sees it: its directories, environment and how it is talked to; names of kernel objects."""

from __future__ import annotations

import os

from podrun.messages import quiet
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


ROOT = "/var/lib/podrun"


RUN = "/run/podrun"


class Host(NamedTuple):
    """The machine as podrun sees it; tests hand in another one."""

    root: str = ROOT
    run: str = RUN
    environ: Mapping[str, str] = os.environ
    report: Callable[[str], None] = quiet
    watch: Callable[[str, str], None] = quiet


def tag(name: str, run: str) -> str:
    """What the pod's kernel objects are called; runtimes take no "@" in a container's id."""
    plain = name.replace("@", "+")
    if run == RUN:
        return f"podrun-{plain}"
    from _blake2 import blake2s

    return f"podrun-{blake2s(run.encode(), digest_size=2).hexdigest()}-{plain}"
