"""Whether a pod's records are ready: its container says so first, its live probe whenever that changes.

The probe is in the pod's network namespace and has no room for any of this, so it starts this module as a program that
leaves the namespace, changes the records and exits.
"""

from __future__ import annotations

import os

from podrun.errors import Failure
from podrun_hooks.registry import wishes
from podrun_hooks.registry.wishes import Registration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds for a registry with a server; what it does not learn in that time, the follower tells it.
_PATIENCE = 1.5


def report(run: str, pod: str, *, ready: bool) -> None:
    """Changes the records of a pod, where they say otherwise; a registry that is away learns of it later."""
    for wish in wishes.of_pod(run, pod):
        if isinstance(wish, Registration) and wish.record.ready != ready:
            changed = wish._replace(record=wish.record._replace(ready=ready))
            wishes.write(run, changed)
            _tell(run, changed)


def _tell(run: str, wish: Registration) -> None:
    if not wish.source.has_server:
        from podrun_hooks import register

        register.publish(run, wish.source, wish.record)
        return
    from podrun_hooks.registry import connect
    from podrun_hooks.registry.http import Away, Refused

    client = connect(wish.source)
    client.limit(_PATIENCE)
    try:
        client.announce(wish.record, wish.ttl, wishes.Leases(run), seconds=_PATIENCE, only_new=not wish.deferred)
    except (Away, Refused):
        pass
    finally:
        client.close()


def command(run: str, pod: str) -> list[str]:
    """The command line of the program, without its last two words: "1" or "0", and the host's namespace."""
    from podrun_hooks.support.subprocesses import program

    return [*program("podrun_hooks.registry.readiness"), run, pod]


def main(words: Sequence[str]) -> None:
    """Changes the records: RUN POD READY NAMESPACE, the last a descriptor of the host's network namespace."""
    from podrun_hooks.support import syscalls

    run, pod, ready, namespace = words
    syscalls.setns(int(namespace), syscalls.CLONE_NEWNET)
    try:
        report(run, pod, ready=ready == "1")
    except (Failure, OSError) as error:
        os.write(2, f"podrun: {pod}: its records cannot be changed: {error}\n".encode(errors="replace"))
