"""Generates the pod's /etc/hosts, /etc/resolv.conf and /etc/hostname on the host, to be mounted over the image's."""

from __future__ import annotations

import os
from errno import ENOENT

from podrun import jsontext
from podrun.errors import WRONG_FILE, Failure
from podrun_hooks.network.options import is_reserved
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from podrun.hook import Step
    from podrun_hooks.network.options import Options

#: How the files follow from the host's: see :func:`follow_host`.
OF_HOST = "of-host"
NAMES = ("hosts", "resolv.conf", "hostname", OF_HOST)
_RESOLV = "/etc/resolv.conf"
_HOSTS = "/etc/hosts"
#: Where systemd-resolved lists the servers behind its stub 127.0.0.53 (systemd-resolved.service(8)).
UPSTREAM = "/run/systemd/resolve/resolv.conf"
_LOCALHOST = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
"""


def path_of(step: Step, name: str) -> str:
    """The path of the generated file."""
    return f"{step.pod.directory}/{step.name}.{name}"


def write(step: Step, content: Mapping[str, str]) -> list[dict[str, Any]]:
    """Writes /etc/NAME for each of ``content``; returns the mounts (CDI) that put them into a container."""
    for name, text in content.items():
        path = path_of(step, name)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with syscalls.Naming(path), open(fd, "w", encoding="utf-8") as file:
            # Whatever podrun's umask is: payloads read these files as any user.
            os.fchmod(fd, 0o644)
            file.write(text)
    return [
        {
            "hostPath": path_of(step, name),
            "containerPath": f"/etc/{name}",
            "type": "bind",
            # Read-only: the files are on the host's /run, which a payload could fill by appending to them.
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
        }
        for name in content
    ]


def follow_host(step: Step, options: Options, *, reachable_loopback: bool, hosts: bool = False) -> None:
    """Writes down how the step's files follow from the host's, and sees to it that systemd watches those.

    To be called before the files are written, so that no change is missed. ``hosts``: the pod has the host's own.
    """
    told = {
        "dns": options.dns,
        "search": options.search,
        "options": options.dns_options,
        "reachable_loopback": reachable_loopback,
        "hosts": options.hosts if hosts else None,
    }
    with open(
        os.open(path_of(step, OF_HOST), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w"
    ) as file:
        file.write(jsontext.dumps(told))
    if os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        from podrun_hooks.network import host_watch

        host_watch.watch(step.pod.run, (_RESOLV, UPSTREAM, _HOSTS))


def remove(step: Step) -> None:
    """Removes the files of :func:`write`, as far as they exist."""
    for name in NAMES:
        try:
            os.unlink(path_of(step, name))
        except OSError as error:
            if error.errno != ENOENT:
                raise


def for_pod(
    step: Step, options: Options, hostname: str, addresses: Sequence[str], shared: str, directory: str
) -> list[dict[str, Any]]:
    """The mounts of a pod that has ``addresses``. ``shared`` is the hosts file that all pods of its bridge share; if ""
    the pod gets its own, with the names that the bridge with this ``directory`` has now.
    """
    follow_host(step, options, reachable_loopback=False)
    content = {
        "resolv.conf": resolv(options.dns, options.search, options.dns_options, reachable_loopback=False),
        "hostname": f"{hostname}\n",
    }
    if not shared:
        content["hosts"] = hosts(hostname, addresses, {**_neighbours(directory), **options.hosts})
    mounts = write(step, content)
    if shared:
        options_ = ["bind", "ro", "nosuid", "nodev", "noexec"]
        mounts.append({"hostPath": shared, "containerPath": "/etc/hosts", "type": "bind", "options": options_})
    return mounts


def _neighbours(directory: str) -> dict[str, str]:
    if not directory:
        return {}
    from podrun_hooks.network import names

    return {name: known.addresses[0] for known in names.known(directory) for name in known.names if known.addresses}


def hostname(step: Step) -> str:
    """The pod's host name: that in its pod file, or the pod's name."""
    return str(step.options.hostname or step.pod.name.replace("@", "-")[:64])


def refuse_taken(step: Step, directory: str) -> None:
    """Raises Failure if the host name belongs to another pod: that pod's callers on the bridge would reach this one.

    Names belong to pods that are up and to pods with a file in /etc/podrun.
    """
    asked = names(step, hostname(step))
    if reserved := [name for name in asked if is_reserved(name)]:
        raise Failure(f"a pod cannot be called {reserved[0]}", code=WRONG_FILE, hint="set hostname")
    own = step.pod.name.replace("@", "-")
    chosen = {*step.options.aliases, *(asked if step.options.hostname else ())} - {own}
    if not chosen:
        return
    from podrun_hooks.network import names as records

    taken = {name.lower(): known.mark for known in records.known(directory) for name in known.names}
    for name in sorted(name.lower() for name in chosen):
        holder = taken.get(name, "").partition("/")[0].removeprefix(step.pod.tag.removesuffix(step.pod.name))
        if not holder and _may_join(f"/etc/podrun/{name}.toml", os.path.basename(directory), step):
            holder = name
        if holder and holder.partition("+")[0] != step.pod.name.partition("@")[0]:
            raise Failure(
                f"the host name {name} is pod {holder}'s",
                code=WRONG_FILE,
                hint="choose another",
                key="aliases" if name in step.options.aliases else "hostname",
            )


def _may_join(path: str, bridge: str, step: Step) -> bool:
    """Whether the pod file exists and its pod could be on this bridge; each bridge has its own names.

    Any pod could be on the default bridge, and on another one if its file mentions it or cannot be read.
    """
    from podrun_hooks.network.bridge import default_name

    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return bridge == default_name(step.pod) or bridge in text or "${" in text


def names(step: Step, hostname: str) -> list[str]:
    """The names of a pod: its host name, that without its domain, the pod's name, and its aliases."""
    own = [hostname, hostname.partition(".")[0], step.pod.name.replace("@", "-")]
    return [*dict.fromkeys([*own, *step.options.aliases])]


