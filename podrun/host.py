"""The machine as podrun sees it: its directories, environment and how it is talked to."""

from __future__ import annotations

import os

from podrun.identity import RUN as RUN
from podrun.identity import Identity
from podrun.messages import quiet
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


ROOT = "/var/lib/podrun"


class Host(NamedTuple):
    """The machine as podrun sees it; tests hand in another one."""

    root: str = ROOT
    run: str = RUN
    environ: Mapping[str, str] = os.environ
    report: Callable[[str], None] = quiet
    watch: Callable[[str, str], None] = quiet


def tag(name: str, run: str, generation: int = 1) -> str:
    """What the kernel objects of a pod are called."""
    return Identity(name).tag(run, generation)
