"""The network step: the pod's namespace, its addresses on a bridge, published ports, and its name in /etc."""

from __future__ import annotations

import os

from podrun.errors import BUSY, WRONG_FILE, Failure
from podrun.hook import TEXT, Problem, Wrong, checked, list_of, option, table_of, unknown
from podrun.record import NamedTuple

from . import ledger as ledgers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Set

    from podrun.hook import Facts, Step

    from .ports import Publish

takes: Sequence[str] = ()
gives: Sequence[str] = ("netns", "addresses", "hostname", "mounts")
resident = False
default_name = ""

_MODES = ("bridge", "host", "none")
#: Modes that take a word behind a colon; each becomes a way to get a namespace, like those of _MODES.
_LATER = ("netns", "pod", "macvlan", "cni")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _mode(text: str) -> str:
    if text in _MODES:
        return text
    known = ", ".join(_MODES)
    if text.partition(":")[0] in _LATER:
        raise Wrong(f"mode {text!r} is not there yet; there are {known}")
    raise Wrong(unknown(text, _MODES, "mode"))


def _publish(text: str) -> Publish:
    from .ports import parse

    return parse(text)


def _subnet(version: int, longest: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        from .lease import subnet

        try:
            found = subnet(text)
        except ValueError as error:
            raise Wrong(str(error)) from None
        if found.version != version or not 8 <= found.length <= longest:
            raise Wrong(f"expected an IPv{version} subnet with a prefix of 8 to {longest} bits, not {text!r}")
        return str(found)

    return parse


def _ip(text: str) -> str:
    from .lease import number

    try:
        number(text)
    except ValueError as error:
        raise Wrong(str(error)) from None
    return text


def _hostname(text: str) -> str:
    labels = text.split(".")
    fine = all(label and not label.strip(_LETTERS + "-") and "-" not in (label[0], label[-1]) for label in labels)
    if not fine or len(text) > 64:
        raise Wrong(f"expected a host name of at most 64 letters, digits, '-' and '.', not {text!r}")
    return text


def _link_name(text: str) -> str:
    # dev_valid_name() of the kernel, and what has a meaning elsewhere in an nftables script.
    if not 0 < len(text) < 16 or text in (".", "..") or text.strip(_LETTERS + "-_."):
        raise Wrong(f"expected a link's name of at most 15 letters, digits, '-', '_' and '.', not {text!r}")
    return text


class Options(NamedTuple):
    """How a pod is connected."""

    mode: str = option(checked(TEXT, _mode, {"examples": list(_MODES)}), "bridge, host or none", "bridge")
    publish: list[Publish] = option(
        list_of(checked(TEXT, _publish, {"examples": ["127.0.0.1:8080:80", "8080:80/udp"]})),
        "ports of the host that lead to the pod: [ip:]hostport:containerport[/tcp|udp]; ip is 127.0.0.1 by default",
        [],
    )
    subnet: str = option(checked(TEXT, _subnet(4, 29)), "the bridge's IPv4 subnet; default: one of 10.160.0.0/11", "")
    subnet6: str = option(checked(TEXT, _subnet(6, 96)), "the bridge's IPv6 subnet; default: one of fd88::/16", "")
    address: str = option(checked(TEXT, _ip), "the pod's IPv4 address; default: a free one", "")
    dns: list[str] = option(list_of(checked(TEXT, _ip)), "name servers, instead of the host's", [])
    hosts: dict[str, str] = option(table_of(checked(TEXT, _ip)), "names with addresses for /etc/hosts", {})
    hostname: str = option(checked(TEXT, _hostname), "the pod's host name; default: the pod's name", "")
    bridge: str = option(checked(TEXT, _link_name), "the bridge, made when it is not there; default: podrun0", "")


def up(step: Step, facts: Facts) -> Facts:
    """Makes the pod's namespace and everything in it; about 4 ms."""
    if facts.get("netns"):
        raise Failure("the pod has a network already", code=WRONG_FILE, hint="one network step is enough")
    if os.path.exists(ledgers.path_of(step)):
        down(step, {})
    if step.options.mode == "host":
        return _in_the_hosts(step)
    fd = ledgers.begin(step)
    try:
        return _in_its_own(step, fd)
    finally:
        os.close(fd)


def down(step: Step, own: Facts) -> None:
    """Undoes what the step's ledger says; about 1 ms: the kernel deletes the links after we have returned."""
    from . import bridge, files, lease, namespace

    ledger = ledgers.read(ledgers.path_of(step))
    ports_are_free = None
    if ledger.all("publish"):
        from . import ports

        step.notify("STATUS=withdrawing published ports")
        ports_are_free = ports.begin_release(bridge.table(step.pod), ledger)
    step.notify("STATUS=removing the network namespace")
    namespace.silence(ledger)
    namespace.unpin(step.pod.tag, ledger)
    if ports_are_free:
        ports_are_free.join()
    step.notify("STATUS=giving the address back")
    for name in ledger.all("bridge"):
        lease.release(bridge.directory(step.pod.run, name), ledger)
    files.remove(step)
    try:
        os.unlink(ledger.path)
    except FileNotFoundError:
        pass


def check(step: Step) -> list[Problem]:
    """Options that do not go together, and ports that somebody else holds."""
    options: Options = step.options
    problems = []
    if options.mode != "bridge":
        misplaced = [key for key in ("publish", "subnet", "subnet6", "address", "bridge") if getattr(options, key)]
        problems += [Problem(f"{key} needs mode bridge, not {options.mode}", WRONG_FILE) for key in misplaced]
    elif options.address and options.subnet:
        problems += _checked_address(options)
    if options.publish and not problems:
        problems += _checked_ports(step)
    if step.pod.thorough and options.mode == "bridge" and not options.dns:
        from . import files

        if not files.has_server(files.resolv([], reachable_loopback=False)):
            what = "no name server of the host can be reached from the pod"
            problems.append(Problem(what, hint="give the step dns", fatal=False))
    return problems


def explain(step: Step) -> list[str]:
    """The commands of iproute2 and nftables that do the same."""
    from .explain import commands

    return commands(step)


def collect(root: str, run: str, pods: Set[str], only_look: bool) -> list[str]:
    """Removes what dead pods left in the kernel, and the bridges when no pod is left; returns what it was."""
    from . import inspect

    found = [f"{one['kind']} {one['name']}" for one in inspect.collect(run, keep=only_look)]
    if not pods and not only_look:
        found += [f"bridge {name}" for name in inspect.remove_bridges(run)]
    return found


def _in_the_hosts(step: Step) -> Facts:
    from . import files

    options: Options = step.options
    hostname = options.hostname or os.uname().nodename
    content = {
        "hosts": files.host_hosts(options.hosts),
        "resolv.conf": files.resolv(options.dns, reachable_loopback=True),
        "hostname": f"{hostname}\n",
    }
    return {"netns": "host", "addresses": [], "hostname": hostname, "mounts": files.write(step, content)}


def _in_its_own(step: Step, fd: int) -> Facts:
    from . import bridge, files, lease, namespace

    pod = step.pod
    options: Options = step.options
    hostname = options.hostname or pod.name.replace("@", "-")[:64]
    plug = None
    addresses: list[str] = []
    if options.mode == "bridge":
        name = options.bridge or bridge.default_name(pod)
        step.notify(f"STATUS=looking for bridge {name}")
        on = bridge.ensure(pod, name, options.subnet, options.subnet6)
        if options.address:
            lease.fixed(on.pool, options.address)
        step.notify("STATUS=leasing an address")
        ledgers.note(fd, "bridge", name)
        ledger = ledgers.path_of(step)
        address = lease.claim(on.directory, pod.run, ledger, fd, on.pool, pod.name, options.address)
        plug = namespace.Plug(on, on.pool.offset(address), hairpin=bool(options.publish))
        addresses = on.addresses(plug.n)
    step.notify("STATUS=making the network namespace")
    child = namespace.begin(pod.tag, pod.run, fd, plug)
    try:
        plain = [cidr.partition("/")[0] for cidr in addresses]
        content = {
            "hosts": files.hosts(hostname, plain, options.hosts),
            "resolv.conf": files.resolv(options.dns, reachable_loopback=False),
            "hostname": f"{hostname}\n",
        }
        mounts = files.write(step, content)
        step.notify("STATUS=connecting the pod")
        child.join()
    finally:
        child.kill()
    if plug and options.publish:
        from . import ports

        step.notify("STATUS=publishing ports")
        ports.take(pod, plug.bridge, options.publish, plain, fd)
        step.notify("STATUS=ports are published")
    return {"netns": namespace.path_of(pod.tag), "addresses": addresses, "hostname": hostname, "mounts": mounts}


def _checked_address(options: Options) -> list[Problem]:
    from . import lease

    try:
        lease.fixed(lease.subnet(options.subnet), options.address)
    except Failure as failure:
        return [Problem(failure.what, failure.code)]
    return []


def _checked_ports(step: Step) -> list[Problem]:
    from . import bridge, ports

    found = []
    seen: set[tuple[str, int, str]] = set()
    for publish in step.options.publish:
        place = (publish.ip, publish.host, publish.proto)
        if place in seen:
            found.append(Problem(f"port {publish} is published twice", WRONG_FILE))
        seen.add(place)
        holder = ports.holder(step.pod, bridge.table(step.pod), publish)
        if holder:
            found.append(Problem(f"port {publish} is in use by {holder}", BUSY))
    return found
