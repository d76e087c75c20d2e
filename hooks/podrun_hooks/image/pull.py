"""Pulls an image from any source into the store. The record of its name is written last."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from podrun.errors import UNAVAILABLE, Failure, of_oserror
from podrun.hook import progress_of
from podrun_hooks.image import manifest, reference
from podrun_hooks.image.fetch import Moving, Progress, fetch
from podrun_hooks.image.reference import Reference
from podrun_hooks.image.sources.source import Source, image_manifest, small
from podrun_hooks.image.store import layout, publish
from podrun_hooks.image.store.index import list_in_index
from podrun_hooks.image.store.leftovers import expire
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.scratch import reclaim, work
from podrun_hooks.image.store.stack import stacked
from podrun_hooks.image.store.unclaimed import claim
from podrun_hooks.image.trust.requirements import Demand, proof, proved

Notify = Callable[[str], None]


class _Pull(NamedTuple):
    """The arguments of one pull."""

    root: str
    named: Reference
    platform: str
    notify: Notify
    demands: Sequence[Demand]
    progress: Progress | None
    #: The caller has asked the registry: the name no longer resolves to the stored image.
    changed: bool


def pull(
    root: str,
    named: Reference,
    policy: str,
    platform: str,
    notify: Notify,
    demands: Sequence[Demand] = (),
    progress: Progress | None = None,
    changed: bool = False,
) -> layout.Image:
    """Fetches and unpacks what the store lacks of an image, and verifies that the image meets ``demands``.

    ``policy`` is a value of the hook's option ``pull``. Raises Failure: WRONG_FILE, UNAVAILABLE, NOT_ALLOWED,
    MALFORMED, CANNOT_CREATE. A failed image does not become visible under its name.
    """
    if named.kind == reference.HOST:
        from podrun_hooks.image.sources import host

        return host.make(root)
    todo = _Pull(root, named, platform, notify, demands, progress, changed)
    if policy == "never":
        found = layout.stored(root, named.text, platform)
        if found is None:
            raise Failure(f"{named.text} is not in the store", code=UNAVAILABLE, hint="pull is 'never'")
        return _stored(todo, found)
    notify(f"STATUS=Pulling {named.text}")
    publish.prepare(root)
    reclaim(root)
    expire(root)
    # The shared lock keeps prune out, which would take the parts of an unfinished image for garbage.
    with locked(root, "store", shared=True), locked(root, f"ref-{_short(named.text + platform)}"):
        known = layout.stored(root, named.text, platform)
        try:
            # The previous holder of the lock may have pulled it.
            if known and layout.cached(root, named, policy, platform):
                return _stored(todo, known)
            return _pull(todo, known)
        except Failure as failure:
            if policy == "newer" and known and failure.code == UNAVAILABLE and proved(root, demands, known.digest):
                notify(f"STATUS={failure.what}; going on with what is stored")
                what = failure.what if failure.what.isprintable() else ascii(failure.what)
                print(f"podrun: warning: {what}; going on with what is stored", file=sys.stderr, flush=True)
                return layout.image(root, known)
            raise
        except OSError as error:
            raise of_oserror(error, f"pulling {named.text}") from None


def shown(
    root: str, named: Reference, policy: str, platform: str, notify: Notify, demands: Sequence[Demand] = ()
) -> layout.Image:
    """:func:`pull` whose ``notify`` hears of every layer where somebody sits before a terminal."""
    if not os.isatty(2):
        return pull(root, named, policy, platform, notify, demands)

    def progress(layers: Sequence[Moving]) -> None:
        notify(progress_of([(one.digest[7:19], one.size if one.stored else one.done, one.size) for one in layers]))

    try:
        return pull(root, named, policy, platform, notify, demands, progress)
    finally:
        notify(progress_of(()))


def _short(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:24]


def _stored(todo: _Pull, known: layout.Stored) -> layout.Image:
    """An image that is in the store already; verifies it if that has not been done."""
    if not proved(todo.root, todo.demands, known.digest):
        _prove(todo, known.remote, known.digest)
        with work(todo.root) as scratch:
            _note_proofs(todo, scratch, known.digest)
    return layout.image(todo.root, known)


def _prove(todo: _Pull, *digests: str) -> None:
    from podrun_hooks.image.trust import signatures

    todo.notify(f"STATUS=Verifying {todo.named.text}")
    signatures.check(todo.demands, todo.named, digests)


def _note_proofs(todo: _Pull, scratch: str, digest: str) -> None:
    for demand in todo.demands:
        publish.put(scratch, proof(todo.root, demand, digest), todo.named.text)


def _pull(todo: _Pull, known: layout.Stored | None) -> layout.Image:
    with work(todo.root) as scratch:
        stamp = layout.stamp(layout.source_file(todo.named))
        source = _source(todo.named, known.remote if known and not todo.changed else "", scratch)
        if source is None and known:
            return _stored(todo, known)
        assert source is not None
        try:
            return _import(todo, source, stamp, scratch)
        finally:
            source.close()


def _source(named: Reference, known: str, scratch: str) -> Source | None:
    """The source to read the image from; None if that still has the image with digest ``known``."""
    if named.kind == reference.REGISTRY:
        from podrun_hooks.image.registry import head

        if known and head.digest(named) == known:
            return None
        from podrun_hooks.image.registry import source as registry

        return registry.source(named, known)
    if named.kind == reference.DOCKER_DAEMON:
        from podrun_hooks.image.sources import docker_daemon

        return docker_daemon.source(named, known, scratch)
    from podrun_hooks.image.sources import archive

    opening = {
        reference.OCI: archive.layout,
        reference.OCI_ARCHIVE: archive.oci_archive,
        reference.DOCKER_ARCHIVE: archive.docker_archive,
    }
    return opening[named.kind](named, scratch)


def _import(todo: _Pull, source: Source, stamp: list[int], scratch: str) -> layout.Image:
    root, named, platform, notify = todo.root, todo.named, todo.platform, todo.notify
    content, descriptor = image_manifest(source, manifest.platform(platform))
    found = manifest.manifest(content, descriptor, source.what)
    if not proved(root, todo.demands, found.descriptor.digest):
        _prove(todo, source.remote, found.descriptor.digest)
    config_text = small(source, found.config, "configuration")
    config = manifest.configuration(config_text, len(found.layers), f"{source.what}: configuration")
    _check_platform(config, platform, source.what)
    notify(f"STATUS=Pulling {named.text}: {len(found.layers)} layers")
    layers = dict.fromkeys(zip(found.layers, config.diff_ids, strict=True))
    listed = content if found.descriptor.media_type == manifest.OCI_MANIFEST else manifest.as_oci(found)
    small_blobs = publish.put_blobs(root, scratch, dict.fromkeys((config_text, content, listed)))
    fetch(root, source, layers, small_blobs, scratch, notify, todo.progress)
    notify(f"STATUS=Storing {named.text}")
    stack = stacked(root, scratch, config.diff_ids)
    stored = layout.Stored(
        ref=named.text,
        digest=found.descriptor.digest,
        remote=source.remote,
        platform=platform,
        layers=stack.layers,
        config=config.config,
        stdio=stack.stdio,
        source=stamp,
        pulled=time.time(),
        size=len(content) + len(config_text) + sum(layer.size for layer in dict.fromkeys(found.layers)),
    )
    _note_proofs(todo, scratch, stored.digest)
    claim(root, [(blob.digest, diff_id) for blob, diff_id in layers])
    publish.put_record(root, scratch, stored)
    notify(f"STATUS=Listing {named.text}")
    described = {
        "mediaType": manifest.OCI_MANIFEST,
        "digest": manifest.digest_of(listed),
        "size": len(listed),
        "platform": {"os": config.os or "linux", "architecture": config.architecture},
    }
    list_in_index(root, scratch, reference.layout_name(named), described)
    return layout.image(root, stored)


def _check_platform(config: manifest.Configuration, platform: str, what: str) -> None:
    """Refuses an image that says it is for another platform than the one asked for."""
    wanted = manifest.platform(platform)
    if platform and config.architecture and (config.os, config.architecture) != wanted[:2]:
        raise Failure(f"{what} is for {config.os}/{config.architecture}, not {platform}", code=UNAVAILABLE)
