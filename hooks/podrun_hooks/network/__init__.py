"""The network hook: the pod's network namespace, addresses on a bridge, published ports, and its name in /etc/hosts."""

from __future__ import annotations

import os

from podrun.errors import BUSY, WRONG_FILE, Failure
from podrun.hook import Problem
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.options import HOST_GATEWAY, manner, named, wish, with_network
from podrun_hooks.network.options import Options as Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    from podrun.hook import Facts, Step
    from podrun.hook_extras import Exposure, Finding
    from podrun_hooks.network.child import Child
    from podrun_hooks.network.ledger import Ledger
    from podrun_hooks.network.namespace import Plug

takes: Sequence[str] = ("netns", "addresses", "hostname", "userns")
gives: Sequence[str] = ("netns", "addresses", "hostname", "mounts", "published")
resident = False
default_name = ""

#: Options that only some modes have.
_FOR_MODES = (
    (("publish",), ("bridge", "cni")),
    (("subnet", "subnet6", "bridge", "aliases"), ("bridge",)),
    (("address", "address6"), ("bridge", "macvlan", "cni")),
    (("gateway",), ("macvlan",)),
    (("mac", "interface"), ("bridge", "macvlan", "cni")),
    (("mtu", "routes"), ("bridge", "macvlan")),
    (("sysctls",), ("bridge", "macvlan", "cni", "none")),
    (("ipv6",), ("bridge", "macvlan", "none")),
    (("reuse_port",), ("host",)),
)


#: Modes whose network namespace the pod's own user namespace cannot own: there its root cannot mount sysfs or bind low
#: ports.
_OF_OTHERS = ("host", "netns", "pod")
_NOT_OURS = 'a pod with userns = "auto" cannot be in a network namespace that is not its own'
_OWN = 'userns = "host" in [pod], or another mode'


def up(step: Step, facts: Facts) -> Facts:
    """Creates the pod's namespace with everything in it, in about 4 ms; or adds an interface to an existing one."""
    made = _up(step, facts)
    if step.options.publish:
        from podrun_hooks.network.publish import spec

        made["published"] = [
            {"ip": publish.ip, "host": publish.host, "port": publish.port, "proto": publish.proto}
            for publish in spec.each(step.options.publish)
        ]
    return made


def _up(step: Step, facts: Facts) -> Facts:
    if os.path.exists(ledgers.path_of(step)):
        down(step, {})
    mode = step.options.mode.partition(":")[0]
    netns = facts.get("netns")
    if netns:
        _refuse_second(mode, netns)
    elif facts.get("userns") and mode in _OF_OTHERS:
        raise Failure(_NOT_OURS, code=WRONG_FILE, hint=_OWN)
    elif mode == "host":
        return _in_the_hosts(step)
    fd = ledgers.begin(step)
    try:
        if netns:
            from podrun_hooks.network import modes

            return modes.further(step, fd, facts)
        made = facts["userns"]["netns"] if facts.get("userns") else ""
        if mode in ("bridge", "none"):
            return _in_its_own(step, fd, made)
        from podrun_hooks.network import modes

        return modes.first(step, fd, made)
    finally:
        os.close(fd)


def down(step: Step, own: Facts) -> None:
    """Undoes everything in the step's ledger, in about 1 ms: the kernel deletes the links after this has returned."""
    from podrun_hooks.network import bridge, files, lease, names, namespace

    ledger = ledgers.read(ledgers.path_of(step))
    places = [
        (bridge.directory(step.pod.run, name), bridge.pools_of(step.pod.run, name)) for name in ledger.all("bridge")
    ]
    if ledger.all("holds") and not ledgers.holds_ports(ledger):
        from podrun_hooks.network import swap

        swap.await_sent(step)
    step.status("withdrawing what leads to the pod")
    if ledger.all("cni"):
        from podrun_hooks.network import cni

        cni.release(ledger)
    namespace.silence(ledger)
    forgotten = _begin_withdrawing(step, ledger, [a for place in places for a in lease.held(*place, ledger)])
    step.status("removing the network namespace")
    if ledger.all("plug") or ledger.all("inside"):
        from podrun_hooks.network import attach

        attach.remove(ledger)
        step.status("the interface is gone")
    namespace.unpin(step.pod.tag, ledger)
    if forgotten:
        forgotten.join()
    # Only now: nothing routes to the address any more, and connection tracking has forgotten it.
    step.status("giving the address back")
    for directory, _ in places:
        names.remove(directory, names.mark(step), int(ledger.last("name") or -1))
        lease.release(directory, ledger)
    files.remove(step)
    ledgers.end(step)


