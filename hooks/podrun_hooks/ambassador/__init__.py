"""The ambassador: an address in the pod that stands for a service, wherever it is now.

Two ways: a map in the pod's network namespace (nft), which leaves no process and costs no copy, and the pod's own
HAProxy, which is a resident step. The step writes a wish (registry/wishes.py); whoever learns of a change brings it to
the pod (reach.py): with the file registry the step that writes a record, else the follower.
"""

from __future__ import annotations

import os

from podrun import atomic
from podrun.errors import BUSY, STEP_FAILED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Problem
from podrun.unit_needs import Span, UnitNeeds
from podrun_hooks.ambassador import listing
from podrun_hooks.ambassador.options import Options as Options
from podrun_hooks.registry import file, wishes
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.wishes import Ambassador

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.hook import Facts, Step
    from podrun_hooks.registry.record import Record

takes: Sequence[str] = ("netns", "addresses", "hostname", "mounts")
gives: Sequence[str] = ("env", "mounts", "backends", "syn_timer", "process")
#: A step with these options leaves a process.
resident: bool | dict[str, str] = {"via": "haproxy"}
default_name = ""
unit_needs = UnitNeeds(stop=(Span(("drain",), 0.0),), follows=(("registry",),))

#: From here podrun takes the addresses of services in a pod: a network for benchmarks, routed nowhere (RFC 2544).
_NETWORK = "198.18.0."
#: Milliseconds after which a container's connection to the ambassador sends its SYN again.
SYN_TIMER = 50


def up(step: Step, facts: Facts) -> Facts:
    """Directs the pod's connections to the service from now on; while there is no backend, they are held."""
    options: Options = step.options
    netns = facts.get("netns", "")
    if not netns:
        raise Failure("the pod has no network", code=WRONG_FILE, hint="put a network step before the ambassador")
    if options.via == "haproxy":
        from podrun_hooks.ambassador import haproxy

        given: Facts = haproxy.up(step, facts)
        return given
    if netns == "host":
        hint = "via = 'haproxy', or a network of the pod's own"
        raise Failure("via = 'nft' needs a network namespace of the pod's own", code=WRONG_FILE, hint=hint, key="via")
    lock = wishes.held(step.pod.run)
    try:
        wish = _wish(step, facts, netns)
        # Before the table: the namespace may be another pod's, and outlive this one.
        wishes.write(step.pod.run, wish)
        _enter(netns, lambda: _prepare(wish))
    finally:
        os.close(lock)
    backends = follow(step, wish)
    return {**told(step, facts, wish, backends), "syn_timer": {wish.address: [SYN_TIMER, int(min(wish.hold, 3600.0))]}}


def down(step: Step, own: Facts) -> None:
    """Ends that, and removes what the step put into the namespace, which others may go on using."""
    run = step.pod.run
    wish = wishes.read(run, _owner(step), step.name)
    if step.options.via == "haproxy":
        from podrun_hooks.ambassador import haproxy

        haproxy.down(step, own)
    elif isinstance(wish, Ambassador):
        lock = wishes.held(run)
        try:
            _enter(wish.netns, lambda: _remove(wish), wish.inode)
        finally:
            os.close(lock)
    wishes.remove(run, _owner(step), step.name)
    listing.end(step)
    _remove_hosts(step)


def check(step: Step) -> list[Problem]:
    """Options that do not go together, and programs that are not there."""
    from podrun_hooks.support import subprocesses

    options: Options = step.options
    problems = [
        Problem(f"{key} is for via = 'haproxy'", WRONG_FILE, key=key)
        for key, given in (("mode", options.mode != "tcp"), ("drain", options.drain))
        if given and options.via == "nft"
    ]
    if options.via == "haproxy" and options.proto != "tcp":
        problems.append(Problem("HAProxy serves tcp only", WRONG_FILE, "via = 'nft'", key="proto"))
    if options.via == "haproxy" and options.balance == "source" and options.mode == "http":
        problems.append(
            Problem(
                "balance does not hold for a request that is tried again: it goes to another backend",
                WRONG_FILE,
                key="balance",
            )
        )
    program, package = ("haproxy", "haproxy") if options.via == "haproxy" else ("nft", "nftables")
    try:
        subprocesses.find(program, package)
    except Failure as failure:
        problems.append(Problem(failure.what, UNAVAILABLE, failure.hint, key="via"))
    return [*problems, *sources.problems(options.registry, step.pod.run)]


def exclusive(step: Step) -> str:
    """What two generations cannot have at once: HAProxy's socket and cgroup."""
    return "HAProxy" if step.options.via == "haproxy" else ""


