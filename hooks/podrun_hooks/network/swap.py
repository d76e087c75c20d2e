"""The network in a hot swap: names and ports move to the new generation, and the old one's connections end.

The order keeps requests from being lost. One transaction replaces the elements of the maps. Clients without an answer
from the old generation are then sent to the new one. The old payload accepts the connections that its kernel has
completed, and only then is it asked to end.
"""

from __future__ import annotations

import os
import time

from podrun.errors import Failure
from podrun_hooks.network import bridge as bridges
from podrun_hooks.network import files, lease, names, namespace
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.child import Child
from podrun_hooks.network.netlink import conntrack, sockets
from podrun_hooks.network.options import named
from podrun_hooks.network.publish import handover, spec
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from podrun.hook import Facts, Step

_MIGRATE = "/proc/sys/net/ipv4/tcp_migrate_req"
#: The longest that was seen under load was 0.1 s; a payload that does not accept any more is not waited for.
_ACCEPTING = 5.0
#: Data that a payload has written before its end: a peer that does not acknowledge it is not waited for either.
_SENDING = 2.0
_POLL = 0.01


def exclusive(step: Step) -> str:
    """Why two generations of a pod cannot have the step at once; "" if they can."""
    options = step.options
    mode = options.mode.partition(":")[0]
    if mode == "host":
        return _exclusive_in_the_hosts(step)
    if mode not in ("bridge", "none"):
        return f"mode {mode}: podrun moves what is on its own bridge only"
    if ledgers.is_up_without(step.pod.run, step.pod.name):
        return f"mode {mode}: what runs now is in the host's network"
    fixed = next((key for key in ("address", "address6", "mac") if getattr(options, key)), "")
    if fixed:
        return f"a fixed {fixed}"
    joined = _joined(step)
    return f"pod {joined} has joined its network" if joined else ""


def _exclusive_in_the_hosts(step: Step) -> str:
    """With SO_REUSEPORT both generations may listen at once; the kernel spreads new connections over them.

    What the old one has not accepted when it stops listening is reset, unless the kernel gives it to the other one:
    net.ipv4.tcp_migrate_req, of Linux 5.14 (Documentation/networking/ip-sysctl.rst).
    """
    if not step.options.reuse_port:
        return "mode host: both would listen on the same ports (reuse_port = true if they can, with SO_REUSEPORT)"
    if ledgers.of(step.pod.run, step.pod.name):
        return "mode host: what runs now is in a network of its own"
    try:
        with open(_MIGRATE, encoding="ascii") as file:
            migrates = file.read().strip() == "1"
    except FileNotFoundError:
        migrates = False
    what = "net.ipv4.tcp_migrate_req is not 1 on this host: connections that were not accepted yet would be reset"
    return "" if migrates else f"mode host: {what}"


def _joined(step: Step) -> str:
    """A living pod in the pod's namespace, or ""."""
    own = {inode for ledger in ledgers.of(step.pod.run, step.pod.name) for inode in ledger.all("netns")}
    for ledger in ledgers.everywhere(step.pod.run):
        name = ledgers.pod_of(ledger)
        if name != step.pod.name and own.intersection(ledger.all("netns")) and ledgers.alive(step.pod.run, ledger):
            return name
    return ""


def take_over(step: Step, own: Facts, before: Step) -> None:
    """Adds the new names first (for a moment they lead to both generations, which both serve), then moves the ports,
    then removes the old names.

    It repeats nothing that has been done: the same call continues, or reverts, a swap that was killed.
    """
    if step.options.mode == "host":
        return  # nothing leads to it but its own sockets
    new = _side(step)
    try:
        old = _side(before)
    except BaseException:
        os.close(new.fd)
        raise
    ledger = new.ledger
    try:
        # Both ledgers now say that the ports are not theirs, so a process that restores or checks ports skips these.
        ledgers.note(old.fd, "holds", "no")
        for name in ledger.all("bridge"):
            directory = bridges.directory(step.pod.run, name)
            plain = [cidr.partition("/")[0] for cidr in own["addresses"]]
            _name(step, own, directory, named(name, plain), new.fd)
            if step.options.publish or old.ledger.all("publish"):
                on = bridges.ensure(step.pod.run, bridges.table(step.pod), name)
                handover.move(step.pod, on, spec.each(step.options.publish), plain, new, old)
            names.remove(directory, names.mark(before), int(old.ledger.last("name") or -1))
            conntrack.forget_all_but_open(lease.held(directory, bridges.pools_of(step.pod.run, name), old.ledger))
        ledgers.note(new.fd, "holds", "yes")
    finally:
        os.close(new.fd)
        os.close(old.fd)


def _side(step: Step) -> handover.Side:
    path = ledgers.path_of(step)
    return handover.Side(ledgers.read(path), ledgers.further(path))


def _name(step: Step, own: Facts, directory: str, addresses: Sequence[str], fd: int) -> None:
    mark = names.mark(step)
    if any(name.mark == mark and name.addresses for name in names.known(directory)):
        return
    names.remove(directory, mark)  # half of one
    where = names.add(directory, addresses, files.names(step, own.get("hostname", "")), mark)
    ledgers.note(fd, "name", str(where))


def settle(step: Step, seconds: float) -> None:
    """Waits until the payload has accepted all completed connections, then up to ``seconds`` until they end."""
    ledger = ledgers.read(ledgers.path_of(step))
    if not ledger.all("netns"):
        return
    step.status("waiting until what was sent to the replaced generation has been accepted")
    _watch(step, lambda: not _unaccepted(), _ACCEPTING)
    if seconds:
        step.status(f"draining for up to {seconds:g} s")
        _watch(step, lambda: not _connections(), seconds)
    # The payload is asked to end next: a connection that it has reset meanwhile leads no new one to it.
    for name in ledger.all("bridge"):
        directory, pools = bridges.directory(step.pod.run, name), bridges.pools_of(step.pod.run, name)
        conntrack.forget_all_but_open(lease.held(directory, pools, ledger))


def await_sent(step: Step) -> None:
    """Waits until peers have received what the payload wrote before it ended; it is lost with the namespace."""
    states = (sockets.FIN_WAIT1, sockets.CLOSING, sockets.LAST_ACK)
    _watch(step, lambda: not sockets.tcp(states), _SENDING)


def _unaccepted() -> bool:
    found = sockets.tcp((sockets.LISTEN, sockets.SYN_RECV))
    return any(socket.state != sockets.LISTEN or socket.waiting for socket in found)


def _connections() -> bool:
    """True while the payload has clients; its own outgoing connections do not count."""
    found = sockets.tcp((sockets.LISTEN, sockets.ESTABLISHED, sockets.CLOSE_WAIT))
    served = {socket.port for socket in found if socket.state == sockets.LISTEN}
    return any(socket.state != sockets.LISTEN and socket.port in served for socket in found)


def _watch(step: Step, is_over: Callable[[], bool], seconds: float) -> None:
    """Polls ``is_over`` in the pod's namespace, for at most ``seconds``."""
    try:
        netns = namespace.opened(namespace.path_of(step.pod.tag))
    except Failure:
        return  # it is gone, or podrun was killed between umount(2) and unlink(2)

    def work() -> None:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        deadline = time.monotonic() + seconds
        while not is_over() and time.monotonic() < deadline:
            time.sleep(_POLL)

    try:
        Child(work).join()
    finally:
        os.close(netns)
