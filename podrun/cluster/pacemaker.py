"""What Pacemaker says of the cluster (crm_mon, cibadmin), and what podrun tells it (crm, crm_resource)."""

from __future__ import annotations

import re
import tempfile
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from podrun.cluster import configuration
from podrun.cluster.programs import asked, run
from podrun.errors import UNAVAILABLE, Failure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from xml.etree.ElementTree import Element

_HINT = "does pacemaker run on this host? 'systemctl status corosync pacemaker'"
_SECONDS = 20.0
#: Constraints that podrun makes; see podrun.cluster.configuration.
_OWN = re.compile("[a-z0-9_.-]+-(?:(?:Apart|With|After)-[a-z0-9_.-]+(?:-Global)?|Apart|On|Prefers-.+)")


class Machine(NamedTuple):
    """A host of the cluster."""

    name: str
    #: "online", "standby", "maintenance", "pending", "offline" or "unclean" (it is lost and has to be fenced).
    state: str
    #: How many pods run there.
    pods: int
    #: Node attributes, for [placement] metadata.
    metadata: dict[str, str]


class Unit(NamedTuple):
    """A pod on a machine as the cluster sees it: a global one has a Unit for each machine that it runs on."""

    pod: str
    #: "" where it runs nowhere.
    machine: str
    #: "started", "stopped" (podrun cluster stop) or "unmanaged".
    desired: str
    #: "started", "stopped", "failed", "blocked" or what is under way: "starting", "stopping".
    state: str


class State(NamedTuple):
    """The whole cluster at one moment."""

    quorum: bool
    machines: list[Machine]
    units: list[Unit]
    #: What failed last, by pod: "n1: start: there is no web.service ...".
    failures: dict[str, str] = {}


class Configuration(NamedTuple):
    """What the CIB holds of podrun's, and what podrun has to know of the rest."""

    #: The resource identifiers that are pods, and those that are not.
    pods: dict[str, str]
    foreign: frozenset[str]
    #: Own constraints and clones, by identifier.
    own: frozenset[str]
    #: The meta attributes of KEPT, by resource.
    kept: dict[str, dict[str, str]]
    fencing: bool
    fencing_devices: int


def state() -> State:
    """Asks crm_mon. Raises Failure where Pacemaker does not run."""
    text = asked(["crm_mon", "--one-shot", "--inactive", "--output-as=xml"], _SECONDS, hint=_HINT)
    attributes = asked(["cibadmin", "--query", "--scope=nodes"], _SECONDS, hint=_HINT)
    return parsed(_xml(text), _xml(attributes))


def parsed(mon: Element, nodes: Element | None = None) -> State:
    """The state that the XML of crm_mon tells (its API version 2.25; what later ones add is not looked at)."""
    dc = mon.find("summary/current_dc")
    metadata = {node.get("uname", ""): _pairs(node, "instance_attributes/nvpair") for node in nodes or ()}
    for found in metadata.values():
        # Pacemaker keeps these states as attributes.
        found.pop("standby", None)
        found.pop("maintenance", None)
    units = [unit for resource in mon.iter("resource") if _is_pod(resource) for unit in _units(resource)]
    machines = []
    for node in mon.findall("nodes/node"):
        name = node.get("name", "")
        count = sum(unit.machine == name for unit in units)
        machines.append(Machine(name, _standing(node), count, metadata.get(name, {})))
    running = {unit.pod for unit in units if unit.machine}
    # crm_mon shows a stopped resource for each host on which a clone has no instance.
    units = list(dict.fromkeys(unit for unit in units if unit.machine or unit.pod not in running))
    quorum = dc is not None and dc.get("with_quorum") == "true"
    failures = {}
    for failure in mon.findall("failures/failure"):
        identifier = failure.get("op_key", "").removesuffix(f"_{failure.get('task')}_{failure.get('interval')}")
        why = failure.get("exitreason") or failure.get("exitstatus", "")
        failures[configuration.pod_of(identifier)] = f"{failure.get('node')}: {failure.get('task')}: {why}"
    return State(quorum, sorted(machines), sorted(units), failures)


def _xml(text: str) -> Element:
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Failure(f"Pacemaker's answer is not XML: {error}", code=UNAVAILABLE) from None


def _is_pod(resource: Element) -> bool:
    return resource.get("resource_agent", "").replace("::", ":") == configuration.AGENT


def _standing(node: Element) -> str:
    if _is(node, "unclean"):
        return "unclean"
    if not _is(node, "online"):
        return "offline"
    return next((word for word in ("pending", "standby", "maintenance") if _is(node, word)), "online")


def _units(resource: Element) -> list[Unit]:
    pod = configuration.pod_of(resource.get("id", "").partition(":")[0])
    wanted = resource.get("target_role", "Started").lower()
    desired = "unmanaged" if not _is(resource, "managed") else "stopped" if wanted == "stopped" else "started"
    found = resource.get("pending", "").lower() or resource.get("role", "").lower()
    for word in ("failed", "blocked"):
        if _is(resource, word):
            found = word
    machines = [node.get("name", "") for node in resource.findall("node")] or [""]
    return [Unit(pod, machine, desired, found) for machine in machines]


