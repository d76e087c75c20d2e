"""Removes images from the store: names, and the blobs and layers that no name and no pod needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from podrun.errors import BUSY, UNAVAILABLE, Failure
from podrun_hooks.image import lookup, manifest, reference
from podrun_hooks.image.sources import host
from podrun_hooks.image.store import layout, publish
from podrun_hooks.image.store.index import list_in_index, listed_digests, listed_names
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.scratch import names_in, reclaim, remove, work
from podrun_hooks.image.store.stack import attribute_layer_name, visible
from podrun_hooks.image.store.unclaimed import forget_marks

#: Returns the images that pods use now: the digests in their facts, and each image step's ``ref`` in a journal.
Used = Callable[[], AbstractSet[str]]


class Removed(NamedTuple):
    """The names that were removed, and the bytes that were freed on the disk."""

    refs: list[str]
    freed: int


def rm(root: str, refs: list[str], used: Used, cwd: str = "") -> Removed:
    """Removes names, and the data that no other name and no pod needs.

    Raises Failure, having removed nothing: UNAVAILABLE for a name that does not exist, BUSY for one that a pod uses.
    """
    if not os.path.isdir(layout.base(root)):
        raise Failure(f"{refs[0]} is not in the store" if refs else "nothing to remove", code=UNAVAILABLE)
    with locked(root, "store", wait=False), work(root) as scratch:
        wanted = [pair for ref in refs for pair in lookup.find(root, ref, cwd)]
        return _remove(root, scratch, wanted, used, strict=True)


def prune(root: str, used: Used, unused: bool = False) -> Removed:
    """Removes data that no name and no pod needs; with ``unused`` also names that no pod uses."""
    if not os.path.isdir(layout.base(root)):
        return Removed([], 0)
    publish.prepare(root)
    reclaim(root)
    with locked(root, "store", wait=False), work(root) as scratch:
        return _remove(root, scratch, list(lookup.records(root)) if unused else [], used, strict=False)


def _remove(root: str, scratch: str, wanted: list[tuple[str, layout.Stored]], used: Used, *, strict: bool) -> Removed:
    """Moves the names aside before it asks which are in use. A pod writes its intent into its journal before it reads a
    name, so it is seen; a pod that finds no name has to pull, and waits for our lock."""
    busy = {spelled(text) for text in used()}
    free = [pair for pair in wanted if pair[1].ref not in busy and pair[1].digest not in busy]
    if strict and len(free) < len(wanted):
        ref = next(one.ref for path, one in wanted if (path, one) not in free)
        raise Failure(f"{ref} is in use by a pod", code=BUSY, hint="podrun ps shows which")
    aside = [(path, one, f"{scratch}/{number}") for number, (path, one) in enumerate(free)]
    moved = []
    gone = []
    try:
        for path, one, kept in aside:
            if os.path.exists(path):
                os.rename(path, kept)
                moved.append((path, one, kept))
        busy = {spelled(text) for text in used()}
        for path, one, kept in moved:
            if one.ref in busy or one.digest in busy:
                if strict:
                    raise Failure(f"{one.ref} is in use by a pod", code=BUSY, hint="podrun ps shows which")
                os.rename(kept, path)
            else:
                gone.append(one)
    except BaseException:
        for path, _, kept in moved:
            if os.path.exists(kept):
                os.rename(kept, path)
        raise
    left = {reference.layout_name(reference.parse(one.ref)) for _, one in lookup.records(root)}
    # Those, too, whose record went with a removal that was killed before it came here.
    for name in listed_names(root) - left:
        list_in_index(root, scratch, name, None)
    return Removed([one.ref for one in gone], _garbage(root, scratch, busy))


def spelled(text: str) -> str:
    """The normalized spelling of an image's name; leaves digests and other texts as they are."""
    try:
        return text if reference.is_digest(text) or text.startswith("host:") else reference.parse(text).text
    except Failure:
        return text


def _garbage(root: str, scratch: str, busy: AbstractSet[str]) -> int:
    """Removes the blobs and layers that neither a record nor a digest in ``busy`` needs; returns the bytes freed."""
    records = [one for _, one in lookup.records(root)]
    blobs = {digest.removeprefix("sha256:") for digest in listed_digests(root)}
    layers: set[str] = {name for one in records for name in one.layers}
    layers |= {f"host-{text.removeprefix('host:')}" for text in busy if text.startswith("host:")}
    for digest in {one.digest for one in records} | {text for text in busy if reference.is_digest(text)}:
        if not os.path.exists(layout.blob(root, digest)):
            continue
        found = lookup.manifest_of(root, digest)
        text = lookup.read(layout.blob(root, found.config.digest))
        diff_ids = manifest.configuration(text, len(found.layers), digest[:19]).diff_ids
        blobs |= {digest[7:], found.config.digest[7:], *(layer.digest[7:] for layer in found.layers)}
        layers |= {diff_id[7:] for diff_id in diff_ids}
        layers.add(attribute_layer_name(visible(root, diff_ids)))
    freed = 0
    base = layout.base(root)
    for name in os.listdir(f"{base}/blobs/sha256"):
        if name not in blobs:
            freed += os.lstat(f"{base}/blobs/sha256/{name}").st_blocks * 512
            os.unlink(f"{base}/blobs/sha256/{name}")
    for name in os.listdir(f"{base}/verified"):
        if not os.path.exists(f"{base}/blobs/sha256/{name.partition('-')[0]}"):
            os.unlink(f"{base}/verified/{name}")
    for name in names_in(f"{base}/pairs"):
        if name.partition("-")[0] not in blobs:
            os.unlink(f"{base}/pairs/{name}")
    now = host.ready(root)
    layers |= {os.path.basename(path) for path in (now.layers if now else [])}
    for name in os.listdir(f"{base}/layers"):
        if name.removesuffix(".json") in layers:
            continue
        path = f"{base}/layers/{name}"
        if name.endswith(".json"):
            os.unlink(path)
            continue
        freed += _on_disk(path)
        os.rename(path, f"{scratch}/{name}")
        remove(f"{scratch}/{name}")
    forget_marks(root)
    return freed


def _on_disk(path: str) -> int:
    """Bytes of the files below a directory; a file with several hard links counts once."""
    inodes: dict[int, int] = {}
    for directory, _, names in os.walk(path):
        for name in names:
            status = os.lstat(f"{directory}/{name}")
            inodes[status.st_ino] = status.st_blocks * 512
    return sum(inodes.values())
