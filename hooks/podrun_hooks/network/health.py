"""Checks the network: finds missing bridges, rules and ports, and foreign rules that block pods; repairs the former."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from podrun.errors import UNAVAILABLE, Failure
from podrun.hook import Pod, Problem, Step
from podrun.hook_extras import Finding
from podrun.identity import Identity
from podrun_hooks.network import bridge as bridges
from podrun_hooks.network import cni, files, namespace
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.bridge import Bridge
from podrun_hooks.network.child import Child
from podrun_hooks.network.netlink import classifier, rtnetlink
from podrun_hooks.network.options import Options
from podrun_hooks.network.publish import spec
from podrun_hooks.support import subprocesses, syscalls

_FORWARDING = (("IPv4", "/proc/sys/net/ipv4/ip_forward"), ("IPv6", "/proc/sys/net/ipv6/conf/all/forwarding"))
_BRIDGE_CALLS = "/proc/sys/net/bridge/bridge-nf-call-iptables"
_RELOAD = "podrun network reload"


def problems(run: str) -> list[Problem]:
    """Finds what cuts the pods of a run directory off from their network; changes nothing."""
    found = []
    for state in cni.living(run):
        wrong = cni.check(state)
        if wrong:
            found.append(Problem(f"CNI network {state['network']['name']} of {state['id']}: {wrong}"))
    known = bridges.known_in(run)
    if not known:
        return found
    rules = ruleset()
    for bridge in known:
        found += [*_gone(run, bridge, rules), *_blocked(bridge.name, rules)]
    for version, path in _FORWARDING[: 2 if any(bridge.pool6 for bridge in known) else 1]:
        if _content(path) == "0":
            what = f"the host does not forward {version}: pods reach nobody outside, and nobody reaches them"
            found.append(Problem(what, hint=_RELOAD))
    return found


def findings(root: str, run: str) -> Iterator[Finding]:
    """The findings of ``podrun doctor`` about the network."""
    try:
        subprocesses.find("nft", "nftables")
    except Failure as lacking:
        yield Finding("fail", lacking.what, lacking.hint, lacking.code)
        return
    if _cannot_filter():
        yield Finding(
            "fail", f"{namespace.NO_FILTER}: no pod starts on a bridge", namespace.NO_FILTER_HINT, UNAVAILABLE
        )
    found = problems(run)
    for problem in found:
        yield Finding("fail", problem.what, problem.hint, problem.code)
    known = bridges.known_in(run)
    if not known:
        # Look for rules that would block the first pod's bridge.
        name = bridges.default_name(Pod("any", root, run, Identity("any").tag(run)))
        yield Finding("ok", f"no bridge yet; the first pod makes {name}")
        for problem in _blocked(name, ruleset()):
            yield Finding("warn", problem.what, problem.hint)
    elif not found:
        names = ", ".join(f"{bridge.name} ({bridge.pool})" for bridge in known)
        yield Finding("ok", f"{names}: bridges, rules and published ports are whole")


def of_a_pod(step: Step, options: Options) -> list[Problem]:
    """The findings of a thorough check of a pod on a bridge; only warnings, as the pod can start nevertheless."""
    found = []
    try:
        subprocesses.find("nft", "nftables")
    except Failure as lacking:
        # Fatal: nothing else lays the rules that keep pods apart.
        return [Problem(lacking.what, lacking.code, lacking.hint, key="mode")]
    if _cannot_filter():
        return [Problem(namespace.NO_FILTER, UNAVAILABLE, namespace.NO_FILTER_HINT, key="mode")]
    if not options.dns and not files.has_server(files.resolv([], reachable_loopback=False)):
        found.append(Problem("no name server of the host can be reached from the pod", hint="give the step dns"))
    found += _blocked(options.bridge or bridges.default_name(step.pod), ruleset())
    return [problem._replace(fatal=False) for problem in found]


def _cannot_filter() -> bool:
    """Whether a pod's port would have no filter, tried in a network namespace that nobody sees."""

    def ask() -> str:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        with rtnetlink.Socket() as socket:
            try:
                # The loopback link, which is always number 1 (register_netdevice() of loopback_net_init()).
                socket.send(*classifier.attached(1, classifier.no_loopback()))
            except OSError as error:
                return "no" if classifier.is_missing(error) else ""
        return ""

    return Child(ask).join() == "no"


