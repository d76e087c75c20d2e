"""Removes leftovers from the store: what killed pulls left, and expired layers and blobs of failed ones."""

from __future__ import annotations

import os

from podrun.errors import BUSY, Failure
from podrun_hooks.image.store import layout


def expire(root: str) -> list[str]:
    """Removes expired blobs and layers and returns their marks. Does nothing while a pull runs: a later call will."""
    from podrun_hooks.image.store.locks import locked
    from podrun_hooks.image.store.scratch import names_in, unless_gone, work
    from podrun_hooks.image.store.unclaimed import expired, layer_mark

    if not expired(root):
        return []
    base = layout.base(root)
    try:
        with locked(root, "store", wait=False), work(root) as scratch:
            records = filter(None, (layout.read(f"{base}/refs/{name}") for name in names_in(f"{base}/refs")))
            # A pull may have restored the directory of a layer for an image that had lost it.
            used = {layer_mark(layer) for record in records for layer in record.layers}
            gone = [name for name in expired(root) if name not in used]
            for name in expired(root):
                kind, _, key = name.partition("-")
                paths = [layout.blob(root, key)] if kind == "blob" else [layout.layer(root, key)]
                for path in [*paths, *(f"{path}.json" for path in paths)] if name in gone else ():
                    unless_gone(os.rename, path, f"{scratch}/{os.urandom(6).hex()}")
                unless_gone(os.unlink, f"{base}/unclaimed/{name}")
            return gone
    except Failure as failure:
        if failure.code != BUSY:
            raise
        return []


def sweep(root: str) -> list[str]:
    """Removes what killed pulls left behind, and blobs and layers of failed ones after a day; spares running pulls.

    Returns the expired ones: "layer-HEX", "blob-HEX".
    """
    base = layout.base(root)
    if not any(map(layout.has_something, (f"{base}/tmp", f"{base}/unclaimed"))):
        return []
    # Imported late: a start that finds nothing to sweep needs neither locks nor scratch.
    from podrun_hooks.image.store.scratch import reclaim

    reclaim(root)
    return expire(root)
