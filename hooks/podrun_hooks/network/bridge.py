"""The bridge that a run directory's pods share: made once, checked at every start, left in place when pods go.

What is known about it is in <run>/network/<bridge>/base; the pods' leases are beside it.
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
from podrun_hooks.network.publish.ruleset import NEWEST_SET
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun.hook import Pod

_EEXIST = 17
_RTF_ADDRCONF = 0x00040000  # <linux/ipv6_route.h>
_IPV4 = "/proc/sys/net/ipv4"
_IPV6 = "/proc/sys/net/ipv6"

# A pod's bridge has 10.160.0.0/11 to choose a /20 from. Not podman's 10.88.0.0/16 and 10.89.0.0/16, docker's
# 172.16.0.0/12, CRI-O's 10.85.0.0/16, flannel's 10.244.0.0/16 or OpenShift's 10.128.0.0/14: two bridges with the same
# network leave the pods of one unreachable. A /20 has four times the 1023 ports that a bridge can have (BR_MAX_PORTS).
_RANGE = Subnet(10 << 24 | 160 << 16, 11)
_LENGTH = 20


class Manner(NamedTuple):
    """What networks.toml says of a bridge beside its pods' options."""

    #: Other machines call its pods by their own addresses, and are called from these.
    routed: bool = False
    #: Its pods may send from addresses that are not theirs.
    any_source: bool = False
    #: The bridges whose pods its pods may call by their own addresses.
    reach: Sequence[str] = ()


class Bridge(NamedTuple):
    """A bridge that pods can be put on."""

    name: str
    #: <run>/network/<name>: leases and what is known of the bridge.
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
        """The hardware address that goes with them: an address that changes hands stays right in neighbours' caches."""
        return b"\x02P" + (self.pool.base + n).to_bytes(4, "big")


def prefix(pod: Pod) -> str:
    """What the names of all kernel objects of the pod's run directory start with: "podrun-" or "podrun-3fa2-"."""
    return pod.tag[: len(pod.tag) - len(pod.name + pod.suffix)] or "podrun-"


def default_name(pod: Pod) -> str:
    """The bridge of a pod that names none."""
    run = prefix(pod)
    return "podrun0" if run == "podrun-" else run[:-1]


def table(pod: Pod) -> str:
    """The nftables table of the pod's run directory."""
    return prefix(pod)[:-1]


def directory(run: str, name: str) -> str:
    """Where a bridge's leases are."""
    return f"{run}/network/{name}"


def held(run: str, kind: int = fcntl.LOCK_SH) -> int:
    """A descriptor that keeps the bridges of a run directory in place as long as it is open (flock(2)).

    For a start that looks for its bridge and has not noted it yet. ``kind``: LOCK_EX for who removes bridges; with
    LOCK_NB it raises BlockingIOError while somebody looks.
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
    """The bridge ``name``, made or mended if need be. ``wanted`` and ``wanted6`` are subnets, "": the bridge's own.

    ``manner`` None: as it is. ``anyway``: it is mended also when it looks whole.

    Raises Failure: CANNOT_CREATE for a foreign link of that name or a subnet that is routed elsewhere, WRONG_FILE for
    a subnet other than the one the bridge has.
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
    """What is known of a bridge, or None; its ifindex is 0 when that was before this boot."""
    where = directory(run, name)
    try:
        with open(f"{where}/base", encoding="utf-8") as file:
            boot, index, pool, pool6, rules, said = file.read().split("\n")[:6]
    except FileNotFoundError:
        return None
    except ValueError:
        raise Failure(f"{where}/base is damaged", code=CANNOT_CREATE, hint="remove it") from None
    index_now = int(index) if boot == ledger.boot_id() else 0
    words = said.split()
    reach = tuple(word[6:] for word in words if word.startswith("reach="))
    manner = Manner("routed" in words, "any_source" in words, reach)
    return Bridge(name, where, index_now, subnet(pool), subnet(pool6) if pool6 else None, rules, manner)


def pools_of(run: str, name: str) -> list[Subnet]:
    """The subnets of a bridge; none when nothing (legible) is known of it, which must not stop an undo."""
    try:
        bridge = read(run, name)
    except Failure:
        return []
    return bridge.pools if bridge else []


def known_in(run: str) -> list[Bridge]:
    """The bridges of a run directory, whether their links are there or not."""
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
    """True when podrun's table of that name is there; ``nft flush ruleset`` by others removes it."""
    return nfnetlink.has_table(nfnetlink.socket(), name)


def has_rules(table: str) -> bool:
    """True when the table is there, and is not an older podrun's."""
    return nfnetlink.has_set(nfnetlink.socket(), table, NEWEST_SET)


def _made(run: str, table: str, name: str, wanted: str, wanted6: str, manner: Manner) -> Bridge:
    """Everything again, one podrun at a time; each part may be there already."""
    from podrun_hooks.network import names
    from podrun_hooks.network.publish import spec
    from podrun_hooks.network.publish.ruleset import lay

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
        with syscalls.Naming(f"{where}/base.new"), open(f"{where}/base.new", "w", encoding="utf-8") as file:
            file.write(f"{ledger.boot_id()}\n{bridge.ifindex}\n{pool}\n{bridge.pool6 or ''}\n{bridge.table}\n")
            words = ["routed" if manner.routed else "", "any_source" if manner.any_source else ""]
            file.write(" ".join([*filter(None, words), *(f"reach={name}" for name in manner.reach)]) + "\n")
        os.rename(f"{where}/base.new", f"{where}/base")
        return bridge
    finally:
        os.close(lock)


