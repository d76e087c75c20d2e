"""The bridge that the pods of a run directory share: created once, checked at every start, kept when pods go.

Its state is in <run>/network/<bridge>/base; the pods' leases are beside that.
"""

from __future__ import annotations

import fcntl
import os
from _socket import if_nametoindex

from podrun.errors import CANNOT_CREATE, WRONG_FILE, Failure
from podrun.record import NamedTuple
from podrun_hooks.network import ledger
from podrun_hooks.network.lease import Subnet, subnet
from podrun_hooks.network.netlink import nfnetlink, rtnetlink
from podrun_hooks.network.publish.ruleset import NEWEST_CHAIN, Manner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun.hook import Pod

_EEXIST = 17
_RTF_ADDRCONF = 0x00040000  # <linux/ipv6_route.h>
_IPV4 = "/proc/sys/net/ipv4"
_IPV6 = "/proc/sys/net/ipv6"

# A bridge gets a /20 of 10.160.0.0/11. That range avoids podman's 10.88.0.0/16 and 10.89.0.0/16, docker's
# 172.16.0.0/12, CRI-O's 10.85.0.0/16, flannel's 10.244.0.0/16 and OpenShift's 10.128.0.0/14: if two bridges have
# the same network, the pods of one are unreachable. A /20 has four times as many addresses as a bridge can have ports
# (BR_MAX_PORTS, 1023).
_RANGE = Subnet(10 << 24 | 160 << 16, 11)
_LENGTH = 20


class Bridge(NamedTuple):
    """A bridge to which pods can be connected."""

    name: str
    #: <run>/network/<name>: the bridge's state and leases.
    directory: str
    ifindex: int
    pool: Subnet
    #: None on a host without IPv6.
    pool6: Subnet | None
    #: podrun's nftables table of this run directory.
    table: str
    manner: Manner = Manner()

    @property
    def pools(self) -> list[Subnet]:
        """Its subnets, IPv4 first."""
        return [pool for pool in (self.pool, self.pool6) if pool]

    def addresses(self, n: int) -> list[str]:
        """The addresses of pod ``n`` of the bridge in CIDR notation, IPv4 first; 1 is the bridge itself."""
        return [f"{pool.host(n)}/{pool.length}" for pool in self.pools]

    def mac(self, n: int) -> bytes:
        """The MAC address of pod ``n``: it follows from the IP address, so neighbours' caches stay valid when a lease
        changes hands."""
        return b"\x02P" + (self.pool.base + n).to_bytes(4, "big")


def prefix(pod: Pod) -> str:
    """The prefix of the names of all kernel objects of the pod's run directory: "podrun-" or "podrun-3fa2-"."""
    return pod.tag[: len(pod.tag) - len(pod.name + pod.suffix)] or "podrun-"


def default_name(pod: Pod) -> str:
    """The bridge of a pod whose options name none."""
    run = prefix(pod)
    return "podrun0" if run == "podrun-" else run[:-1]


def table(pod: Pod) -> str:
    """The nftables table of the pod's run directory."""
    return prefix(pod)[:-1]


def directory(run: str, name: str) -> str:
    """The directory of a bridge's state and leases."""
    return f"{run}/network/{name}"


