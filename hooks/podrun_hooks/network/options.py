"""The options of a network step, and their defaults in [networks.NAME] of networks.toml."""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure
from podrun.options import BOOLEAN, INTEGER, TEXT, Wrong, checked, list_of, option, table_of, unknown, whole
from podrun.record import NamedTuple
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from podrun_hooks.network.namespace import Wish
    from podrun_hooks.network.publish.ruleset import Manner
    from podrun_hooks.network.publish.spec import Publish

#: The administrator's settings of bridges.
NETWORKS = "/etc/podrun/networks.toml"

_PLAIN = ("bridge", "host", "none")
#: Modes that take a word after a colon, and the meaning of that word.
_WITH_A_WORD = {"netns": "a path", "pod": "a pod's name", "macvlan": "a link of the host", "cni": "a network's name"}
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _mode(text: str) -> str:
    if text in _PLAIN:
        return text
    kind, colon, word = text.partition(":")
    if kind not in _WITH_A_WORD:
        raise Wrong(unknown(text, [*_PLAIN, *(f"{mode}:" for mode in _WITH_A_WORD)], "mode"))
    if not colon or not word:
        raise Wrong(f"expected {_WITH_A_WORD[kind]} after {kind}:, not {text!r}")
    if kind == "netns" and not word.startswith("/"):
        raise Wrong(f"expected an absolute path after netns:, not {text!r}")
    if kind == "macvlan":
        link_name(word)
    if kind in ("pod", "cni") and (word.strip(f"{_LETTERS}-_.@") or word[0] == "."):
        raise Wrong(f"expected {_WITH_A_WORD[kind]} after {kind}:, not {text!r}")
    return text


def _publish(text: str) -> Publish:
    from podrun_hooks.network.publish.spec import parse

    return parse(text)


