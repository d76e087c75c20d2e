"""The options that are more than a key: mounts, networks, health checks, secrets and their like."""

from __future__ import annotations

import csv
import json

from . import spellings
from .container import Container
from .draft import Origin, Step, absolute, link_name, variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def env(container: Container, value: str, origin: Origin) -> None:
    """--env: KEY=VALUE, or KEY for the value of the one who starts it."""
    name, equals, rest = value.partition("=")
    if equals:
        container.step.put("env", name, rest, origin)
    elif not (name.isascii() and name.isidentifier()):
        raise ValueError("expected KEY=VALUE, or the name of a variable")
    else:
        # Docker hands on its own environment's value: podrun's, here.
        container.step.put("env", name, variable(name), origin)
        container.note(origin, f"{name} is taken from podrun's environment", "in a unit: set Environment= in [service]")


def env_file(container: Container, value: str, origin: Origin) -> None:
    """--env-file."""
    container.step.append("env_files", absolute(value, container.directory, container.home), origin)


def publish(container: Container, value: str, origin: Origin) -> None:
    """--publish."""
    for one in spellings.publish(value, "0.0.0.0" if container.everywhere else "127.0.0.1"):
        container.network.append("publish", one, origin)


def volume(container: Container, value: str, origin: Origin) -> None:
    """--volume."""
    container.short_mount(value, origin)


def mount(container: Container, value: str, origin: Origin) -> None:
    """--mount: KEY=VALUE pairs between commas."""
    keys: dict[str, str] = {}
    for field in next(iter(_csv(value)), []):
        key, equals, rest = field.partition("=")
        keys[key.strip()] = rest if equals else "true"
    source = keys.pop("source", keys.pop("src", ""))
    target = keys.pop("target", keys.pop("destination", keys.pop("dst", "")))
    kind = keys.pop("type", "volume")
    words = []
    for key in ("readonly", "ro"):
        if key in keys and spellings.boolean(keys.pop(key)):
            words.append("ro")
    writable = spellings.boolean(keys.pop("rw", keys.pop("readwrite", "false")))
    if propagation := keys.pop("bind-propagation", ""):
        words.append(propagation)
    if spellings.boolean(keys.pop("U", keys.pop("chown", "false"))):
        words.append("U")
    if keys.pop("relabel", ""):
        container.note(origin, "SELinux labels are left as they are", by_hand=False)
    for key in ("noexec", "nosuid", "nodev", "exec", "suid", "dev", "nocopy", "volume-nocopy", "idmap"):
        if key in keys and keys[key] == "true":
            words.append(key.removeprefix("volume-"))
            del keys[key]
    if kind == "tmpfs":
        for key in ("tmpfs-size", "tmpfs-mode", "size", "mode"):
            if key in keys:
                words.append(spellings.size(f"{key.removeprefix('tmpfs-')}={keys.pop(key)}"))
        container.tmpfs(":".join([target, *([",".join(words)] if words else [])]), origin)
    elif kind == "image" and source:
        container.storage({"source": f"image:{source}"}, target, ["rw"] if writable else [], origin)
    elif kind in ("bind", "volume", "glob") and (source or kind == "volume"):
        if kind == "volume" and not source:
            container.anonymous(target, words, origin)
        else:
            container.mount(source if kind == "volume" or "/" in source else f"./{source}", target, words, origin)
    else:
        container.note(origin, f"a mount of type {kind!r}{'' if source else ' without a source'} has no equivalent")
        return
    for key, rest in keys.items():
        container.note(origin, f"{key}={rest} of a mount has no equivalent")


def _csv(value: str) -> list[list[str]]:
    return list(csv.reader([value]))


#: Modes whose word behind the colon is no list of settings.
_WITH_A_WORD = ("container", "pod", "ns", "netns", "cni", "macvlan")


