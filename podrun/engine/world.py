"""The callbacks that a chain run needs; whoever runs a chain supplies them."""

from __future__ import annotations

from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from podrun.hook import Hook


class Callbacks(NamedTuple):
    """Callbacks that a chain run needs, supplied by the caller."""

    #: The hook that a name in the pod file stands for.
    load: Callable[[str], Hook]
    #: A line for people.
    report: Callable[[str], None]
    #: Progress for systemd, as sd_notify(3) assignments.
    notify: Callable[[str], None]
    #: The pid of a resident step's process, once it is in the journal: systemd's main process where podrun hands off.
    main_process: Callable[[int], None]
    #: Told of every event, right after it is in the journal: ("starting" | "process" | "up" | ..., the step's label).
    watch: Callable[[str, str], None]
    #: What a forked child of the launcher does first: it lets go of the pod's lock.
    forked: Callable[[], None]
