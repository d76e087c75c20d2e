"""Finds images in the store: by name, by digest or image id, or by the first digits of one."""

from __future__ import annotations

import os
from collections.abc import Iterable

from podrun.errors import UNAVAILABLE, Failure
from podrun_hooks.image import manifest, reference
from podrun_hooks.image.layer.stream import malformed
from podrun_hooks.image.reference import Reference
from podrun_hooks.image.store import layout


def records(root: str) -> list[tuple[str, layout.Stored]]:
    """All records of the store, with their paths."""
    directory = f"{layout.base(root)}/refs"
    if not os.path.isdir(directory):
        return []
    pairs = ((f"{directory}/{name}", layout.read(f"{directory}/{name}")) for name in sorted(os.listdir(directory)))
    return [(path, one) for path, one in pairs if one is not None]


def find(root: str, ref: str, cwd: str) -> list[tuple[str, layout.Stored]]:
    """The records, with their paths, of a name (on every platform), NAME@DIGEST, a digest, an id, or first digits."""
    digits = ref.removeprefix("sha256:")
    known = records(root)
    named = _parsed(ref, cwd)
    text = named.text if named else ""
    found = [pair for pair in known if pair[1].ref == text]
    if not found and named and named.digest:
        found = [pair for pair in known if _is_pinned(pair[1], named)]
    if not found and len(digits) >= 6:
        found = [pair for pair in known if pair[1].digest.removeprefix("sha256:").startswith(digits)]
        # Docker and podman call an image by the digest of its configuration.
        found = found or [pair for pair in known if id_of(root, pair[1]).removeprefix("sha256:").startswith(digits)]
    if not found:
        raise Failure(f"{text or ref} is not in the store", code=UNAVAILABLE, hint="see podrun image ls")
    return found


def identified(root: str, named: Reference, platform: str) -> layout.Image | None:
    """The stored image that a reference without a record of its own means: an id, a digest, or NAME@DIGEST."""
    known = [one for _, one in records(root) if platform in ("", one.platform)]
    digits = reference.digits(named)
    if named.digest:
        # An index's digest stands for an image on each platform, an image's own for that image.
        same = [one for one in known if one.platform == platform or one.digest == named.digest]
        found = [one for one in same if _is_pinned(one, named)]
    elif digits:
        found = [one for one in known if one.digest.startswith(f"sha256:{digits}")]
        found = found or [one for one in known if id_of(root, one).startswith(f"sha256:{digits}")]
    else:
        return None
    return next((layout.image(root, one) for one in found if layout.stored(root, one.ref, one.platform)), None)


def _is_pinned(stored: layout.Stored, named: Reference) -> bool:
    """Whether an image, pulled under some tag, is what NAME@DIGEST means; the tag does not count then."""
    if named.digest not in (stored.digest, stored.remote):
        return False
    own = _parsed(stored.ref, "")
    return own is not None and (own.registry, own.repository) == (named.registry, named.repository)


def names(root: str, refs: Iterable[str], cwd: str = "") -> set[str]:
    """The full names of the stored images that any of ``refs`` means, spelled in any way that :func:`find` takes."""
    found: set[str] = set()
    for ref in refs:
        try:
            found |= {one.ref for _, one in find(root, ref, cwd)}
        except Failure:
            continue
    return found


def id_of(root: str, stored: layout.Stored) -> str:
    """The digest of an image's configuration; "" for what has none."""
    try:
        return manifest_of(root, stored.digest).config.digest
    except (Failure, OSError):
        return ""


def named_by(root: str, ref: str) -> str:
    """The name of the stored image with this id or digest, or the first digits of one; ``ref`` where it is a name."""
    try:
        return find(root, ref, "")[0][1].ref
    except Failure:
        return ref


def text_of(ref: str, cwd: str) -> str:
    """A name as the store's records spell it; "" if it is none."""
    named = _parsed(ref, cwd)
    return named.text if named else ""


def _parsed(ref: str, cwd: str) -> Reference | None:
    try:
        return reference.parse(ref, cwd)
    except Failure:
        return None


def read(path: str) -> bytes:
    """The content of a document in the store. Raises Failure (MALFORMED) when it is missing."""
    try:
        with open(path, "rb") as file:
            return file.read(manifest.MAX_DOCUMENT + 1)
    except FileNotFoundError:
        raise malformed(f"the store lacks {os.path.basename(path)[:12]}; pull the image again") from None


def manifest_of(root: str, digest: str) -> manifest.Manifest:
    """The manifest of a stored image. Raises Failure (MALFORMED)."""
    content = read(layout.blob(root, digest))
    return manifest.manifest(content, manifest.Descriptor("", digest, len(content)), digest[:19])