def _owner(step: Step) -> str:
    """Whose wish it is: each generation of a pod has a namespace of its own."""
    return step.pod.name + step.pod.suffix


def explain(step: Step) -> list[str]:
    """The commands of nft that do the same."""
    options: Options = step.options
    if options.via == "haproxy":
        return ["haproxy -db -f CONFIGURATION   # in the pod's network namespace"]
    from podrun_hooks.ambassador import ruleset

    table = _table(step)
    inside = f"ip netns exec {step.pod.tag} nft"
    address = options.address or f"{_NETWORK}1"
    element = f"{options.proto} . {address} . {options.port} : BACKEND . PORT"
    script = " ".join(line for line in ruleset.text(table).splitlines() if "flush" not in line).strip()
    return [f"{inside} '{script[:300]} ...'", f"{inside} add element inet {table} one '{{ {element} }}'"]


# --- for the container steps ---------------------------------------------------------------------------------------


def told(step: Step, facts: Facts, wish: Ambassador, backends: Sequence[Record]) -> Facts:
    """What containers get: variables, plain ones and those of docker's links, and a name in /etc/hosts."""
    options: Options = step.options
    name = options.env_prefix or "".join(c if c.isalnum() else "_" for c in options.service).upper()
    place = f"{wish.proto}://{wish.address}:{wish.port}"
    link = f"{name}_PORT_{wish.port}_{wish.proto.upper()}"
    env = [
        f"{name}_HOST={wish.address}",
        f"{name}_ADDR={wish.address}",
        f"{link}={place}",
        f"{link}_ADDR={wish.address}",
        f"{link}_PORT={wish.port}",
        f"{link}_PROTO={wish.proto}",
        # docker's own NAME_PORT was a URL, which no program that takes a port understands.
        f"{name}_PORT={wish.port}",
        f"{name}_URL={place}",
    ]
    known = [{"id": one.id, "addr": one.addr, "port": one.port} for one in backends]
    mounts = [*_hosts(step, facts, wish), *listing.mounts(step)]
    return {"env": env, "mounts": mounts, "backends": {options.service: known}}


def _hosts(step: Step, facts: Facts, wish: Ambassador) -> list[dict[str, Any]]:
    """A hosts file of the pod's own: what the pod's had so far, and the service's name."""
    earlier = [mount for mount in facts.get("mounts") or () if mount["containerPath"] == "/etc/hosts"]
    text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    if earlier:
        with open(earlier[-1]["hostPath"], encoding="utf-8", errors="replace") as before:
            # The bridge's file has dead records in it, as comments.
            text = "".join(f"{line.rstrip()}\n" for line in before if not line.startswith("#"))
    path = _hosts_path(step)
    atomic.replace(path, f"{text}{wish.address}\t{wish.service}\n", 0o644)
    restricted = ["bind", "ro", "nosuid", "nodev", "noexec"]
    return [{"hostPath": path, "containerPath": "/etc/hosts", "type": "bind", "options": restricted}]


def _hosts_path(step: Step) -> str:
    return f"{step.pod.directory}/{step.name}.ambassador.hosts"


def _remove_hosts(step: Step) -> None:
    try:
        os.unlink(_hosts_path(step))
    except FileNotFoundError:
        pass


# --- following -----------------------------------------------------------------------------------------------------


def follow(step: Step, wish: Ambassador) -> list[Record]:
    """Directs the pod to what the registry says now, and makes sure that it stays so; returns the service's records.

    A registry that is away is no failure: the pod starts, and finds the service once the registry answers.
    """
    run, source = step.pod.run, wish.source
    if not source.has_server:
        with wishes.Locked(run, source.directory):
            records = file.records(source.directory, wish.service)
            _lead(step, wish, records)
        return records
    from podrun_hooks.follow import begin
    from podrun_hooks.register import PATIENCE
    from podrun_hooks.registry import connect
    from podrun_hooks.registry.http import Away, Refused

    begin.ensure(step)
    step.status(f"looking for {wish.service}")
    client = connect(source)
    client.limit(PATIENCE)
    try:
        records = client.records(wish.service, seconds=PATIENCE)
    except (Away, Refused) as error:
        step.status(f"the registry is away, {wish.service} is held: {error}")
        return []
    finally:
        client.close()
    _lead(step, wish, records)
    # Once more: the follower may have led the pod meanwhile by what it had read later, and does so again.
    wishes.write(run, wish)
    return records


