"""Lists the networks of a run directory and removes what no pod needs any more. Not on the start path."""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

from pyroute2 import IPRoute

from podrun.hook import Pod
from podrun.identity import Identity
from podrun.options import read
from podrun_hooks.network import attach, cni, files, lease, names, namespace, options
from podrun_hooks.network import bridge as bridges
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.bridge import Bridge
from podrun_hooks.network.ledger import Ledger
from podrun_hooks.network.netlink import rtnetlink
from podrun_hooks.network.publish import ruleset
from podrun_hooks.network.publish.spec import noted
from podrun_hooks.support import rooted_tree, subprocesses

_ENODEV = 19
_MAPS = ("host4", "host6", "any4", "any6")


def networks(run: str) -> list[dict[str, Any]]:
    """The bridges: name, subnet, subnet6, up, ports (names of the links on it), leases (how many), table, routed,
    internal, guarded.

    ``guarded`` is False when somebody has flushed the table: published ports are closed, pods cannot get out, and they
    can reach the host's loopback; the next start of any pod restores it.
    """
    with IPRoute() as route:
        found = [_described(link) for link in route.get_links()]
    rows = []
    for bridge in bridges.known_in(run):
        link = next((one for one in found if one["name"] == bridge.name), None)
        rows.append(
            {
                "name": bridge.name,
                "subnet": str(bridge.pool),
                "subnet6": str(bridge.pool6 or ""),
                "up": bool(link and link["up"]),
                "ports": [one["name"] for one in found if link and one["master"] == link["ifindex"]],
                "leases": len(rooted_tree.names(f"{bridge.directory}/leases")),
                "table": bridge.table,
                "routed": bridge.manner.routed,
                "internal": bridge.manner.internal,
                "guarded": bridges.has_table(bridge.table),
            }
        )
    return rows


def known(run: str) -> list[dict[str, Any]]:
    """The networks that a pod may name: the bridges, those that networks.toml declares, and the default one.

    As of :func:`networks`, with ``made``: False for one that the first pod on it makes.
    """
    rows = [{**row, "made": True} for row in networks(run)]
    declared = options.networks()
    default = bridges.default_name(Pod("any", "/", run, Identity("any").tag(run)))
    for name in dict.fromkeys([default, *declared]):
        if all(row["name"] != name for row in rows):
            about = declared.get(name) or read(options.Network, {})
            rows.append(
                {
                    "name": name,
                    "subnet": about.subnet,
                    "subnet6": about.subnet6,
                    "up": False,
                    "ports": [],
                    "leases": 0,
                    "table": "",
                    "routed": about.routed,
                    "internal": about.internal,
                    "guarded": False,
                    "made": False,
                }
            )
    return rows


def leases(run: str) -> list[dict[str, Any]]:
    """The leased addresses: bridge, address, pod, alive."""
    return [
        {"bridge": bridge.name, "address": address, "pod": ledgers.pod_of(ledger), "alive": ledgers.alive(run, ledger)}
        for bridge in bridges.known_in(run)
        for address in rooted_tree.names(f"{bridge.directory}/leases")
        for ledger in [ledgers.read(f"{bridge.directory}/leases/{address}")]
    ]


def published(run: str) -> list[dict[str, Any]]:
    """The ports that pods have published: ip, port, proto, pod, address and target_port of the pod."""
    rows = []
    for ledger in filter(ledgers.holds_ports, ledgers.everywhere(run)):
        for line in ledger.all("publish"):
            ip, host, inner, proto, address, _ = line.split(" ")
            row = {"ip": ip, "port": int(host), "proto": proto, "pod": ledgers.pod_of(ledger), "address": address}
            rows.append({**row, "target_port": int(inner)})
    return rows


