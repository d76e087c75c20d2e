"""Kubernetes manifests, those that ``podman kube play`` takes: a pod template becomes a pod with its containers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from podrun.errors import WRONG_FILE, Failure

from .. import inputs, yamltext
from ..draft import Draft, Origin, Pod, identity
from ..yamltext import Table
from . import pod as pods

#: What holds a pod template, and where.
_TEMPLATES = {"Pod": (), "Deployment": ("spec", "template"), "DaemonSet": ("spec", "template"),
              "StatefulSet": ("spec", "template"), "ReplicaSet": ("spec", "template"), "Job": ("spec", "template"),
              "CronJob": ("spec", "jobTemplate", "spec", "template")}  # fmt: skip
_NONE = {
    "Service": "the pods of a bridge reach each other by name; publish what others call",
    "Ingress": "use a reverse proxy in a pod of its own",
    "Namespace": "pods have no namespaces: their names tell them apart",
    "NetworkPolicy": "write it in your own nftables table",
    "ServiceAccount": "there is no API server to speak to",
}


def convert(paths: Sequence[str]) -> Draft:
    """The pods of manifests. Raises Failure (WRONG_FILE) for what is none."""
    draft = Draft()
    read(draft, paths)
    if not draft.pods:
        raise Failure(f"there is no pod in {', '.join(paths)}", code=WRONG_FILE)
    return draft


def read(draft: Draft, paths: Sequence[str]) -> None:
    """Adds the pods of manifests to a draft."""
    objects: list[Table] = []
    for path in paths:
        for document in yamltext.documents(inputs.read(path), path):
            for item in _items(document, path):
                objects.append(item)
    known = pods.Known(
        {_name(item): item for item in objects if item["kind"] == "ConfigMap"},
        {_name(item): item for item in objects if item["kind"] == "Secret"},
        {_name(item): item for item in objects if item["kind"] == "PersistentVolumeClaim"},
    )
    for item in objects:
        kind = str(item["kind"])
        origin = Origin(item.where("kind"), f"{kind} {_name(item)}")
        if kind in _TEMPLATES:
            try:
                draft.add(_pod(item, kind, known, origin))
            except (TypeError, AttributeError, ValueError) as error:
                raise Failure(f"{origin.where}: {origin.key} cannot be read: {error}", code=WRONG_FILE) from None
        elif kind in _NONE:
            draft.note(origin, f"a {kind} has no equivalent", _NONE[kind])
        elif kind not in ("ConfigMap", "Secret", "PersistentVolumeClaim"):
            draft.note(origin, f"a {kind} has no equivalent")


def _items(document: Any, path: str) -> list[Table]:
    if document is None:
        return []
    if not isinstance(document, Table) or not isinstance(document.get("kind"), str):
        raise Failure(f"{path}: a document without a kind is not a manifest", code=WRONG_FILE)
    if document["kind"] == "List":
        return [inner for item in document.get("items") or [] for inner in _items(item, path)]
    return [document]


def _name(item: Table) -> str:
    metadata = item.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, Table) else ""


def _pod(item: Table, kind: str, known: pods.Known, origin: Origin) -> Pod:
    template: Any = item
    for key in _TEMPLATES[kind]:
        template = template.get(key) if isinstance(template, Table) else None
    if not isinstance(template, Table) or not isinstance(template.get("spec"), Table):
        raise Failure(f"{origin.where}: {origin.key} has no pod's spec", code=WRONG_FILE)
    name = _name(item)
    if not name:
        raise Failure(f"{origin.where}: the {kind} has no metadata.name", code=WRONG_FILE)
    pod = Pod(identity(name), origin)
    if pod.name != name:
        pod.note(origin, f"a pod cannot be called {name}: it is {pod.name}", by_hand=False)
    spec = item.get("spec") if kind != "Pod" else None
    if isinstance(spec, Table):
        for key, value in spec.items():
            _controller(pod, kind, key, value, Origin(spec.where(key), f"{origin.key}.spec.{key}"))
    pods.fill(pod, template, known, origin, default="Never" if kind in ("Job", "CronJob") else "Always")
    if kind in ("Job", "CronJob"):
        pod.table["type"] = "job"
    if kind == "DaemonSet":
        pod.note(origin, "it is for this host only", "install the file on each host")
    return pod


def _controller(pod: Pod, kind: str, key: str, value: Any, origin: Origin) -> None:
    if key in ("selector", "template", "jobTemplate", "serviceName"):
        return
    if key == "replicas":
        if value not in (1, None):
            pod.note(origin, f"{value} replicas: a pod file is one pod", f"make it a template, {pod.name}@.toml")
    elif key == "schedule":
        pod.note(origin, f"{value}: write a timer for {pod.name}.service", "see OnCalendar= in systemd.timer(5)")
    elif key == "backoffLimit":
        pod.note(origin, f"{value}: systemd counts starts", "set Restart= and StartLimitBurst=")
    elif key == "activeDeadlineSeconds":
        pod.setting("service", "TimeoutStartSec", f"{value}s")
    else:
        pod.note(origin, f"it is about a {kind} of a cluster")
