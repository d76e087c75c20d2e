"""A pod's network namespace: a thread sets it up and pins it at /run/netns, as ``ip netns add`` does.

Only that thread enters the namespace, and it ends with its work; the launcher stays in the host's namespace.
"""

from __future__ import annotations

import fcntl
import os
import time
from _socket import AF_INET6, if_nametoindex, inet_ntop
from errno import EBUSY, EEXIST, EHOSTUNREACH, EINVAL, ENOENT

from podrun.errors import CANNOT_CREATE, UNAVAILABLE, WRONG_FILE, Failure, code_of
from podrun.record import NamedTuple
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.child import Child, failure_of
from podrun_hooks.network.netlink import rtnetlink
from podrun_hooks.support import syscalls
from podrun_hooks.support.aside import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from podrun_hooks.network.bridge import Bridge
    from podrun_hooks.network.ledger import Ledger

DIRECTORY = "/run/netns"
#: That of the thread, or of the process where there is one thread.
_OURS = "/proc/thread-self/ns/net"
_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)

# docker sets the first two, and its users rely on them: an unprivileged payload may listen on port 80, and ping. The
# redirect and accept_ra settings keep a pod from making itself another pod's router; accept_dad = 0 makes an address
# usable at once.
_SYSCTLS = (
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
)
# The bridge copies an announcement to every pod on it before the link is up: that takes some ms with 200 pods. So it is
# sent only if the MAC address does not follow from the IP address: neighbours may have cached another (Bridge.mac).
_ANNOUNCING = (("net/ipv4/conf/default/arp_notify", "1"), ("net/ipv6/conf/default/ndisc_notify", "1"))

# Of links that are there already, and of those to come.
_WITHOUT_IPV6 = (("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1"))

#: What a kernel without the filter of a pod's port means: without it pods could pretend to be each other.
NO_FILTER = "the kernel cannot filter what a pod sends (sch_ingress, cls_bpf)"
NO_FILTER_HINT = (
    "modprobe -a sch_ingress cls_bpf; or a kernel with NET_CLS_BPF; mode = 'none', 'host' and 'macvlan:' need neither"
)

#: Attempts to add routes, with 1, 2, 4 and 8 ms between them.
_ATTEMPTS = 5


class Wish(NamedTuple):
    """The pod file's settings for the pod's end of a connection; podrun chooses where a value is empty."""

    #: The link's name in the pod.
    interface: str = ""
    mac: bytes = b""
    mtu: int = 0
    #: False: the namespace gets no IPv6 addresses, not even on its loopback.
    ipv6: bool = True
    #: Pairs of destination (CIDR) and gateway ("" for a destination on the link).
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
            return self.of_bridge(self.n)
        return [self.bridge.addresses(self.n)[0], f"{self.address6}/{pool6.length}"]

    def of_bridge(self, n: int) -> list[str]:
        """Number ``n`` of the bridge's addresses (CIDR), as far as the pod has a use for them: 1 is the gateway."""
        return self.bridge.addresses(n)[: None if self.wish.ipv6 else 1]

    @property
    def announced(self) -> bool:
        """True if neighbours may have cached another MAC address for one of them (Bridge.mac)."""
        return bool(self.wish.mac or self.address6)


def path_of(tag: str) -> str:
    """The path at which a pod's namespace is pinned."""
    return f"{DIRECTORY}/{tag}"


def mark(tag: str, run: str) -> str:
    """The alias of the namespace's loopback link: it names the owner even when the run directory is gone."""
    return f"{tag} {run}"[:255]


def begin(tag: str, run: str, fd: int, plug: Plug | None, wish: Wish, made: str = "") -> Thread:
    """Starts a thread that creates a pod's namespace and, with a ``plug``, connects it to the bridge.

    ``made``: the path of a namespace that the pod's user namespace owns, to use instead of a new one.

    The thread notes everything in the ledger at ``fd`` first. Raises Failure (CANNOT_CREATE) if a foreign object is at
    the namespace's path; Thread.join raises other failures.
    """
    share()
    _clear(tag, run)
    outside = rtnetlink.Socket() if plug else None
    proc = _own_proc()

    def make() -> None:
        try:
            _make(tag, run, fd, plug, outside, wish, made, proc)
        except OSError as error:
            raise failure_of(error) from error
        finally:
            os.close(proc)
            if outside:
                outside.close()

    try:
        return Thread(make)
    except OSError:
        os.close(proc)
        if outside:
            outside.close()
        raise


