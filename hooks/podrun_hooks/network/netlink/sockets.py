"""The TCP sockets of the network namespace that the process is in, asked of sock_diag(7).

Layouts and numbers are those of <linux/inet_diag.h>, <linux/sock_diag.h> and include/net/tcp_states.h.
"""

from __future__ import annotations

from _socket import IPPROTO_TCP
from _struct import Struct
from errno import ENOENT

from podrun.record import NamedTuple
from podrun_hooks.network.netlink.rtnetlink import NLM_F_ACK, NLM_F_DUMP, Message, Socket, unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ESTABLISHED, SYN_RECV, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = 1, 3, 4, 8, 9, 10, 11

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = Struct("=BBBxI48x")  # family, protocol, extensions, states; any socket
_ANSWER = Struct("=BBBB2s2s16s16s4s8sIIIII")  # ..., ports and addresses in network order, ..., rqueue, wqueue, ...


class Tcp(NamedTuple):
    """A TCP socket: its state, its port, and how many connections wait to be accepted (a listening one's)."""

    state: int
    port: int
    waiting: int


def tcp(states: Iterable[int]) -> list[Tcp]:
    """The sockets in one of the states, those of IPv4 first."""
    wanted = sum(1 << state for state in states)
    found = []
    with Socket(_NETLINK_SOCK_DIAG) as socket:
        for family in (2, 10):
            body = _REQUEST.pack(family, IPPROTO_TCP, 0, wanted)
            listing = Message("list TCP sockets", _SOCK_DIAG_BY_FAMILY, NLM_F_ACK | NLM_F_DUMP, body, (ENOENT,))
            for _, answer in socket.send(listing):
                fields = unpacked(_ANSWER, answer)
                found.append(Tcp(fields[1], int.from_bytes(fields[4], "big"), fields[11]))
    return found
