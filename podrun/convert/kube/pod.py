"""A pod's spec: its volumes, and its containers key by key."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, NamedTuple

from podrun.errors import WRONG_FILE, Failure

from .. import options, spellings
from ..container import Container
from ..draft import Origin, Pod
from ..yamltext import Table


class Known(NamedTuple):
    """What manifests define beside pods, by name."""

    maps: dict[str, Table]
    secrets: dict[str, Table]
    claims: dict[str, Table]


def fill(pod: Pod, template: Table, known: Known, origin: Origin, *, default: str) -> None:
    """Fills a pod from a template. ``default``: its restartPolicy when it says nothing."""
    spec = template["spec"]
    at = Origin(spec.file, f"{origin.key}.spec")
    shared = Container(pod, directory="/")
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    volumes = {str(volume.get("name")): volume for volume in spec.get("volumes") or []}
    restart = str(spec.get("restartPolicy") or default)
    spellings.restart(pod, {"Always": "always", "OnFailure": "on-failure"}.get(restart, "no"), at)
    for key, value in spec.items():
        here = Origin(spec.where(key), f"{origin.key}.spec.{key}")
        handler = _SPEC.get(key)
        if handler is not None:
            handler(shared, value, here)
        elif key not in ("containers", "initContainers", "volumes", "restartPolicy", "securityContext"):
            pod.note(here, "podrun has no equivalent")
    if not spec.get("containers"):
        raise Failure(f"{at.where}: {at.key} has no containers", code=WRONG_FILE)
    entries = [(entry, False) for entry in spec.get("initContainers") or []]
    entries += [(entry, True) for entry in spec["containers"]]
    pod.steps = [shared.network]
    for entry, is_main in entries:
        place = f"{origin.key}.{'containers' if is_main else 'initContainers'}.{entry.get('name')}"
        here = Origin(entry.where("name") if isinstance(entry, Table) else at.where, place)
        if not is_main and entry.get("restartPolicy") != "Always":
            pod.note(
                here,
                "left out: a container that has to end before the others start",
                f'make it a pod of its own with type = "job", and say [pod] requires and after in {pod.name}',
            )
            continue
        container = Container(pod, str(entry.get("name") or "main"), directory="/")
        _container(container, shared, entry, spec, volumes, known, here)
        for key, value in annotations.items():
            container.step.put("annotations", key, str(value), here)
        pod.steps += container.finish()


# --- the pod's spec -------------------------------------------------------------------------------------------------


def _host_network(shared: Container, value: Any, origin: Origin) -> None:
    if value:
        shared.network.values.pop("hostname", None)
        shared.network.set("mode", "host", origin)


def _host_aliases(shared: Container, value: Any, origin: Origin) -> None:
    for entry in value or []:
        for name in entry.get("hostnames") or []:
            shared.network.put("hosts", str(name), str(entry.get("ip")), origin)


def _dns(shared: Container, value: Any, origin: Origin) -> None:
    for server in value.get("nameservers") or []:
        shared.network.append("dns", str(server), origin)
    for domain in value.get("searches") or []:
        shared.network.append("search", str(domain), origin)
    if value.get("options"):
        options.apply(shared, "dns-option", "", origin.below("options"))


def _grace(shared: Container, value: Any, origin: Origin) -> None:
    shared.pod.table["stop_timeout"] = f"{value}s"


def _quiet(shared: Container, value: Any, origin: Origin) -> None:
    pass


_SPEC: dict[str, Callable[[Container, Any, Origin], None]] = {
    "hostNetwork": _host_network,
    "hostAliases": _host_aliases,
    "hostname": lambda shared, value, origin: shared.network.set("hostname", str(value), origin),
    "dnsConfig": _dns,
    "dnsPolicy": _quiet,
    "terminationGracePeriodSeconds": _grace,
    "automountServiceAccountToken": _quiet,
    "enableServiceLinks": _quiet,
    "schedulerName": _quiet,
    "activeDeadlineSeconds": lambda shared, value, origin: shared.pod.setting("service", "RuntimeMaxSec", f"{value}s"),
}


# --- a container ----------------------------------------------------------------------------------------------------


def _container(
    container: Container,
    shared: Container,
    entry: Any,
    spec: Table,
    volumes: dict[str, Any],
    known: Known,
    origin: Origin,
) -> None:
    if not entry.get("image"):
        raise Failure(f"{origin.where}: {origin.key} has no image", code=WRONG_FILE)
    container.image.set("ref", str(entry["image"]), origin.below("image"))
    for key in ("hostPID", "hostIPC"):
        if spec.get(key):
            options.apply(container, key[4:].lower(), "host", origin)
    _security(container, {**(spec.get("securityContext") or {}), **(entry.get("securityContext") or {})}, origin)
    for key, value in entry.items():
        here = Origin(entry.where(key), f"{origin.key}.{key}")
        if key in ("name", "image", "securityContext", "restartPolicy") or value is None:
            continue
        if key in ("command", "args"):
            # A command there is the image's ENTRYPOINT, args its CMD. $(NAME) is replaced, $$(NAME) is not.
            words = [_references(str(word), container, here) for word in value]
            container.step.set("entrypoint" if key == "command" else "command", words, here)
        elif key == "env":
            _env(container, value, known, here)
        elif key == "envFrom":
            _env_from(container, value, known, here)
        elif key == "ports":
            _ports(container, shared, value, bool(spec.get("hostNetwork")), here)
        elif key == "volumeMounts":
            _mounts(container, value, volumes, known, here)
        elif key == "resources":
            _resources(container, value, here)
        elif key in ("livenessProbe", "readinessProbe", "startupProbe"):
            _probe(container, key, value, here)
        elif key == "workingDir":
            options.apply(container, "workdir", str(value), here)
        elif key == "imagePullPolicy":
            container.image.set("pull", {"IfNotPresent": "missing"}.get(str(value), str(value).lower()), here)
        elif key == "stdin":
            options.apply(container, "interactive", "true" if value else "false", here)
        elif key == "tty":
            if value:
                options.apply(container, "tty", "true", here)
        elif key in ("terminationMessagePath", "terminationMessagePolicy"):
            container.note(here, "the output is in the journal", by_hand=False)
        else:
            container.note(here, "podrun has no equivalent")


def _references(text: str, container: Container, origin: Origin) -> str:
    if "$(" in text.replace("$$(", ""):
        container.note(origin, f"{text!r}: podrun does not replace $(NAME)", "have a shell do it, by $NAME")
    return text.replace("$$(", "$(")


def _data(table: Table | None) -> dict[str, Any]:
    return (table.get("data") or {}) if table is not None else {}


def _env(container: Container, value: Any, known: Known, origin: Origin) -> None:
    for entry in value:
        name = str(entry.get("name"))
        here = origin.below(name)
        source = entry.get("valueFrom")
        if not source:
            container.step.put("env", name, _references(spellings.text(entry.get("value")), container, here), here)
            continue
        reference = source.get("configMapKeyRef")
        if reference:
            data = _data(known.maps.get(str(reference.get("name"))))
            if reference.get("key") in data:
                container.step.put("env", name, str(data[reference["key"]]), here)
            elif not reference.get("optional"):
                container.note(here, f"the ConfigMap {reference.get('name')} is not among the files", "name its file")
        elif source.get("secretKeyRef"):
            container.note(
                here,
                f"from the secret {source['secretKeyRef'].get('name')}: no secret's text is written into a pod file",
                "put it into an env file of mode 0600 (env_files)",
            )
        elif source.get("fieldRef"):
            path = str(source["fieldRef"].get("fieldPath"))
            if path == "metadata.name":
                container.step.put("env", name, container.pod.name, here)
            else:
                container.note(here, f"{path} is known only at the start", "set it by hand")
        else:
            container.note(here, "podrun has no equivalent")


def _env_from(container: Container, value: Any, known: Known, origin: Origin) -> None:
    for entry in value:
        prefix = str(entry.get("prefix") or "")
        if "configMapRef" in entry:
            name = str(entry["configMapRef"].get("name"))
            table = known.maps.get(name)
            if table is None and not entry["configMapRef"].get("optional"):
                container.note(origin, f"the ConfigMap {name} is not among the files", "name its file")
            for key, text in _data(table).items():
                container.step.put("env", f"{prefix}{key}", str(text), origin)
        else:
            name = str((entry.get("secretRef") or {}).get("name"))
            container.note(
                origin,
                f"from the secret {name}: no secret's text is written into a pod file",
                "put it into an env file of mode 0600 (env_files)",
            )


def _ports(container: Container, shared: Container, value: Any, is_host: bool, origin: Origin) -> None:
    for entry in value:
        if entry.get("hostPort") and not is_host:
            address = f"{entry['hostIP']}:" if entry.get("hostIP") else ""
            protocol = str(entry.get("protocol") or "TCP").lower()
            text = f"{address}{entry['hostPort']}:{entry.get('containerPort')}/{protocol}"
            for one in spellings.publish(text):
                shared.network.append("publish", one, origin)
        elif not is_host:
            options.apply(container, "expose", "", origin)


def _resources(container: Container, value: Any, origin: Origin) -> None:
    limits, requests = value.get("limits") or {}, value.get("requests") or {}
    for key, amount in limits.items():
        here = origin.below("limits").below(key)
        text = str(amount)
        if key == "cpu":
            options.apply(container, "cpus", f"{int(text[:-1]) / 1000:g}" if text.endswith("m") else text, here)
        elif key == "memory":
            container.step.set("memory", _quantity(text), here)
        elif "/" in key and key.startswith("podman.io/device="):
            options.apply(container, "device", key.removeprefix("podman.io/device="), here)
        elif key == "nvidia.com/gpu":
            options.apply(container, "gpus", "all", here)
        else:
            container.note(here, f"{text}: podrun has no equivalent")
    for key, amount in requests.items():
        here = origin.below("requests").below(key)
        if key == "memory":
            container.step.set("memory_reservation", _quantity(str(amount)), here)
        else:
            container.note(here, f"{amount}: only a scheduler reserves", "set CPUWeight= in [service]", by_hand=False)


def _quantity(text: str) -> Any:
    """A quantity of Kubernetes: Ki is 1024, k is 1000. Raises ValueError."""
    if text.endswith("i"):
        return text[:-1].upper()
    scale = {"k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}.get(text[-1:], 1)
    return int(float(text.rstrip("kMGT")) * scale)


def _probe(container: Container, key: str, value: Any, origin: Origin) -> None:
    probe: dict[str, Any] = {}
    if "exec" in value:
        probe["exec"] = [str(word) for word in (value["exec"] or {}).get("command") or []]
    elif "httpGet" in value:
        get = value["httpGet"]
        if str(get.get("scheme", "HTTP")).upper() != "HTTP" or get.get("httpHeaders"):
            container.note(origin, "podrun asks by plain HTTP, without headers of its own", "use exec with curl")
            return
        probe["http"] = f"{get.get('host') or ''}:{get.get('port')}{get.get('path') or '/'}"
    elif "tcpSocket" in value:
        probe["tcp"] = f"{value['tcpSocket'].get('host') or ''}:{value['tcpSocket'].get('port')}"
    else:
        container.note(origin, "podrun has probes by exec, HTTP and TCP", "use exec with a client")
        return
    period, limit = value.get("periodSeconds", 10), value.get("timeoutSeconds", 1)
    failures, delay = value.get("failureThreshold", 3), value.get("initialDelaySeconds", 0)
    if key == "livenessProbe":
        live = {**probe, "interval": f"{period}s", "timeout": f"{limit}s", "retries": failures}
        if delay:
            live["start_period"] = f"{delay}s"
        container.step.set("live", live, origin)
        known = {"periodSeconds", "timeoutSeconds", "failureThreshold", "initialDelaySeconds"}
    elif "ready" in container.step.values and key == "readinessProbe":
        container.note(origin, "podrun has one probe for the start: startupProbe is it", by_hand=False)
        return
    else:
        tries = failures if key == "startupProbe" else max(failures, 10)
        container.step.set("ready", {**probe, "timeout": f"{delay + (period + limit) * tries}s"}, origin)
        known = {"periodSeconds", "timeoutSeconds", "failureThreshold", "initialDelaySeconds"}
        if key == "readinessProbe":
            container.note(origin, "readiness counts for the start only: nothing takes a pod out later", by_hand=False)
    for inner in value:
        if inner not in known and inner not in ("exec", "httpGet", "tcpSocket") and value[inner] != 1:
            container.note(origin.below(inner), "podrun has no equivalent")


def _security(container: Container, context: dict[str, Any], origin: Origin) -> None:
    at = origin.below("securityContext")
    user, group = context.get("runAsUser"), context.get("runAsGroup")
    if user is not None:
        container.step.set("user", f"{user}:{group}" if group is not None else str(user), at)
    for key, value in context.items():
        here = at.below(key)
        if key in ("runAsUser", "runAsGroup", "runAsNonRoot") or value in (None, False, [], {}):
            continue
        if key == "privileged":
            options.apply(container, "privileged", "true", here)
        elif key == "readOnlyRootFilesystem":
            options.apply(container, "read-only", "true", here)
        elif key == "capabilities":
            for word in value.get("add") or []:
                options.apply(container, "cap-add", str(word), here)
            for word in value.get("drop") or []:
                options.apply(container, "cap-drop", str(word), here)
        elif key == "supplementalGroups":
            for number in value:
                options.apply(container, "group-add", str(number), here)
        elif key == "sysctls":
            for entry in value:
                options.apply(container, "sysctl", f"{entry.get('name')}={entry.get('value')}", here)
        elif key == "seccompProfile":
            kind = str(value.get("type"))
            if kind == "Unconfined":
                container.step.set("seccomp", "unconfined", here)
            elif kind == "Localhost":
                container.note(here, f"{value.get('localhostProfile')}", "set seccomp to the profile's path")
        elif key == "allowPrivilegeEscalation":
            container.step.set("no_new_privileges", not value, here)
        elif key == "procMount" and value == "Default":
            continue
        else:
            container.note(here, "podrun has no equivalent")


# --- mounts ---------------------------------------------------------------------------------------------------------


def _mounts(container: Container, value: Any, volumes: dict[str, Any], known: Known, origin: Origin) -> None:
    for entry in value:
        name = str(entry.get("name"))
        here = origin.below(name)
        volume = volumes.get(name)
        if volume is None:
            raise Failure(f"{here.where}: {here.key}: the pod has no volume {name}", code=WRONG_FILE)
        target, inner = str(entry.get("mountPath")), str(entry.get("subPath") or "")
        words = ["ro"] if entry.get("readOnly") else []
        for key in entry:
            if key not in ("name", "mountPath", "subPath", "readOnly"):
                container.note(here.below(key), "podrun has no equivalent")
        _mount(container, volume, target, inner, words, known, here)


def _mount(
    container: Container, volume: Any, target: str, inner: str, words: list[str], known: Known, origin: Origin
) -> None:
    name = str(volume.get("name"))
    kind = next((key for key in volume if key != "name"), "emptyDir")
    source = volume.get(kind) or {}
    if kind == "hostPath":
        path = f"{str(source.get('path')).rstrip('/')}/{inner}".rstrip("/") if inner else str(source.get("path"))
        container.mount(path, target, words, origin)
    elif kind == "persistentVolumeClaim":
        claim = str(source.get("claimName"))
        if inner:
            container.note(origin, f"subPath {inner} of a volume", "use a volume of its own, or a path of the host")
        if source.get("readOnly") and "ro" not in words:
            words = [*words, "ro"]
        container.mount(claim, target, words, origin)
    elif kind == "emptyDir":
        if source.get("medium") == "Memory":
            size = [f"size={_quantity(str(source['sizeLimit']))}"] if source.get("sizeLimit") else []
            container.tmpfs(":".join([target, *([",".join(size)] if size else [])]), origin)
            container.note(origin, "each container has memory of its own there: tmpfs is not shared", by_hand=False)
            return
        called = f"{container.pod.name}-{name}"
        container.mount(called, target, words, origin)
        container.note(
            origin, f"the volume {called} outlives the pod; an emptyDir would not", f"podrun volume rm {called}"
        )
    elif kind in ("configMap", "secret"):
        _map(container, kind, source, target, inner, known, origin)
    elif kind == "image":
        container.storage({"source": f"image:{source.get('reference')}"}, target, [], origin)
    elif kind == "nfs":
        container.storage({"source": f"nfs:{source.get('server')}:{source.get('path')}"}, target, words, origin)
    else:
        container.note(origin, f"a volume of the kind {kind} has no equivalent")


def _map(container: Container, kind: str, source: Any, target: str, inner: str, known: Known, origin: Origin) -> None:
    """The files of a ConfigMap. A secret's text is written nowhere: its files are credentials of the unit."""
    name = str(source.get("name") or source.get("secretName"))
    table = (known.maps if kind == "configMap" else known.secrets).get(name)
    if table is None:
        what = "ConfigMap" if kind == "configMap" else "Secret"
        if not source.get("optional"):
            container.note(origin, f"the {what} {name} is not among the files", "name its file")
        return
    data: dict[str, str] = {str(key): str(text) for key, text in (table.get("data") or {}).items()}
    data |= {str(key): str(text) for key, text in (table.get("stringData") or {}).items()}
    binary = dict(table.get("binaryData") or {})
    paths = {str(item.get("key")): str(item.get("path")) for item in source.get("items") or []}
    for key, text in {**data, **binary}.items():
        if paths and key not in paths:
            continue
        path = paths.get(key, key)
        if inner and path != inner:
            continue
        where = target if inner else f"{target.rstrip('/')}/{path}"
        if kind == "secret":
            credential = f"{name}-{key}"
            step: dict[str, Any] = {"source": "file:", "credential": credential, "options": ["mode=0444"]}
            container.pod.settings("service", "LoadCredential", [f"{credential}:/etc/podrun/secrets/{credential}"])
            container.note(
                origin, f"{where} is read from /etc/podrun/secrets/{credential}", "write it there, 0600, as root"
            )
        elif key in binary:
            try:
                text = base64.b64decode(text).decode()
            except ValueError:
                container.note(origin, f"{key} is not text", "write it into a file, and mount that")
                continue
            step = {"source": "file:", "content": text, "options": ["mode=0444"]}
        else:
            step = {"source": "file:", "content": text, "options": ["mode=0444"]}
        container.storage(step, where, [], origin)
