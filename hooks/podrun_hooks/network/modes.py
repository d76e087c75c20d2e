"""The modes other than bridge, host and none: another namespace, a link of the host (macvlan), CNI plugins."""

from __future__ import annotations

import os

from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Problem
from podrun_hooks.network import attach, bridge, files, namespace
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.options import wish, with_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Facts, Step
    from podrun_hooks.network.ledger import Ledger
    from podrun_hooks.network.options import Options


def first(step: Step, fd: int, made: str = "") -> Facts:
    """Joins or creates the pod's namespace for the modes netns:, pod:, macvlan: and cni:; ``made`` as for
    namespace.begin."""
    options: Options = step.options
    mode, _, word = options.mode.partition(":")
    hostname = files.hostname(step)
    if mode in ("netns", "pod"):
        step.status(f"joining {word}")
        if mode == "pod":
            hostname = options.hostname or _hostname_of(step, word) or hostname
        netns = opened(step, mode, word)
        try:
            addresses = namespace.join(step.pod.tag, step.pod.run, fd, netns)
        finally:
            os.close(netns)
        step.status(f"joined {word}")
        return _facts(step, hostname, addresses)
    step.status("making the network namespace")
    namespace.begin(step.pod.tag, step.pod.run, fd, None, namespace.Wish(ipv6=options.ipv6), made).join()
    step.status("connecting the pod")
    addresses, dns = _connect(step, fd, namespace.path_of(step.pod.tag))
    servers = options.dns or dns.get("dns", [])
    options = options._replace(dns=servers, search=options.search or dns.get("search", []))
    return _facts(step._replace(options=options), hostname, addresses)


def further(step: Step, fd: int, facts: Facts) -> Facts:
    """Adds an interface to the namespace that an earlier step of the pod has created."""
    return {"addresses": _connect(step, fd, facts["netns"])[0]}


def check(step: Step) -> list[Problem]:
    """Finds what the mode needs and the host lacks."""
    options: Options = step.options
    mode, _, word = options.mode.partition(":")
    try:
        if mode == "netns":
            os.close(opened(step, mode, word))
        elif mode == "pod" and word == step.pod.name:
            return [Problem("a pod cannot join itself", WRONG_FILE, key="mode")]
        elif mode == "macvlan":
            if not os.path.exists(f"/sys/class/net/{word}"):
                return [Problem(f"the host has no link {word}", UNAVAILABLE, key="mode")]
            if options.address6 and not options.ipv6:
                return [Problem("address6 and ipv6 = false exclude each other", WRONG_FILE, key="ipv6")]
            lacking = [key for key in ("address", "address6") if "/" not in (getattr(options, key) or "/")]
            return [Problem(f"{key} needs a prefix length in mode macvlan", WRONG_FILE, key=key) for key in lacking]
        elif mode == "cni":
            from podrun_hooks.network import cni

            cni.configuration(word)
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint, key="mode")]
    return []


def opened(step: Step, mode: str, word: str) -> int:
    """Opens the namespace to join. Raises Failure."""
    if mode == "pod":
        return _opened_of_pod(step, word)
    netns = namespace.opened(word)
    if os.fstat(netns).st_ino == os.stat("/proc/self/ns/net").st_ino:
        os.close(netns)
        raise Failure(f"{word} is the host's network namespace", code=WRONG_FILE, hint='say mode = "host"')
    return netns


def _opened_of_pod(step: Step, name: str) -> int:
    found = _ledgers_of(step, name)
    if not found:
        raise Failure(f"pod {name} is not up, or has no network of its own", code=UNAVAILABLE)
    try:
        return namespace.opened(namespace.path_of(found[-1].last("tag")))
    except Failure as failure:
        raise Failure(f"pod {name}: {failure.what}", code=UNAVAILABLE) from None


def _ledgers_of(step: Step, name: str) -> list[Ledger]:
    """The ledgers, with a namespace, of another pod's steps: only those of a living generation that serves."""
    serving = filter(ledgers.holds_ports, ledgers.of(step.pod.run, name))
    return [ledger for ledger in serving if ledger.all("netns") and ledgers.alive(step.pod.run, ledger)]


def _hostname_of(step: Step, name: str) -> str:
    for ledger in _ledgers_of(step, name):
        try:
            with open(f"{ledger.path.removesuffix('network')}hostname", encoding="utf-8") as file:
                return file.read().strip()
        except FileNotFoundError:
            continue
    return ""


def _facts(step: Step, hostname: str, addresses: list[str]) -> Facts:
    plain = [cidr.partition("/")[0] for cidr in addresses]
    mounts = files.for_pod(step, step.options, hostname, plain, "", "")
    return {
        "netns": namespace.path_of(step.pod.tag),
        "addresses": addresses,
        "hostname": hostname,
        "mounts": mounts,
    }


def _connect(step: Step, fd: int, path: str) -> tuple[list[str], dict[str, list[str]]]:
    """Adds the interface of the step's mode; returns its addresses (CIDR) and a plugin's values for dns and search."""
    options: Options = step.options
    mode, _, word = options.mode.partition(":")
    netns = namespace.opened(path)
    try:
        if mode == "bridge":
            return _bridged(step, fd, netns), {}
        if mode == "macvlan":
            addresses = [cidr for cidr in (options.address, options.address6) if cidr]
            attach.macvlan(step, fd, netns, word, addresses, options.gateway, wish(options))
            return addresses, {}
        from podrun_hooks.network import cni

        return cni.add(step, fd, netns, path, word)
    finally:
        os.close(netns)


def _bridged(step: Step, fd: int, netns: int) -> list[str]:
    from podrun_hooks.network import name_pod, publish_ports, take_place

    pod = step.pod
    options = with_network(step.options, step.options.bridge or bridge.default_name(pod))
    files.refuse_taken(step, bridge.directory(pod.run, options.bridge or bridge.default_name(pod)))
    place = take_place(step, options, fd)
    addresses = place.addresses
    plain = [cidr.partition("/")[0] for cidr in addresses]
    attach.plug(step, fd, netns, place)
    step.status("naming the pod")
    name_pod(step, files.hostname(step), place.bridge.name, place.bridge.directory, plain, fd)
    if options.publish:
        publish_ports(step, place, plain, fd)
    return addresses