def _make(
    tag: str, run: str, fd: int, plug: Plug | None, outside: rtnetlink.Socket | None, wish: Wish, made: str, proc: int
) -> None:
    """Puts the thread that calls it into a new namespace, or into that at ``made``, and sets that up.

    ``outside``: a socket of the host's namespace; ``proc``: see _own_proc.
    """
    if made:
        owned = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(owned, syscalls.CLONE_NEWNET)
        finally:
            os.close(owned)
    else:
        syscalls.unshare(syscalls.CLONE_NEWNET)
    announcing = _ANNOUNCING if plug and plug.announced else ()
    for name, value in (*_SYSCTLS, *announcing, *(() if wish.ipv6 else _WITHOUT_IPV6)):
        try:
            _write(name, value, proc)
        except FileNotFoundError:  # a kernel without IPv6
            pass
    inode = os.stat(_OURS).st_ino
    with rtnetlink.Socket() as inside:
        inside.send(rtnetlink.change("lo", up=True, alias=mark(tag, run)))
        ledgers.note(fd, "netns", str(inode))
        _pin(tag, _OURS)
        if plug and outside:
            name = port_of(tag, inode)
            index = plug_in(name, plug.wish.interface or "eth0", tag, plug, outside, inside)
            ledgers.note(fd, "link", f"{name} {index}")
        set_sysctls(wish.sysctls, proc)


def plug_in(
    name: str, interface: str, tag: str, plug: Plug, outside: rtnetlink.Socket, inside: rtnetlink.Socket
) -> int:
    """Creates a veth pair from within the pod's namespace: ``name`` is the bridge port, ``interface`` the pod's end.

    Returns the index of the port. The filter (classifier) is attached before the pod's end is up. The link joins the
    bridge last: otherwise the bridge would send the pod's first IPv6 packets (multicast listener reports) to all other
    pods while we wait. "Up" is a separate message: changing anything else of a link that is up without a carrier makes
    the kernel walk all IPv6 routes (NETDEV_CHANGE in addrconf_notify() of net/ipv6/addrconf.c), and each port has one.
    """
    from podrun_hooks.network.netlink import classifier  # here: `down` attaches none

    bridge, n, hairpin, wish = plug.bridge, plug.n, plug.hairpin, plug.wish
    mac = wish.mac or bridge.mac(n)
    own = [*plug.addresses, *([_link_local(mac)] if bridge.pool6 and wish.ipv6 else [])]
    program = _program(mac, own) if plug.filtered else classifier.no_loopback()
    joining = [rtnetlink.change(name, master=bridge.ifindex), *([rtnetlink.hairpin(name)] if hairpin else [])]
    index = _index_of(name)
    netns = os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        outside.send(
            rtnetlink.veth(name, interface, netns, mac, index),
            rtnetlink.change(name, alias=tag, mtu=wish.mtu, no_link_local=bridge.pool6 is not None),
            *classifier.attached(index, program),
            *(joining if plug.announced else []),
            rtnetlink.change(name, up=True),
        )
    except OSError as error:
        if classifier.is_missing(error):
            raise Failure(NO_FILTER, code=UNAVAILABLE, hint=NO_FILTER_HINT) from None
        raise
    finally:
        os.close(netns)
    address(interface, own, plug.of_bridge(1), wish, inside)
    if not plug.announced:
        outside.send(*joining)
    return index


def _index_of(name: str) -> int:
    """The index for a port, known in advance, so that a single system call can create, filter and set up the port.

    With two calls the kernel could notice in between that there is no carrier, and later report the carrier to the
    pod's end first (linkwatch_run_queue()): the pod's first packets would reach a link that is not a bridge port yet.
    The kernel's own indexes count up from 1 and never get as high as these.
    """
    return 1 << 30 | int(name[-7:], 16)


def _program(mac: bytes, addresses: Sequence[str]) -> bytes:
    raw = [rtnetlink.packed(cidr.partition("/")[0])[1] for cidr in addresses]
    from podrun_hooks.network.netlink import classifier

    return classifier.only_own(mac, raw[0], raw[1:])


def _link_local(mac: bytes) -> str:
    """The link-local address that the kernel derives from a MAC address (RFC 4291, appendix A), in CIDR notation."""
    identifier = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
    return f"{inet_ntop(AF_INET6, bytes([0xFE, 0x80, *bytes(6)]) + identifier)}/64"


def address(
    interface: str, addresses: Sequence[str], gateways: Sequence[str], wish: Wish, inside: rtnetlink.Socket
) -> None:
    """Sets the addresses and routes (both CIDR) of the pod's end. An existing default route stays."""
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
            # Since Linux 6.16 the kernel adds IPv6 routes without the lock that it takes to change a link: one addition
            # in thousands misses the route to its gateway, which another processor is changing (inet6_rtm_newroute()).
            if error.errno != EHOSTUNREACH or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.001 * 2**attempt)


