"""The common interface of everything that a pull can read from: a registry, a layout, an archive, dockerd."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from podrun_hooks.image.layer.stream import malformed
from podrun_hooks.image.manifest import MAX_DOCUMENT, Descriptor, Platform, choose, document, is_index, media_type


class Source(NamedTuple):
    """An image at its source."""

    #: For messages: "docker.io/library/nginx:1.27".
    what: str
    #: The document that the name refers to: a manifest or an image index.
    top: bytes
    media_type: str
    #: Digest of ``top``.
    remote: str
    #: Yields the bytes of a blob or manifest. The caller has to check digest and size: see :func:`verified`.
    open: Callable[[Descriptor], Iterator[bytes]]
    #: Closes what ``open`` reads from.
    close: Callable[[], None] = lambda: None
    #: Closes connections before a fork, since parent and child must not share them; ``open`` makes new ones.
    disconnect: Callable[[], None] = lambda: None
    #: The layers' digests are claims of the image itself: a blob has to be read before its digest can be relied on.
    claimed: bool = False


def image_manifest(source: Source, wanted: Platform) -> tuple[bytes, Descriptor]:
    """The source's image manifest for a platform, found through any image indexes. Raises Failure."""
    content, descriptor = source.top, Descriptor(source.media_type, source.remote, len(source.top))
    for _ in range(4):
        value = document(content, f"{source.what}: manifest")
        kind = media_type(value, descriptor.media_type)
        if not is_index(kind):
            return content, descriptor._replace(media_type=kind)
        descriptor = choose(value, wanted, source.what)
        content = small(source, descriptor, "manifest")
    raise malformed(f"{source.what}: indexes of indexes of indexes")


def small(source: Source, wanted: Descriptor, what: str) -> bytes:
    """The verified content of a manifest or configuration. Raises Failure (MALFORMED)."""
    name = f"{source.what}: {what}"
    if wanted.size > MAX_DOCUMENT:
        raise malformed(f"{name} is larger than {MAX_DOCUMENT} bytes")
    return b"".join(verified(source.open(wanted), wanted, name))


def verified(chunks: Iterator[bytes], wanted: Descriptor, what: str) -> Iterator[bytes]:
    """Passes the chunks on. Raises Failure (MALFORMED) at the end if size or digest do not match the descriptor."""
    size = 0
    digest = hashlib.sha256()
    for chunk in chunks:
        size += len(chunk)
        if size > wanted.size:
            raise malformed(f"{what}: more than the {wanted.size} bytes that its descriptor says")
        digest.update(chunk)
        yield chunk
    if size != wanted.size:
        raise malformed(f"{what}: {size} bytes instead of the {wanted.size} that its descriptor says")
    if f"sha256:{digest.hexdigest()}" != wanted.digest:
        raise malformed(f"{what}: its sha256 is {digest.hexdigest()}, not {wanted.digest.removeprefix('sha256:')}")
