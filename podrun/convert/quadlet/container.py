"""A .container as a pod, and a .pod with its containers as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from podrun.errors import WRONG_FILE, Failure

from .. import options
from ..container import Container
from ..draft import Origin, Pod, Step, identity, unit_name
from . import sections, unitfile
from .objects import Units
from .unitfile import Unit


def alone(unit: Unit, units: Units, environ: Mapping[str, str]) -> Pod:
    """The pod of a .container that belongs to no .pod."""
    pod = _pod(unit, "Container")
    container = _container(pod, unit, units, environ, "")
    steps = container.finish()
    pod.steps = [steps[0], *container.network_steps(), *steps[1:]]
    sections.convert(unit, units, pod)
    return pod


def pod_of(unit: Unit, units: Units, environ: Mapping[str, str]) -> Pod:
    """The pod of a .pod and the containers that name it."""
    members = units.members(unit)
    pod = _pod(unit, "Pod")
    if not members:
        pod.note(Origin(unit.name, ""), "no .container beside it names this pod", "say Pod= in one, and convert again")
    shared = Container(pod, directory=unit.directory)
    _keys(shared, unit, units, environ, "Pod", _POD)
    containers = [_container(pod, member, units, environ, member.stem) for member in members]
    pod.steps = shared.network_steps()
    for container in containers:
        for other in container.networks:
            pod.note(Origin("", container.name), f"a network of its own: {other.values}", "name it in the .pod")
        for key in set(container.network.values):
            origin = container.network.origins.get(key, pod.origin)
            pod.note(origin, f"{container.network.values[key]!r}: the network is the pod's", "say it in the .pod")
        for text in shared.step.values.get("volumes", []):
            container.step.values.setdefault("volumes", []).append(text)
        if "shm_size" in shared.step.values:
            container.step.values.setdefault("shm_size", shared.step.values["shm_size"])
        pod.steps += container.finish()
    # What the pod mounts by a step of its own is for all containers: it stands before them.
    first = next((n for n, step in enumerate(pod.steps) if step.hook == "container"), len(pod.steps))
    pod.steps[first:first] = shared.mounts
    sections.convert(unit, units, pod)
    for member in members:
        sections.of_member(member, pod)
    return pod


def _pod(unit: Unit, section: str) -> Pod:
    stem = unit.last(section, "ServiceName") or unit.stem
    name = unit_name(stem)
    pod = Pod(name, Origin(unit.name, ""))
    if name != stem:
        pod.note(Origin(unit.name, ""), f"a pod cannot be called {stem}: it is {name}", by_hand=False)
    return pod


def _container(pod: Pod, unit: Unit, units: Units, environ: Mapping[str, str], name: str) -> Container:
    container = Container(pod, name.replace("@", "-"), directory=unit.directory, home="/root")
    _image(container, unit, units)
    _keys(container, unit, units, environ, "Container", CONTAINER)
    _reload(pod, unit)
    return container


def _image(container: Container, unit: Unit, units: Units) -> None:
    rootfs, image = unit.all("Container", "Rootfs"), unit.all("Container", "Image")
    if rootfs:
        container.image.set("ref", f"dir:{rootfs[-1][0]}", rootfs[-1][1])
        return
    if not image:
        raise Failure(f"{unit.name}: neither Image nor Rootfs is set", code=WRONG_FILE)
    text, origin = image[-1]
    ref = unitfile.unquoted(text)
    if ref.endswith(".image"):
        container.image = units.image(ref, unit, container.pod)
        ref = container.image.values["ref"]
    elif ref.endswith(".build"):
        ref = units.reference(ref, unit, origin)
    container.image.set("ref", ref, origin)
    if ref.startswith("localhost/"):
        container.note(
            origin,
            f"{ref} is in podman's own store, which podrun does not read",
            f'podman save --format oci-archive -o FILE {ref}, and say ref = "oci-archive:FILE"',
        )


def _keys(
    container: Container, unit: Unit, units: Units, environ: Mapping[str, str], section: str, table: Mapping[str, Key]
) -> None:
    for key in unit.keys(section):
        values = unit.all(section, key)
        meaning = table.get(key)
        if key in _ELSEWHERE:
            continue
        if meaning is None:
            for _, origin in values:
                container.note(origin, f"[{section}] {key}= is not known to Quadlet", "see whether it is misspelled")
            continue
        for value, origin in values if meaning.many else values[-1:]:
            try:
                meaning.do(_Setting(container, unit, units, value, origin))
            except ValueError as error:
                container.note(origin, f"{value}: {error}")


def _reload(pod: Pod, unit: Unit) -> None:
    command, signal = unit.all("Container", "ReloadCmd"), unit.all("Container", "ReloadSignal")
    if command and signal:
        raise Failure(f"{unit.name}: ReloadCmd and ReloadSignal exclude each other", code=WRONG_FILE)
    if signal:
        pod.table["reload"] = signal[-1][0]
    for value, origin in command[-1:]:
        try:
            pod.table["reload"] = unitfile.words(value)
        except ValueError as error:
            pod.note(origin, f"{value}: {error}")


# --- the keys -------------------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    container: Container
    unit: Unit
    units: Units
    value: str
    origin: Origin

    def apply(self, name: str, value: str) -> None:
        options.apply(self.container, name, value, self.origin)

    def note(self, what: str, hint: str = "", *, by_hand: bool = True) -> None:
        self.container.note(self.origin, what, hint, by_hand=by_hand)


class Key(NamedTuple):
    """What a key does; ``many``: each of its values counts, not only the last."""

    do: Callable[[_Setting], None]
    many: bool = False


def _option(name: str) -> Key:
    return Key(lambda s: s.apply(name, unitfile.unquoted(s.value)))


def _every(name: str) -> Key:
    return Key(lambda s: s.apply(name, unitfile.unquoted(s.value)), many=True)


def _words(name: str) -> Key:
    """Several words to a line."""

    def do(setting: _Setting) -> None:
        for word in unitfile.words(setting.value):
            setting.apply(name, word)

    return Key(do, many=True)


def _switch(name: str) -> Key:
    return Key(lambda s: s.apply(name, "true") if unitfile.boolean(s.value) else None)


def _none(why: str, hint: str = "", *, by_hand: bool = True) -> Key:
    return Key(lambda s: s.note(f"{s.value}: {why}", hint, by_hand=by_hand), many=True)


def _volume(setting: _Setting) -> None:
    source, colon, rest = unitfile.unquoted(setting.value).partition(":")
    if source.endswith(".volume") and "/" not in source:
        _known_volume(setting, source)
    setting.container.short_mount(f"{source}{colon}{rest}", setting.origin)


def _known_volume(setting: _Setting, name: str) -> None:
    """Has the container know what a .volume is."""
    table = setting.units.volume(name, setting.unit)
    if table is not None:
        setting.container.volumes[name] = table
    else:
        setting.container.volume_names[name] = setting.units.volume_name(name, setting.unit)


def _mount(setting: _Setting) -> None:
    # One word per line, with quotes: a path may hold spaces.
    for word in unitfile.words(setting.value):
        fields = []
        for field in word.split(","):
            key, _, source = field.partition("=")
            if key in ("source", "src") and "/" not in source:
                if source.endswith(".volume"):
                    _known_volume(setting, source)
                elif source.endswith((".image", ".build")):
                    field = f"{key}={setting.units.reference(source, setting.unit, setting.origin)}"
            fields.append(field)
        setting.apply("mount", ",".join(fields))


def _network(setting: _Setting) -> None:
    name, _, rest = setting.value.partition(":")
    if name.endswith(".network"):
        key, value = setting.units.network(name, setting.unit, setting.origin)
        step = setting.container.network
        if "bridge" in step.values or "mode" in step.values:
            step = Step("network")
            setting.container.networks.append(step)
        step.set(key, value, setting.origin)
        if rest:
            setting.note(f"{rest!r} of a network", "say address, mac or interface in the network step")
    elif name.endswith(".container"):
        unit = setting.units.need(name, setting.unit, setting.origin)
        other = identity(unit.last("Container", "ServiceName") or unit.stem)
        setting.container.network.set("mode", f"pod:{other}", setting.origin)
        setting.container.pod.table.setdefault("requires", []).append(other)
        setting.container.pod.table.setdefault("after", []).append(other)
    else:
        setting.apply("network", setting.value)


def _device(setting: _Setting) -> None:
    import os

    for word in unitfile.words(setting.value):
        if word.startswith("-"):
            path = word[1:].partition(":")[0]
            if not os.path.exists(path):
                setting.note(f"there is no {path} on this host: left out", by_hand=False)
                continue
            word = word[1:]
        setting.apply("device", word)


def _user(setting: _Setting) -> None:
    group = setting.unit.last("Container", "Group")
    setting.apply("user", f"{setting.value}:{group}" if group else setting.value)


def _group(setting: _Setting) -> None:
    if not setting.unit.last("Container", "User"):
        raise Failure(f"{setting.origin.where}: Group= needs User=", code=WRONG_FILE)


def _exec(setting: _Setting) -> None:
    setting.container.step.set("command", unitfile.words(setting.value), setting.origin)


def _read_only(setting: _Setting) -> None:
    if not unitfile.boolean(setting.value):
        return
    setting.apply("read-only", "true")
    setting.container.read_only_tmpfs = setting.unit.last("Container", "ReadOnlyTmpfs") in (
        "",
        "yes",
        "true",
        "1",
        "on",
    )


def _read_only_tmpfs(setting: _Setting) -> None:
    if not setting.unit.last("Container", "ReadOnly"):
        setting.note("it matters with ReadOnly= only", by_hand=False)


def _volatile_tmp(setting: _Setting) -> None:
    if unitfile.boolean(setting.value) and "/tmp" not in setting.container.step.values.get("tmpfs", []):
        setting.container.tmpfs("/tmp", setting.origin)


def _notify(setting: _Setting) -> None:
    if setting.value == "healthy":
        if not setting.unit.last("Container", "HealthCmd"):
            setting.note("the image's health check is awaited", by_hand=False)
        setting.container.awaited(setting.origin)
    elif unitfile.boolean(setting.value):
        setting.apply("sdnotify", "container")


def _auto_update(setting: _Setting) -> None:
    if setting.value == "registry":
        setting.container.image.set("pull", "newer", setting.origin)
        setting.note("the registry is asked at each start; restart the pod from a timer to follow it", by_hand=False)
    else:
        setting.note(f"{setting.value!r}: podrun does not follow podman's own store", "restart the pod after a build")


def _container_name(setting: _Setting) -> None:
    name = unitfile.unquoted(setting.value)
    if not setting.unit.last("Container", "HostName"):
        setting.container.network.set("hostname", name, setting.origin)
    setting.note(
        f"{name}: a pod is called like its file, {setting.container.pod.name}; other pods find it by both",
        by_hand=False,
    )


def _environment(setting: _Setting) -> None:
    for word in unitfile.words(setting.value):
        setting.apply("env", word)


def _health(setting: _Setting) -> None:
    setting.apply("health-cmd", unitfile.unquoted(setting.value))


def _label_option(prefix: str) -> Key:
    return Key(lambda s: s.apply("security-opt", f"label={prefix}{s.value}"))


def _no_new_privileges(setting: _Setting) -> None:
    setting.apply("security-opt", f"no-new-privileges={setting.value}")


def _pod_args(setting: _Setting) -> None:
    from ..commandline import options as command_line

    command_line(setting.container, unitfile.words(setting.value), setting.origin)


_IDS = "podrun chooses the ids of a pod itself"
_USERNS = 'userns = "auto" in [pod]'
_PODMAN = "it is about podman's own files and processes"

#: Read where they belong.
_ELSEWHERE = frozenset("Image Rootfs Pod ServiceName ReloadCmd ReloadSignal PodName StartWithPod".split())

_COMMON: dict[str, Key] = {
    "AddHost": _every("add-host"),
    "ContainersConfModule": _none(_PODMAN),
    "DNS": _every("dns"),
    "DNSOption": _every("dns-option"),
    "DNSSearch": _every("dns-search"),
    "GIDMap": _none(_IDS, _USERNS),
    "GlobalArgs": _none(_PODMAN),
    "HostName": _option("hostname"),
    "IP": _option("ip"),
    "IP6": _option("ip6"),
    "Network": Key(_network, many=True),
    "NetworkAlias": _every("network-alias"),
    "PodmanArgs": Key(_pod_args, many=True),
    "PublishPort": _every("publish"),
    "RemapGid": _none(_IDS, _USERNS),
    "RemapUid": _none(_IDS, _USERNS),
    "RemapUidSize": _none(_IDS, _USERNS),
    "RemapUsers": _option("userns"),
    "ShmSize": _option("shm-size"),
    "SubGIDMap": _none(_IDS, _USERNS),
    "SubUIDMap": _none(_IDS, _USERNS),
    "UIDMap": _none(_IDS, _USERNS),
    "UserNS": _option("userns"),
    "Volume": Key(_volume, many=True),
}
_POD: dict[str, Key] = {
    **_COMMON,
    "ExitPolicy": _none("the pod's unit stays while its containers are started", 'see [pod] on_failure = "stop"'),
    "Label": _none("a pod's labels are its containers'", "write them into labels of the container steps"),
    "StopTimeout": Key(lambda s: s.container.pod.table.update(stop_timeout=f"{s.value}s")),
}
CONTAINER: dict[str, Key] = {
    **_COMMON,
    "AddCapability": _words("cap-add"),
    "AddDevice": Key(_device, many=True),
    "Annotation": _words("annotation"),
    "AppArmor": Key(lambda s: s.apply("security-opt", f"apparmor={s.value}")),
    "AutoUpdate": Key(_auto_update),
    "CgroupsMode": _option("cgroups"),
    "ContainerName": Key(_container_name),
    "DropCapability": _words("cap-drop"),
    "Entrypoint": _option("entrypoint"),
    "Environment": Key(_environment, many=True),
    "EnvironmentFile": _words("env-file"),
    "EnvironmentHost": _switch("env-host"),
    "Exec": Key(_exec),
    "ExposeHostPort": _every("expose"),
    "Group": Key(_group),
    "GroupAdd": _every("group-add"),
    "HealthCmd": Key(_health),
    "HealthInterval": _option("health-interval"),
    "HealthLogDestination": _option("health-log-destination"),
    "HealthMaxLogCount": _option("health-max-log-count"),
    "HealthMaxLogSize": _option("health-max-log-size"),
    "HealthOnFailure": _option("health-on-failure"),
    "HealthRetries": _option("health-retries"),
    "HealthStartPeriod": _option("health-start-period"),
    "HealthStartupCmd": _option("health-startup-cmd"),
    "HealthStartupInterval": _option("health-startup-interval"),
    "HealthStartupRetries": _option("health-startup-retries"),
    "HealthStartupSuccess": _option("health-startup-success"),
    "HealthStartupTimeout": _option("health-startup-timeout"),
    "HealthTimeout": _option("health-timeout"),
    "HttpProxy": _switch("http-proxy"),
    "Label": _words("label"),
    "LogDriver": _option("log-driver"),
    "LogOpt": _every("log-opt"),
    "Mask": Key(lambda s: s.apply("security-opt", f"mask={s.value}"), many=True),
    "Memory": _option("memory"),
    "Mount": Key(_mount, many=True),
    "NoNewPrivileges": Key(_no_new_privileges),
    "Notify": Key(_notify),
    "PidsLimit": _option("pids-limit"),
    "Pull": _option("pull"),
    "ReadOnly": Key(_read_only),
    "ReadOnlyTmpfs": Key(_read_only_tmpfs),
    "Retry": _option("retry"),
    "RetryDelay": _option("retry-delay"),
    "RunInit": _switch("init"),
    "SeccompProfile": Key(lambda s: s.apply("security-opt", f"seccomp={s.value}")),
    "Secret": _words("secret"),
    "SecurityLabelDisable": Key(
        lambda s: s.apply("security-opt", "label=disable") if unitfile.boolean(s.value) else None
    ),
    "SecurityLabelFileType": _label_option("filetype:"),
    "SecurityLabelLevel": _label_option("level:"),
    "SecurityLabelNested": Key(
        lambda s: s.apply("security-opt", "label=nested") if unitfile.boolean(s.value) else None
    ),
    "SecurityLabelType": _label_option("type:"),
    "StopSignal": _option("stop-signal"),
    "StopTimeout": _option("stop-timeout"),
    "Sysctl": _words("sysctl"),
    "Timezone": Key(lambda s: s.apply("tz", s.value) if s.value else None),
    "Tmpfs": _every("tmpfs"),
    "Ulimit": _every("ulimit"),
    "Unmask": Key(lambda s: s.apply("security-opt", f"unmask={s.value}"), many=True),
    "User": Key(_user),
    "VolatileTmp": Key(_volatile_tmp),
    "WorkingDir": _option("workdir"),
}
