"""The versions of an image that a name has referred to: an update pulls the next one, a rollback restores one."""

from __future__ import annotations

import os

from podrun_hooks.image import manifest, reference
from podrun_hooks.image.store import layout, publish
from podrun_hooks.image.store.index import list_in_index
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.scratch import work
from podrun_hooks.image.trust.requirements import demands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def version(root: str, options: Any) -> dict[str, Any]:
    """The fields of the store's record of the name; {} if there is none."""
    named = reference.parse(options.ref)
    found = None if named.kind in (reference.HOST, reference.DIR) else layout.stored(root, named.text, options.platform)
    return found._asdict() if found else {}


def available(root: str, options: Any) -> str:
    """The digest that the registry has for a tag now; "" if there is no registry or one request does not obtain it."""
    named = reference.parse(options.ref)
    if named.kind != reference.REGISTRY or named.digest:
        return ""
    from podrun_hooks.image.registry import head

    return head.digest(named)


def refresh(root: str, options: Any, notify: Callable[[str], None]) -> None:
    """Pulls the image that the name refers to now. Raises Failure; the stored image stays then."""
    named = reference.parse(options.ref)
    if named.kind in (reference.HOST, reference.DIR) or named.digest:
        return
    from podrun_hooks.image.pull import shown

    shown(root, named, "always", options.platform, notify, demands(options.verify, named))


def bring_back(root: str, version: dict[str, Any]) -> None:
    """Makes the name refer again to an earlier version, which the store has kept."""
    stored = layout.Stored(**version)
    size = os.stat(layout.blob(root, stored.digest)).st_size
    descriptor = {"mediaType": manifest.OCI_MANIFEST, "digest": stored.digest, "size": size}
    with locked(root, "store", shared=True), work(root) as scratch:
        publish.put_record(root, scratch, stored)
        list_in_index(root, scratch, reference.layout_name(reference.parse(stored.ref)), descriptor)
