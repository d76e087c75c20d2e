"""Finds images in the store: by name, by digest or image id, or by the first digits of one."""

from __future__ import annotations

import os

from podrun.errors import UNAVAILABLE, Failure
from podrun_hooks.image import manifest, reference
from podrun_hooks.image.layer.stream import malformed
from podrun_hooks.image.store import layout


def records(root: str) -> list[tuple[str, layout.Stored]]:
    """All records of the store, with their paths."""
    directory = f"{layout.base(root)}/refs"
    if not os.path.isdir(directory):
        return []
    pairs = ((f"{directory}/{name}", layout.read(f"{directory}/{name}")) for name in sorted(os.listdir(directory)))
    return [(path, one) for path, one in pairs if one is not None]


def find(root: str, ref: str, cwd: str) -> list[tuple[str, layout.Stored]]:
    """The records, with their paths, of a name (on every platform), a digest, or the first digits of a digest."""
    digits = ref.removeprefix("sha256:")
    known = records(root)
    text = text_of(ref, cwd)
    found = [pair for pair in known if pair[1].ref == text]
    if not found and len(digits) >= 6:
        found = [pair for pair in known if pair[1].digest.removeprefix("sha256:").startswith(digits)]
        # Docker and podman call an image by the digest of its configuration.
        found = found or [pair for pair in known if id_of(root, pair[1]).removeprefix("sha256:").startswith(digits)]
    if not found:
        raise Failure(f"{text or ref} is not in the store", code=UNAVAILABLE, hint="see podrun image ls")
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
    try:
        return reference.parse(ref, cwd).text
    except Failure:
        return ""


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