def reload(run: str) -> list[str]:
    """Repairs bridges, the table and living pods' ports; returns the names of the bridges."""
    done = []
    for bridge in bridges.known_in(run):
        bridges.ensure(run, bridge.table, bridge.name, anyway=True)
        bridges.allow_localnet(bridge.name)
        spec.restore(run, bridge.table)
        done.append(bridge.name)
    return done


def ruleset() -> list[dict[str, Any]]:
    """The host's nftables ruleset, with that of iptables-nft, as nft's JSON objects."""
    # -t (terse) leaves out the elements of sets, of which there may be thousands.
    ended = subprocesses.run([subprocesses.find("nft", "nftables"), "-jt", "list", "ruleset"])
    return [] if ended.status else json.loads(ended.output)["nftables"]


def _gone(run: str, bridge: Bridge, rules: list[dict[str, Any]]) -> Iterator[Problem]:
    state = _content(f"/sys/class/net/{bridge.name}/operstate")
    if not state:
        yield Problem(f"bridge {bridge.name} is gone", hint="the next start of a pod makes it; restart those on it")
        return
    if int(_content(f"/sys/class/net/{bridge.name}/flags") or "0x1", 16) & 1 == 0:
        yield Problem(f"bridge {bridge.name} is down", hint=_RELOAD)
    for port in _unfiltered(bridge):
        what = f"port {port.name} of {port.alias} is not filtered: the pod may pretend to be another one"
        yield Problem(what, hint="restart the pod")
    ours = [item["rule"] for item in rules if item.get("rule", {}).get("table") == bridge.table]
    if not bridges.has_table(bridge.table) or (rules and not ours):
        what = f"table inet {bridge.table} was flushed: published ports are closed, pods do not get out"
        yield Problem(f"{what}, and a machine on the same L2 segment could route to them", hint=_RELOAD)
        return
    for ledger in ledgers.everywhere(run):
        if bridge.name in ledger.all("bridge") and ledgers.alive(run, ledger):
            for publish in spec.lost(bridge.table, ledger):
                yield Problem(f"port {publish} of pod {ledgers.pod_of(ledger)} is not published any more", hint=_RELOAD)


def _unfiltered(bridge: Bridge) -> Iterator[rtnetlink.Link]:
    """The pods' ports of a bridge that have no filter: somebody removed it, or an older podrun created the port."""
    with rtnetlink.Socket() as socket:
        for link in socket.links():
            ours = link.kind == "veth" and link.master == bridge.ifindex and link.name.startswith("pr")
            if ours and not classifier.is_attached(socket, link.ifindex):
                yield link


def _blocked(bridge: str, rules: list[dict[str, Any]]) -> Iterator[Problem]:
    """Foreign chains that drop forwarded packets unless one of their rules accepts them.

    Every base chain of a hook has to accept a packet (nft(8)): no rule of podrun can undo another chain's drop.
    """
    chains = [item["chain"] for item in rules if "chain" in item]
    for chain in chains:
        if chain.get("hook") != "forward" or chain.get("policy") != "drop":
            continue
        if _lets_through(bridge, chain, rules):
            continue
        where = f"{chain['family']} {chain['table']} {chain['name']}"
        what = f"chain {where} drops what is forwarded: pods on {bridge} do not get out, published ports are closed "
        what += "to other machines"
        if _content(_BRIDGE_CALLS) == "1":
            what += ", and pods do not reach each other (br_netfilter)"
        names = {one["name"] for one in chains if one["table"] == chain["table"] and one["family"] == chain["family"]}
        tool = "ip6tables" if chain["family"] == "ip6" else "iptables"
        own = "DOCKER-USER" if "DOCKER-USER" in names else chain["name"]
        hint = f"allow it: {tool} -I {own} -i {bridge} -j ACCEPT && {tool} -I {own} -o {bridge} -j ACCEPT"
        yield Problem(what, hint=hint)


def _lets_through(bridge: str, chain: dict[str, Any], rules: list[dict[str, Any]]) -> bool:
    """True if a rule of the chain's table accepts packets from the bridge, and another accepts packets to it."""
    seen = set()
    for item in rules:
        rule = item.get("rule")
        if not rule or (rule["family"], rule["table"]) != (chain["family"], chain["table"]):
            continue
        if not any("accept" in part for part in rule["expr"]):
            continue
        matches = [part["match"] for part in rule["expr"] if "match" in part]
        for match in matches:
            key = match["left"].get("meta", {}).get("key") if isinstance(match["left"], dict) else None
            if key in ("iifname", "oifname") and match["right"] == bridge:
                seen.add(key)
    return seen == {"iifname", "oifname"}


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""
