"""A pod's network namespace: pinned at /run/netns as ``ip netns add`` does it, set up by one forked child.

The child alone enters the namespace, and dies with podrun; the launcher stays in the host's.
"""

from __future__ import annotations

import fcntl
import os
import time
from _socket import AF_INET6, if_nametoindex, inet_ntop
from errno import EBUSY, EEXIST, EHOSTUNREACH, EINVAL, ENOENT

from podrun.errors import CANNOT_CREATE, WRONG_FILE, Failure
from podrun.record import NamedTuple
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.child import Child
from podrun_hooks.network.netlink import rtnetlink
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from podrun_hooks.network.bridge import Bridge
    from podrun_hooks.network.ledger import Ledger

DIRECTORY = "/run/netns"
_OURS = "/proc/self/ns/net"
_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)

# Docker's users rely on the first two: a payload that is not root may listen on port 80 and ping. The others: no pod
# becomes another one's router or tells it of one, and an address is usable at once.
_SYSCTLS = (
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
)
# An announcement makes the bridge send a copy to every pod on it, before the link is up: some ms with 200 pods. It is
# needed only where the hardware address does not follow from the address: neighbours may know another (Bridge.mac).
_ANNOUNCING = (("net/ipv4/conf/default/arp_notify", "1"), ("net/ipv6/conf/default/ndisc_notify", "1"))


#: How often routes are tried, with 1, 2, 4 and 8 ms between.
_ATTEMPTS = 5


class Wish(NamedTuple):
    """What the pod file asks of the pod's end of a connection; empty values: podrun chooses."""

    #: The link's name in the pod.
    interface: str = ""
    mac: bytes = b""
    mtu: int = 0
    #: Pairs of destination (CIDR) and gateway ("": straight to the link).
    routes: Sequence[tuple[str, str]] = ()
    #: Pairs of path below /proc/sys and value.
    sysctls: Sequence[tuple[str, str]] = ()


class Plug(NamedTuple):
    """A pod's place on a bridge: the bridge, and the number of the pod's addresses on it."""

    bridge: Bridge
    n: int
    #: The pod may call its own published ports.
    hairpin: bool = False
    wish: Wish = Wish()
    #: An IPv6 address that does not follow from ``n``, or "".
    address6: str = ""
    #: The pod may send from its own addresses only.
    filtered: bool = True

    @property
    def addresses(self) -> list[str]:
        """The pod's addresses in CIDR notation, IPv4 first."""
        pool6 = self.bridge.pool6
        if not self.address6 or not pool6:
            return self.bridge.addresses(self.n)
        return [self.bridge.addresses(self.n)[0], f"{self.address6}/{pool6.length}"]

    @property
    def announced(self) -> bool:
        """True when neighbours may know another hardware address for one of them (Bridge.mac)."""
        return bool(self.wish.mac or self.address6)


def path_of(tag: str) -> str:
    """Where a pod's namespace is pinned."""
    return f"{DIRECTORY}/{tag}"


def mark(tag: str, run: str) -> str:
    """The alias of the namespace's loopback link: tells whose it is when the run directory is gone."""
    return f"{tag} {run}"[:255]


