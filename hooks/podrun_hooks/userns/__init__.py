"""The step that ``[pod] userns = "auto"`` puts first: a user namespace of the pod's own, and a range of ids for it.

The namespace is made and pinned before anything else, and a network namespace in it: only what a user namespace owns
may its root configure (a network namespace of the host's gives the container's root neither sysfs nor low ports).
"""

from __future__ import annotations

import os

from podrun.errors import NOT_ALLOWED, UNAVAILABLE, Failure
from podrun.hook import Problem
from podrun.options import choice, option
from podrun.record import NamedTuple
from podrun_hooks.support import userns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    from podrun.hook import Facts, Step
    from podrun.hook_extras import Finding

takes: Sequence[str] = ()
gives: Sequence[str] = ("userns",)
resident = False
default_name = ""


class Options(NamedTuple):
    """The options of the step."""

    mode: str = option(choice("auto"), "auto: a range of 65,536 ids that no other pod has", "auto")


def up(step: Step, facts: Facts) -> Facts:
    """Leases a range and makes the namespaces, about 1 ms."""
    down(step, {})
    pod = step.pod
    step.status("leasing a range of ids")
    lease = userns.claim(pod.run, userns.ledger_of(pod.directory), pod.name, userns.ranges())
    step.status("making the user namespace")
    userns.make(pod.directory, lease)
    return {
        "userns": {"path": userns.path_of(pod.directory), "netns": userns.netns_of(pod.directory), **lease._asdict()}
    }


def down(step: Step, own: Facts) -> None:
    """Unpins the namespaces, then releases the range."""
    userns.unpin(step.pod.directory)
    userns.release(step.pod.run, userns.ledger_of(step.pod.directory))


def check(step: Step) -> list[Problem]:
    """Whether this host has ranges to give, and a kernel that can."""
    if os.geteuid():
        return [Problem("user namespaces of pods need root", NOT_ALLOWED)]
    try:
        userns.ranges()
        userns.refuse_old_kernel()
    except Failure as failure:
        return [Problem(failure.what, UNAVAILABLE, failure.hint)]
    return []


def explain(step: Step) -> list[str]:
    """The commands of util-linux that do the same."""
    path = userns.path_of(step.pod.directory)
    return [
        f"touch {path}; unshare --user={path} --map-users=0:BASE:{userns.SIZE} --map-groups=0:BASE:{userns.SIZE} true",
        f"# down: umount {path}",
    ]


def diagnose(root: str, run: str) -> Iterator[Finding]:
    """What the host can do."""
    from podrun_hooks.userns import health

    return health.findings(root, run)


def collect(root: str, run: str, pods: Set[str], only_look: bool) -> list[str]:
    """Removes the leases of pods that are gone; returns what it was."""
    return [f"range of ids {slot}" for slot in userns.collect(run, keep=only_look)]
