"""Takes and releases published ports, and finds who else holds one."""

from __future__ import annotations

import _socket
import fcntl
import os

from podrun.errors import BUSY, STEP_FAILED, Failure
from podrun_hooks.network import bridge as bridges
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.child import Child
from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.network.netlink.nfnetlink import Element
from podrun_hooks.network.publish.spec import PROTOCOLS, element_of, key_of, line_of, noted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from podrun.hook import Pod
    from podrun_hooks.network.bridge import Bridge
    from podrun_hooks.network.ledger import Ledger
    from podrun_hooks.network.publish.spec import Publish

_EADDRINUSE = 98


def take(pod: Pod, bridge: Bridge, wanted: Sequence[Publish], addresses: Sequence[str], fd: int) -> None:
    """Publishes ``wanted`` for the pod with ``addresses``, all or none, after noting them in the ledger at ``fd``.

    Raises Failure (BUSY), naming the holder, if one of the ports is in use.
    """
    if any(publish.ip.startswith("127.") or publish.ip == "0.0.0.0" for publish in wanted):
        bridges.allow_localnet(bridge.name)
    elements = []
    for publish in wanted:
        refuse_held(pod, bridge.table, publish)
        target = target_of(publish, addresses)
        elements.append(element_of(publish, target, pod.tag))
        ledgers.note(fd, "publish", line_of(publish, target, pod.tag))
    try:
        nfnetlink.add(nfnetlink.socket(), bridge.table, elements)
    except FileExistsError:
        for publish in wanted:
            refuse_held(pod, bridge.table, publish)
        raise
    _forget_earlier(wanted)


def target_of(publish: Publish, addresses: Sequence[str]) -> str:
    """The one of a pod's addresses to which a port leads. Raises Failure if there is none of the port's family."""
    target = next((address for address in addresses if (":" in address) == (":" in publish.ip)), "")
    if not target:
        raise Failure(f"{publish} is published on IPv6, and the bridge has none", code=STEP_FAILED)
    return target


def _forget_earlier(wanted: Sequence[Publish]) -> None:
    """Deletes tracked flows to the ports from before: a UDP client that never pauses would not reach the pod."""
    datagrams = [publish for publish in wanted if publish.proto != "tcp"]
    if datagrams:
        from podrun_hooks.network.netlink import conntrack

        conntrack.forget_destinations(
            {(PROTOCOLS[publish.proto], ip, publish.host) for publish in datagrams for ip in _meant(publish)}
        )


def _meant(publish: Publish) -> list[str]:
    return _of_the_host(6 if ":" in publish.ip else 4) if publish.everywhere else [publish.ip]


def begin_release(table: str, ledger: Ledger, addresses: Sequence[str]) -> Child:
    """Starts a child that withdraws the ports of a ledger and makes connection tracking forget ``addresses``.

    It leaves ports alone that another pod holds. A child, because closing the socket at once would make this process,
    and others, wait (see nfnetlink.socket).
    """
    elements = list(noted(ledger))

    def delete() -> None:
        from podrun_hooks.network import forget

        if ledger.all("holds"):
            from podrun_hooks.network.publish import holds

            holds.release(table, holds.holds_of(ledger))

        socket = nfnetlink.socket()
        for element in elements:
            if nfnetlink.find(socket, table, element.map, element.key) == element:
                try:
                    nfnetlink.delete(socket, table, [element])
                except FileNotFoundError:  # the child of a down that was killed got there first
                    pass
        forget.forget(table, addresses)

    nfnetlink.close()
    return Child(delete, lingering=0.05)


def holder(pod: Pod, table: str, publish: Publish, *, reclaim: bool = False) -> str:
    """Who else holds the port: "pod web", "nginx (pid 17)", or "" for nobody.

    With ``reclaim``, it deletes elements of dead pods that it meets.
    """
    socket = nfnetlink.socket()
    for rival in _rivals(publish):
        found = nfnetlink.find(socket, table, rival.map, rival.key)
        if not found:
            continue
        name = _owner(pod.run, found)
        if reclaim and not name:
            name = _reclaim(pod.run, table, found)
        if name and name != pod.name:
            return f"pod {name}"
    return _listener(publish)