def namespaces(run: str) -> list[dict[str, Any]]:
    """The pinned namespaces that are this run directory's: path, tag, inode, alive (no: unknown to the ledgers)."""
    found = []
    for tag in rooted_tree.names(namespace.DIRECTORY):
        path = namespace.path_of(tag)
        if not (tag.startswith("podrun-") and namespace.is_netns(path)):
            continue
        if namespace.loopback_alias(path) == namespace.mark(tag, run):
            try:
                found.append((path, tag, str(os.stat(path).st_ino)))
            except FileNotFoundError:
                continue  # a down has removed it meanwhile
    # A start notes the inode before it pins the namespace: ledgers that are read now know all that was pinned.
    inodes = {
        inode for ledger in ledgers.everywhere(run) if ledgers.alive(run, ledger) for inode in ledger.all("netns")
    }
    return [{"path": path, "tag": tag, "inode": inode, "alive": inode in inodes} for path, tag, inode in found]


def links(run: str) -> list[dict[str, Any]]:
    """The host's ends of pods' veth pairs: name, tag, bridge, up, rx_bytes and tx_bytes as the pod sees them."""
    with IPRoute() as route:
        found = [_described(link) for link in route.get_links()]
    names = {bridge.name for bridge in bridges.known_in(run)}
    indexes = {link["ifindex"]: link["name"] for link in found if link["name"] in names}
    return [
        {
            "name": link["name"],
            "tag": link["alias"],
            "bridge": indexes[link["master"]],
            "up": link["up"],
            "rx_bytes": link["tx_bytes"],
            "tx_bytes": link["rx_bytes"],
        }
        for link in found
        if link["master"] in indexes and link["kind"] == "veth"
    ]


def collect(run: str, *, keep: bool = False) -> list[dict[str, str]]:
    """Removes what pods without a journal left behind; returns what it was: kind, name, pod. ``keep``: only looks."""
    gone: list[dict[str, str]] = []
    for row in namespaces(run):
        if not row["alive"]:
            gone.append({"kind": "netns", "name": row["tag"], "pod": ""})
            if not keep:
                namespace.remove(row["path"], {row["inode"]})
    gone += _collect_links(run, keep)
    for bridge in bridges.known_in(run):
        gone += [*_collect_ports(run, bridge, keep), *_collect_names(run, bridge, keep)]
        # Last: nothing leads to an address or answers for it any more.
        dead = lease.collect(bridge.directory, run, bridge.pools, keep=keep)
        gone += [{"kind": "lease", "name": address, "pod": pod} for address, pod in dead]
    for ledger in ledgers.everywhere(run):
        if not ledgers.alive(run, ledger):
            gone.append({"kind": "ledger", "name": ledger.path, "pod": ledger.last("pod")})
            if not keep:
                cni.release(ledger)
                attach.remove(ledger)
                namespace.unpin(ledger.last("tag"), ledger)
                _remove_files(ledger)
    return gone