def _link(run: str, bridge: Bridge) -> int:
    """Makes the link, or finds it; returns its index."""
    name = bridge.name
    with rtnetlink.Socket() as socket:
        found = socket.link(name)
        if not found:
            # One system call: nobody sees our bridge without the alias that says whose it is.
            socket.send(rtnetlink.bridge(name, bridge.mac(1)), rtnetlink.change(name, alias=owner(run)))
            found = socket.link(name)
        if not found or found.kind != "bridge" or found.alias != owner(run):
            hint = "name another bridge, or remove it" if found else ""
            raise Failure(f"there is a link {name} that is not podrun's", code=CANNOT_CREATE, hint=hint)
        # What pods say of routers is not for the host: with a raw socket any of them could be its next one.
        _sysctl(f"{_IPV4}/conf/{name}/accept_redirects", "0")
        if bridge.pool6:
            for word in ("accept_ra", "accept_redirects"):
                _sysctl(f"{_IPV6}/conf/{name}/{word}", "0")
        addresses = [rtnetlink.address(found.ifindex, cidr, tolerated=(_EEXIST,)) for cidr in bridge.addresses(1)]
        socket.send(*addresses, rtnetlink.change(name, up=True))
        return found.ifindex


def _free(name: str, wanted: str) -> Subnet:
    """The subnet for a new bridge: the wanted one, or the first from where the name's hash points."""
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
    """The IPv6 subnet for a bridge: a unique local one (RFC 4193) that follows from its IPv4 subnet.

    RFC 4193 wants it random so that sites can merge; a pod's never leaves the host untranslated, and this way two
    bridges of a host have two.
    """
    if wanted6:
        return subnet(wanted6)
    return Subnet(0xFD88 << 112 | pool.base << 80, 64, 6)


def _overlap(one: Subnet, other: Subnet) -> bool:
    return one.base < other.base + other.size and other.base < one.base + one.size


def _routes() -> list[tuple[str, Subnet]]:
    """The IPv4 routes of the host but the default one, as pairs of link and network."""
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
    """Reads a sysctl, and gives it ``value`` if it has another one; returns what it was."""
    with open(path, encoding="utf-8") as file:
        before = file.read().strip()
    if value and before != value:
        with open(path, "w", encoding="utf-8") as file:
            file.write(value)
    return before


def _forward(run: str, *, ipv6: bool) -> dict[int, list[str]]:
    """Makes the host a router between the bridge and its other links.

    Returns the links, by version of IP, that were there when podrun made a router of it, and between which nobody has
    asked it to forward. Who makes a link later has a use for it.
    """
    links = sorted(name for name in os.listdir("/sys/class/net") if name != "lo" and not name.startswith("podrun"))
    links = [name for name in links if not read(run, name)]
    if _sysctl(f"{_IPV4}/ip_forward", "1") == "0":
        _remember(run, 4, links)
    if ipv6 and _sysctl(f"{_IPV6}/conf/all/forwarding") != "1":
        # A router ignores router advertisements unless accept_ra is 2 (ip-sysctl): a host that lives by them would
        # lose its default route.
        for name in _advised():
            if _sysctl(f"{_IPV6}/conf/{name}/accept_ra") == "1":
                _sysctl(f"{_IPV6}/conf/{name}/accept_ra", "2")
        _sysctl(f"{_IPV6}/conf/all/forwarding", "1")
        _remember(run, 6, links)
    return {version: _remembered(run, version) for version in (4, 6)}


def _remember(run: str, version: int, links: Sequence[str]) -> None:
    path = f"{run}/network/.before{version}"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write("\n".join([ledger.boot_id(), *links]) + "\n")
    os.rename(f"{path}.new", path)


def _remembered(run: str, version: int) -> list[str]:
    try:
        with open(f"{run}/network/.before{version}", encoding="utf-8") as file:
            boot, *links = file.read().split()
    except (FileNotFoundError, ValueError):
        return []
    return links if boot == ledger.boot_id() else []


def allow_localnet(name: str) -> None:
    """Lets what is sent to 127.0.0.1 reach the bridge. Only once table.lay has closed the way back."""
    _sysctl(f"{_IPV4}/conf/{name}/route_localnet", "1")


def _advised() -> set[str]:
    """The links that may live by router advertisements: network cards, and what has a route of one (RTF_ADDRCONF).

    Not every link: behind the bridge of another runtime are containers, and one of them would become the host's router.
    """
    with open("/proc/net/ipv6_route", encoding="utf-8") as file:
        rows = [line.split() for line in file.read().splitlines()]
    learned = {row[9] for row in rows if int(row[8], 16) & _RTF_ADDRCONF}
    return {
        name
        for name in os.listdir(f"{_IPV6}/conf")
        if name in learned or os.path.exists(f"/sys/class/net/{name}/device")
    }
