"""The store's index.json: which name stands for which manifest."""

from __future__ import annotations

import json
from typing import Any

from podrun_hooks.image.store import layout
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.publish import put


def list_in_index(root: str, scratch: str, name: str, descriptor: dict[str, Any] | None) -> None:
    """Sets the entry ``name`` of index.json to a descriptor, or removes the entry if that is None."""
    path = f"{layout.base(root)}/index.json"
    with locked(root, "index"):
        try:
            with open(path, encoding="utf-8") as file:
                index = json.load(file)
        except (FileNotFoundError, ValueError):
            index = {"schemaVersion": 2, "manifests": []}
        before = json.dumps(index)
        index["manifests"] = [item for item in index["manifests"] if _name_of(item) != name]
        if descriptor:
            named = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}
            index["manifests"].append(named)
        if json.dumps(index) != before:
            put(scratch, path, json.dumps(index, separators=(",", ":")))


def listed_digests(root: str) -> set[str]:
    """The digests of the manifests that index.json lists."""
    return {str(item.get("digest")) for item in _listed(root)}


def listed_names(root: str) -> set[str]:
    """The names that it lists."""
    return {_name_of(item) for item in _listed(root)}


def _listed(root: str) -> list[dict[str, Any]]:
    try:
        with open(f"{layout.base(root)}/index.json", encoding="utf-8") as file:
            return list(json.load(file)["manifests"])
    except (FileNotFoundError, ValueError, LookupError):
        return []


def _name_of(item: dict[str, Any]) -> str:
    return str((item.get("annotations") or {}).get("org.opencontainers.image.ref.name", ""))