def network_mode(container: Container, value: str, origin: Origin) -> None:
    """--network and compose's network_mode."""
    kind, colon, rest = value.partition(":")
    step = container.network
    if kind in ("host", "none") and not rest:
        step.set("mode", kind, origin)
    elif kind in ("bridge", "default", "podman") or not kind:
        pass
    elif kind in ("container", "pod") and rest:
        step.set("mode", f"pod:{rest}", origin)
        container.note(origin, f"the pod {rest} has to be up first", f'say [pod] requires = ["{rest}"]', by_hand=False)
    elif kind in ("ns", "netns") and rest:
        step.set("mode", f"netns:{rest}", origin)
    elif kind in ("cni", "macvlan") and rest:
        step.set("mode", value, origin)
    elif kind in ("slirp4netns", "pasta", "private"):
        container.note(origin, f"{kind} is for rootless podman: the pod is on podrun's bridge", by_hand=False)
    else:
        if "bridge" in step.values:
            step = _further(container)
        step.set("bridge", link_name(kind), origin)
    for word in rest.split(",") if colon and kind not in _WITH_A_WORD else []:
        key, _, inner = word.partition("=")
        if kind in ("slirp4netns", "pasta"):
            continue
        name = {"ip": "address6" if ":" in inner else "address", "ip6": "address6", "mac": "mac", "mtu": "mtu"}.get(key)
        if key == "interface_name":
            step.set("interface", inner, origin)
        elif key == "alias":
            network_alias(container, inner, origin)
        elif name:
            step.set(name, int(inner) if key == "mtu" and inner.isdecimal() else inner, origin)
        else:
            container.note(origin, f"{word!r} of a network has no equivalent")


def _further(container: Container) -> Step:
    step = Step("network")
    container.networks.append(step)
    return step


def add_host(container: Container, value: str, origin: Origin) -> None:
    """--add-host: "name:ip"; "name=ip" and several names are known, too."""
    # "name:ip", since compose 2.24 "name=ip" too; podman takes several names: "a;b:ip".
    at = min((value.find(c) for c in ":=" if c in value), default=-1)
    names, address = (value[:at], value[at + 1 :]) if at > 0 else (value, "")
    address = address.removeprefix("[").removesuffix("]")
    for name in names.split(";"):
        container.network.put("hosts", name, address, origin)


def entrypoint(container: Container, value: str, origin: Origin) -> None:
    """--entrypoint: one word, or a JSON array."""
    if value.startswith("["):
        try:
            container.step.set("entrypoint", [str(word) for word in json.loads(value)], origin)
            return
        except ValueError:
            pass
    container.step.set("entrypoint", [value] if value else [], origin)


def device(container: Container, value: str, origin: Origin) -> None:
    """--device."""
    container.step.append("devices", value, origin)


def security(container: Container, value: str, origin: Origin) -> None:
    """--security-opt."""
    key, _, rest = value.replace("=", ":", 1).partition(":") if "=" in value.partition(":")[0] else value.partition(":")
    step = container.step
    if key == "no-new-privileges":
        step.set("no_new_privileges", spellings.boolean(rest or "true"), origin)
    elif key == "seccomp":
        step.set("seccomp", rest, origin)
    elif key == "apparmor":
        step.set("apparmor", rest, origin)
    elif key == "label":
        what = "podrun sets no SELinux labels" if rest == "disable" else f"{rest}: podrun takes whole labels"
        container.note(origin, what, "selinux = USER:ROLE:TYPE:LEVEL" * (rest != "disable"), by_hand=rest != "disable")
    elif key == "unmask":
        for path in rest.split(":"):
            step.append("unmask", "ALL" if path.upper() == "ALL" else path, origin)
    elif key == "systempaths" and rest == "unconfined":
        step.append("unmask", "ALL", origin)
    elif key == "mask":
        for path in rest.split(":"):
            step.append("mask", path, origin)
    else:
        container.note(origin, f"{value!r} has no equivalent")


def privileged(container: Container, value: str, origin: Origin) -> None:
    """--privileged: what it means, each as a key of its own."""
    if not spellings.boolean(value or "true"):
        return
    step = container.step
    for key, word in (("cap_add", "ALL"), ("unmask", "ALL"), ("devices", "/dev")):
        step.append(key, word, origin)
    step.set("seccomp", "unconfined", origin)
    step.set("no_new_privileges", False, origin)