def _is(element: Element, word: str) -> bool:
    return element.get(word) == "true"


def _pairs(element: Element, path: str) -> dict[str, str]:
    return {pair.get("name", ""): pair.get("value", "") for pair in element.findall(path)}


def configured() -> Configuration:
    """What is in the CIB."""
    return parsed_configuration(_xml(asked(["cibadmin", "--query"], _SECONDS, hint=_HINT)))


def parsed_configuration(cib: Element) -> Configuration:
    """The same of its XML."""
    pods, foreign, own, kept, devices = {}, set(), set(), {}, 0
    for resource in cib.findall("configuration/resources//"):
        identifier = resource.get("id", "")
        if resource.tag not in ("primitive", "clone", "group", "master", "bundle"):
            continue
        meta = _pairs(resource, "meta_attributes/nvpair")
        if found := {key: meta[key] for key in configuration.KEPT if key in meta}:
            kept[identifier] = found
        agent = ":".join(filter(None, (resource.get(key) for key in ("class", "provider", "type"))))
        devices += resource.get("class") == "stonith"
        if agent == configuration.AGENT:
            pods[identifier] = _pairs(resource, "instance_attributes/nvpair").get("pod", "")
        elif resource.tag == "clone" and identifier.endswith("-Global"):
            own.add(identifier)
        else:
            foreign.add(identifier)
    for constraint in cib.findall("configuration/constraints/*"):
        if _OWN.fullmatch(constraint.get("id", "")):
            own.add(constraint.get("id", ""))
    settings = _pairs(cib, "configuration/crm_config/cluster_property_set/nvpair")
    fencing = settings.get("stonith-enabled", "true").lower() not in ("false", "no", "off", "0", "n")
    return Configuration(pods, frozenset(foreign), frozenset(own), kept, fencing, devices)


# --- telling it -------------------------------------------------------------------------------------------------------


def load(wanted: Sequence[configuration.Statement], before: Configuration, seconds: float = 120) -> None:
    """Has crm put the statements into the CIB, in one change. It removes own constraints that are no longer wanted.

    Raises Failure when crm refuses.
    """
    names = {statement.id for statement in wanted if statement.id}
    stale = sorted(before.own - names)
    with tempfile.NamedTemporaryFile("w", prefix="podrun-", suffix=".crm") as file:
        file.write(configuration.text(wanted))
        file.flush()
        _crm(
            [*([f"delete {' '.join(map(configuration.word, stale))}"] if stale else []), f"load update {file.name}"],
            seconds,
        )
    after = configured()
    there = after.own | after.pods.keys()
    if lacking := sorted(names - there):
        raise Failure(f"crm did not make {', '.join(lacking[:5])}", hint="see 'crm configure show'")


def remove(identifiers: Sequence[str], seconds: float = 120) -> None:
    """Deletes resources and what refers to them."""
    if identifiers:
        _crm([f"delete --force {' '.join(map(configuration.word, identifiers))}"], seconds)


def _crm(lines: Sequence[str], seconds: float) -> None:
    # -F: never ask. Colours and a pager are for people.
    done = run(["crm", "-F", "-D", "plain"], seconds, "\n".join(["configure", *lines, "commit", ""]))
    wrong = [
        line for line in f"{done.out}\n{done.err}".splitlines() if "ERROR" in line and "cluster_status" not in line
    ]
    if done.code and wrong:
        raise Failure(f"crm: {wrong[0].partition('ERROR')[2].lstrip(': ')[:300]}", code=UNAVAILABLE)
    if "Traceback" in done.err:
        raise Failure(f"crm failed: {done.last_words}", code=UNAVAILABLE)


def set_role(identifier: str, *, started: bool) -> None:
    """Says whether a resource is to run."""
    role = "Started" if started else "Stopped"
    words = ["--resource", identifier, "--meta", "--set-parameter=target-role", f"--parameter-value={role}"]
    asked(["crm_resource", *words], _SECONDS)


def move(identifier: str, machine: str) -> None:
    """Asks the cluster to run a resource on a machine: a constraint, until :func:`let_go`. It expires by itself."""
    words = ["--move", "--resource", identifier, f"--node={machine}", "--lifetime=PT10M"]
    asked(["crm_resource", *words], _SECONDS)


def let_go(identifier: str) -> None:
    """Withdraws what :func:`move` asked for; the pod stays where it is, by its stickiness."""
    asked(["crm_resource", "--clear", "--resource", identifier], _SECONDS)


def forget_failures(identifier: str) -> None:
    """Has the cluster try hosts again on which the resource has failed."""
    asked(["crm_resource", "--cleanup", "--resource", identifier], _SECONDS)
