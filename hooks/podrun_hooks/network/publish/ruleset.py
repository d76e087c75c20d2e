"""The nftables table of a run directory: its rules, and the maps and sets that they look into."""

from __future__ import annotations

from podrun.errors import STEP_FAILED, Failure
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from podrun_hooks.network.lease import Subnet

# Adding is idempotent for everything but rules, so chains are flushed first; nft applies the script as a whole or not.
# Packets from other links to or from 127.0.0.0/8 are dropped before connection tracking can translate them: with
# route_localnet on the bridge, pods could otherwise reach services that listen on the host's loopback.
# Other machines reach a pod only at its published ports. The host forwards, so a machine on the same L2 segment could
# route into the pod subnet, and call ports that are published on 127.0.0.1 only or not at all. A subnet configured as
# routed is the exception: other machines call its pods by their own addresses, and see these as the pods' source.
# Two bridges are two networks: a pod of one reaches pods of the other at published ports only, unless networks.toml
# allows more. The pods of an internal bridge reach each other and the host, and nobody else; they are told so at once
# (ICMP, administratively prohibited) instead of waiting for answers. If podrun has made the host a router, it forwards
# nothing between the links that existed before.
# A port moves from one pod to another in one transaction, but before Linux 6.17 a look-up during that can find neither
# element (b2f742c846ca). So each map is looked up twice, and packets whose key is in a hold set are dropped meanwhile
# instead of refused: the sender tries again.
# A chain of type nat sees only the first packet of a connection. The set called6 remembers which pods have been called
# over IPv6: deleting an IPv6 address's connections from connection tracking takes long (conntrack.forget). Its chain
# has the first priority that nat may have: once a chain of somebody else has chosen a source, no later one is asked
# (nf_nat_inet_fn() in net/netfilter/nf_nat_core.c).
# One pod must not fill the host's table of connections. Counting takes a look-up for each living one at every new one
# (nf_conncount.c), so one of 32 is counted, at random; where these are too many, the pod opens none for two seconds.
# A pod that calls a published port would get answers from the wrong address unless its own address is masqueraded.
#: A chain that tables of older versions of podrun lack: see bridge.ensure.
NEWEST_CHAIN = "counted"
_RULES = """
add table inet {table}
add set inet {table} bridges {{ type ifname; }}
add set inet {table} subnets4 {{ type ipv4_addr; flags interval; }}
add set inet {table} subnets6 {{ type ipv6_addr; flags interval; }}
add set inet {table} routed4 {{ type ipv4_addr; flags interval; }}
add set inet {table} routed6 {{ type ipv6_addr; flags interval; }}
add set inet {table} reached {{ type ifname . ifname; }}
add set inet {table} internal {{ type ifname; }}
add set inet {table} before4 {{ type ifname; }}
add set inet {table} before6 {{ type ifname; }}
add set inet {table} called6 {{ type ipv6_addr; size 65535; flags dynamic; }}
add set inet {table} flows4 {{ type ipv4_addr; size 65535; flags dynamic; }}
add set inet {table} flows6 {{ type ipv6_addr; size 65535; flags dynamic; }}
add set inet {table} over4 {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 2s; }}
add set inet {table} over6 {{ type ipv6_addr; size 65535; flags dynamic,timeout; timeout 2s; }}
add set inet {table} hold4 {{ type ipv4_addr . inet_proto . inet_service; }}
add set inet {table} hold6 {{ type ipv6_addr . inet_proto . inet_service; }}
add set inet {table} holdany4 {{ type inet_proto . inet_service; }}
add set inet {table} holdany6 {{ type inet_proto . inet_service; }}
add map inet {table} host4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet {table} host6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
add map inet {table} any4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet {table} any6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
add chain inet {table} loopback {{ type filter hook prerouting priority -300; policy accept; }}
add chain inet {table} forward {{ type filter hook forward priority 0; policy accept; }}
add chain inet {table} published
add chain inet {table} prerouting {{ type nat hook prerouting priority -100; policy accept; }}
add chain inet {table} output {{ type nat hook output priority -100; policy accept; }}
add chain inet {table} counted {{ type nat hook prerouting priority -199; policy accept; }}
add chain inet {table} called {{ type nat hook postrouting priority -199; policy accept; }}
add chain inet {table} postrouting {{ type nat hook postrouting priority 100; policy accept; }}
flush chain inet {table} loopback
flush chain inet {table} forward
flush chain inet {table} published
flush chain inet {table} prerouting
flush chain inet {table} output
flush chain inet {table} counted
flush chain inet {table} called
flush chain inet {table} postrouting
add rule inet {table} loopback iifname != "lo" ip daddr 127.0.0.0/8 drop
add rule inet {table} loopback iifname != "lo" ip saddr 127.0.0.0/8 drop
add rule inet {table} forward oifname @bridges ct state established,related accept
add rule inet {table} forward iifname . oifname @reached accept
add rule inet {table} forward iifname @internal reject with icmpx admin-prohibited
add rule inet {table} forward oifname @internal reject with icmpx admin-prohibited
add rule inet {table} forward oifname @bridges ct status dnat accept
add rule inet {table} forward iifname @bridges oifname @bridges drop
add rule inet {table} forward iifname @bridges accept
add rule inet {table} forward oifname @bridges ip daddr @routed4 accept
add rule inet {table} forward oifname @bridges ip6 daddr @routed6 accept
add rule inet {table} forward oifname @bridges drop
add rule inet {table} forward meta nfproto ipv4 iifname @before4 oifname @before4 drop
add rule inet {table} forward meta nfproto ipv6 iifname @before6 oifname @before6 drop
add rule inet {table} published fib daddr type != local return
add rule inet {table} published meta l4proto != {{ tcp, udp, sctp }} return
add rule inet {table} published dnat ip to ip daddr . meta l4proto . th dport map @host4
add rule inet {table} published dnat ip to meta l4proto . th dport map @any4
add rule inet {table} published dnat ip6 to ip6 daddr . meta l4proto . th dport map @host6
add rule inet {table} published dnat ip6 to meta l4proto . th dport map @any6
add rule inet {table} published dnat ip to ip daddr . meta l4proto . th dport map @host4
add rule inet {table} published dnat ip to meta l4proto . th dport map @any4
add rule inet {table} published dnat ip6 to ip6 daddr . meta l4proto . th dport map @host6
add rule inet {table} published dnat ip6 to meta l4proto . th dport map @any6
add rule inet {table} published ip daddr . meta l4proto . th dport @hold4 drop
add rule inet {table} published ip6 daddr . meta l4proto . th dport @hold6 drop
add rule inet {table} published meta nfproto ipv4 meta l4proto . th dport @holdany4 drop
add rule inet {table} published meta nfproto ipv6 meta l4proto . th dport @holdany6 drop
add rule inet {table} prerouting jump published
add rule inet {table} output jump published
add rule inet {table} called ip6 daddr @subnets6 add @called6 {{ ip6 daddr }}
add rule inet {table} postrouting ip saddr 127.0.0.0/8 oifname @bridges masquerade
add rule inet {table} postrouting ip saddr @subnets4 ip daddr @subnets4 ct status dnat masquerade
add rule inet {table} postrouting ip6 saddr @subnets6 ip6 daddr @subnets6 ct status dnat masquerade
add rule inet {table} postrouting ip saddr @routed4 return
add rule inet {table} postrouting ip6 saddr @routed6 return
add rule inet {table} postrouting ip saddr @subnets4 ip daddr != @subnets4 ip daddr != 224.0.0.0/4 masquerade
add rule inet {table} postrouting ip6 saddr @subnets6 ip6 daddr != @subnets6 ip6 daddr != ff00::/8 masquerade
"""

