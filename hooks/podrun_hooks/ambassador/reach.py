"""Brings changes of services to the pods of this host: into their maps, or to their HAProxy.

The process that does it enters the pods' network namespaces, all of them in one go: the follower itself, a forked child
of the launcher.
"""

from __future__ import annotations

import os
import time

from podrun_hooks.ambassador import flows, maps
from podrun_hooks.ambassador import targets as chosen
from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.network.netlink.nfnetlink import NETLINK_NETFILTER
from podrun_hooks.network.netlink.rtnetlink import Socket
from podrun_hooks.network.publish import spec
from podrun_hooks.registry import file, wishes
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from podrun_hooks.ambassador.maps import Lost
    from podrun_hooks.ambassador.targets import Target
    from podrun_hooks.registry.record import Record
    from podrun_hooks.registry.source import Source
    from podrun_hooks.registry.wishes import Ambassador


#: Seconds after which connections that began while a map was changed are looked for.
_AFTERWARDS = 0.02


def host(run: str, table: str, routes: Socket) -> chosen.Host:
    """What records must not lead to on this machine. ``table``: the nftables table with podrun's published ports."""
    kinds: dict[str, str] = {}
    registered = {
        (wish.record.addr, wish.record.port, wish.record.proto)
        for wish in wishes.each(run)
        if isinstance(wish, wishes.Registration)
    }

    def kind(addr: str) -> str:
        if addr not in kinds:
            kinds[addr] = routes.route_kind(addr)
        return kinds[addr]

    def publishes(addr: str, port: int, proto: str) -> bool:
        # A pod in the host's network publishes no port. Its wish, which only root writes, says that it is one.
        if (addr, port, proto) in registered:
            return True
        netfilter = nfnetlink.socket()
        return any(
            nfnetlink.find(netfilter, table, *spec.key_of(spec.Publish(ip, port, port, proto)))
            for ip in (addr, "::" if ":" in addr else "0.0.0.0")
        )

    return chosen.Host(kind, publishes)


def lead(
    run: str,
    wanted: Sequence[tuple[Ambassador, Sequence[Record]]],
    say: Callable[[str], None],
    alive: Callable[[], None] = lambda: None,
) -> list[tuple[Ambassador, Lost]]:
    """Gives ambassadors the backends that their services' records name; returns those that they no longer have.

    It passes over an ambassador that it cannot reach (its pod is going), and tells ``say``. It calls ``alive``
    for each.
    """
    if not wanted:
        return []
    lost: list[tuple[Ambassador, Lost]] = []
    by_pod: dict[tuple[str, str], list[tuple[Ambassador, Sequence[Target]]]] = {}
    for wish, targets in _chosen(run, wanted, say):
        alive()
        if wish.listing:
            _write(wish, targets, say)
        if wish.via == "nft":
            by_pod.setdefault((wish.netns, wish.place), []).append((wish, targets))
        else:
            _tell_haproxy(wish, targets, say)
    moved: list[tuple[Socket, Sequence[Lost]]] = []
    with _Entering() as entering:
        for (netns, table), services in by_pod.items():
            alive()
            try:
                socket = entering.netfilter(netns, services[0][0].inode)
                gone = maps.switch(socket, table, services)
                if gone:
                    flows.forget(socket, gone)
                    moved.append((socket, gone))
            except OSError as error:
                say(f"{services[0][0].pod}: its map cannot be changed: {error}")
                continue
            by_key = {maps.key_of(wish): wish for wish, _ in services}
            lost += [(by_key[_key(one)], one) for one in gone]
        if moved:
            # A first packet that was looking into the map at that moment has its entry by now.
            time.sleep(_AFTERWARDS)
        for socket, before in moved:
            flows.forget(socket, before)
    return lost


def _chosen(
    run: str, wanted: Sequence[tuple[Ambassador, Sequence[Record]]], say: Callable[[str], None]
) -> list[tuple[Ambassador, list[Target]]]:
    """Where each ambassador is to lead; ``say`` is told of records that lead where none may."""
    found = []
    with Socket() as routes:
        machines = {wish.published: host(run, wish.published, routes) for wish, _ in wanted}
        for wish, records in wanted:
            refused: list[str] = []
            found.append((wish, chosen.of(wish, records, machines[wish.published], refused)))
            for line in refused:
                say(f"{wish.pod}: {wish.step}: {line}")
    return found


def forget(lost: Sequence[tuple[Ambassador, Lost]]) -> None:
    """Looks once more for connections that began while a map was changed: a busy processor may have paused one."""
    with _Entering() as entering:
        for wish, one in lost:
            try:
                flows.forget(entering.netfilter(wish.netns, wish.inode), [one])
            except OSError:
                continue


def end(vanished: Sequence[tuple[Ambassador, Lost]]) -> int:
    """Ends the pods' connections to backends whose hosts have vanished; returns how many there were."""
    count = 0
    with _Entering() as entering:
        for wish, lost in vanished:
            try:
                count += flows.reset(entering.netfilter(wish.netns, wish.inode), [lost])
            except OSError:
                continue
    return count


def refresh(run: str, source: Source, service: str) -> None:
    """Brings a service of the file registry to this host's ambassadors. The caller holds the registry's lock.

    Every step that writes a record does it, so that the file registry needs no process.
    """
    followers = wishes.ambassadors(run, source, service)
    if not followers:
        return
    records = file.records(source.directory, service)
    from podrun_hooks.network.child import Child

    nfnetlink.close()
    Child(lambda: _lead_and_tell(run, [(wish, records) for wish in followers]), lingering=0.05).join()


def _lead_and_tell(run: str, wanted: Sequence[tuple[Ambassador, Sequence[Record]]]) -> str:
    lines: list[str] = []
    lead(run, wanted, lines.append)
    return "\n".join(lines)[:2000]


def _key(lost: Lost) -> bytes:
    return nfnetlink.concatenated(bytes([lost.proto]), lost.address, lost.port)


def _write(wish: Ambassador, targets: Sequence[Target], say: Callable[[str], None]) -> None:
    from podrun_hooks.ambassador import listing

    try:
        listing.write(wish.listing, targets)
    except OSError as error:
        say(f"{wish.pod}: {wish.step}: {wish.listing}: {error.strerror}")


def _tell_haproxy(wish: Ambassador, targets: Sequence[Target], say: Callable[[str], None]) -> None:
    from podrun_hooks.ambassador import haproxy

    try:
        haproxy.switch(wish, targets)
    except OSError as error:
        say(f"{wish.pod}: HAProxy cannot be told: {error.strerror or error}")


class _Entering:
    """Network namespaces, entered one after another; afterwards the process is in its own, and holds none of them.

    The sockets are closed at the end: closing one waits until the kernel has freed what nftables has deleted lately
    (see nfnetlink.socket), once for all of them then.
    """

    def __enter__(self) -> _Entering:
        self._own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._sockets: dict[str, Socket] = {}
        self._away = False
        return self

    def netfilter(self, path: str, inode: int) -> Socket:
        """A netfilter socket of the namespace at ``path``, in which the process is from now on. Raises OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_ino != inode:
                raise FileNotFoundError(2, "another namespace has taken its place", path)
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
            self._away = True
        finally:
            os.close(fd)
        if path not in self._sockets:
            self._sockets[path] = Socket(NETLINK_NETFILTER)
        return self._sockets[path]

    def __exit__(self, *_: object) -> None:
        if self._away:
            syscalls.setns(self._own, syscalls.CLONE_NEWNET)
        os.close(self._own)
        for socket in self._sockets.values():
            socket.close()
