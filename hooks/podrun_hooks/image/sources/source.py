"""What a pull reads from, wherever that is: a registry, a layout, an archive, dockerd."""

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
    #: What the name stands for: a manifest, or an index of them.
    top: bytes
    media_type: str
    #: Digest of ``top``.
    remote: str
    #: A blob's bytes, or a manifest's. Neither digest nor size have been checked.
    open: Callable[[Descriptor], Iterator[bytes]]
    #: Closes what ``open`` reads from.
    close: Callable[[], None] = lambda: None
    #: Closes connections, which a process and its forked children must not share; ``open`` makes new ones.
    disconnect: Callable[[], None] = lambda: None
    #: The digests of layers are what the image says of itself: nothing is known of a blob before it has been read.
    claimed: bool = False


def image_manifest(source: Source, wanted: Platform) -> tuple[bytes, Descriptor]:
    """The image manifest that the source has for a platform, through any indexes."""
    content, told = source.top, Descriptor(source.media_type, source.remote, len(source.top))
    for _ in range(4):
        value = document(content, f"{source.what}: manifest")
        kind = media_type(value, told.media_type)
        if not is_index(kind):
            return content, told._replace(media_type=kind)
        told = choose(value, wanted, source.what)
        content = small(source, told, "manifest")
    raise malformed(f"{source.what}: indexes of indexes of indexes")


def small(source: Source, wanted: Descriptor, what: str) -> bytes:
    """A manifest or configuration, whole and verified."""
    name = f"{source.what}: {what}"
    if wanted.size > MAX_DOCUMENT:
        raise malformed(f"{name} is larger than {MAX_DOCUMENT} bytes")
    return b"".join(verified(source.open(wanted), wanted, name))


def verified(chunks: Iterator[bytes], wanted: Descriptor, what: str) -> Iterator[bytes]:
    """The same chunks; Failure (MALFORMED) instead of the end when size or digest are not those of the descriptor."""
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