def _reclaim(run: str, table: str, dead: Element) -> str:
    """Deletes a dead pod's element; returns the pod that has taken its place meanwhile, or "".

    The kernel deletes by the key, whoever's element it is by then: one podrun at a time looks again and deletes.
    """
    lock = bridges.held(run, fcntl.LOCK_EX)
    try:
        found = nfnetlink.find(nfnetlink.socket(), table, dead.map, dead.key)
        name = _owner(run, found) if found else ""
        if found and not name:
            nfnetlink.delete(nfnetlink.socket(), table, [found])
    finally:
        os.close(lock)
    return name


def _owner(run: str, element: Element) -> str:
    """The living pod whose ledger notes an element; "" if its pod is dead."""
    living = (ledger for ledger in ledgers.everywhere(run) if ledgers.alive(run, ledger))
    return next((ledgers.pod_of(ledger) for ledger in living if element in noted(ledger)), "")


def refuse_held(pod: Pod, table: str, publish: Publish) -> None:
    """Raises Failure (BUSY) if somebody else holds the port. Deletes elements of dead pods."""
    found = holder(pod, table, publish, reclaim=True)
    if found:
        raise Failure(f"port {publish} is in use by {found}", code=BUSY)


def _rivals(publish: Publish) -> Iterator[Element]:
    """The elements that conflict with a port: on the same address, on all addresses, and, for a port on all addresses,
    on each address of the host."""
    for ip in {publish.ip, "::" if ":" in publish.ip else "0.0.0.0"}:
        yield Element(*key_of(publish._replace(ip=ip)), b"")
    if publish.everywhere:
        for ip in _meant(publish):
            yield Element(*key_of(publish._replace(ip=ip)), b"")


def _of_the_host(version: int) -> list[str]:
    """The host's addresses. The number of look-ups depends on them, and not on the elements in the map."""
    from podrun_hooks.network.netlink import rtnetlink

    with rtnetlink.Socket() as socket:
        plain = [cidr.partition("/")[0] for cidr in socket.addresses()]
    return [*(["127.0.0.1"] if version == 4 else []), *(ip for ip in plain if (":" in ip) == (version == 6))]


# --- the host's own processes --------------------------------------------------------------------------------------


def _listener(publish: Publish) -> str:
    """The host's process that listens on the port, or "". Binding the port shows in microseconds if there is one."""
    family = _socket.AF_INET6 if ":" in publish.ip else _socket.AF_INET
    kind = _socket.SOCK_DGRAM if publish.proto == "udp" else _socket.SOCK_STREAM
    try:
        socket = _socket.socket(family, kind | _socket.SOCK_CLOEXEC, PROTOCOLS[publish.proto])
    except OSError:  # a kernel without SCTP sockets has no listeners either
        return ""
    try:
        if family == _socket.AF_INET6:
            socket.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        if publish.proto == "tcp":
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        socket.bind((publish.ip, publish.host))
    except OSError as error:
        # An address that the host does not have (yet) has no listener either; nor has a port that is only the local
        # end of a connection.
        return _named(publish) if error.errno == _EADDRINUSE else ""
    finally:
        socket.close()
    return ""


def _named(publish: Publish) -> str:
    if publish.proto == "sctp":
        return "a process of the host"
    inodes = set()
    # TCP sockets listen in state 0A; UDP ones that are not connected are in 07 (include/net/tcp_states.h).
    state = "0A" if publish.proto == "tcp" else "07"
    for file in (publish.proto, f"{publish.proto}6"):
        try:
            with open(f"/proc/net/{file}", encoding="utf-8") as sockets:
                rows = [line.split() for line in sockets.read().splitlines()[1:]]
        except FileNotFoundError:
            continue
        inodes |= {row[9] for row in rows if row[3] == state and int(row[1].rpartition(":")[2], 16) == publish.host}
    for pid in filter(str.isdecimal, os.listdir("/proc")) if inodes else ():
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}")[8:-1] in inodes:
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
                        return f"{comm.read().strip()} (pid {pid})"
        except OSError:
            continue
    return "a process of the host" if inodes else ""