def hosts(hostname: str, addresses: Sequence[str], more: Mapping[str, str]) -> str:
    """/etc/hosts of a pod with ``addresses``; ``more`` maps further names to their addresses."""
    # As on a bridge (options.named): IPv4 alone where there is some.
    addresses = [address for address in addresses if ":" not in address] or addresses
    own = [f"{address}\t{_names(hostname)}" for address in addresses or ["127.0.1.1"]]
    others = [f"{address}\t{name}" for name, address in more.items() if name not in _names(hostname).split()]
    return _LOCALHOST + "".join(f"{line}\n" for line in own + others)


def host_hosts(more: Mapping[str, str]) -> str:
    """/etc/hosts of a pod in the host's network: the host's own, and ``more``."""
    text = _content(_HOSTS) or _LOCALHOST
    return (
        text + ("" if text.endswith("\n") else "\n") + "".join(f"{address}\t{name}\n" for name, address in more.items())
    )


def _names(hostname: str) -> str:
    short, dot, _ = hostname.partition(".")
    return f"{hostname} {short}" if dot else hostname


def resolv(
    servers: Sequence[str], search: Sequence[str] = (), options: Sequence[str] = (), *, reachable_loopback: bool
) -> str:
    """resolv.conf(5) of a pod: the host's, with its servers, search domains and options replaced where some are given.

    Unless ``reachable_loopback``, name servers on the host's loopback, or on a link of it (fe80::1%eth0), are left
    out: the pod cannot reach them.
    """
    text = _content(_RESOLV)
    lines = text.splitlines()
    if servers:
        lines = [*(line for line in lines if not _server(line)), *(f"nameserver {server}" for server in servers)]
    elif not reachable_loopback:
        kept = _reachable(text)
        if not any(map(_server, kept)) and any(map(_server, lines)):
            kept = _reachable(_content(UPSTREAM)) or kept
        lines = kept
    elif not (search or options):
        return text
    if search:
        # "domain" is the older keyword; the last of them counts (resolv.conf(5)).
        lines = [line for line in lines if line.split()[:1] not in (["search"], ["domain"])]
        lines.append(f"search {' '.join(search)}")
    if options:
        lines = [line for line in lines if line.split()[:1] != ["options"]]
        lines.append(f"options {' '.join(options)}")
    return "".join(f"{line}\n" for line in lines)


def has_server(text: str) -> bool:
    """True if a resolv.conf names a server."""
    return any(map(_server, text.splitlines()))


def _reachable(text: str) -> list[str]:
    return [line for line in text.splitlines() if not _is_own(_server(line))]


def _is_own(server: str) -> bool:
    """Whether a name server's address means the machine itself (glibc takes 0.0.0.0 so), or a machine on its link."""
    return server.startswith("127.") or server in ("0.0.0.0", "::", "::1") or server.lower().startswith("fe80:")


def _server(line: str) -> str:
    words = line.split()
    return words[1] if len(words) > 1 and words[0] == "nameserver" else ""


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