def begin(tag: str, run: str, fd: int, plug: Plug | None, wish: Wish, made: str = "") -> Child:
    """Starts making the namespace of a pod, with its end of the bridge when it has a ``plug``.

    ``made``: where one is that a user namespace of the pod's owns; it is taken instead of a new one.

    The ledger open at ``fd`` is told of everything first. Raises Failure (CANNOT_CREATE) for a foreign object at the
    namespace's place; Child.join raises the rest.
    """
    share()
    _clear(tag, run)
    socket = rtnetlink.Socket() if plug else None
    proc = _own_proc()

    def make() -> None:
        if made:
            syscalls.setns(os.open(made, os.O_RDONLY | os.O_CLOEXEC), syscalls.CLONE_NEWNET)
        else:
            syscalls.unshare(syscalls.CLONE_NEWNET)
        for name, value in (*_SYSCTLS, *(_ANNOUNCING if plug and plug.announced else ())):
            try:
                _write(name, value, proc)
            except FileNotFoundError:  # a kernel without IPv6
                pass
        inode = os.stat(_OURS).st_ino
        with rtnetlink.Socket() as inside:
            inside.send(rtnetlink.change("lo", up=True, alias=mark(tag, run)))
            ledgers.note(fd, "netns", str(inode))
            _pin(tag, _OURS)
            if plug and socket:
                name = port_of(tag, inode)
                index = plug_in(name, plug.wish.interface or "eth0", tag, plug, socket, inside)
                ledgers.note(fd, "link", f"{name} {index}")
            set_sysctls(wish.sysctls, proc)
        os.close(proc)

    try:
        return Child(make, held=(proc,))
    finally:
        if socket:
            socket.close()


def plug_in(
    name: str, interface: str, tag: str, plug: Plug, outside: rtnetlink.Socket, inside: rtnetlink.Socket
) -> int:
    """Makes a veth pair, in the pod's namespace: ``name`` a port of the bridge, ``interface`` the pod's end.

    Returns the index of the port. It is filtered before the pod's end is up (classifier). It becomes one last: what the
    pod's IPv6 says at first (multicast listener reports) would go to every other pod while we wait. "Up" is a message
    of its own: changing anything else of a link that is up without a carrier makes the kernel walk all IPv6 routes
    (NETDEV_CHANGE in addrconf_notify() of net/ipv6/addrconf.c), and each port has one.
    """
    from podrun_hooks.network.netlink import classifier  # here: `down` attaches none

    bridge, n, hairpin, wish = plug.bridge, plug.n, plug.hairpin, plug.wish
    netns = os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
    mac = wish.mac or bridge.mac(n)
    own = [*plug.addresses, *([_link_local(mac)] if bridge.pool6 else [])]
    program = _program(mac, own) if plug.filtered else classifier.no_loopback()
    joining = [rtnetlink.change(name, master=bridge.ifindex), *([rtnetlink.hairpin(name)] if hairpin else [])]
    index = _index_of(name)
    outside.send(
        rtnetlink.veth(name, interface, netns, mac, index),
        rtnetlink.change(name, alias=tag, mtu=wish.mtu, no_link_local=bridge.pool6 is not None),
        *classifier.attached(index, program),
        *(joining if plug.announced else []),
        rtnetlink.change(name, up=True),
    )
    os.close(netns)
    address(interface, own, bridge.addresses(1), wish, inside)
    if not plug.announced:
        outside.send(*joining)
    return index


def _index_of(name: str) -> int:
    """An index for a port: one that is known beforehand, so that it is made, filtered and set up by one system call.

    Between two of them the kernel could notice that there is no carrier yet, and tell the pod's end of it first when
    there is (linkwatch_run_queue()): what the pod says at once would come to a port that is not one yet. The kernel
    counts up from 1 and never gets to these.
    """
    return 1 << 30 | int(name[-7:], 16)


def _program(mac: bytes, addresses: Sequence[str]) -> bytes:
    raw = [rtnetlink.packed(cidr.partition("/")[0])[1] for cidr in addresses]
    from podrun_hooks.network.netlink import classifier

    return classifier.only_own(mac, raw[0], raw[1:])


def _link_local(mac: bytes) -> str:
    """The address that the kernel would make of it (RFC 4291, appendix A), in CIDR notation."""
    identifier = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
    return f"{inet_ntop(AF_INET6, bytes([0xFE, 0x80, *bytes(6)]) + identifier)}/64"


