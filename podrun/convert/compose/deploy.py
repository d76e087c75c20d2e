"""Compose's ``deploy``: limits, restarts and replicas; the rest is about a swarm of hosts."""

from __future__ import annotations

from typing import Any

from .. import options, spellings
from ..draft import Origin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .context import Service


def deploy(service: Service, value: Any, origin: Origin) -> None:
    """The key ``deploy`` of a service."""
    for key, entry in value.items():
        below = origin.below(key)
        if key == "resources":
            _resources(service, entry or {}, below)
        elif key == "restart_policy":
            _restart_policy(service, entry or {}, below)
        elif key == "replicas":
            replicas(service, entry, below)
        elif key == "labels":
            service.pod.note(below, "labels of a swarm service, not of its container", by_hand=False)
        elif key == "mode" and entry == "replicated":
            continue
        elif entry:
            service.pod.note(below, "it is about a swarm of hosts")


def _resources(service: Service, value: Any, origin: Origin) -> None:
    limits = {"cpus": "cpus", "memory": "memory", "pids": "pids-limit"}
    for key, amount in (value.get("limits") or {}).items():
        if key in limits:
            options.apply(service.container, limits[key], spellings.text(amount), origin.below("limits").below(key))
        else:
            service.pod.note(origin.below("limits").below(key), "podrun has no equivalent")
    for key, amount in (value.get("reservations") or {}).items():
        below = origin.below("reservations").below(key)
        if key == "memory":
            options.apply(service.container, "memory-reservation", spellings.text(amount), below)
        elif key == "devices":
            for device in amount:
                _reserved_device(service, device, below)
        elif key == "cpus":
            service.pod.note(below, "only a scheduler reserves processors", "set CPUWeight= in [service]")
        else:
            service.pod.note(below, "podrun has no equivalent")


def _reserved_device(service: Service, device: Any, origin: Origin) -> None:
    if device.get("driver") == "cdi" or "device_ids" in device:
        for identity in device.get("device_ids") or []:
            cdi = identity if "=" in str(identity) else f"nvidia.com/gpu={identity}"
            options.apply(service.container, "device", str(cdi), origin)
    elif "gpu" in (device.get("capabilities") or []):
        options.apply(service.container, "gpus", "all", origin)
    else:
        service.pod.note(origin, "podrun gives devices by their path or CDI name", "name them in devices")


def _restart_policy(service: Service, value: Any, origin: Origin) -> None:
    condition = str(value.get("condition", "any"))
    attempts = f":{value['max_attempts']}" if value.get("max_attempts") and condition == "on-failure" else ""
    spellings.restart(service.pod, f"{condition}{attempts}", origin)
    if value.get("delay"):
        service.pod.setting("service", "RestartSec", str(value["delay"]))
    if value.get("window"):
        service.pod.setting("unit", "StartLimitIntervalSec", str(value["window"]))


def replicas(service: Service, value: Any, origin: Origin) -> None:
    """Several of the same service."""
    if str(value) not in ("1", "None"):
        service.pod.note(
            origin,
            f"{value} replicas: a pod file is one pod",
            f"make it a template ({service.pod.name}@.toml, without fixed ports), and start its instances",
        )