def _subnet(version: int, longest: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        from podrun_hooks.network.lease import subnet

        try:
            found = subnet(text)
        except ValueError as error:
            raise Wrong(str(error)) from None
        if found.version != version or not 8 <= found.length <= longest:
            raise Wrong(f"expected an IPv{version} subnet with a prefix of 8 to {longest} bits, not {text!r}")
        return str(found)

    return parse


def _ip(text: str) -> str:
    from podrun_hooks.network.lease import number

    try:
        number(text)
    except ValueError as error:
        raise Wrong(str(error)) from None
    return text


def _with_length(version: int) -> Callable[[str], str]:
    """An address, with a prefix length or without."""

    def parse(text: str) -> str:
        address, slash, length = text.partition("/")
        _ip(address)
        longest = 32 if version == 4 else 128
        if (":" in address) != (version == 6) or (slash and whole(length, longest) is None):
            raise Wrong(f"expected an IPv{version} address, not {text!r}")
        return text

    return parse


def _route(text: str) -> str:
    from podrun_hooks.network.lease import subnet

    words = text.split()
    if len(words) == 3 and words[1] == "via":
        _ip(words[2])
    elif len(words) != 1:
        raise Wrong(f"expected a route such as '10.9.0.0/16 via 10.1.0.1', not {text!r}")
    try:
        found = subnet(words[0])
    except ValueError as error:
        raise Wrong(str(error)) from None
    if len(words) == 3 and (":" in words[2]) != (found.version == 6):
        raise Wrong(f"{text!r} mixes IPv4 and IPv6")
    return text


def _mac(text: str) -> str:
    parts = text.lower().split(":")
    if len(parts) != 6 or any(len(part) != 2 or part.strip("0123456789abcdef") for part in parts):
        raise Wrong(f"expected a MAC address such as 02:00:00:00:00:01, not {text!r}")
    if int(parts[0], 16) & 1 or not any(part.strip("0") for part in parts):
        raise Wrong(f"{text} cannot be the address of one interface")
    return text


def _mtu(value: int) -> int:
    # RFC 8200: a link that carries IPv6 has at least 1280; the kernel's ETH_MAX_MTU.
    if value and not 1280 <= value <= 65535:
        raise Wrong(f"expected an MTU from 1280 to 65535, not {value}")
    return value


def _hostname(text: str) -> str:
    labels = text.split(".")
    fine = all(label and not label.strip(_LETTERS + "-") and "-" not in (label[0], label[-1]) for label in labels)
    if not fine or len(text) > 64:
        raise Wrong(f"expected a host name of at most 64 letters, digits, '-' and '.', not {text!r}")
    if labels[-1].isdecimal():
        raise Wrong(f"{text!r} would be read as an address")
    if is_reserved(text):
        raise Wrong(f"{text!r} is every machine's name for itself")
    return text


def is_reserved(name: str) -> bool:
    """True for names that a pod cannot have: those of RFC 6761, 6.3, and those in every hosts file."""
    labels = name.lower().split(".")
    return "localhost" in (labels[0], labels[-1]) or name.lower() in ("ip6-localhost", "ip6-loopback", "localdomain")


def _domain(text: str) -> str:
    if not text or text.strip(_LETTERS + "-_.") or len(text) > 255:
        raise Wrong(f"expected a domain, not {text!r}")
    return text


def _resolver_option(text: str) -> str:
    if not text or not text.isascii() or not text.isprintable() or " " in text or len(text) > 255:
        raise Wrong(f"expected an option of resolv.conf(5) such as ndots:2, not {text!r}")
    return text


def link_name(text: str) -> str:
    """The name of a bridge or another link; raises Wrong."""
    # Stricter than the kernel's dev_valid_name(): some characters have a meaning in an nftables script.
    if not 0 < len(text) < 16 or text in (".", "..") or text.strip(_LETTERS + "-_."):
        raise Wrong(f"expected a link's name of at most 15 letters, digits, '-', '_' and '.', not {text!r}")
    return text


def _sysctls(table: dict[str, str]) -> dict[str, str]:
    for key, value in table.items():
        # Only sysctls below /proc/sys/net belong to a network namespace.
        if not key.startswith("net.") or key.strip(f"{_LETTERS}-_./") or ".." in key:
            raise Wrong(f"{key!r} is not a sysctl of a network namespace: they begin with net.", (key,))
        if "\n" in value:
            raise Wrong("a line break cannot be part of a sysctl's value", (key,))
    return table


#: Docker's word for the host's own address, as the pod sees it.
HOST_GATEWAY = "host-gateway"


def _ip_or_host(text: str) -> str:
    return text if text == HOST_GATEWAY else _ip(text)


_HOSTS = table_of(checked(TEXT, _ip_or_host))
_MODES = [*_PLAIN, "netns:/run/netns/x", "pod:other", "macvlan:eth0", "cni:NAME"]


class Options(NamedTuple):
    """The options of a network step."""

    mode: str = option(
        checked(TEXT, _mode, {"examples": _MODES}),
        "bridge, host, none, netns:PATH, pod:NAME, macvlan:PARENT or cni:NAME; a further step adds an interface",
        "bridge",
    )
    publish: list[Publish] = option(
        list_of(checked(TEXT, _publish, {"examples": ["127.0.0.1:8080:80", "8080:80/udp", "8000-8009:80-89"]})),
        "ports of the host that lead to the pod: [ip:]hostport[-last]:containerport[-last][/tcp|udp|sctp]; "
        "ip is 127.0.0.1 by default",
        [],
    )
    subnet: str = option(checked(TEXT, _subnet(4, 29)), "the bridge's IPv4 subnet; default: one of 10.160.0.0/11", "")
    subnet6: str = option(checked(TEXT, _subnet(6, 96)), "the bridge's IPv6 subnet; default: one of fd88::/16", "")
    address: str = option(
        checked(TEXT, _with_length(4)), "the pod's IPv4 address; on a bridge: default a free one; else with /length", ""
    )
    address6: str = option(
        checked(TEXT, _with_length(6)),
        "the pod's IPv6 address; on a bridge: default one that follows from the IPv4 address; else with /length",
        "",
    )
    ipv6: bool = option(BOOLEAN, "false: the pod has no IPv6 at all (bridge, macvlan, none)", True)
    gateway: list[str] = option(list_of(checked(TEXT, _ip)), "with macvlan: the routers, one of each family", [])
    routes: list[str] = option(
        list_of(checked(TEXT, _route, {"examples": ["10.9.0.0/16 via 10.1.0.1"]})), "static routes", []
    )
    mac: str = option(checked(TEXT, _mac), "the hardware address of the pod's interface", "")
    mtu: int = option(checked(INTEGER, _mtu), "the interface's MTU, 1280 to 65535; 0: the kernel's default", 0)
    interface: str = option(checked(TEXT, link_name), "the interface's name in the pod; default: eth0, eth1, ...", "")
    sysctls: dict[str, str] = option(
        checked(table_of(TEXT), _sysctls, {"examples": [{"net.core.somaxconn": "1024"}]}),
        "sysctls of the pod's network namespace",
        {},
    )
    dns: list[str] = option(list_of(checked(TEXT, _ip)), "name servers, instead of the host's", [])
    search: list[str] = option(list_of(checked(TEXT, _domain)), "DNS search domains, instead of the host's", [])
    dns_options: list[str] = option(
        list_of(checked(TEXT, _resolver_option)),
        "options of resolv.conf(5), such as ndots:2, instead of the host's",
        [],
    )
    hosts: dict[str, str] = option(
        _HOSTS, "names with addresses for /etc/hosts; host-gateway is the host's, on the bridge", {}
    )
    hostname: str = option(checked(TEXT, _hostname), "the pod's host name; default: the pod's name", "")
    aliases: list[str] = option(
        list_of(checked(TEXT, _hostname)), "more names by which the pods of the bridge reach this one", []
    )
    bridge: str = option(
        checked(TEXT, link_name), "the bridge, made when it is not there, also of networks.toml; default: podrun0", ""
    )
    reuse_port: bool = option(
        BOOLEAN,
        "with mode host: the server listens with SO_REUSEPORT, so a hot swap may have two of them; for hosts with "
        "net.ipv4.tcp_migrate_req = 1",
        False,
    )


class Network(NamedTuple):
    """[networks.NAME] of networks.toml: settings of bridge NAME, and defaults for the options of its pods."""

    subnet: str = option(checked(TEXT, _subnet(4, 29)), "the bridge's IPv4 subnet", "")
    subnet6: str = option(checked(TEXT, _subnet(6, 96)), "the bridge's IPv6 subnet", "")
    routed: bool = option(
        BOOLEAN,
        "other machines route the subnets to this host: they call pods by their own addresses, and pods call them "
        "in their own name",
        False,
    )
    any_source: bool = option(
        BOOLEAN,
        "the pods may send from addresses that are not theirs: routers, addresses that move from pod to pod",
        False,
    )
    reach: list[str] = option(
        list_of(checked(TEXT, link_name)),
        "bridges whose pods the pods of this one may call by their own addresses",
        [],
    )
    internal: bool = option(
        BOOLEAN, "the pods reach each other, the host and the bridges of reach, and nobody else reaches them", False
    )
    ipv6: bool = option(BOOLEAN, "false: the pods have no IPv6 at all", True)
    names6: bool = option(
        BOOLEAN,
        "the pods' names mean their IPv6 addresses, too; programs then try these first, and a payload that listens on "
        "0.0.0.0 alone does not answer there",
        False,
    )
    mtu: int = option(checked(INTEGER, _mtu), "the pods' MTU", 0)
    routes: list[str] = option(list_of(checked(TEXT, _route)), "static routes of the pods", [])
    dns: list[str] = option(list_of(checked(TEXT, _ip)), "name servers of the pods", [])
    search: list[str] = option(list_of(checked(TEXT, _domain)), "DNS search domains of the pods", [])


def with_network(options: Options, bridge: str) -> Options:
    """``options``, with empty ones filled from networks.toml's table of the bridge. Raises Failure (WRONG_FILE)."""
    try:
        os.stat(NETWORKS)
    except FileNotFoundError:
        return options
    declared = networks().get(bridge)
    if declared is None:
        return options
    # Settings that are not options of a step ("routed" and the like) belong to the bridge alone.
    missing = {key: value for key, value in declared._asdict().items() if value and not getattr(options, key, True)}
    return options._replace(ipv6=options.ipv6 and declared.ipv6, **missing)


def named(bridge: str, addresses: Sequence[str]) -> Sequence[str]:
    """Those of a pod's addresses that its names on a bridge mean. Raises Failure (WRONG_FILE).

    IPv4 alone, as in docker's and podman's networks, unless networks.toml wants both: the C library puts IPv6 first,
    and many servers listen on 0.0.0.0 only.
    """
    declared = networks().get(bridge) if os.path.exists(NETWORKS) else None
    return addresses if declared and declared.names6 else [address for address in addresses if ":" not in address]


def manner(bridge: str) -> Manner:
    """The settings of a bridge itself in networks.toml. Raises Failure (WRONG_FILE)."""
    from podrun_hooks.network.publish.ruleset import Manner

    declared = networks().get(bridge) if os.path.exists(NETWORKS) else None
    if declared is None:
        return Manner()
    return Manner(declared.routed, declared.any_source, tuple(declared.reach), declared.internal)


def networks() -> dict[str, Network]:
    """The tables of networks.toml by name; {} if there is no file. Raises Failure (WRONG_FILE)."""
    import tomllib

    from podrun.options import read

    try:
        whole: dict[str, Any] = tomllib.loads(trusted.text(NETWORKS, "/etc/podrun"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Failure(f"{NETWORKS}: {error}", code=WRONG_FILE) from None
    found = {}
    for key, tables in whole.items():
        if key != "networks" or not isinstance(tables, dict):
            raise Failure(f"{NETWORKS}: {unknown(key, ['networks'], 'table')}", code=WRONG_FILE)
        for name, table in tables.items():
            try:
                found[link_name(name)] = read(Network, table)
            except Wrong as wrong:
                raise Failure(f"{NETWORKS}: networks.{name}: {wrong.what}", code=WRONG_FILE) from None
    return found


def wish(options: Options) -> Wish:
    """The options' settings for the pod's end of a connection."""
    from podrun_hooks.network.namespace import Wish

    routes = [text.split() for text in options.routes]
    return Wish(
        interface=options.interface,
        mac=bytes.fromhex(options.mac.replace(":", "")),
        mtu=options.mtu,
        routes=[(words[0], words[2] if len(words) == 3 else "") for words in routes],
        ipv6=options.ipv6,
        sysctls=[(key if "/" in key else key.replace(".", "/"), value) for key, value in options.sysctls.items()],
    )