def address(
    interface: str, addresses: Sequence[str], gateways: Sequence[str], wish: Wish, inside: rtnetlink.Socket
) -> None:
    """Gives the pod's end its addresses and routes (CIDR both). Where there is a default route already, it stays."""
    index = if_nametoindex(interface)
    inside.send(
        *(rtnetlink.address(index, cidr) for cidr in addresses), rtnetlink.change(interface, up=True, mtu=wish.mtu)
    )
    routes = [("", cidr.partition("/")[0]) for cidr in gateways] + [*wish.routes]
    for attempt in range(_ATTEMPTS):
        try:
            inside.send(
                *(
                    rtnetlink.route(index, to, via, tolerated=() if to and not attempt else (EEXIST,))
                    for to, via in routes
                )
            )
            return
        except OSError as error:
            # Since Linux 6.16 IPv6 routes are added without the lock that a link's change takes: one in thousands does
            # not see the route to its gateway, which another processor is changing (inet6_rtm_newroute()).
            if error.errno != EHOSTUNREACH or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.001 * 2**attempt)


def _own_proc() -> int:
    """A descriptor of a proc file system of our own, which is nowhere mounted; closing the last one takes 0.1 ms.

    The directories of every namespace's sysctls have the same names, so that a file system that is asked for them in
    many namespaces finds each of them slower (proc_sys_compare() in fs/proc/proc_sysctl.c): 0.3 ms with 200 pods, also
    for what the host's other programs look up.
    """
    try:
        return syscalls.fsmount("proc", [])
    except OSError:  # before Linux 5.8 all mounts of proc are one file system, and some sandboxes allow no other
        return os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _write(path: str, value: str, proc: int | None) -> None:
    where = f"/proc/sys/{path}" if proc is None else f"sys/{path}"
    fd = os.open(where, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def set_sysctls(sysctls: Sequence[tuple[str, str]], proc: int | None = None) -> None:
    """Sets what belongs to the network namespace that the process is in. ``proc``: another proc than that at /proc.

    Raises Failure (WRONG_FILE) naming the key.
    """
    for path, value in sysctls:
        try:
            _write(path, value, proc)
        except OSError as error:
            raise Failure(f"sysctl {path.replace('/', '.')} = {value!r}: {error.strerror}", code=WRONG_FILE) from None


def port_of(tag: str, inode: int) -> str:
    """The name of the host's end. The namespace's inode is in it because the kernel takes its time to delete a link:
    the next start of the same pod does not meet the one before.
    """
    from _blake2 import blake2b

    return f"pr{blake2b(f'{tag} {inode}'.encode(), digest_size=6).hexdigest()}"


# --- the place in /run/netns ---------------------------------------------------------------------------------------


def share() -> None:
    """Makes /run/netns a shared mount, as iproute2 does, so that other mount namespaces see what is pinned later."""
    try:
        # Of the directory alone, not of all that is pinned in it: the time would grow with the pods.
        syscalls.mount(None, DIRECTORY, "none", syscalls.MS_SHARED)
        return
    except FileNotFoundError:
        os.makedirs(DIRECTORY, mode=0o755, exist_ok=True)
    except OSError as error:
        if error.errno != EINVAL:  # EINVAL: not a mount point yet
            raise
    lock = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The same lock as iproute2's: two at once would stack two mounts.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            syscalls.mount(None, DIRECTORY, "none", syscalls.MS_SHARED)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            syscalls.mount(DIRECTORY, DIRECTORY, "none", syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.mount(None, DIRECTORY, "none", syscalls.MS_SHARED)
    finally:
        os.close(lock)


def _pin(tag: str, source: str) -> None:
    """Keeps the namespace that ``source`` leads to alive at its place."""
    path = path_of(tag)
    # Mode 0 and empty, as ``ip netns add`` leaves it before the mount: see _is_unfinished.
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    syscalls.mount(source, path, "none", syscalls.MS_BIND)


def unpin(tag: str, ledger: Ledger) -> None:
    """Lets the ledger's namespace go; the kernel deletes its links within a second. A foreign object stays."""
    path = path_of(tag)
    inodes = ledger.all("netns")
    if not inodes or remove(path, inodes):
        return
    try:
        if _is_unfinished(os.lstat(path)):
            os.unlink(path)
    except FileNotFoundError:
        return


def silence(ledger: Ledger) -> None:
    """Closes the pod's port of the bridge at once: while the kernel takes its time to delete the link, the old
    namespace would answer for an address that may be the next pod's.
    """
    name, _, index = ledger.last("link").partition(" ")
    try:
        if name and if_nametoindex(name) == int(index):
            with rtnetlink.Socket() as socket:
                socket.send(rtnetlink.silence(int(index)))
    except OSError:  # the link is gone, or no port of a bridge any more
        pass


def remove(path: str, inodes: Collection[str]) -> bool:
    """Takes a namespace, if it is one of ``inodes``, from its place; it ends with the last process in it.

    True when it was there. Others may be at work on the same place: that very mount is taken away by its descriptor,
    not what the next start has pinned there since.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        found = os.fstat(fd)
        if found.st_dev != os.stat(_OURS).st_dev or str(found.st_ino) not in inodes:
            return False
        syscalls.umount(f"/proc/self/fd/{fd}", syscalls.MNT_DETACH)
    except OSError as error:
        if error.errno != EINVAL:  # EINVAL: not mounted any more, somebody else was quicker
            raise
    finally:
        os.close(fd)
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno not in (ENOENT, EBUSY):  # EBUSY: it is the next one's already
            raise
    return True


def _is_unfinished(found: os.stat_result) -> bool:
    """What a kill between creating the file and the mount leaves behind."""
    return found.st_mode == 0o100000 and found.st_size == 0 and found.st_uid == 0


def _clear(tag: str, run: str) -> None:
    """Makes room: removes a dead namespace of this pod. Raises Failure (CANNOT_CREATE) when it is somebody else's."""
    path = path_of(tag)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if _is_unfinished(found):
        os.unlink(path)
    elif is_netns(path) and loopback_alias(path) == mark(tag, run):
        remove(path, {str(found.st_ino)})
    else:
        raise Failure(f"{path} is not podrun's", code=CANNOT_CREATE, hint="remove it, or give the pod another name")


def opened(path: str) -> int:
    """A descriptor of the network namespace at ``path``; a FIFO does not block it, links are followed.

    Raises Failure (WRONG_FILE) for what is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=WRONG_FILE) from None
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != syscalls.CLONE_NEWNET:
        os.close(fd)
        raise Failure(f"{path} is not a network namespace", code=WRONG_FILE)
    return fd


def join(tag: str, run: str, fd: int, netns: int) -> list[str]:
    """Pins the namespace of descriptor ``netns`` at the pod's place, too; returns its addresses (CIDR).

    From then on it does not matter what becomes of the path that it was opened by. Raises Failure.
    """
    share()
    _clear(tag, run)
    ledgers.note(fd, "netns", str(os.fstat(netns).st_ino))
    _pin(tag, f"/proc/self/fd/{netns}")
    return addresses_in(netns)


def addresses_in(netns: int) -> list[str]:
    """The addresses in the namespace of descriptor ``netns``, in CIDR notation, IPv4 first."""

    def ask() -> str:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        with rtnetlink.Socket() as socket:
            return " ".join(socket.addresses())

    return Child(ask).join().split()


def is_netns(path: str) -> bool:
    """True when a network namespace is mounted at ``path``; does not block on a FIFO or follow a symlink."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == syscalls.CLONE_NEWNET
    except OSError:
        return False
    finally:
        os.close(fd)


def loopback_alias(path: str) -> str:
    """The alias of the loopback link in the namespace at ``path``, "" without one."""

    def ask() -> str:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
        except OSError:  # it has gone in the meantime
            return ""
        with rtnetlink.Socket() as socket:
            found = socket.link("lo")
        return found.alias if found else ""

    return Child(ask).join()
