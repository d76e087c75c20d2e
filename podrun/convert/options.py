"""docker's and podman's options of ``run`` by name, and what each of them is in a draft.

Compose keys and Quadlet keys are these options in another spelling, so that all front ends end up here. ``OPTIONS`` is
the table: what an option does, or why there is nothing for it and what to do.
"""

from __future__ import annotations

from typing import NamedTuple

from . import handlers, spellings
from .container import Container
from .draft import Origin, is_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[Container, str, Origin], None]


class Meaning(NamedTuple):
    """What an option does. ``switch``: it takes no value, or true and false."""

    do: Handler
    switch: bool = False


def apply(container: Container, name: str, value: str, origin: Origin) -> None:
    """Does what ``--name=value`` does; an option that nobody knows becomes a note."""
    meaning = OPTIONS.get(name)
    if meaning is None:
        container.note(origin, f"--{name} is not known to the converter", "look for it in the pod-file reference")
        return
    try:
        meaning.do(container, value, origin)
    except ValueError as error:
        # What stands behind "=" may be a secret.
        container.note(origin, f"{value.partition('=')[0] if name in ('env', 'secret') else value!r}: {error}")


# --- makers of handlers ---------------------------------------------------------------------------------------------


def _set(key: str, read: Callable[[str], object] = str) -> Handler:
    return lambda container, value, origin: container.step.set(key, read(value), origin)


def _add(key: str, *, split: str = "") -> Handler:
    def do(container: Container, value: str, origin: Origin) -> None:
        for word in value.split(split) if split else [value]:
            if word.strip():
                container.step.append(key, word.strip(), origin)

    return do


def _put(key: str) -> Handler:
    def do(container: Container, value: str, origin: Origin) -> None:
        container.step.put(key, *spellings.pair(value), origin)

    return do


def _network(key: str, *, many: bool = False) -> Handler:
    def do(container: Container, value: str, origin: Origin) -> None:
        if many:
            container.network.append(key, value, origin)
        else:
            container.network.set(key, value, origin)

    return do


def _on(key: str) -> Handler:
    """A switch of the container step; false is the default and need not be written."""

    def do(container: Container, value: str, origin: Origin) -> None:
        if spellings.boolean(value or "true"):
            container.step.set(key, True, origin)

    return do


class Missing:
    """An option that does nothing here: why, what to do instead, and whether something has to be done by hand."""

    def __init__(self, why: str, hint: str = "", by_hand: bool = True) -> None:
        self.why = why
        self.hint = hint
        self.by_hand = by_hand

    def __call__(self, container: Container, _value: str, origin: Origin) -> None:
        container.note(origin, self.why, self.hint, by_hand=self.by_hand)


def _none(why: str, hint: str = "", *, by_hand: bool = True) -> Handler:
    return Missing(why, hint, by_hand)


def _needless(why: str) -> Handler:
    return _none(why, by_hand=False)


def _decimal(value: str) -> object:
    if is_open(value):
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError("expected a number such as 1.5") from None


_IDS, _OWN_IDS = "podrun chooses the ids of a pod itself", 'userns = "auto" in [pod], --userns auto'
_CGROUP = "the container has cgroups of its own, delegated by its unit"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armhf": "arm"}

