"""The callbacks that a chain run needs; whoever runs a chain supplies them."""

from __future__ import annotations

from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from podrun.hook import Hook


class Callbacks(NamedTuple):
    """What a chain acts in, handed in by whoever runs one."""

    #: The hook that a name in the pod file stands for.
    load: Callable[[str], Hook]
    #: A line for people.
    say: Callable[[str], None]
    #: sd_notify(3) assignments for systemd.
    notify: Callable[[str], None]
    #: Told of every event, right after it is in the journal: ("starting" | "notify" | "up" | ..., the step's label).
    watch: Callable[[str, str], None]
    #: What a forked child of the launcher does first: it lets go of the pod's lock.
    forked: Callable[[], None]