def remove_bridges(run: str, only: str = "") -> list[str]:
    """Removes the bridges, or the one called ``only``, without a living pod; returns their names.

    The table goes with the last one. Nothing is removed while a start is choosing its bridge: the next gc does it.
    """
    if not os.path.isdir(f"{run}/network"):
        return []
    try:
        held = bridges.held(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return []
    try:
        return _remove_bridges(run, only)
    finally:
        os.close(held)


def _remove_bridges(run: str, only: str) -> list[str]:
    busy = {name for ledger in ledgers.everywhere(run) if ledgers.alive(run, ledger) for name in ledger.all("bridge")}
    busy |= {bridge.name for bridge in bridges.known_in(run) if only not in ("", bridge.name)}
    kept = [bridge for bridge in bridges.known_in(run) if bridge.name in busy]
    removed = []
    for bridge in bridges.known_in(run):
        if bridge.name in busy:
            continue
        with rtnetlink.Socket() as socket:
            link = socket.link(bridge.name)
            if link and link.alias == bridges.owner(run):
                socket.send(rtnetlink.remove(bridge.name, tolerated=(_ENODEV,)))
        if not any(one.table == bridge.table for one in kept):
            ruleset.remove(bridge.table)
        for name in rooted_tree.names(f"{bridge.directory}/leases"):
            os.unlink(f"{bridge.directory}/leases/{name}")
        os.rmdir(f"{bridge.directory}/leases")
        for name in rooted_tree.names(bridge.directory):
            os.unlink(f"{bridge.directory}/{name}")
        os.rmdir(bridge.directory)
        removed.append(bridge.name)
    return removed


def _collect_links(run: str, keep: bool) -> list[dict[str, str]]:
    """Links whose namespace is no longer pinned, but kept alive by a process in it."""
    gone = []
    for link in links(run):
        if not os.path.exists(namespace.path_of(link["tag"])):
            gone.append({"kind": "link", "name": link["name"], "pod": link["tag"]})
            if not keep:
                with rtnetlink.Socket() as socket:
                    socket.send(rtnetlink.remove(link["name"], tolerated=(_ENODEV,)))
    return gone


def _collect_ports(run: str, bridge: Bridge, keep: bool) -> list[dict[str, str]]:
    """Elements of the table whose pod is dead."""
    # Nobody else takes a dead pod's port over meanwhile (ports.holder): it would be deleted as the new pod's.
    lock = bridges.held(run, fcntl.LOCK_SH if keep else fcntl.LOCK_EX)
    try:
        return [port for name in _MAPS for port in _collect_map(run, bridge, name, keep)]
    finally:
        os.close(lock)


def _collect_map(run: str, bridge: Bridge, name: str, keep: bool) -> list[dict[str, str]]:
    ended = subprocesses.run([subprocesses.find("nft", "nftables"), "-nj", "list", "map", "inet", bridge.table, name])
    if ended.status:
        return []
    found = next(item["map"] for item in json.loads(ended.output)["nftables"] if "map" in item)
    # Read after the map: a start notes its ports before it adds them.
    alive = [ledger for ledger in ledgers.everywhere(run) if ledgers.alive(run, ledger)]
    tags = {element.comment for ledger in alive for element in noted(ledger)}
    gone = []
    for key, _ in found.get("elem", []):
        fields = [str(field) for field in key["elem"]["val"]["concat"]]
        if key["elem"].get("comment") in tags:
            continue
        gone.append({"kind": "port", "name": " ".join(fields), "pod": key["elem"].get("comment", "")})
        if not keep:
            ruleset.delete_element(bridge.table, name, fields)
    return gone


def _collect_names(run: str, bridge: Bridge, keep: bool) -> list[dict[str, str]]:
    """Names of pods that are dead."""
    alive = {ledger.last("tag") for ledger in ledgers.everywhere(run) if ledgers.alive(run, ledger)}
    gone = []
    for name in names.known(bridge.directory):
        tag = name.mark.partition("/")[0]
        if tag not in alive:
            gone.append({"kind": "name", "name": " ".join(name.names), "pod": tag})
            if not keep:
                names.remove(bridge.directory, name.mark)
    return gone


def _remove_files(ledger: Ledger) -> None:
    """The ledger and the generated files beside it, which have its name with another suffix."""
    stem = ledger.path.removesuffix("network")
    for path in (*(f"{stem}{name}" for name in files.NAMES), ledger.path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    try:
        os.rmdir(os.path.dirname(ledger.path))
    except OSError:  # something else is in there
        pass


def _described(link: Any) -> dict[str, Any]:
    stats = link.get_attr("IFLA_STATS64") or {}
    info = link.get_attr("IFLA_LINKINFO")
    return {
        "ifindex": link["index"],
        "name": link.get_attr("IFLA_IFNAME"),
        "alias": link.get_attr("IFLA_IFALIAS") or "",
        "kind": (info.get_attr("IFLA_INFO_KIND") if info else "") or "",
        "master": link.get_attr("IFLA_MASTER") or 0,
        "up": bool(link["flags"] & 1),
        "rx_bytes": stats.get("rx_bytes", 0),
        "tx_bytes": stats.get("tx_bytes", 0),
    }