def held(run: str, kind: int = fcntl.LOCK_SH) -> int:
    """A descriptor that keeps the bridges of a run directory from being removed while it is open (flock(2)).

    A start holds it while it looks up its bridge and has not noted it in its ledger yet. ``kind``: LOCK_EX to remove
    bridges; with LOCK_NB it raises BlockingIOError while a start holds the lock.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        fd = os.open(f"{run}/network", flags)
    except FileNotFoundError:
        os.makedirs(f"{run}/network", exist_ok=True)
        fd = os.open(f"{run}/network", flags)
    try:
        fcntl.flock(fd, kind)
    except BaseException:
        os.close(fd)
        raise
    return fd


def ensure(
    run: str,
    table: str,
    name: str,
    wanted: str = "",
    wanted6: str = "",
    *,
    manner: Manner | None = None,
    anyway: bool = False,
) -> Bridge:
    """The bridge ``name``, which it creates or repairs if needed.

    ``wanted`` and ``wanted6`` are subnets; "" accepts the bridge's own. ``manner``: None keeps the present one.
    ``anyway`` repairs a bridge that looks intact, too.

    Raises Failure: CANNOT_CREATE if another program owns a link of that name or the subnet is routed elsewhere,
    WRONG_FILE for a subnet other than the bridge's.
    """
    bridge = read(run, name)
    if bridge:
        _refuse_another(bridge, wanted, wanted6)
        manner = bridge.manner if manner is None else manner
        whole = bridge.ifindex and _index(name) == bridge.ifindex and has_rules(bridge.table)
        if whole and manner == bridge.manner and not anyway:
            return bridge
    return _made(run, table, name, wanted, wanted6, manner or Manner())


def read(run: str, name: str) -> Bridge | None:
    """The recorded state of a bridge, or None; its ifindex is 0 if the record is from an earlier boot."""
    where = directory(run, name)
    try:
        with open(f"{where}/base", encoding="utf-8") as file:
            boot, index, pool, pool6, rules, settings = file.read().split("\n")[:6]
    except FileNotFoundError:
        return None
    except ValueError:
        raise Failure(f"{where}/base is damaged", code=CANNOT_CREATE, hint="remove it") from None
    index_now = int(index) if boot == ledger.boot_id() else 0
    words = settings.split()
    reach = tuple(word[6:] for word in words if word.startswith("reach="))
    manner = Manner("routed" in words, "any_source" in words, reach, "internal" in words)
    return Bridge(name, where, index_now, subnet(pool), subnet(pool6) if pool6 else None, rules, manner)


def pools_of(run: str, name: str) -> list[Subnet]:
    """The subnets of a bridge; [] if its record is missing or damaged, which must not stop an undo."""
    try:
        bridge = read(run, name)
    except Failure:
        return []
    return bridge.pools if bridge else []


def known_in(run: str) -> list[Bridge]:
    """The recorded bridges of a run directory, whether their links exist or not."""
    try:
        found = [read(run, name) for name in sorted(os.listdir(f"{run}/network")) if name[0] != "."]
    except FileNotFoundError:
        return []
    return [bridge for bridge in found if bridge]


def owner(run: str) -> str:
    """The alias that marks a bridge as this run directory's."""
    return f"podrun {run}"[:255]


def _refuse_another(bridge: Bridge, wanted: str, wanted6: str) -> None:
    for word, pool in ((wanted, bridge.pool), (wanted6, bridge.pool6)):
        if word and pool and word != str(pool) and subnet(word) != pool:
            raise Failure(f"bridge {bridge.name} has {pool}, not {word}", code=WRONG_FILE, hint="name another bridge")


def _index(name: str) -> int:
    try:
        return if_nametoindex(name)
    except OSError:
        return 0


def has_table(name: str) -> bool:
    """True if podrun's table of that name exists; ``nft flush ruleset`` of another program removes it."""
    return nfnetlink.has_table(nfnetlink.socket(), name)


def has_rules(table: str) -> bool:
    """True if the table exists and is not from an older version of podrun."""
    return nfnetlink.has_chain(nfnetlink.socket(), table, NEWEST_CHAIN)


