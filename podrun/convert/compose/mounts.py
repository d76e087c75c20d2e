"""Compose's volumes, secrets and configs as mounts of a container."""

from __future__ import annotations

from typing import Any

from podrun.errors import WRONG_FILE, Failure

from .. import spellings
from ..draft import Origin, absolute, variable
from ..yamltext import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .context import Service


def declare(service: Service) -> None:
    """Tells the container what the project's named volumes are called, and which of them are no plain directory."""
    project = service.context.project
    for name, table in project.volumes.items():
        table = table if isinstance(table, Table) else Table()
        external = table.get("external")
        full = str(table.get("name") or (name if external else f"{project.name}_{name}"))
        if isinstance(external, dict) and external.get("name"):
            full = str(external["name"])
        service.container.volume_names[name] = full
        options = table.get("driver_opts") or {}
        kind = str(options.get("type", ""))
        device, words = str(options.get("device", "")), str(options.get("o", ""))
        fields = [word for word in words.split(",") if word]
        if kind in ("nfs", "nfs4") and device:
            host = next((word[5:] for word in fields if word.startswith("addr=")), "")
            path = device.removeprefix(":")
            source = f"nfs:{host}:{path}" if device.startswith(":") else f"nfs:{device}"
            rest = [word for word in fields if not word.startswith("addr=")]
            service.container.volumes[name] = {"source": source, "options": rest}
        elif kind == "tmpfs":
            service.container.volumes[name] = {"source": "tmpfs:", "options": [spellings.size(w) for w in fields]}
        elif device and ("bind" in fields or "rbind" in fields):
            rest = [word for word in fields if word not in ("bind", "rbind")]
            service.container.volumes[name] = {"source": absolute(device, project.directory), "options": rest}
        elif device and kind:
            service.container.volumes[name] = {"source": device, "type": kind, "options": fields}


def volumes(service: Service, value: Any, origin: Origin) -> None:
    """The key ``volumes`` of a service."""
    for number, mount in enumerate(value):
        here = origin.below(number)
        if isinstance(mount, dict):
            _long(service, mount, here)
            continue
        text = str(mount)
        source = text.partition(":")[0]
        if ":" in text and "/" not in source and source not in (".", "..", "~"):
            _check_named(service, source, here)
        service.container.short_mount(text, here)


def _check_named(service: Service, name: str, origin: Origin) -> None:
    project = service.context.project
    if "\ufdd0" in name:
        return
    if name not in project.volumes:
        raise Failure(f"{origin.where}: {origin.key}: the volume {name} is not declared", code=WRONG_FILE)
    table = project.volumes[name]
    for key, entry in table.items() if isinstance(table, Table) else ():
        here = Origin(table.where(key), f"volumes.{name}.{key}")
        if key == "labels":
            service.pod.note(here, "a volume has no labels", by_hand=False)
        elif key == "driver" and entry not in (None, "local"):
            service.pod.note(here, f"the volume driver {entry!r} has no equivalent", "use a storage step with type")
        elif key == "driver_opts" and name not in service.container.volumes:
            service.pod.note(here, f"{dict(entry)} has no equivalent")


def _long(service: Service, mount: Any, origin: Origin) -> None:
    kind = str(mount.get("type", "volume"))
    source, target = str(mount.get("source") or ""), str(mount.get("target") or "")
    words = ["ro"] if mount.get("read_only") else []
    inner = mount.get(kind) or {}
    container = service.container
    known = {"type", "source", "target", "read_only", "consistency", kind}
    handled = {"bind": {"propagation", "create_host_path", "selinux"}, "volume": {"nocopy"}, "tmpfs": {"size", "mode"}}
    if kind == "tmpfs":
        sizes = [f"size={inner['size']}"] if "size" in inner else []
        sizes += (
            [f"mode={inner['mode']:o}" if isinstance(inner["mode"], int) else f"mode={inner['mode']}"]
            if "mode" in inner
            else []
        )
        container.tmpfs(":".join([target, *([",".join(sizes)] if sizes else [])]), origin)
    elif kind == "bind":
        if inner.get("propagation"):
            words.append(str(inner["propagation"]))
        container.mount(source if "/" in source else f"./{source}", target, words, origin)
    elif kind == "volume":
        if inner.get("nocopy"):
            words.append("nocopy")
        if source:
            _check_named(service, source, origin)
            container.mount(source, target, words, origin)
        else:
            container.anonymous(target, words, origin)
    elif kind == "image":
        container.storage({"source": f"image:{source}"}, target, [], origin)
    else:
        service.pod.note(origin, f"a mount of type {kind!r} has no equivalent")
    for key in mount:
        if key not in known:
            service.pod.note(origin.below(key), "podrun has no equivalent")
    for key in inner:
        if key not in handled.get(kind, set()):
            service.pod.note(origin.below(kind).below(key), f"{inner[key]!r} has no equivalent")


def secrets(service: Service, value: Any, origin: Origin) -> None:
    """The key ``secrets`` of a service: files below /run/secrets."""
    _files(service, value, origin, service.context.project.secrets, "secret", "/run/secrets/")


def configs(service: Service, value: Any, origin: Origin) -> None:
    """The key ``configs`` of a service: files, in the root unless they say where."""
    _files(service, value, origin, service.context.project.configs, "config", "/")


def _files(service: Service, value: Any, origin: Origin, declared: Table, what: str, below: str) -> None:
    for entry in value:
        table = entry if isinstance(entry, dict) else {"source": entry}
        name = str(table.get("source", ""))
        target = str(table.get("target") or name)
        target = target if target.startswith("/") else f"{below}{target}"
        here = origin.below(name)
        if name not in declared:
            raise Failure(f"{origin.where}: {origin.key}: the {what} {name} is not declared", code=WRONG_FILE)
        source = declared[name] if isinstance(declared[name], dict) else {}
        words = [f"{key}={table[key]}" for key in ("uid", "gid") if key in table]
        if "mode" in table:
            words.append(f"mode={table['mode']:o}" if isinstance(table["mode"], int) else f"mode={table['mode']}")
        _file(service, source, name, target, words, here, what)


def _file(service: Service, source: Any, name: str, target: str, words: list[str], origin: Origin, what: str) -> None:
    container = service.container
    if source.get("file"):
        path = absolute(str(source["file"]), service.context.project.directory, container.home)
        if words:
            service.pod.note(origin, f"{', '.join(words)}: {path} keeps its owner and mode", "chown and chmod it")
        # Says itself when the path is not there.
        container.mount(path, target, ["ro"], origin)
    elif source.get("environment"):
        words = words or ["mode=0444"]
        variable_name = str(source["environment"])
        container.storage({"source": "file:", "content": variable(variable_name), "options": words}, target, [], origin)
        service.pod.note(
            origin,
            f"the content is {variable_name} of podrun's environment at the start",
            "in a unit, name an EnvironmentFile= in [service]",
        )
    elif "content" in source and what == "config":
        words = words or ["mode=0444"]
        container.storage({"source": "file:", "content": str(source["content"]), "options": words}, target, [], origin)
    else:
        words = words or ["mode=0444"]
        container.storage({"source": "file:", "credential": name, "options": words}, target, [], origin)
        service.pod.settings("service", "LoadCredential", [f"{name}:/etc/podrun/secrets/{name}"])
        service.pod.note(
            origin, f"external: it is read from /etc/podrun/secrets/{name}", "write it there, 0600, as root"
        )
