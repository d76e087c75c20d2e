"""One service of a compose file as a pod: which key is which option, and the keys that are more than an option."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from podrun.errors import WRONG_FILE, Failure
from podrun.identity import Identity

from .. import handlers, inputs, options, spellings
from ..container import Container
from ..draft import Origin, Pod, Step, absolute, is_open, unspecified
from ..yamltext import Table
from . import deploy, mounts, networks
from .context import Context, Service
from .project import by_key, depends_on


def convert(context: Context, pod: Pod, name: str, table: Table, origin: Origin, awaited: set[str]) -> None:
    """Fills the pod of a service. ``awaited``: the conditions under which others wait for it."""
    container = Container(pod, directory=context.project.directory, home=context.asked.environ.get("HOME", ""))
    service = Service(context, name, table, pod, container)
    mounts.declare(service)
    _image(service, origin)
    container.network.set("hostname", str(table.get("hostname") or name), origin)
    if table.get("hostname") and table["hostname"] != name:
        pod.note(
            Origin(table.where("hostname"), f"{origin.key}.hostname"),
            f"podrun answers the names {table['hostname']} and {pod.name}, and not {name}",
            "have others call it by one of these",
        )
    for key in table:
        here = Origin(table.where(key), f"{origin.key}.{key}")
        if key.startswith("x-") or key in ELSEWHERE or table[key] is None:
            continue
        handler = KEYS.get(key)
        if handler is None:
            pod.note(here, "podrun has no equivalent", "see what it was for")
            continue
        try:
            handler(service, table[key], here)
        except (ValueError, TypeError, AttributeError) as error:
            raise Failure(f"{here.where}: {here.key}: cannot be read: {error}", code=WRONG_FILE) from None
    _depends(service, Origin(table.where("depends_on"), f"{origin.key}.depends_on"))
    if table.get("network_mode"):
        _network_mode(service, table["network_mode"], Origin(table.where("network_mode"), f"{origin.key}.network_mode"))
    else:
        _networks(service, Origin(table.where("networks"), f"{origin.key}.networks"))
    if "service_healthy" in awaited:
        container.awaited(origin)
    if "service_completed_successfully" in awaited:
        pod.table["type"] = "job"
    if is_open([step.values for step in (container.step, container.network, container.image, *container.mounts)]):
        _environment_of_unit(service)
    first, *rest = container.finish()
    pod.steps = [first, *container.network_steps(), *rest]


def _environment_of_unit(service: Service) -> None:
    path = service.context.project.dotenv
    if path:
        service.pod.settings("service", "EnvironmentFile", [unspecified(path)])


def _image(service: Service, origin: Origin) -> None:
    name, table, project = service.name, service.table, service.context.project
    container = service.container
    build = table.get("build")
    ref = str(table.get("image") or f"{project.name}-{name}")
    chosen = service.context.images.get(name)
    if chosen:
        container.image.set("ref", chosen, origin)
    elif build:
        tagged = ref if ":" in ref.rpartition("/")[2] else f"{ref}:latest"
        container.image.set("ref", f"docker-daemon:{tagged}", origin)
        context = build.get("context", ".") if isinstance(build, dict) else build
        path = absolute(str(context), project.directory)
        here = Origin(table.where("build"), f"{origin.key}.build")
        service.pod.note(
            here,
            "podrun builds no images",
            f"build it (docker build -t {tagged} {path}), or say --image {name}=REF for one that is there",
        )
    elif not table.get("image"):
        raise Failure(f"{origin.where}: {origin.key} has neither image nor build", code=WRONG_FILE)
    else:
        container.image.set("ref", ref, Origin(table.where("image"), f"{origin.key}.image"))


# --- keys that are more than an option ------------------------------------------------------------------------------


def _depends(service: Service, origin: Origin) -> None:
    hard: list[str] = []
    soft: list[str] = []
    for other, entry in depends_on(service.table).items():
        if other not in service.context.pods:
            required = not (isinstance(entry, dict) and entry.get("required") is False)
            service.pod.note(origin, f"{other} is not converted with it", "start it yourself", by_hand=required)
            continue
        pod = service.context.pods[other]
        (soft if isinstance(entry, dict) and entry.get("required") is False else hard).append(pod)
        if isinstance(entry, dict) and entry.get("restart"):
            service.pod.settings("unit", "PartOf", [Identity(pod).unit()])
    if hard:
        service.pod.table.setdefault("requires", []).extend(
            pod for pod in hard if pod not in service.pod.table.get("requires", [])
        )
    if hard or soft:
        after = service.pod.table.setdefault("after", [])
        after.extend(pod for pod in [*hard, *soft] if pod not in after)


def _networks(service: Service, origin: Origin) -> None:
    own = networks.of(service.table)
    first = service.context.first[service.name]
    container = service.container
    order = [first, *(name for name in own if name != first)]
    for number, name in enumerate(order):
        network = service.context.networks.get(name)
        if network is None:
            raise Failure(f"{origin.where}: {origin.key}: the network {name} is not declared", code=WRONG_FILE)
        step = container.network if not number else Step("network")
        if number:
            container.networks.append(step)
        if network.mode:
            step.set("mode", network.mode, origin)
        else:
            step.set("bridge", network.bridge, origin)
        if network.gateways and network.mode.startswith("macvlan"):
            step.set("gateway", list(network.gateways), origin)
        entry = own[name] or {}
        for key, text in entry.items():
            _network_key(service, step, network, str(key), text, origin.below(name).below(str(key)))
    if len(order) > 1:
        needed = [other for other in depends_on(service.table) if other in service.context.services]
        found = [other for other in needed if first in networks.of(service.context.services[other])]
        service.pod.note(
            origin,
            f"the pod knows the names of the pods on {first} only, not of those on {', '.join(order[1:])}",
            "put what it calls by name on its first network, or say --one-network",
            by_hand=not needed or found != needed,
        )


def _network_key(service: Service, step: Step, network: networks.Network, key: str, value: Any, origin: Origin) -> None:
    if key in ("ipv4_address", "ipv6_address"):
        family = 4 if key == "ipv4_address" else 6
        length = next((length for version, length in network.lengths if version == family), "24")
        name = "address" if family == 4 else "address6"
        step.set(name, f"{value}/{length}" if network.mode.startswith("macvlan") else str(value), origin)
    elif key == "aliases":
        known = {service.name, service.pod.name, str(service.table.get("hostname") or "")}
        for alias in value or []:
            if alias not in known:
                options.apply(service.container, "network-alias", str(alias), origin)
    elif key == "mac_address":
        step.set("mac", str(value), origin)
    elif key == "interface_name":
        step.set("interface", str(value), origin)
    elif key in ("priority", "gw_priority"):
        return
    elif value:
        service.pod.note(origin, "podrun has no equivalent")


def _network_mode(service: Service, value: Any, origin: Origin) -> None:
    kind, _, other = str(value).partition(":")
    if kind == "service" and other in service.context.pods:
        service.container.network.values.pop("hostname", None)
        service.container.network.set("mode", f"pod:{service.context.pods[other]}", origin)
        return
    if kind in ("host", "none", "container"):
        service.container.network.values.pop("hostname", None)
    handlers.network_mode(service.container, str(value), origin)


def _ports(service: Service, value: Any, origin: Origin) -> None:
    for number, port in enumerate(value):
        here = origin.below(number)
        if not isinstance(port, dict):
            options.apply(service.container, "publish", spellings.text(port), here)
            continue
        published = spellings.text(port.get("published"))
        address = f"{port['host_ip']}:" if port.get("host_ip") else ""
        address = f"[{port['host_ip']}]:" if ":" in str(port.get("host_ip", "")) else address
        text = f"{address}{published}:{port.get('target')}/{port.get('protocol', 'tcp')}"
        options.apply(service.container, "publish", text, here)
        for key in port:
            if key not in ("target", "published", "host_ip", "protocol", "mode", "name", "app_protocol"):
                service.pod.note(here.below(key), "podrun has no equivalent")


def _environment(service: Service, value: Any, origin: Origin) -> None:
    from .interpolate import is_secret

    for key, text in by_key(value).items():
        if text is None and key not in service.context.project.environ:
            service.pod.note(origin.below(key), "not set: left out, as compose does", by_hand=False)
            continue
        if text is None:
            options.apply(service.container, "env", key, origin.below(key))
            continue
        options.apply(service.container, "env", f"{key}={spellings.text(text)}", origin.below(key))
        if is_secret(key) and text and not is_open(text) and not str(text).startswith("/"):
            service.pod.note(
                origin.below(key),
                "looks like a secret, and stands in the compose file in plain text: it does in the pod file, too",
                "have the program read it from a file, or move it to an env file of mode 0600 (env_files)",
                by_hand=False,
            )


def _env_file(service: Service, value: Any, origin: Origin) -> None:
    for entry in value if isinstance(value, list) else [value]:
        path = str(entry.get("path", "")) if isinstance(entry, dict) else str(entry)
        file = absolute(path, service.context.project.directory, service.container.home)
        inside = os.path.realpath(service.context.project.directory)
        anywhere = is_open(file) or service.context.asked.outside
        if not anywhere and not inputs.is_inside(os.path.realpath(file), inside):
            raise Failure(
                f"{origin.where}: {origin.key}: {path} is outside of {inside}",
                code=WRONG_FILE,
                hint="say --allow-outside if the pod may read it",
            )
        if isinstance(entry, dict) and entry.get("required") is False and not os.path.exists(file):
            service.pod.note(origin, f"{path} does not exist, which is allowed: left out", by_hand=False)
            continue
        options.apply(service.container, "env-file", file, origin)


def _healthcheck(service: Service, value: Any, origin: Origin) -> None:
    test = value.get("test")
    if value.get("disable") or test == "NONE" or test == ["NONE"]:
        options.apply(service.container, "no-healthcheck", "", origin)
        return
    words: list[str] = []
    if isinstance(test, str):
        words = spellings.shell(test)
    elif test:
        kind, *rest = [spellings.text(word) for word in test]
        words = rest if kind == "CMD" else spellings.shell(" ".join(rest)) if kind == "CMD-SHELL" else [kind, *rest]
    keys = {key: value.get(key) for key in ("interval", "timeout", "retries", "start_period")}
    service.container.health(words, origin, **keys)
    if not words:
        service.pod.note(origin, "without a test: the image's own health check with other times", "write the test")
    for key in value:
        if key == "start_interval":
            options.apply(service.container, "health-start-interval", "", origin.below(key))
        elif key not in ("test", "disable", *keys):
            service.pod.note(origin.below(key), "podrun has no equivalent")


def _logging(service: Service, value: Any, origin: Origin) -> None:
    if value.get("driver"):
        options.apply(service.container, "log-driver", str(value["driver"]), origin.below("driver"))
    for key, text in (value.get("options") or {}).items():
        options.apply(service.container, "log-opt", f"{key}={spellings.text(text)}", origin.below("options"))


def _command(service: Service, value: Any, origin: Origin) -> None:
    if value == "" or value == []:
        return
    service.container.step.set("command", spellings.words(value), origin)


def _entrypoint(service: Service, value: Any, origin: Origin) -> None:
    service.container.step.set("entrypoint", spellings.words(value) if value else [], origin)


def _ulimits(service: Service, value: Any, origin: Origin) -> None:
    for name, limit in value.items():
        text = f"{limit.get('soft')}:{limit.get('hard')}" if isinstance(limit, dict) else spellings.text(limit)
        options.apply(service.container, "ulimit", f"{name}={text}", origin.below(name))


def _sharing(option: str) -> Handler:
    """Pid and ipc: "host", or those of another service."""

    def do(service: Service, value: Any, origin: Origin) -> None:
        if str(value) in ("host", "private", "shareable", ""):
            options.apply(service.container, option, "private" if value == "shareable" else str(value), origin)
        else:
            service.pod.note(origin, f"{value!r}: pods do not share this with each other", "make them one pod")

    return do


def _volumes_from(service: Service, value: Any, origin: Origin) -> None:
    for entry in value:
        options.apply(service.container, "volumes-from", str(entry), origin)


def _scale(service: Service, value: Any, origin: Origin) -> None:
    deploy.replicas(service, value, origin)


def _domain(service: Service, value: Any, origin: Origin) -> None:
    step = service.container.network
    step.set("hostname", f"{step.values.get('hostname', service.name)}.{value}", origin)


def _pull_policy(service: Service, value: Any, origin: Origin) -> None:
    if value in ("always", "never", "missing", "if_not_present"):
        options.apply(service.container, "pull", str(value), origin)
    elif value == "build":
        return
    else:
        service.container.image.set("pull", "newer", origin)
        service.pod.note(origin, f"{value!r}: the registry is asked at each start", by_hand=False)


def _lifecycle(service: Service, value: Any, origin: Origin) -> None:
    service.pod.note(
        origin,
        "podrun has no command of its own there",
        "write a hook (`podrun hook new`), or ExecStartPost= in [service]",
    )


def _none(why: str, hint: str = "", *, by_hand: bool = True) -> Handler:
    return lambda service, value, origin: service.pod.note(origin, why, hint, by_hand=by_hand)


def _option(name: str) -> Handler:
    """A key that is an option of ``docker run`` with one value."""
    return lambda service, value, origin: options.apply(service.container, name, spellings.text(value), origin)


def _each(name: str) -> Handler:
    """A key that is an option which may be given several times: a list, one text, or a mapping of KEY=VALUE."""

    def do(service: Service, value: Any, origin: Origin) -> None:
        if isinstance(value, dict):
            for key, text in value.items():
                options.apply(service.container, name, f"{key}={spellings.text(text)}", origin.below(key))
            return
        for item in value if isinstance(value, list) else [value]:
            options.apply(service.container, name, spellings.text(item), origin)

    return do


Handler = Callable[[Service, Any, Origin], None]

#: Read where they belong, or about compose alone.
ELSEWHERE = frozenset("image build container_name hostname profiles extends depends_on networks network_mode".split())
KEYS: dict[str, Handler] = {
    "annotations": _each("annotation"),
    "attach": _none("it is about what `docker compose up` prints", by_hand=False),
    "blkio_config": _none("podrun leaves this to the unit", "set IOWeight= and its like in [service]"),
    "cap_add": _each("cap-add"),
    "cap_drop": _each("cap-drop"),
    "cgroup": _option("cgroupns"),
    "cgroup_parent": _option("cgroup-parent"),
    "command": _command,
    "configs": mounts.configs,
    "cpu_count": _option("cpus"),
    "cpu_percent": _none("it is about Windows"),
    "cpu_period": _option("cpu-period"),
    "cpu_quota": _option("cpu-quota"),
    "cpu_rt_period": _none("cgroup v2 has no such setting"),
    "cpu_rt_runtime": _none("cgroup v2 has no such setting"),
    "cpu_shares": _option("cpu-shares"),
    "cpus": _option("cpus"),
    "cpuset": _option("cpuset-cpus"),
    "credential_spec": _none("it is about Windows"),
    "deploy": deploy.deploy,
    "develop": _none("podrun watches no sources", "restart the pod after a build", by_hand=False),
    "device_cgroup_rules": _each("device-cgroup-rule"),
    "devices": _each("device"),
    "dns": _each("dns"),
    "dns_opt": _each("dns-option"),
    "dns_search": _each("dns-search"),
    "domainname": _domain,
    "entrypoint": _entrypoint,
    "env_file": _env_file,
    "environment": _environment,
    "expose": _option("expose"),
    "external_links": _none("podrun knows the pods of its bridges only", "put both on one bridge"),
    "extra_hosts": _each("add-host"),
    "gpus": lambda service, value, origin: options.apply(
        service.container, "gpus", "all" if isinstance(value, list) else str(value), origin
    ),
    "group_add": _each("group-add"),
    "healthcheck": _healthcheck,
    "init": _option("init"),
    "ipc": _sharing("ipc"),
    "isolation": _option("isolation"),
    "label_file": _option("label-file"),
    "labels": _each("label"),
    "links": _none("nothing to do: the pods of a bridge know each other by name", by_hand=False),
    "logging": _logging,
    "mac_address": _option("mac-address"),
    "mem_limit": _option("memory"),
    "mem_reservation": _option("memory-reservation"),
    "mem_swappiness": _option("memory-swappiness"),
    "memswap_limit": _option("memory-swap"),
    "models": _none("podrun runs no models"),
    "oom_kill_disable": _option("oom-kill-disable"),
    "oom_score_adj": _option("oom-score-adj"),
    "pid": _sharing("pid"),
    "pids_limit": _option("pids-limit"),
    "platform": _option("platform"),
    "ports": _ports,
    "post_start": _lifecycle,
    "pre_stop": _lifecycle,
    "privileged": _option("privileged"),
    "provider": _none("podrun runs no providers"),
    "pull_policy": _pull_policy,
    "read_only": _option("read-only"),
    "restart": _option("restart"),
    "runtime": _option("runtime"),
    "scale": _scale,
    "secrets": mounts.secrets,
    "security_opt": _each("security-opt"),
    "shm_size": _option("shm-size"),
    "stdin_open": _none("a unit has no standard input", "`podrun attach`, or interactive = true in the foreground"),
    "stop_grace_period": _option("stop-timeout"),
    "stop_signal": _option("stop-signal"),
    "storage_opt": _each("storage-opt"),
    "sysctls": _each("sysctl"),
    "tmpfs": _each("tmpfs"),
    "tty": _option("tty"),
    "ulimits": _ulimits,
    "use_api_socket": _none("podrun has no daemon with a socket"),
    "user": _option("user"),
    "userns_mode": _option("userns"),
    "uts": _option("uts"),
    "volumes": mounts.volumes,
    "volumes_from": _volumes_from,
    "working_dir": _option("workdir"),
}
