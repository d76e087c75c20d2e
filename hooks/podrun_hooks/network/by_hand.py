"""The iproute2 and nftables commands that do what the network step does."""

from __future__ import annotations

from podrun_hooks.network import bridge, namespace
from podrun_hooks.network.publish.spec import each

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Step


def commands(step: Step) -> list[str]:
    """The commands in order; ADDRESS, GATEWAY and PORT stand for values that only ``up`` chooses."""
    tag, options = step.pod.tag, step.options
    mode, _, word = options.mode.partition(":")
    if mode not in ("bridge", "none", "macvlan", "cni"):
        return [f"# {options.mode}: the namespace is there already, none is made"]
    path = namespace.path_of(tag)
    name = path.rpartition("/")[2]
    lines = [f"ip netns add {name}", f"ip -n {name} link set lo up"]
    if mode == "none":
        return lines
    if mode == "cni":
        return [*lines, f"cnitool add {word} {path}"]
    if mode == "macvlan":
        return [*lines, f"ip link add link {word} name eth0 netns {name} up type macvlan mode bridge"]
    on = options.bridge or bridge.default_name(step.pod)
    pool = options.subnet or "SUBNET"
    address = options.address or "ADDRESS"
    table = bridge.table(step.pod)
    lines += [
        f"ip link show {on} || ip link add {on} up type bridge   # with GATEWAY, the first address of {pool}",
        f"ip link add PORT master {on} type veth peer name eth0 netns {name}",
        f"ip link set PORT up alias {tag}",
        f"ip -n {name} address add {address}/{pool.partition('/')[2] or 'LENGTH'} dev eth0",
        f"ip -n {name} link set eth0 up",
        f"ip -n {name} route add default via GATEWAY",
    ]
    for publish in each(options.publish):
        key = f"{publish.proto} . {publish.host}"
        key, chosen = (key, "any4") if publish.everywhere else (f"{publish.ip} . {key}", "host4")
        lines.append(f"nft add element inet {table} {chosen} '{{ {key} : {address} . {publish.port} }}'")
    lines.append(f"# /etc/hosts, /etc/resolv.conf and /etc/hostname: files in {step.pod.directory}")
    return lines