OPTIONS: dict[str, Meaning] = {
    "add-host": Meaning(handlers.add_host),
    "annotation": Meaning(_put("annotations")),
    "arch": Meaning(lambda c, v, o: c.image.set("platform", f"linux/{_ARCHITECTURES.get(v, v)}", o)),
    "attach": Meaning(_needless("the foreground shows the output, and `podrun logs` what a unit wrote")),
    "authfile": Meaning(_none("podrun reads /etc/podrun/auth.json and docker's", "run `podrun login`")),
    "blkio-weight": Meaning(_none("podrun leaves this to the unit", "set IOWeight= in [service]")),
    "blkio-weight-device": Meaning(_none("podrun leaves this to the unit", "set IODeviceWeight= in [service]")),
    "cap-add": Meaning(_add("cap_add", split=",")),
    "cap-drop": Meaning(_add("cap_drop", split=",")),
    "cgroup-parent": Meaning(handlers.cgroup_parent),
    "cgroupns": Meaning(_none(_CGROUP), False),
    "cgroups": Meaning(_needless(_CGROUP)),
    "cidfile": Meaning(_none("a pod is called by its name and has no id")),
    "conmon-pidfile": Meaning(_none("there is no conmon", "`podrun inspect NAME` tells the payload's pid")),
    "cpu-period": Meaning(handlers.cpu_period),
    "cpu-quota": Meaning(handlers.cpu_quota),
    "cpu-shares": Meaning(_set("cpu_shares", spellings.number)),
    "cpus": Meaning(_set("cpus", _decimal)),
    "cpuset-cpus": Meaning(handlers.cpuset),
    "cpuset-mems": Meaning(_none("podrun leaves this to the unit", "set AllowedMemoryNodes= in [service]")),
    "creds": Meaning(_none("a password does not belong in a file that others read", "run `podrun login`")),
    "detach": Meaning(_needless("`podrun up -d`, or a unit, returns when the pod is ready"), True),
    "device": Meaning(handlers.device),
    "device-cgroup-rule": Meaning(handlers.device_rule),
    "device-read-bps": Meaning(_none("podrun leaves this to the unit", "set IOReadBandwidthMax= in [service]")),
    "device-write-bps": Meaning(_none("podrun leaves this to the unit", "set IOWriteBandwidthMax= in [service]")),
    "device-read-iops": Meaning(_none("podrun leaves this to the unit", "set IOReadIOPSMax= in [service]")),
    "device-write-iops": Meaning(_none("podrun leaves this to the unit", "set IOWriteIOPSMax= in [service]")),
    "dns": Meaning(_network("dns", many=True)),
    "dns-option": Meaning(_network("dns_options", many=True)),
    "dns-search": Meaning(_network("search", many=True)),
    "domainname": Meaning(_none("podrun sets no NIS domain", "say the full name in hostname")),
    "entrypoint": Meaning(handlers.entrypoint),
    "env": Meaning(handlers.env),
    "env-file": Meaning(handlers.env_file),
    "env-host": Meaning(_none("a pod gets no environment of the host", "name the variables in env"), True),
    "expose": Meaning(_needless("nothing to do: the pods of a bridge reach each other at every port")),
    "gidmap": Meaning(_none(_IDS, _OWN_IDS)),
    "gpus": Meaning(handlers.gpus),
    "group-add": Meaning(_add("groups")),
    "health-cmd": Meaning(handlers.health_command),
    "health-interval": Meaning(handlers.health("interval")),
    "health-on-failure": Meaning(handlers.health_failure),
    "health-retries": Meaning(handlers.health("retries")),
    "health-start-period": Meaning(handlers.health("start_period")),
    "health-start-interval": Meaning(_none("podrun tries as often while the container starts", by_hand=False)),
    "health-timeout": Meaning(handlers.health("timeout")),
    "health-log-destination": Meaning(_needless("failures are in the journal")),
    "health-max-log-count": Meaning(_needless("failures are in the journal")),
    "health-max-log-size": Meaning(_needless("failures are in the journal")),
    "health-startup-cmd": Meaning(_none("podrun has one probe for the start", "say it in ready")),
    "health-startup-interval": Meaning(_none("podrun has one probe for the start", "say it in ready")),
    "health-startup-retries": Meaning(_none("podrun has one probe for the start", "say it in ready")),
    "health-startup-success": Meaning(_none("podrun has one probe for the start", "say it in ready")),
    "health-startup-timeout": Meaning(_none("podrun has one probe for the start", "say it in ready")),
    "hostname": Meaning(_network("hostname")),
    "http-proxy": Meaning(_none("a pod gets no proxy of the host's", "name the variables in env"), True),
    "init": Meaning(_on("init"), True),
    "init-path": Meaning(_none("podrun runs catatonit from the host")),
    "interactive": Meaning(_on("interactive"), True),
    "ip": Meaning(_network("address")),
    "ip6": Meaning(_network("address6")),
    "ipc": Meaning(_set("ipc")),
    "isolation": Meaning(_none("it is about Windows")),
    "kernel-memory": Meaning(_needless("ignored: Linux has no such limit any more")),
    "label": Meaning(_put("labels")),
    "label-file": Meaning(_none("podrun reads no file of labels", "write them into labels")),
    "link": Meaning(_needless("nothing to do: the pods of a bridge know each other by name")),
    "link-local-ip": Meaning(_none("podrun gives no such addresses")),
    "log-driver": Meaning(handlers.log_driver),
    "log-opt": Meaning(handlers.log_option),
    "mac-address": Meaning(_network("mac")),
    "memory": Meaning(_set("memory", spellings.size)),
    "memory-reservation": Meaning(_set("memory_reservation", spellings.size)),
    "memory-swap": Meaning(_set("memory_swap", lambda v: -1 if v == "-1" else spellings.size(v))),
    "memory-swappiness": Meaning(_none("cgroup v2 has no such setting")),
    "mount": Meaning(handlers.mount),
    "name": Meaning(lambda c, v, o: None),
    "network": Meaning(handlers.network_mode),
    "network-alias": Meaning(handlers.network_alias),
    "no-healthcheck": Meaning(_needless("podrun runs an image's health check only where the pod file asks"), True),
    "no-hosts": Meaning(_none("podrun always gives an /etc/hosts"), True),
    "oom-kill-disable": Meaning(_none("cgroup v2 cannot do without the kernel's OOM killer"), True),
    "oom-score-adj": Meaning(_set("oom_score_adj", spellings.number)),
    "os": Meaning(_none("podrun runs Linux images only")),
    "pid": Meaning(_set("pid")),
    "pidfile": Meaning(_none("systemd knows the main process", "`podrun inspect NAME` tells its pid")),
    "pids-limit": Meaning(handlers.pids),
    "platform": Meaning(handlers.platform),
    "pod": Meaning(_none("a pod is a file with all its containers", "put the steps into that pod's file")),
    "privileged": Meaning(handlers.privileged, True),
    "publish": Meaning(handlers.publish),
    "publish-all": Meaning(_none("only named ports are published", "list them in publish"), True),
    "pull": Meaning(handlers.pull),
    "quiet": Meaning(_needless("it is about the command's own output"), True),
    "rdt-class": Meaning(_none("podrun sets no class of resctrl")),
    "read-only": Meaning(_on("read_only"), True),
    "read-only-tmpfs": Meaning(handlers.read_only_tmpfs, True),
    "replace": Meaning(_needless("`podrun down NAME` before `up`"), True),
    "requires": Meaning(lambda c, v, o: c.pod.table.setdefault("requires", []).extend(v.split(","))),
    "restart": Meaning(handlers.restart_policy),
    "retry": Meaning(_needless("podrun tries a registry again by itself")),
    "retry-delay": Meaning(_needless("podrun tries a registry again by itself")),
    "rm": Meaning(_needless("podrun always removes the container"), True),
    "runtime": Meaning(_set("runtime")),
    "sdnotify": Meaning(handlers.sdnotify),
    "seccomp-policy": Meaning(_none("podrun takes no profile from an image")),
    "secret": Meaning(handlers.secret),
    "security-opt": Meaning(handlers.security),
    "shm-size": Meaning(_set("shm_size", spellings.size)),
    "sig-proxy": Meaning(_needless("the foreground passes signals on"), True),
    "stop-signal": Meaning(_set("stop_signal")),
    "stop-timeout": Meaning(handlers.stop_timeout),
    "storage-opt": Meaning(_none("the writable layer can use all of its file system", "use a volume with a quota")),
    "subgidname": Meaning(_none(_IDS, _OWN_IDS)),
    "subuidname": Meaning(_none(_IDS, _OWN_IDS)),
    "sysctl": Meaning(handlers.sysctl),
    "systemd": Meaning(_none("podrun prepares nothing for systemd as payload", "mount tmpfs on /run and /tmp")),
    "timeout": Meaning(_none("podrun leaves this to the unit", "set RuntimeMaxSec= in [service]")),
    "tls-verify": Meaning(_none("which registries speak plain HTTP is said once", "see registries.conf(5)"), True),
    "tmpfs": Meaning(lambda c, v, o: c.tmpfs(v, o)),
    "tty": Meaning(_none("a unit has no terminal", "use `podrun exec -it`, or `podrun run -it` by hand"), True),
    "tz": Meaning(_set("tz")),
    "uidmap": Meaning(_none(_IDS, _OWN_IDS)),
    "ulimit": Meaning(handlers.ulimit),
    "umask": Meaning(_set("umask")),
    "unsetenv": Meaning(_none("podrun cannot take a variable of the image's away", "set it to an empty string")),
    "unsetenv-all": Meaning(_none("podrun cannot take the image's variables away"), True),
    "user": Meaning(handlers.user),
    "userns": Meaning(handlers.userns),
    "uts": Meaning(_none("a pod has a host name of its own", 'network mode "host" shares the host\'s')),
    "variant": Meaning(_none("a platform is one word", 'set platform = "linux/ARCH/VARIANT" in the image step')),
    "volume": Meaning(handlers.volume),
    "volume-driver": Meaning(_none("podrun has no volume drivers", "use a storage step with type")),
    "volumes-from": Meaning(_none("a pod's mounts are its own", "name the same volumes in both")),
    "workdir": Meaning(_set("workdir")),
}