def sysctl(container: Container, value: str, origin: Origin) -> None:
    """--sysctl."""
    # Those of a network namespace belong to the step that makes it.
    step = container.network if value.startswith("net.") else container.step
    step.put("sysctls", *spellings.pair(value), origin)


def ulimit(container: Container, value: str, origin: Origin) -> None:
    """--ulimit."""
    name, limits = spellings.pair(value)
    if name == "host":
        container.note(origin, "ulimit=host: podrun's own limits apply where none are set", by_hand=False)
    else:
        container.step.put("ulimits", name, limits, origin)


def userns(container: Container, value: str, origin: Origin) -> None:
    """--userns: the pod's, since its namespaces belong to it."""
    word = value.partition(":")[0]
    if word in ("auto", "host"):
        container.pod.table["userns"] = word
    if word == "host":
        container.note(origin, "host: so it is, unless podrun.toml says otherwise", by_hand=False)
    elif word != "auto":
        container.note(origin, f"{value}: podrun has auto (a range of ids of the pod's own) and host", "say auto")
    elif value != word:
        container.note(origin, f"{value}: a pod's range has 65,536 ids", by_hand=False)


def read_only_tmpfs(container: Container, value: str, origin: Origin) -> None:
    """--read-only-tmpfs, which is podman's."""
    container.read_only_tmpfs = spellings.boolean(value)
    if not container.step.values.get("read_only"):
        container.note(origin, "it matters with a read-only root only", by_hand=False)


def user(container: Container, value: str, origin: Origin) -> None:
    """--user."""
    container.step.set("user", value, origin)


def stop_timeout(container: Container, value: str, origin: Origin) -> None:
    """--stop-timeout, in seconds."""
    container.step.set("stop_timeout", f"{value}s" if value.isdecimal() else value, origin)


def log_driver(container: Container, value: str, origin: Origin) -> None:
    """--log-driver."""
    if value == "none":
        container.step.set("log", "none", origin)
        return
    if container.step.values.get("log") == "none":
        del container.step.values["log"]  # of several the last counts
    if value in ("journald", "passthrough", "passthrough-tty"):
        return
    if value in ("json-file", "local", "k8s-file"):
        container.note(
            origin, f"{value}: the output goes to systemd's journal", 'log = "file:/path" writes a file', by_hand=False
        )
    else:
        container.note(origin, f"the log driver {value!r} has no equivalent", "have the journal forwarded")


def log_option(container: Container, value: str, origin: Origin) -> None:
    """--log-opt."""
    key, rest = spellings.pair(value)
    if key == "path":
        container.step.set("log", f"file:{rest}", origin)
    elif key in ("max-size", "max-file", "size", "max-buffer-size", "mode", "compress"):
        container.note(
            origin, f"{value}: journald rotates for all", "see SystemMaxUse= in journald.conf(5)", by_hand=False
        )
    else:
        container.note(origin, f"log option {value!r} has no equivalent")


def health_command(container: Container, value: str, origin: Origin) -> None:
    """--health-cmd: a text for the shell, or a JSON array."""
    if value in ("none", "NONE", ""):
        return
    if value.startswith("["):
        try:
            test = [str(word) for word in json.loads(value)]
        except ValueError:
            test = ["CMD-SHELL", value]
        container.health(
            test[1:] if test[:1] == ["CMD"] else spellings.shell(test[-1]) if "CMD-SHELL" in test else test, origin
        )
        return
    container.health(spellings.shell(value), origin)


def health(key: str) -> Callable[[Container, str, Origin], None]:
    """--health-KEY: what the health check's key is."""

    def do(container: Container, value: str, origin: Origin) -> None:
        if value == "disable":
            value = "1h"
        container.health([], origin, **{key: int(value) if key == "retries" and value.isdecimal() else value})

    return do


def health_failure(container: Container, value: str, origin: Origin) -> None:
    """--health-on-failure."""
    if value not in ("none", "kill", "restart", "stop"):
        raise ValueError("expected none, kill, restart or stop")
    container.health([], origin, on_failure=value)
    if value == "restart" and "Restart" not in container.pod.sections.get("service", {}):
        container.pod.setting("service", "Restart", "on-failure")
    if value == "kill":
        container.note(origin, "kill: podrun does so anyway", by_hand=False)
    if value == "stop":
        container.note(origin, "stop: podrun kills what fails its check; without Restart= it stays down", by_hand=False)