# For kernels with nft_connlimit.
_COUNTED = r"""
add rule inet {table} counted iifname != @bridges return
add rule inet {table} counted ip saddr @over4 drop
add rule inet {table} counted ip6 saddr @over6 drop
add rule inet {table} counted numgen random mod {sample} != 0 return
add rule inet {table} counted ip saddr @subnets4 add @flows4 {{ ip saddr ct count over {most} }} \
  add @over4 {{ ip saddr }} drop
add rule inet {table} counted ip6 saddr @subnets6 add @flows6 {{ ip6 saddr ct count over {most} }} \
  add @over6 {{ ip6 saddr }} drop
"""
#: One of so many connections is counted.
_SAMPLE = 32
#: The part of the host's table that the connections of one address may take: an eighth.
_PART = 8


def _most() -> int:
    """How many connections of the sample one address may have."""
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_max", encoding="ascii") as file:
            table = int(file.read())
    except (OSError, ValueError):
        table = 1 << 18
    return max(32, table // _PART // _SAMPLE)


class Manner(NamedTuple):
    """The settings of a bridge in networks.toml that are not options of its pods."""

    #: Other machines reach its pods by their own addresses, and see these as the source of the pods' packets.
    routed: bool = False
    #: Its pods may send from foreign addresses.
    any_source: bool = False
    #: The bridges whose pods its pods may reach by their own addresses.
    reach: Sequence[str] = ()
    #: Its pods reach each other and the host, and nobody else.
    internal: bool = False


def lay(
    table: str,
    bridge: str,
    pools: Sequence[Subnet],
    manner: Manner,
    before: dict[int, list[str]],
    gone: Collection[str] = (),
) -> None:
    """Creates or repairs the table, and adds a bridge with its subnets to it. Raises Failure with nft's message.

    ``before``: the links, by version of IP, between which the host did not forward before podrun enabled forwarding.
    ``gone``: the bridges that this one may not reach any more.
    """
    script = [f'add element inet {table} bridges {{ "{bridge}" }}']
    pairs = {to: f'element inet {table} reached {{ "{bridge}" . "{to}" }}' for to in (bridge, *manner.reach, *gone)}
    # nft cannot delete an element that does not exist, so add it first.
    script += [f"add {pair}" for pair in pairs.values()] + [f"delete {pairs[to]}" for to in gone]
    # As above: add, so that it can be deleted.
    script.append(f'add element inet {table} internal {{ "{bridge}" }}')
    if not manner.internal:
        script.append(f'delete element inet {table} internal {{ "{bridge}" }}')
    for version, links in before.items():
        script += [f'add element inet {table} before{version} {{ "{link}" }}' for link in links]
    for pool in pools:
        script.append(f"add element inet {table} subnets{pool.version} {{ {pool} }}")
        # As above: add, so that it can be deleted.
        script.append(f"add element inet {table} routed{pool.version} {{ {pool} }}")
        if not manner.routed:
            script.append(f"delete element inet {table} routed{pool.version} {{ {pool} }}")
    rules, bridges = _RULES.format(table=table), "\n".join(script) + "\n"
    try:
        _nft(rules + _COUNTED.format(table=table, sample=_SAMPLE, most=_most()) + bridges)
    except Failure:
        _nft(rules + bridges)  # a kernel that counts no connections, or another trouble, which is told now


def remove(table: str) -> None:
    """Deletes the table if it is there."""
    _nft(f"add table inet {table}\ndelete table inet {table}\n")


def delete_element(table: str, map_: str, fields: Sequence[str]) -> None:
    """Deletes one element by the fields of its key, as nft spells them."""
    _nft(f"delete element inet {table} {map_} {{ {' . '.join(fields)} }}\n")


def _nft(script: str) -> None:
    from podrun_hooks.support import subprocesses

    ended = subprocesses.run([subprocesses.find("nft", "nftables"), "-f", "-"], stdin=script.encode())
    if ended.status:
        raise Failure(f"nft: {(ended.errors or ended.output).splitlines()[0]}", code=STEP_FAILED)