def _own_proc() -> int:
    """A descriptor of a proc file system of our own, mounted nowhere; closing the last descriptor takes 0.1 ms.

    The sysctl directories of all namespaces have the same names, so looking them up in one proc file system becomes
    slower with every namespace (proc_sys_compare() in fs/proc/proc_sysctl.c): 0.3 ms with 200 pods, for all other
    programs of the host, too.
    """
    try:
        return syscalls.fsmount("proc", [])
    except OSError:  # before Linux 5.8 all mounts of proc share one file system, and some sandboxes forbid a new one
        return os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _write(path: str, value: str, proc: int | None) -> None:
    where = f"/proc/sys/{path}" if proc is None else f"sys/{path}"
    fd = os.open(where, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def set_sysctls(sysctls: Sequence[tuple[str, str]], proc: int | None = None) -> None:
    """Sets sysctls of the network namespace that the process is in. ``proc``: a proc file system other than /proc.

    Raises Failure (WRONG_FILE) naming the key.
    """
    for path, value in sysctls:
        try:
            _write(path, value, proc)
        except OSError as error:
            what = f"sysctl {path.replace('/', '.')} = {value!r}: {error.strerror}"
            raise Failure(what, code=code_of(error)) from None


def port_of(tag: str, inode: int) -> str:
    """The name of the host's end. It depends on the namespace's inode because the kernel deletes links with a delay:
    the next start of the pod must not collide with the old link.
    """
    from _blake2 import blake2b

    return f"pr{blake2b(f'{tag} {inode}'.encode(), digest_size=6).hexdigest()}"


# --- the place in /run/netns ---------------------------------------------------------------------------------------


def share() -> None:
    """Makes /run/netns a shared mount, as iproute2 does, so that other mount namespaces see later pins."""
    try:
        # Not recursively (MS_REC): that would take longer with every pod pinned there.
        syscalls.mount(None, DIRECTORY, "none", syscalls.MS_SHARED)
        return
    except FileNotFoundError:
        os.makedirs(DIRECTORY, mode=0o755, exist_ok=True)
    except OSError as error:
        if error.errno != EINVAL:  # EINVAL: not a mount point yet
            raise
    lock = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The lock that iproute2 takes, too: two processes at once would stack two mounts.
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
    """Pins the namespace at ``source`` at the pod's path, which keeps it alive."""
    path = path_of(tag)
    # Mode 0 and empty, as ``ip netns add`` leaves it before the mount: see _is_unfinished.
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    syscalls.mount(source, path, "none", syscalls.MS_BIND)


def unpin(tag: str, ledger: Ledger) -> None:
    """Unpins the ledger's namespace; the kernel deletes its links within a second. Leaves a foreign object alone."""
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
    """Closes the pod's bridge port at once: until the kernel has deleted the link, the old namespace would answer for
    an address that may already be the next pod's.
    """
    name, _, index = ledger.last("link").partition(" ")
    try:
        if name and if_nametoindex(name) == int(index):
            with rtnetlink.Socket() as socket:
                socket.send(rtnetlink.silence(int(index)))
    except OSError:  # the link is gone, or has left the bridge
        pass


def remove(path: str, inodes: Collection[str]) -> bool:
    """Unpins the namespace at ``path`` if it is one of ``inodes``; it ends with the last process in it.

    Returns True if it was there. Other processes may use the path at the same time, so it unmounts exactly this mount
    by its descriptor, and not one that the next start may have pinned there since.
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
        if error.errno != EINVAL:  # EINVAL: not mounted any more, another process was faster
            raise
    finally:
        os.close(fd)
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno not in (ENOENT, EBUSY):  # EBUSY: the next start has pinned its namespace there already
            raise
    return True


def _is_unfinished(found: os.stat_result) -> bool:
    """True for the file that a kill between its creation and the mount leaves behind."""
    return found.st_mode == 0o100000 and found.st_size == 0 and found.st_uid == 0


def _clear(tag: str, run: str) -> None:
    """Removes a dead namespace of this pod from its path. Raises Failure (CANNOT_CREATE) for a foreign object."""
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
    """Opens the network namespace at ``path``. Follows symlinks; does not block on a FIFO.

    Raises Failure (WRONG_FILE) for anything else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=code_of(error)) from None
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != syscalls.CLONE_NEWNET:
        os.close(fd)
        raise Failure(f"{path} is not a network namespace", code=WRONG_FILE)
    return fd


def join(tag: str, run: str, fd: int, netns: int) -> list[str]:
    """Pins the namespace at descriptor ``netns`` at the pod's path, too; returns its addresses (CIDR).

    From then on the path by which it was opened does not matter. Raises Failure.
    """
    share()
    _clear(tag, run)
    ledgers.note(fd, "netns", str(os.fstat(netns).st_ino))
    _pin(tag, f"/proc/self/fd/{netns}")
    return addresses_in(netns)


def addresses_in(netns: int) -> list[str]:
    """The addresses in the namespace at descriptor ``netns``, in CIDR notation, IPv4 first."""

    def ask() -> str:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        with rtnetlink.Socket() as socket:
            return " ".join(socket.addresses())

    return Child(ask).join().split()


def is_netns(path: str) -> bool:
    """True if a network namespace is mounted at ``path``. Does not block on a FIFO or follow a symlink."""
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
    """The alias of the loopback link in the namespace at ``path``; "" if it has none."""

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