def secret(container: Container, value: str, origin: Origin) -> None:
    """--secret."""
    fields = next(iter(_csv(value)), [])
    keys = dict(spellings.pair(field) for field in fields if "=" in field)
    source = keys.pop("source", fields[0] if fields and "=" not in fields[0] else "")
    if not source:
        raise ValueError("expected a secret's name")
    kind = keys.pop("type", "mount")
    target = keys.pop("target", source)
    if kind == "env":
        container.note(
            origin,
            f"the secret {source} as the variable {target}: podrun hands secrets over as files only",
            f"have the program read /run/secrets/{source}, or put it into an env file of mode 0600 (env_files)",
        )
        return
    table: dict[str, object] = {"source": "file:", "secret": source}
    words = [f"{key}={keys.pop(key)}" for key in ("mode", "uid", "gid") if key in keys]
    container.storage(
        {**table, **({"options": words} if words else {})},
        target if target.startswith("/") else f"/run/secrets/{target}",
        [],
        origin,
    )
    container.note(origin, f"the secret {source} is podrun's own: podrun secret create {source} < FILE", by_hand=False)
    for key, rest in keys.items():
        container.note(origin, f"{key}={rest} of a secret has no equivalent")


def restart_policy(container: Container, value: str, origin: Origin) -> None:
    """--restart."""
    spellings.restart(container.pod, value, origin)


def platform(container: Container, value: str, origin: Origin) -> None:
    """--platform."""
    container.image.set("platform", value, origin)


def pull(container: Container, value: str, origin: Origin) -> None:
    """--pull."""
    container.image.set("pull", {"if_not_present": "missing", "ifnewer": "newer"}.get(value, value), origin)


def device_rule(container: Container, value: str, origin: Origin) -> None:
    """--device-cgroup-rule: "c 189:* rwm"."""
    container.step.append("device_rules", value, origin)


def cpuset(container: Container, value: str, origin: Origin) -> None:
    """--cpuset-cpus."""
    container.step.set("cpuset", value, origin)


def cpu_quota(container: Container, value: str, origin: Origin) -> None:
    """--cpu-quota, in microseconds of each period."""
    container.quota = (int(value), origin)


def cpu_period(container: Container, value: str, origin: Origin) -> None:
    """--cpu-period, in microseconds."""
    if not 0 < (period := int(value)) <= 1_000_000:
        raise ValueError("expected from 1 to 1000000 microseconds")
    container.period = period
    container.note(origin, "it counts together with a quota, as cpus", by_hand=False)


def pids(container: Container, value: str, origin: Origin) -> None:
    """--pids-limit."""
    if value in ("-1", "0"):
        container.step.set("pids", -1, origin)
    else:
        container.step.set("pids", spellings.number(value), origin)


def cgroup_parent(container: Container, value: str, origin: Origin) -> None:
    """--cgroup-parent."""
    if value.endswith(".slice"):
        container.pod.setting("service", "Slice", value)
    else:
        container.note(origin, f"{value!r}: a unit is in a slice", "set Slice= in [service]")


def gpus(container: Container, value: str, origin: Origin) -> None:
    """--gpus."""
    which = "all" if value in ("all", "-1") else value
    container.step.append("devices", f"nvidia.com/gpu={which}", origin)


def sdnotify(container: Container, value: str, origin: Origin) -> None:
    """--sdnotify."""
    if value == "container":
        container.step.set("ready", {"notify": True}, origin)
    elif value == "healthy":
        container.awaited(origin)


def network_alias(container: Container, value: str, origin: Origin) -> None:
    """--network-alias: of a bridge; elsewhere nobody asks podrun for names."""
    if container.network.values.get("mode", "bridge") == "bridge":
        container.network.append("aliases", value, origin)
    else:
        container.note(origin, f"{value}: only the pods of a bridge know each other by name", "leave it out")