def check(step: Step) -> list[Problem]:
    """Finds options that cannot be combined, and ports that another pod or process holds."""
    options: Options = step.options
    mode = options.mode.partition(":")[0]
    misplaced = [key for keys, fine in _FOR_MODES if mode not in fine for key in keys if _is_said(options, key)]
    if step.pod.userns == "auto" and mode in _OF_OTHERS:
        return [Problem(_NOT_OURS, WRONG_FILE, _OWN, key="mode")]
    if misplaced:
        return [Problem(f"{key} is not for mode {mode}", WRONG_FILE, key=key) for key in misplaced]
    if HOST_GATEWAY in options.hosts.values() and mode not in ("bridge", "host"):
        what = f"host-gateway is not for mode {mode}: the pod has no address of this host"
        return [Problem(what, WRONG_FILE, key="hosts")]
    if mode in ("bridge", "none", "host"):
        problems = _checked_address(step) if options.address or options.address6 else []
    else:
        from podrun_hooks.network import modes

        problems = modes.check(step)
    if mode == "bridge":
        problems += _checked_name(step)
    if options.publish and mode == "bridge" and not problems:
        problems += _checked_ports(step)
    if step.pod.thorough and mode == "bridge":
        from podrun_hooks.network import health

        problems += health.of_a_pod(step, options)
    return problems


def exposes(step: Step) -> Iterator[Exposure]:
    """Reports whose network the pod is in, and who can reach it."""
    from podrun_hooks.network.exposure import of

    return of(step)


def explain(step: Step) -> list[str]:
    """The iproute2 and nftables commands that do the same."""
    from podrun_hooks.network.by_hand import commands

    return commands(step)


def diagnose(root: str, run: str) -> Iterator[Finding]:
    """Checks bridges, rules and published ports, and looks for foreign rules that block them."""
    from podrun_hooks.network import health

    return health.findings(root, run)


def collect(root: str, run: str, pods: Set[str], only_look: bool) -> list[str]:
    """Removes kernel objects of dead pods, and the bridges if no pod is left; returns their names."""
    from podrun_hooks.network import inspect

    found = [f"{one['kind']} {one['name']}" for one in inspect.collect(run, keep=only_look)]
    if not pods and not only_look:
        found += [f"bridge {name}" for name in inspect.remove_bridges(run)]
    return found


def exclusive(step: Step) -> str:
    """The part of the step that two generations of a pod cannot have at once; "" if there is none."""
    from podrun_hooks.network import swap

    return swap.exclusive(step)


def take_over(step: Step, own: Facts, before: Step, before_own: Facts) -> None:
    """Moves names and published ports from another generation's step to this one's."""
    from podrun_hooks.network import swap

    swap.take_over(step, own, before)


def settle(step: Step, own: Facts, seconds: float) -> None:
    """Waits until connections that were on their way to a replaced generation have arrived."""
    from podrun_hooks.network import swap

    swap.settle(step, seconds)


def _begin_withdrawing(step: Step, ledger: Ledger, addresses: Sequence[str]) -> Child | None:
    """Withdraws the ports and makes connection tracking forget the addresses; with ports, in a child to join."""
    if ledger.all("publish"):
        from podrun_hooks.network import bridge
        from podrun_hooks.network.publish import ports

        return ports.begin_release(bridge.table(step.pod), ledger, addresses)
    if addresses:
        from podrun_hooks.network import bridge, forget

        forget.forget(bridge.table(step.pod), addresses)
    return None


def _refuse_second(mode: str, netns: str) -> None:
    if netns == "host":
        raise Failure("the pod is in the host's network already", code=WRONG_FILE, hint="one network step is enough")
    if mode not in ("bridge", "macvlan", "cni"):
        hint = "a further step adds an interface: bridge, macvlan: or cni:"
        raise Failure("the pod has a network already", code=WRONG_FILE, hint=hint)


def _in_the_hosts(step: Step) -> Facts:
    from podrun_hooks.network import files

    options = _with_host(step.options, "127.0.0.1")
    hostname = options.hostname or os.uname().nodename
    files.follow_host(step, options, reachable_loopback=True, hosts=True)
    content = {
        "hosts": files.host_hosts(options.hosts),
        "resolv.conf": files.resolv(options.dns, options.search, options.dns_options, reachable_loopback=True),
        "hostname": f"{hostname}\n",
    }
    return {"netns": "host", "addresses": [], "hostname": hostname, "mounts": files.write(step, content)}


def _in_its_own(step: Step, fd: int, made: str) -> Facts:
    from podrun_hooks.network import bridge, files, names, namespace

    pod = step.pod
    options: Options = step.options
    hostname = files.hostname(step)
    if pod.beside:
        ledgers.note(fd, "holds", "no")
    place = None
    addresses: list[str] = []
    if options.mode == "bridge":
        options = with_network(options, options.bridge or bridge.default_name(pod))
        files.refuse_taken(step, bridge.directory(pod.run, options.bridge or bridge.default_name(pod)))
        place = take_place(step, options, fd)
        addresses = place.addresses
        options = _with_host(options, place.of_bridge(1)[0].partition("/")[0])
    step.status("making the network namespace")
    connecting = namespace.begin(pod.tag, pod.run, fd, place, wish(options), made)
    try:
        plain = [cidr.partition("/")[0] for cidr in addresses]
        shared = ""
        if place:
            if not pod.beside:
                name_pod(step, hostname, place.bridge.name, place.bridge.directory, plain, fd)
            shared = "" if options.hosts else names.path_of(place.bridge.directory)
        mounts = files.for_pod(step, options, hostname, plain, shared, place.bridge.directory if place else "")
        step.status("connecting the pod")
        connecting.join()
    finally:
        connecting.end()
    if place and options.publish and not pod.beside:
        publish_ports(step, place, plain, fd)
    return {"netns": namespace.path_of(pod.tag), "addresses": addresses, "hostname": hostname, "mounts": mounts}


