"""The nftables table in a pod's own network namespace: it translates a service's address there to that of a backend.

No process: the kernel looks into a map for the first packet of a connection. maps.py fills the maps.
"""

from __future__ import annotations

from podrun.errors import STEP_FAILED, Failure

#: The slots among which several backends of a service are divided: the smallest share is 1 in 64.
SLOTS = 64

# Nothing is translated while a service has no backend: a SYN is dropped, and the client's TCP tries again, until the
# element in "held" has timed out; from then on the client is refused. That is for all packets, not only for SYNs: those
# of a connection whose entry in connection tracking has been deleted would leave for the default gateway.
# A backend that has just ended refuses connections (RST with sequence number 0, RFC 9293, 3.10.7.1) until its record is
# gone, and a host that has gone is reported unreachable: the client is spared both, and tries again.
# (The type of a hash is that of a number here: nft 1.0.6 cannot list a set with typeof jhash.)
# An address of 127.0.0.0/8 is the pod's own: only the services there are ours, and what comes from it is masqueraded.
_KEY = "meta l4proto . ip daddr . th dport"
_RULES = """
add table inet {table}
add map inet {table} one {{ type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }}
add map inet {table} many {{ typeof {key} . numgen random mod {slots} : ip daddr . th dport; }}
add map inet {table} hashed {{ typeof {key} . numgen random mod {slots} : ip daddr . th dport; }}
add set inet {table} services {{ type inet_proto . ipv4_addr . inet_service; }}
add set inet {table} addresses {{ type ipv4_addr; }}
add set inet {table} held {{ type inet_proto . ipv4_addr . inet_service; flags timeout; }}
add set inet {table} backends {{ type ipv4_addr . inet_service; flags timeout; }}
add chain inet {table} loopback {{ type filter hook prerouting priority -300; policy accept; }}
add chain inet {table} refused {{ type filter hook prerouting priority -310; policy accept; }}
add chain inet {table} unreachable {{ type filter hook prerouting priority -150; policy accept; }}
add chain inet {table} lead
add chain inet {table} prerouting {{ type nat hook prerouting priority -100; policy accept; }}
add chain inet {table} output {{ type nat hook output priority -100; policy accept; }}
add chain inet {table} hold
add chain inet {table} sent {{ type filter hook output priority 0; policy accept; }}
add chain inet {table} forwarded {{ type filter hook forward priority 0; policy accept; }}
add chain inet {table} postrouting {{ type nat hook postrouting priority 100; policy accept; }}
flush chain inet {table} loopback
flush chain inet {table} refused
flush chain inet {table} unreachable
flush chain inet {table} lead
flush chain inet {table} prerouting
flush chain inet {table} output
flush chain inet {table} hold
flush chain inet {table} sent
flush chain inet {table} forwarded
flush chain inet {table} postrouting
add rule inet {table} loopback iifname != "lo" ip daddr 127.0.0.0/8 drop
add rule inet {table} loopback iifname != "lo" ip saddr 127.0.0.0/8 drop
add rule inet {table} refused tcp flags == rst | ack tcp sequence 0 ip saddr . tcp sport @backends drop
add rule inet {table} unreachable icmp type destination-unreachable icmp code < 2 ct original ip daddr @addresses drop
add rule inet {table} lead meta l4proto != {{ tcp, udp, sctp }} return
add rule inet {table} lead dnat ip to {key} map @one
add rule inet {table} lead dnat ip to {key} . numgen random mod {slots} map @many
add rule inet {table} lead dnat ip to {key} . jhash ip saddr mod {slots} map @hashed
add rule inet {table} prerouting jump lead
add rule inet {table} output jump lead
add rule inet {table} hold {key} @held drop
add rule inet {table} hold meta l4proto tcp reject with tcp reset
add rule inet {table} hold reject
add rule inet {table} sent ip daddr @addresses jump hold
add rule inet {table} sent {key} @services jump hold
add rule inet {table} forwarded ip daddr @addresses jump hold
add rule inet {table} postrouting ip saddr 127.0.0.0/8 oifname != "lo" masquerade
"""


def text(table: str) -> str:
    """The script for nft; adding is idempotent for all but rules, so chains are emptied first."""
    return _RULES.format(table=table, slots=SLOTS, key=_KEY)


def lay(table: str) -> None:
    """Makes the table in the process's network namespace, or repairs it. Raises Failure with nft's words."""
    _nft(text(table))


def remove(table: str) -> None:
    """Deletes the table if it is there."""
    _nft(f"add table inet {table}\ndelete table inet {table}\n")


def _nft(script: str) -> None:
    from podrun_hooks.support import subprocesses

    ended = subprocesses.run([subprocesses.find("nft", "nftables"), "-f", "-"], stdin=script.encode())
    if ended.status:
        raise Failure(f"nft: {(ended.errors or ended.output).splitlines()[0]}", code=STEP_FAILED)
