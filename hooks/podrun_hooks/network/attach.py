"""Adds interfaces to an existing namespace: for mode macvlan, and for a pod's further network steps.

The namespace may outlive the step, so ``down`` finds every link by its name or alias and removes it.
"""

from __future__ import annotations

import os
from _socket import if_nametoindex
from errno import ENODEV

from podrun.errors import BUSY, UNAVAILABLE, Failure
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network import namespace
from podrun_hooks.network.child import Child
from podrun_hooks.network.netlink import rtnetlink
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun.hook import Step
    from podrun_hooks.network.ledger import Ledger
    from podrun_hooks.network.namespace import Plug, Wish


def mark(step: Step) -> str:
    """The alias of a step's links in its pod's namespace."""
    return f"{step.pod.tag} {step.name} {step.pod.run}"[:255]


def plug(step: Step, fd: int, netns: int, wanted: Plug) -> str:
    """Connects the namespace at descriptor ``netns`` to one more bridge; returns the name of the pod's end."""
    name = namespace.port_of(f"{step.pod.tag} {step.name}", os.fstat(netns).st_ino)
    ledgers.note(fd, "plug", name)
    step.status("adding an interface")
    outside = rtnetlink.Socket()

    def work() -> str:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        with rtnetlink.Socket() as inside:
            interface = free_name(wanted.wish.interface)
            index = namespace.plug_in(name, interface, step.pod.tag, wanted, outside, inside)
            namespace.set_sysctls(wanted.wish.sysctls)
        ledgers.note(fd, "link", f"{name} {index}")
        return interface

    try:
        return Child(work).join()
    finally:
        outside.close()


def macvlan(
    step: Step, fd: int, netns: int, parent: str, addresses: Sequence[str], gateways: Sequence[str], wish: Wish
) -> str:
    """Connects the namespace to the network of the host's link ``parent``; returns the name of the pod's link.

    Raises Failure (UNAVAILABLE) if there is no such link.
    """
    name = namespace.port_of(f"{step.pod.tag} {step.name}", os.fstat(netns).st_ino)
    try:
        index = if_nametoindex(parent)
    except OSError:
        raise Failure(f"the host has no link {parent}", code=UNAVAILABLE) from None
    ledgers.note(fd, "plug", name)  # in the host's namespace until it is moved
    ledgers.note(fd, "inside", f"{namespace.path_of(step.pod.tag)} {mark(step)}")
    step.status("adding an interface")
    outside = rtnetlink.Socket()

    def work() -> str:
        # One system call, so that a kill leaves no link without the alias that marks its owner.
        outside.send(
            rtnetlink.macvlan(name, index, wish.mac),
            rtnetlink.change(name, alias=mark(step)),
            rtnetlink.move(name, netns),
        )
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        with rtnetlink.Socket() as inside:
            interface = free_name(wish.interface)
            inside.send(rtnetlink.rename(if_nametoindex(name), interface))
            namespace.address(interface, addresses, gateways, wish, inside)
            namespace.set_sysctls(wish.sysctls)
        return interface

    try:
        return Child(work).join()
    finally:
        outside.close()


def free_name(wanted: str) -> str:
    """The wanted name, or the first free one of eth0, eth1, ...; call this in the pod's namespace."""
    for n in range(100):
        name = wanted or f"eth{n}"
        try:
            if_nametoindex(name)
        except OSError:
            return name
        if wanted:
            break
    raise Failure(f"the pod has an interface {wanted or 'eth99'} already", code=BUSY, hint="set interface")


def remove(ledger: Ledger) -> None:
    """Removes the links noted in the ledger, from the host's namespace and the pod's."""
    for name in ledger.all("plug"):
        with rtnetlink.Socket() as socket:
            socket.send(rtnetlink.remove(name, tolerated=(ENODEV,)))
    for noted in ledger.all("inside"):
        path, _, alias = noted.partition(" ")
        if namespace.is_netns(path):
            _remove_inside(path, alias)


def _remove_inside(path: str, alias: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def work() -> str:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        with rtnetlink.Socket() as socket:
            for link in socket.links():
                if link.alias == alias:
                    socket.send(rtnetlink.remove(link.name, tolerated=(ENODEV,)))
        return ""

    try:
        Child(work).join()
    finally:
        os.close(fd)
