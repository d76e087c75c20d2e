"""mode = "cni:NAME": stock CNI plugins, chained as the CNI specification says (1.0; GC of 1.1).

The arguments of ADD are in <pod>/<step>.cni before the first plugin runs, so that DEL gets the same ones even when the
configuration has changed since.
"""

from __future__ import annotations

import json

from podrun import atomic
from podrun.errors import CANNOT_CREATE, STEP_FAILED, UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks.network import attach
from podrun_hooks.network import ledger as ledgers
from podrun_hooks.network.child import Child
from podrun_hooks.network.publish import spec
from podrun_hooks.support import rooted_tree, subprocesses, syscalls, trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from podrun.hook import Step
    from podrun_hooks.network.ledger import Ledger

#: Where administrators put network configurations.
CONFIGURATION = "/etc/cni/net.d"
#: Where plugins are: Debian's place, the upstream one, Fedora's.
PLUGINS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")
#: The oldest version whose DEL takes prevResult and that has CHECK.
_WITH_RESULT = (0, 4, 0)
_WITH_GC = (1, 1, 0)


class Answer(Exception):
    """A plugin's error: its message, and ``code`` as the specification numbers them."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


def configuration(name: str) -> dict[str, Any]:
    """The configuration list of network ``name``; a single plugin's configuration counts as a list of one.

    Raises Failure: UNAVAILABLE when there is none, WRONG_FILE for one that cannot be read.
    """
    known = []
    for file in rooted_tree.names(CONFIGURATION):
        if not file.endswith((".conflist", ".conf", ".json")):
            continue
        try:
            found = json.loads(trusted.text(f"{CONFIGURATION}/{file}", CONFIGURATION))
            found = found if "plugins" in found else {**_only(found, "name", "cniVersion"), "plugins": [found]}
            types = [plugin["type"] for plugin in found["plugins"]]
        except FileNotFoundError:
            continue  # a dangling link, or removed meanwhile
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(f"{CONFIGURATION}/{file} is no CNI configuration: {error}", code=WRONG_FILE) from None
        known.append(str(found.get("name")))
        if found.get("name") == name:
            for type_ in types:
                _plugin(type_)
            return dict(found)
    hint = f"there are: {', '.join(known)}" if known else ""
    raise Failure(f"{CONFIGURATION} has no network {name}", code=UNAVAILABLE, hint=hint)


def add(step: Step, fd: int, netns: int, path: str, name: str) -> tuple[list[str], dict[str, list[str]]]:
    """Runs ADD of every plugin in order; returns the addresses (CIDR) and "dns": its servers and search domains.

    Raises Failure with the plugin's message; what was added until then is for DEL to remove.
    """
    network = configuration(name)
    state = {
        "network": network,
        "id": step.pod.tag.replace("+", "_"),
        "interface": step.options.interface or _free_name(netns),
        "netns": path,
        "capabilities": _wanted(step, network),
        "result": None,
    }
    where = path_of(step)
    ledgers.note(fd, "cni", where)
    atomic.replace(where, json.dumps(state))
    result = None
    for plugin in network["plugins"]:
        step.status(f"CNI plugin {plugin['type']}")
        try:
            result = _call("ADD", plugin, state, result) or result
        except Answer as answer:
            what = f"CNI network {name}: {plugin['type']}: {answer}"
            raise Failure(what, code=CANNOT_CREATE if answer.code < 100 else STEP_FAILED) from None
        atomic.replace(where, json.dumps({**state, "result": result}))
    step.status(f"CNI network {name} is joined")
    result = result or {}
    dns = result.get("dns") or {}
    servers = {"dns": list(dns.get("nameservers") or ()), "search": list(dns.get("search") or ())}
    return [str(ip["address"]) for ip in result.get("ips") or ()], servers


def release(ledger: Ledger) -> None:
    """Runs DEL for what a ledger tells of, in reverse. Raises Failure when a plugin fails."""
    for where in ledger.all("cni"):
        state = read(where)
        if state:
            delete(state)
        atomic.remove(where)


def delete(state: Mapping[str, Any]) -> None:
    """DEL of every plugin, last first, as the specification demands: also of those whose ADD was never called."""
    for plugin in reversed(state["network"]["plugins"]):
        try:
            _call("DEL", plugin, state, state["result"])
        except Answer as answer:
            name = state["network"]["name"]
            raise Failure(f"CNI network {name}: {plugin['type']} DEL: {answer}", code=STEP_FAILED) from None


def check(state: Mapping[str, Any]) -> str:
    """A plugin's first complaint about an attachment; "" when there is none, or CHECK cannot be called."""
    if _version(state["network"]) < _WITH_RESULT or state["network"].get("disableCheck") or not state["result"]:
        return ""
    for plugin in state["network"]["plugins"]:
        try:
            _call("CHECK", plugin, state, state["result"])
        except Answer as answer:
            return f"{plugin['type']}: {answer}"
    return ""


