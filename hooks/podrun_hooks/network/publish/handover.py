"""Moves published ports from one generation of a pod to another, and back, without closing them for a moment."""

from __future__ import annotations

from podrun.record import NamedTuple
from podrun_hooks.network import bridge as bridges
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.netlink import nfnetlink
from podrun_hooks.network.publish import ports
from podrun_hooks.network.publish.holds import HOLDING, release
from podrun_hooks.network.publish.spec import element_of, line_of, noted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun.hook import Pod
    from podrun_hooks.network.bridge import Bridge
    from podrun_hooks.network.ledger import Ledger
    from podrun_hooks.network.netlink.nfnetlink import Element
    from podrun_hooks.network.publish.spec import Publish


class Side(NamedTuple):
    """A generation's ledger, and a descriptor that appends to it."""

    ledger: Ledger
    fd: int


def move(pod: Pod, bridge: Bridge, wanted: Sequence[Publish], addresses: Sequence[str], new: Side, old: Side) -> None:
    """Moves the ports of ``old`` to the generation that publishes ``wanted`` for its ``addresses``.

    Leaves ports alone that have moved already. Raises Failure (BUSY), before it moves any, if another pod holds one.
    """
    elements = [element_of(publish, ports.target_of(publish, addresses), pod.tag) for publish in wanted]
    for publish in wanted:
        ports.refuse_held(pod, bridge.table, publish)
    if any(publish.ip.startswith("127.") or publish.ip == "0.0.0.0" for publish in wanted):
        bridges.allow_localnet(bridge.name)
    if not bridges.has_rules(bridge.table):
        bridges.ensure(pod.run, bridge.table, bridge.name, anyway=True)
    known = new.ledger.all("publish")
    for publish in wanted:
        line = line_of(publish, ports.target_of(publish, addresses), pod.tag)
        if line not in known:
            ledgers.note(new.fd, "publish", line)
    _replace(bridge.table, list(noted(old.ledger)), elements)


def _replace(table: str, old: Sequence[Element], new: Sequence[Element]) -> None:
    socket = nfnetlink.socket()
    known = {(element.map, element.key) for element in (*old, *new)}
    found = [there for map_, key in sorted(known) if (there := nfnetlink.find(socket, table, map_, key))]
    gone = [element for element in found if element in old and element not in new]
    come = [element for element in new if element not in found]
    moving = {(element.map, element.key) for element in gone} & {(element.map, element.key) for element in come}
    holds = [nfnetlink.Element(HOLDING[map_], key, b"") for map_, key in sorted(moving)]
    release(table, holds)
    nfnetlink.add(socket, table, holds)
    try:
        nfnetlink.replace(socket, table, gone, come)
    finally:
        release(table, holds)