def _made(run: str, table: str, name: str, wanted: str, wanted6: str, manner: Manner) -> Bridge:
    """Creates whatever is missing of a bridge, under a lock; each part may exist already."""
    from podrun import atomic
    from podrun_hooks.network import names
    from podrun_hooks.network.publish import spec
    from podrun_hooks.network.publish.ruleset import lay
    from podrun_hooks.support import subprocesses

    subprocesses.find("nft", "nftables")  # before there is a bridge without rules
    where = directory(run, name)
    os.makedirs(f"{where}/leases", mode=0o700, exist_ok=True)
    lock = os.open(f"{where}/base.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read(run, name)
        if known:
            _refuse_another(known, wanted, wanted6)
        pool = known.pool if known else _free(name, wanted)
        pool6 = (known.pool6 if known else None) or _free6(pool, wanted6)
        bridge = Bridge(name, where, 0, pool, pool6 if _has_ipv6() else None, table, manner)
        bridge = bridge._replace(ifindex=_link(run, bridge))
        names.begin(where, anew=not (known and known.ifindex))
        before = _forward(run, ipv6=bridge.pool6 is not None)
        had_table = has_table(bridge.table)
        for other in known_in(run) if not had_table else ():
            lay(other.table, other.name, other.pools, other.manner, before)
        gone = set(known.manner.reach) - set(manner.reach) if known else set()
        lay(bridge.table, bridge.name, bridge.pools, manner, before, gone)
        if not had_table:
            spec.restore(run, bridge.table)
        words = [word for word in ("routed", "any_source", "internal") if getattr(manner, word)]
        words += [f"reach={name}" for name in manner.reach]
        lines = [ledger.boot_id(), bridge.ifindex, pool, bridge.pool6 or "", bridge.table, " ".join(words)]
        atomic.replace(f"{where}/base", "".join(f"{line}\n" for line in lines), 0o644)
        return bridge
    finally:
        os.close(lock)


def _link(run: str, bridge: Bridge) -> int:
    """Creates the link unless it exists; returns its index."""
    name = bridge.name
    with rtnetlink.Socket() as socket:
        found = socket.link(name)
        if not found:
            # One system call, so that the bridge never exists without the alias that marks its owner.
            socket.send(rtnetlink.bridge(name, bridge.mac(1)), rtnetlink.change(name, alias=owner(run)))
            found = socket.link(name)
        if not found or found.kind != "bridge" or found.alias != owner(run):
            hint = "name another bridge, or remove it" if found else ""
            raise Failure(f"there is a link {name} that is not podrun's", code=CANNOT_CREATE, hint=hint)
        # The host must not accept redirects or router advertisements from pods: any pod with a raw socket could send
        # them and become the host's router.
        _sysctl(f"{_IPV4}/conf/{name}/accept_redirects", "0")
        if bridge.pool6:
            for word in ("accept_ra", "accept_redirects"):
                _sysctl(f"{_IPV6}/conf/{name}/{word}", "0")
        addresses = [rtnetlink.address(found.ifindex, cidr, tolerated=(_EEXIST,)) for cidr in bridge.addresses(1)]
        socket.send(*addresses, rtnetlink.change(name, up=True))
        return found.ifindex


def _free(name: str, wanted: str) -> Subnet:
    """The subnet for a new bridge: the wanted one, or the first free one, starting at the hash of the name."""
    routed = [(link, network) for link, network in _routes() if link != name]
    if wanted:
        pool = subnet(wanted)
        for link, network in routed:
            if _overlap(pool, network):
                raise Failure(f"subnet {pool} is in use: {link} has {network}", code=CANNOT_CREATE)
        return pool
    from _blake2 import blake2b

    count = 1 << (_LENGTH - _RANGE.length)
    start = int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "big")
    for n in range(count):
        pool = Subnet(_RANGE.base + (start + n) % count * (1 << (32 - _LENGTH)), _LENGTH)
        if not any(_overlap(pool, network) for _, network in routed):
            return pool
    raise Failure(f"every subnet of {_RANGE} is routed elsewhere", code=CANNOT_CREATE, hint="give the step a subnet")


def _free6(pool: Subnet, wanted6: str) -> Subnet:
    """The IPv6 subnet for a bridge: a unique local one (RFC 4193) derived from its IPv4 subnet.

    RFC 4193 wants random ones so that sites can merge. But a pod's addresses never leave the host untranslated, and
    derived subnets of two bridges never collide.
    """
    if wanted6:
        return subnet(wanted6)
    return Subnet(0xFD88 << 112 | pool.base << 80, 64, 6)


