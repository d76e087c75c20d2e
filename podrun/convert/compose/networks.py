"""Compose's networks as bridges of networks.toml."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..draft import Draft, Origin, Step, link_name
from ..yamltext import Table, Tagged
from .project import Project, depends_on

#: Options of docker's bridge driver.
_MTU = "com.docker.network.driver.mtu"
_NAME = "com.docker.network.bridge.name"


class Network(NamedTuple):
    """What a service's network is here."""

    #: The bridge's name, or a mode such as "host" or "macvlan:eth0".
    bridge: str = ""
    mode: str = ""
    gateways: tuple[str, ...] = ()
    #: The length of its subnet, by version: macvlan addresses carry it.
    lengths: tuple[tuple[int, str], ...] = ()


def of(service: Table) -> dict[str, Any]:
    """The networks of a service, by name: the one named default where it names none."""
    value = service.get("networks")
    if isinstance(value, Table) and value:
        return {str(name): entry for name, entry in value.items()}
    return {str(name): None for name in value} if isinstance(value, list) and value else {"default": None}


def join(services: Table, draft: Draft) -> None:
    """Puts all services on the project's default network."""
    for name, table in services.items():
        for network, entry in of(table).items():
            for key in entry or ():
                where = Origin(table.where("networks"), f"services.{name}.networks.{network}.{key}")
                draft.note(where, "left out: all services are on one network")
        table.pop("networks", None)


def first(services: Table) -> dict[str, str]:
    """Which network of each service is its first: podrun takes the names of other pods from that one.

    The highest priority, else the one on which most of what it depends on is found.
    """
    chosen = {}
    for name, table in services.items():
        own = of(table)
        needed = {other: set(of(services[other])) for other in depends_on(table) if other in services}

        def rank(network: str, own: dict[str, Any] = own, needed: dict[str, set[str]] = needed) -> tuple[float, int]:
            entry = own[network] or {}
            priority = entry.get("gw_priority", entry.get("priority", 0))
            return (float(priority or 0), sum(network in networks for networks in needed.values()))

        # max() keeps the first of equals.
        chosen[name] = max(own, key=rank)
    return chosen


def declare(project: Project, services: Table, draft: Draft) -> dict[str, Network]:
    """The networks that services use; what they say of subnets goes into the draft's networks."""
    used = {name for table in services.values() if not table.get("network_mode") for name in of(table)}
    found: dict[str, Network] = {}
    for name in [*project.networks, "default"]:
        if name in used and name not in found:
            table = project.networks.get(name)
            origin = Origin(project.networks.where(name), f"networks.{name}")
            found[name] = _declared(project, name, table if isinstance(table, Table) else Table(), origin, draft)
    for name, table in project.networks.items():
        if name not in used and table and not isinstance(table, Tagged):
            draft.note(Origin(project.networks.where(name), f"networks.{name}"), "no service uses it", by_hand=False)
    return found


def _declared(project: Project, name: str, table: Table, origin: Origin, draft: Draft) -> Network:
    driver = str(table.get("driver") or "bridge")
    options = table.get("driver_opts") or Table()
    if driver in ("host", "none"):
        return Network(mode=driver)
    full = str(table.get("name") or (project.name if name == "default" else f"{project.name}-{name}"))
    external = table.get("external")
    if external:
        full = str(external.get("name") or name) if isinstance(external, dict) else str(table.get("name") or name)
        if full in ("host", "none"):
            return Network(mode=full)
    bridge = link_name(str(options.get(_NAME) or (full if len(full) <= 15 else _short(full, name))))
    step = Step("networks")
    gateways: list[str] = []
    lengths: list[tuple[int, str]] = []
    for key, value in table.items():
        below = Origin(table.where(key), f"{origin.key}.{key}")
        if key in ("name", "driver", "external", "enable_ipv4", "attachable") or key.startswith("x-"):
            continue
        if key == "ipam":
            _ipam(value, below, step, draft, gateways, lengths)
        elif key == "driver_opts":
            _driver_options(options, below, step, draft, driver)
        elif key == "internal" and value:
            step.set("internal", True, below)
        elif key == "enable_ipv6":
            if value and "subnet6" not in step.values:
                draft.note(below, "podrun's bridges always have IPv6, by default of fd88::/16", by_hand=False)
        elif key == "labels":
            draft.note(below, "a bridge has no labels", by_hand=False)
        elif value:
            draft.note(below, "podrun has no equivalent")
    if driver == "macvlan":
        parent = str(options.get("parent") or "")
        if not parent:
            draft.note(origin, "macvlan without a parent", 'say mode = "macvlan:LINK" in the network steps')
        return Network(mode=f"macvlan:{parent or 'eth0'}", gateways=tuple(gateways), lengths=tuple(lengths))
    if driver != "bridge":
        draft.note(origin, f"the driver {driver!r} has no equivalent: the pods are on a bridge of this host")
    if external:
        draft.note(origin, f"external: the bridge {bridge} is made when it is not there", by_hand=False)
    if step.values:
        draft.networks[bridge] = step
    return Network(bridge=bridge)


def _short(full: str, name: str) -> str:
    from ..draft import shortened

    # The network's own name says more than the project's; the hash is of both.
    cut = name if name != "default" else full
    return f"{cut[:9].rstrip('-._')}-{shortened(full, 7)[-5:]}"


def _ipam(
    value: Any,
    origin: Origin,
    step: Step,
    draft: Draft,
    gateways: list[str],
    lengths: list[tuple[int, str]],
) -> None:
    if not isinstance(value, Table):
        return
    for key in value:
        if key != "config" and not (key == "driver" and value[key] in (None, "default")):
            draft.note(origin.below(key), f"{value[key]!r} has no equivalent")
    for number, entry in enumerate(value.get("config") or []):
        for key, text in entry.items() if isinstance(entry, dict) else ():
            below = origin.below("config").below(number).below(key)
            family = 6 if ":" in str(text) else 4
            if key == "subnet":
                name = "subnet6" if family == 6 else "subnet"
                lengths.append((family, str(text).rpartition("/")[2]))
                if name in step.values:
                    draft.note(below, f"a bridge has one IPv{family} subnet: {text} is left out")
                else:
                    step.set(name, str(text), below)
            elif key == "gateway":
                gateways.append(str(text))
                draft.note(below, f"{text}: a bridge of podrun's has the first address of its subnet", by_hand=False)
            elif key == "ip_range":
                draft.note(below, f"{text}: podrun leases from the whole subnet", "give fixed addresses by address")
            else:
                draft.note(below, "podrun has no equivalent")


def _driver_options(options: Table, origin: Origin, step: Step, draft: Draft, driver: str) -> None:
    for key, value in options.items():
        if key in (_MTU, "mtu") and str(value).isdecimal():
            step.set("mtu", int(value), origin.below(key))
        elif key == _NAME or (driver == "macvlan" and key == "parent"):
            continue
        else:
            draft.note(origin.below(key), f"{value!r} has no equivalent")