def _with_host(options: Options, address: str) -> Options:
    """``options`` with the host's address in place of docker's host-gateway."""
    if HOST_GATEWAY not in options.hosts.values():
        return options
    return options._replace(hosts={name: address if ip == HOST_GATEWAY else ip for name, ip in options.hosts.items()})


def take_place(step: Step, options: Options, fd: int) -> Plug:
    """Leases the pod's addresses on the bridge that the options name, noting each in the ledger at ``fd`` first."""
    from podrun_hooks.network import bridge, lease, namespace

    pod = step.pod
    name = options.bridge or bridge.default_name(pod)
    step.status(f"looking for bridge {name}")
    held = bridge.held(pod.run)
    try:
        on = bridge.ensure(pod.run, bridge.table(pod), name, options.subnet, options.subnet6, manner=manner(name))
        ledgers.note(fd, "bridge", name)
    finally:
        os.close(held)
    wanted = options.address.partition("/")[0]
    if wanted:
        lease.fixed(on.pool, wanted)
    step.status("leasing an address")
    address = lease.claim(on.directory, pod.run, ledgers.path_of(step), fd, on.pools, pod.name, wanted)
    n = on.pool.offset(address)
    address6 = ""
    if options.address6 and options.ipv6:
        address6 = lease.fixed6(on.pool, on.pool6, options.address6.partition("/")[0], n)
        if address6:
            lease.claim(on.directory, pod.run, ledgers.path_of(step), fd, on.pools, pod.name, address6)
    return namespace.Plug(on, n, bool(options.publish), wish(options), address6, not on.manner.any_source)


def name_pod(step: Step, hostname: str, name: str, directory: str, addresses: Sequence[str], fd: int) -> None:
    """Adds the pod's names to the hosts file of the bridge ``name`` with this ``directory``."""
    from podrun_hooks.network import files, names

    where = names.add(directory, named(name, addresses), files.names(step, hostname), names.mark(step))
    ledgers.note(fd, "name", str(where))


def publish_ports(step: Step, place: Plug, addresses: Sequence[str], fd: int) -> None:
    """Publishes the step's ports to the pod's ``addresses``."""
    from podrun_hooks.network.publish import ports, spec

    step.status("publishing ports")
    ports.take(step.pod, place.bridge, spec.each(step.options.publish), addresses, fd)
    step.status("ports are published")


def _is_said(options: Options, key: str) -> bool:
    return not options.ipv6 if key == "ipv6" else bool(getattr(options, key))


def _checked_address(step: Step) -> list[Problem]:
    from podrun_hooks.network import bridge, lease

    options = step.options
    try:
        options = with_network(options, options.bridge or bridge.default_name(step.pod))
        if options.address6 and not options.ipv6:
            return [Problem("address6 and ipv6 = false exclude each other", WRONG_FILE, key="address6")]
        address, address6 = (text.partition("/")[0] for text in (options.address, options.address6))
        pool = lease.subnet(options.subnet) if options.subnet else None
        if pool and address:
            lease.fixed(pool, address)
        if pool and address6 and options.subnet6:
            lease.fixed6(pool, lease.subnet(options.subnet6), address6, pool.offset(address) if address else 0)
    except Failure as failure:
        return [Problem(failure.what, failure.code, key="address")]
    return []


def _checked_name(step: Step) -> list[Problem]:
    from podrun_hooks.network import bridge, files

    try:
        files.refuse_taken(step, bridge.directory(step.pod.run, step.options.bridge or bridge.default_name(step.pod)))
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint, key="hostname")]
    return []


def _checked_ports(step: Step) -> list[Problem]:
    from podrun_hooks.network import bridge
    from podrun_hooks.network.publish import ports, spec

    found = []
    seen: set[tuple[str, int, str]] = set()
    on = step.options.bridge or bridge.default_name(step.pod)
    open_to = [one for one in step.options.publish if not one.ip.startswith("127.")]
    if open_to and manner(on).internal:
        what = f"port {open_to[0]} is published for other machines, but the network {on} is internal"
        found.append(Problem(what, WRONG_FILE, "publish it on 127.0.0.1", key="publish"))
    for wanted in spec.each(step.options.publish):
        place = (wanted.ip, wanted.host, wanted.proto)
        if place in seen:
            found.append(Problem(f"port {wanted} is published twice", WRONG_FILE, key="publish"))
        seen.add(place)
        holder = ports.holder(step.pod, bridge.table(step.pod), wanted)
        if holder:
            found.append(Problem(f"port {wanted} is in use by {holder}", BUSY, key="publish"))
    return found