def _overlap(one: Subnet, other: Subnet) -> bool:
    return one.base < other.base + other.size and other.base < one.base + one.size


def _routes() -> list[tuple[str, Subnet]]:
    """The host's IPv4 routes, without the default route, as pairs of link and network."""
    found = []
    with open("/proc/net/route", encoding="utf-8") as file:
        for line in file.read().splitlines()[1:]:
            fields = line.split()
            network, mask = (int.from_bytes(bytes.fromhex(fields[at])[::-1], "big") for at in (1, 7))
            if mask:
                found.append((fields[0], Subnet(network, mask.bit_count())))
    return found


def _has_ipv6() -> bool:
    try:
        return all(_sysctl(f"{_IPV6}/conf/{which}/disable_ipv6") == "0" for which in ("all", "default"))
    except FileNotFoundError:
        return False


def _sysctl(path: str, value: str = "") -> str:
    """Reads a sysctl and, if ``value`` is not "" and differs, sets it; returns the old value."""
    with open(path, encoding="utf-8") as file:
        before = file.read().strip()
    if value and before != value:
        with open(path, "w", encoding="utf-8") as file:
            file.write(value)
    return before


def _forward(run: str, *, ipv6: bool) -> dict[int, list[str]]:
    """Enables forwarding, so that the host routes between the bridge and its other links.

    Returns the links, by version of IP, that existed when podrun enabled forwarding: nobody had asked the host to
    forward between them. Links that are created later are taken to need it.
    """
    links = sorted(name for name in os.listdir("/sys/class/net") if name != "lo" and not name.startswith("podrun"))
    links = [name for name in links if not read(run, name)]
    if _sysctl(f"{_IPV4}/ip_forward", "1") == "0":
        _remember(run, 4, links)
    if ipv6 and _sysctl(f"{_IPV6}/conf/all/forwarding") != "1":
        # A router ignores router advertisements unless accept_ra is 2 (ip-sysctl). A host that gets its default route
        # from them would lose it.
        for name in _advised():
            if _sysctl(f"{_IPV6}/conf/{name}/accept_ra") == "1":
                _sysctl(f"{_IPV6}/conf/{name}/accept_ra", "2")
        _sysctl(f"{_IPV6}/conf/all/forwarding", "1")
        _remember(run, 6, links)
    return {version: _remembered(run, version) for version in (4, 6)}


def _remember(run: str, version: int, links: Sequence[str]) -> None:
    from podrun import atomic

    atomic.replace(f"{run}/network/.before{version}", "\n".join([ledger.boot_id(), *links]) + "\n", 0o644)


def _remembered(run: str, version: int) -> list[str]:
    try:
        with open(f"{run}/network/.before{version}", encoding="utf-8") as file:
            boot, *links = file.read().split()
    except (FileNotFoundError, ValueError):
        return []
    return links if boot == ledger.boot_id() else []


def allow_localnet(name: str) -> None:
    """Lets packets to 127.0.0.1 be translated and routed to the bridge. Call only after ruleset.lay has blocked the
    reverse direction."""
    _sysctl(f"{_IPV4}/conf/{name}/route_localnet", "1")


def _advised() -> set[str]:
    """Links that may depend on router advertisements: network cards, and links with a route from one (RTF_ADDRCONF).

    Other links are left out: behind another runtime's bridge are containers, which could become the host's router.
    """
    with open("/proc/net/ipv6_route", encoding="utf-8") as file:
        rows = [line.split() for line in file.read().splitlines()]
    learned = {row[9] for row in rows if int(row[8], 16) & _RTF_ADDRCONF}
    return {
        name
        for name in os.listdir(f"{_IPV6}/conf")
        if name in learned or os.path.exists(f"/sys/class/net/{name}/device")
    }