def _lead(step: Step, wish: Ambassador, records: Sequence[Record]) -> None:
    from podrun_hooks.ambassador import reach
    from podrun_hooks.network.child import Child
    from podrun_hooks.network.netlink import nfnetlink

    def lead() -> str:
        lines: list[str] = []
        reach.lead(step.pod.run, [(wish, records)], lines.append)
        return "\n".join(lines)[:2000]

    nfnetlink.close()
    for line in Child(lead, lingering=0.05).join().splitlines():
        os.write(2, f"podrun: {line}\n".encode(errors="replace"))


# --- in the pod's namespace ----------------------------------------------------------------------------------------


def _wish(step: Step, facts: Facts, netns: str) -> Ambassador:
    """The step's wish. The caller holds the lock of the wishes: an address is for one service of a namespace."""
    from podrun_hooks.network import bridge

    options: Options = step.options
    inode = os.stat(netns).st_ino
    others = [
        other
        for other in wishes.everything(step.pod.run)
        if isinstance(other, Ambassador)
        and other.inode == inode
        and (other.pod, other.step) != (_owner(step), step.name)
    ]
    taken = {other.address for other in others}
    address = options.address or next((f"{_NETWORK}{n}" for n in range(1, 255) if f"{_NETWORK}{n}" not in taken), "")
    if not address:
        raise Failure("the pod already has 254 ambassadors", code=BUSY)
    same = [
        other for other in others if (other.address, other.port, other.proto) == (address, options.port, options.proto)
    ]
    if same:
        what = f"{address}:{options.port} already stands for {same[0].service} in this pod"
        raise Failure(what, code=WRONG_FILE, key="address")
    own = [text.partition("/")[0] for text in facts.get("addresses") or ()]
    return Ambassador(
        _owner(step), step.name, sources.resolved(options.registry, step.pod.run), options.service, options.via, netns,
        inode, _table(step), options.proto, address, options.port, options.hold, options.balance, own,
        bridge.table(step.pod), listing.begin(step),
    )  # fmt: skip


def _table(step: Step) -> str:
    return f"{step.pod.tag.replace('+', '.')}"


def _enter(netns: str, work: Any, inode: int = 0) -> None:
    """Does ``work`` in a namespace; with ``inode`` only if it is that one, and nothing when it is gone."""
    from podrun_hooks.network.child import Child
    from podrun_hooks.support import syscalls

    try:
        fd = os.open(netns, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if inode:
            return
        raise
    try:
        if inode and os.fstat(fd).st_ino != inode:
            return

        def enter() -> str:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
            work()
            return ""

        Child(enter).join()
    finally:
        os.close(fd)


def _prepare(wish: Ambassador) -> None:
    """Makes the table, and a route to the address if there is none: without one the kernel refuses to send."""
    from podrun_hooks.ambassador import maps, ruleset, syn_timer
    from podrun_hooks.network import namespace
    from podrun_hooks.network.netlink import nfnetlink

    socket = nfnetlink.socket()
    if not nfnetlink.has_table(socket, wish.place):
        ruleset.lay(wish.place)
    maps.begin(socket, wish)
    # A connection that its backend resets after a move is over at once; with its entry kept for 10 s, a client that
    # uses the port again would be sent to the old backend (see flows.forget).
    namespace.set_sysctls([("net/netfilter/nf_conntrack_tcp_timeout_close", "0")])
    if os.path.exists("/proc/sys/net/ipv4/tcp_syn_linear_timeouts"):
        # The first retransmissions come at an even pace: 20 of them, 50 ms apart, fill a second (Linux 6.5).
        namespace.set_sysctls([("net/ipv4/tcp_syn_linear_timeouts", str(syn_timer.LINEAR))])
    if wish.address.startswith("127."):
        namespace.set_sysctls([("net/ipv4/conf/all/route_localnet", "1")])
    else:
        _route(wish.address)


def _route(address: str) -> None:
    import _socket
    from _socket import if_nametoindex

    from podrun_hooks.network.netlink import rtnetlink

    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        probe.connect((address, 9))
        return
    except OSError:
        pass
    finally:
        probe.close()
    with rtnetlink.Socket() as socket:
        links = [link.name for link in socket.links() if link.name != "lo" and link.kind not in ("sit", "ipip", "gre")]
        if not links:
            hint = "put a network step whose mode connects the pod before the ambassador"
            raise Failure("the pod is connected to nothing", code=STEP_FAILED, hint=hint)
        socket.send(rtnetlink.route(if_nametoindex(links[0]), f"{address}/32", tolerated=(17,)))


def _remove(wish: Ambassador) -> None:
    from podrun_hooks.ambassador import maps, ruleset
    from podrun_hooks.network.netlink import nfnetlink

    socket = nfnetlink.socket()
    if nfnetlink.has_table(socket, wish.place) and not maps.forget(socket, wish):
        ruleset.remove(wish.place)
