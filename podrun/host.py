"""The machine as podrun sees it: its directories, environment and how it is talked to."""

from __future__ import annotations

import os
import sys

import podrun
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


def add_site_packages() -> None:
    """Has modules be found that pip has installed, where podrun's command began without site (python -S).

    Nothing of a start needs them, and site takes 2 ms to look for them.
    """
    if podrun.SITE_LEFT_OUT and "site" not in sys.modules:
        import site

        site.main()