def collect(run: str, name: str) -> list[str]:
    """Tells the plugins of a network which of podrun's attachments are alive, so that they drop all others (GC).

    Only on request: other programs may use the network, and the plugins would drop theirs. Returns the plugins that
    were not asked because they do not announce CNI 1.1. Raises Failure (UNAVAILABLE) when none of them does.
    """
    network = configuration(name)
    if _version(network) < _WITH_GC:
        raise Failure(f"network {name} has CNI version {network.get('cniVersion')}, which has no GC", code=UNAVAILABLE)
    valid = [{"containerID": state["id"], "ifname": state["interface"]} for state in living(run, name)]
    state = {"network": network, "id": "", "interface": "", "netns": "", "capabilities": {}, "result": None}
    older = [plugin["type"] for plugin in network["plugins"] if not _knows_gc(plugin, state)]
    if len(older) == len(network["plugins"]):
        what = f"no plugin of network {name} announces CNI 1.1, which has GC: {', '.join(older)}"
        raise Failure(what, code=UNAVAILABLE)
    for plugin in network["plugins"]:
        if plugin["type"] in older:
            continue
        try:
            _call("GC", {**plugin, "cni.dev/valid-attachments": valid}, state, None)
        except Answer as answer:
            raise Failure(f"CNI network {name}: {plugin['type']} GC: {answer}", code=STEP_FAILED) from None
    return older


def _knows_gc(plugin: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    try:
        said = _call("VERSION", plugin, state, None) or {}
    except Answer:
        return False
    return any(_version({"cniVersion": version}) >= _WITH_GC for version in said.get("supportedVersions", ()))


def living(run: str, name: str = "") -> list[dict[str, Any]]:
    """The attachments of living pods, to network ``name`` or to any."""
    found = []
    for ledger in ledgers.everywhere(run):
        for where in ledger.all("cni") if ledgers.alive(run, ledger) else ():
            state = read(where)
            if state and name in ("", state["network"]["name"]):
                found.append(state)
    return found


def path_of(step: Step) -> str:
    """Where an attachment is written down."""
    return f"{step.pod.directory}/{step.name}.cni"


def read(where: str) -> dict[str, Any] | None:
    """An attachment as it was written down: network, id, interface, netns, capabilities, result; None without one."""
    try:
        with open(where, encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return None


def _wanted(step: Step, network: Mapping[str, Any]) -> dict[str, Any]:
    """The runtimeConfig by capability. Raises Failure (WRONG_FILE) for an option that no plugin supports."""
    options = step.options
    mappings = [
        {"hostPort": one.host, "containerPort": one.port, "protocol": one.proto, "hostIP": one.ip}
        for one in spec.each(options.publish)
    ]
    wanted = {
        "portMappings": mappings,
        "mac": options.mac,
        "ips": [address for address in (options.address, options.address6) if address],
    }
    wanted = {key: value for key, value in wanted.items() if value}
    able = {key for plugin in network["plugins"] for key, on in plugin.get("capabilities", {}).items() if on}
    for key in wanted:
        if key not in able:
            words = {"portMappings": "publish", "mac": "mac", "ips": "address"}
            what = f"{words[key]} is not for CNI network {network['name']}: no plugin of it has the capability {key}"
            raise Failure(what, code=WRONG_FILE)
    return wanted


def _call(verb: str, plugin: Mapping[str, Any], state: Mapping[str, Any], result: Any) -> Any:
    """Runs one plugin; returns what it prints as JSON, None for nothing. Raises Answer."""
    network = state["network"]
    config = {key: value for key, value in plugin.items() if key != "capabilities"}
    config |= {"name": network["name"], "cniVersion": network.get("cniVersion", "0.2.0")}
    able = [key for key, on in plugin.get("capabilities", {}).items() if on and key in state["capabilities"]]
    if able:
        config["runtimeConfig"] = {key: state["capabilities"][key] for key in able}
    if result is not None and (verb == "ADD" or _version(network) >= _WITH_RESULT):
        config["prevResult"] = result
    environ = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": state["id"],
        "CNI_IFNAME": state["interface"],
        "CNI_NETNS": state["netns"],
        "CNI_PATH": ":".join(PLUGINS),
    }
    given = {key: value for key, value in environ.items() if value}
    ended = subprocesses.run([_plugin(plugin["type"])], env=given, stdin=json.dumps(config).encode())
    try:
        said = json.loads(ended.output) if ended.output else None
    except ValueError:
        said = None
    if not ended.status:
        return said
    words = (said or {}).get("msg") or ended.errors or f"exit status {ended.status}"
    details = (said or {}).get("details")
    raise Answer(int((said or {}).get("code") or 100), f"{words}: {details}" if details else str(words))


def _plugin(type_: str) -> str:
    if "/" in type_ or type_.startswith("."):
        raise Failure(f"{type_!r} is not the name of a CNI plugin", code=WRONG_FILE)
    found = subprocesses.find(type_, "containernetworking-plugins", ":".join(PLUGINS))
    # Only root can change what this path leads to. It is run under this name: one program may be several plugins.
    trusted.place(found, PLUGINS[0], strict=False)
    return found


def _free_name(netns: int) -> str:
    def ask() -> str:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        return attach.free_name("")

    return Child(ask).join()


def _version(network: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in str(network.get("cniVersion", "0.2.0")).split(".") if part.isdecimal())


def _only(table: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: table[key] for key in keys if key in table}
