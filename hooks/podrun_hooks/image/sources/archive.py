"""Images in files as sources: OCI layouts, tar archives of them, and archives of ``docker save``."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from podrun.errors import MALFORMED, UNAVAILABLE, WRONG_FILE, Failure, of_oserror
from podrun_hooks.image import reference
from podrun_hooks.image.layer.stream import (
    CHUNK,
    MAX_LAYER_BYTES,
    Reader,
    chunks_of,
    compression,
    decompressed,
    malformed,
    seen,
)
from podrun_hooks.image.layer.tar import FILE, HARDLINK, SYMLINK, entries, header_like
from podrun_hooks.image.manifest import (
    MAX_DOCUMENT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    configuration,
    digest_of,
    document,
    oci_manifest,
)
from podrun_hooks.image.reference import Reference
from podrun_hooks.image.sources.source import Source

_REF_NAME = "org.opencontainers.image.ref.name"
#: The annotation in which containerd and docker keep an image's full reference.
_IMAGE_NAME = "io.containerd.image.name"

MAX_MEMBERS = 100_000


def layout(named: Reference, scratch: str) -> Source:
    """An OCI image layout in a directory."""

    def open_blob(wanted: Descriptor) -> Iterator[bytes]:
        path = f"{named.path}/blobs/sha256/{wanted.digest.removeprefix('sha256:')}"
        return chunks_of(opened(path, f"{named.text}: blob {wanted.digest[7:19]}"))

    with opened(f"{named.path}/index.json", named.text) as file:
        index = document(file.read(MAX_DOCUMENT + 1), f"{named.text}: index.json")
    return _of_layout(named, index, open_blob, lambda: None)


def oci_archive(named: Reference, scratch: str) -> Source:
    """A tar archive of an OCI image layout."""
    archive = _Archive.read(_plain(named, scratch), named.text)

    def open_blob(wanted: Descriptor) -> Iterator[bytes]:
        return archive.chunks(f"blobs/sha256/{wanted.digest.removeprefix('sha256:')}")

    index = document(archive.content("index.json"), f"{named.text}: index.json")
    return _of_layout(named, index, open_blob, archive.file.close)


def docker_archive(named: Reference, scratch: str) -> Source:
    """A tar archive of ``docker save`` or ``skopeo copy ... docker-archive:``."""
    return of_docker_archive(_plain(named, scratch), named.text, named.tag)


def of_docker_archive(file: IO[bytes], what: str, tag: str) -> Source:
    """A docker archive in an open, seekable file; ``tag`` is a RepoTag in its full spelling, "@index" or ""."""
    archive = _Archive.read(file, what)
    listed = _images(archive.content("manifest.json"), what)
    image = listed[_selected(listed, tag, what)]
    config_name, layer_names = image.get("Config"), image.get("Layers")
    if not isinstance(config_name, str) or not isinstance(layer_names, list):
        raise malformed(f"{what}: manifest.json has no Config and Layers")
    config = archive.content(config_name)
    diff_ids = configuration(config, len(layer_names), f"{what}: configuration").diff_ids
    members: dict[str, str] = {digest_of(config): config_name}
    layers = []
    for name, diff_id in zip(layer_names, diff_ids, strict=True):
        layer = _described(archive, str(name), diff_id)
        members[layer.digest] = str(name)
        layers.append(layer)
    # A docker archive has no OCI manifest: build one for its blobs.
    content = oci_manifest(Descriptor(OCI_CONFIG, digest_of(config), len(config)), layers)

    def open_blob(wanted: Descriptor) -> Iterator[bytes]:
        return archive.chunks(members[wanted.digest])

    return Source(what, content, OCI_MANIFEST, digest_of(content), open_blob, file.close, claimed=True)


def _images(content: bytes, what: str) -> list[dict[str, Any]]:
    try:
        listed = json.loads(content)
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
        raise malformed(f"{what}: manifest.json is not a list of images")
    return listed


def _tags(item: dict[str, Any]) -> list[str]:
    """The RepoTags of an image in manifest.json that are printable strings."""
    tags = item.get("RepoTags")
    return [tag for tag in tags if isinstance(tag, str) and tag.isprintable()] if isinstance(tags, list) else []


def _selected(listed: list[dict[str, Any]], tag: str, what: str) -> int:
    """The position in manifest.json of the image that ``tag`` selects."""
    names = [[_full(name) for name in _tags(item)] for item in listed]
    if tag.startswith("@") and len(tag) < 8 and tag[1:].isdecimal() and int(tag[1:]) < len(listed):
        return int(tag[1:])
    for index, tags in enumerate(names):
        if tag and tag in tags:
            return index
    if not tag and len(listed) == 1:
        return 0
    there = ", ".join(sorted(name for tags in names for name in tags)) or "images without a name: ask for @0"
    asked = f"has no {tag[:200]}" if tag else "holds several images"
    raise Failure(f"{what} {asked}", code=WRONG_FILE, hint=f"there is {there[:400]}")


def _full(name: Any) -> str:
    try:
        return reference.parse(str(name)).text
    except Failure:
        return str(name)


def _described(archive: _Archive, name: str, diff_id: str) -> Descriptor:
    """A layer's descriptor. A plain tar has its diffID as its digest; a compressed one has to be read for its own."""
    import hashlib

    kind = compression(next(archive.chunks(name), b"")[:6])
    size = archive.size(name)
    if not kind:
        return Descriptor(OCI_LAYER, diff_id, size)
    digest = hashlib.sha256()
    for _ in seen(archive.chunks(name), digest.update):
        pass
    return Descriptor(f"{OCI_LAYER}+{kind}", f"sha256:{digest.hexdigest()}", size)


# --- layouts


def _of_layout(
    named: Reference,
    index: dict[str, Any],
    open_blob: Callable[[Descriptor], Iterator[bytes]],
    close: Callable[[], None],
) -> Source:
    """The image of a layout: by name, or its only one. Several manifests of one name are a multi-platform image."""
    items = index.get("manifests")
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise malformed(f"{named.text}: index.json lists no images")
    if named.tag:
        chosen = [item for item in items if named.tag in _names(item)]
        if not chosen:
            there = ", ".join(sorted({name for item in items for name in _names(item)})) or "no name at all"
            raise Failure(f"{named.text}: no image is called {named.tag!r}", code=UNAVAILABLE, hint=f"there is {there}")
    else:
        chosen = items
        names = {frozenset(_names(item)) for item in items}
        if len(names) > 1:
            there = ", ".join(sorted({name for item in items for name in _names(item)}))
            raise Failure(f"{named.text} holds several images", code=WRONG_FILE, hint=f"name one: there is {there}")
    top = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": chosen}, separators=(",", ":")).encode()
    return Source(named.text, top, OCI_INDEX, digest_of(top), open_blob, close)


def _names(item: dict[str, Any]) -> list[str]:
    notes = item.get("annotations")
    if not isinstance(notes, dict):
        return []
    return [str(notes[key]) for key in (_REF_NAME, _IMAGE_NAME) if notes.get(key)]


def tags_of(index: dict[str, Any]) -> list[str]:
    """The suffixes of a layout's path that select its images: ":name", or "" for one without a name.

    Prefers the full name: docker 25 also writes the tag alone, so two images may both be "latest".
    """
    items = index.get("manifests")
    names = [_names(item) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return list(dict.fromkeys(f":{own[-1]}" if own else "" for own in names))


def contents(named: Reference, scratch: str) -> tuple[str, list[str]]:
    """An archive's kind, and the suffixes of its path that select its images: ("docker-archive", [":nginx:1.27"])."""
    with _plain(named, scratch) as file:
        archive = _Archive.read(file, named.text)
        if "index.json" in archive.members:
            index = document(archive.content("index.json"), f"{named.text}: index.json")
            return reference.OCI_ARCHIVE, tags_of(index)
        if not {"manifest.json"} & {*archive.members, *archive.links}:
            what = f"{named.text} is not an archive of images: it has neither index.json nor manifest.json"
            rooted = any(name.startswith(("bin/", "etc/", "usr/")) for name in archive.members)
            hint = "a file system can be unpacked into a directory, and used as dir:/DIRECTORY" if rooted else ""
            raise Failure(what, code=MALFORMED, hint=hint)
        listed = _images(archive.content("manifest.json"), named.text)
        tags = [_tags(item) or [f"@{number}"] for number, item in enumerate(listed)]
        return reference.DOCKER_ARCHIVE, [f":{name}" for own in tags for name in own]


# --- archives


class _Archive(NamedTuple):
    """An open tar archive: offset and size of each member's data, and the names that are links to others."""

    file: IO[bytes]
    what: str
    members: dict[str, tuple[int, int]]
    links: dict[str, str]

    @classmethod
    def read(cls, file: IO[bytes], what: str) -> _Archive:
        """Reads the headers and skips the data."""
        members: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        reader = _Seeking(file, what)
        if not header_like(os.pread(file.fileno(), 512, 0)):
            what = f"{what} is {'neither a tar archive nor a compressed one' if not reader.ended() else 'empty'}"
            raise malformed(what)
        for entry in entries(reader):
            name = os.path.normpath("/" + os.fsdecode(entry.name)).lstrip("/")
            if entry.kind == FILE and entry.segments is None:
                members[name] = (reader.position, entry.size)
            elif entry.kind == SYMLINK:
                # Old versions of docker save write a layer that two images share once, and symlink to it.
                links[name] = os.path.normpath(f"/{os.path.dirname(name)}/{os.fsdecode(entry.link)}").lstrip("/")
            elif entry.kind == HARDLINK:
                links[name] = os.path.normpath("/" + os.fsdecode(entry.link)).lstrip("/")
            if len(members) + len(links) > MAX_MEMBERS:
                raise malformed(f"{what} has more than {MAX_MEMBERS} members")
        return cls(file, what, members, links)

    def place(self, name: str) -> tuple[int, int]:
        wanted = os.path.normpath("/" + name).lstrip("/")
        for _ in range(8):
            if wanted in self.members:
                return self.members[wanted]
            wanted = self.links.get(wanted, "")
        raise malformed(f"{self.what}: there is no {name[:200]!r} in the archive")

    def size(self, name: str) -> int:
        return self.place(name)[1]

    def chunks(self, name: str) -> Iterator[bytes]:
        at, rest = self.place(name)
        while rest:
            # pread(2) needs no shared file offset: several processes read layers at once.
            chunk = os.pread(self.file.fileno(), min(CHUNK, rest), at)
            if not chunk:
                raise malformed(f"{self.what} is truncated")
            at += len(chunk)
            rest -= len(chunk)
            yield chunk

    def content(self, name: str) -> bytes:
        if self.size(name) > MAX_DOCUMENT:
            raise malformed(f"{self.what}: {name} is larger than {MAX_DOCUMENT} bytes")
        return b"".join(self.chunks(name))


class _Seeking(Reader):
    """A reader of a seekable file: it skips data without reading them."""

    __slots__ = ("_end", "_file")

    def __init__(self, file: IO[bytes], what: str) -> None:
        super().__init__(iter(()), what)
        self._file = file
        self._end = os.fstat(file.fileno()).st_size

    def ended(self) -> bool:
        return self.position >= self._end

    def exactly(self, size: int) -> bytes:
        content = os.pread(self._file.fileno(), size, self.position)
        if len(content) != size:
            raise malformed(f"{self._what} is truncated")
        self.position += size
        return content

    def skip(self, size: int) -> None:
        if self.position + size > self._end:
            raise malformed(f"{self._what} is truncated")
        self.position += size


def opened(path: str, what: str) -> IO[bytes]:
    """Opens a plain file, without blocking where the path leads to a FIFO. Raises Failure."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Failure(f"{what}: {path} is not a plain file", code=WRONG_FILE)
        return open(fd, "rb")
    except FileNotFoundError:
        raise Failure(f"{what if path in what else f'{what}: {path}'} is not there", code=WRONG_FILE) from None
    except OSError as error:
        raise of_oserror(error, what) from None


def _plain(named: Reference, scratch: str) -> IO[bytes]:
    """Opens the archive; if it is compressed as a whole, decompresses it into an unnamed file."""
    file = opened(named.path, named.text)
    start = file.read(6)
    file.seek(0)
    if start[:3] == b"BZh" or start == b"\xfd7zXZ\0":
        with file:
            return spooled(_unpacked(file, named.text), scratch)
    if not compression(start):
        return file
    with file:
        return spooled(decompressed(chunks_of(file), named.text), scratch)


def _unpacked(file: IO[bytes], what: str) -> Iterator[bytes]:
    """The plain bytes of an archive that bzip2 or xz has compressed as a whole. Raises Failure."""
    import bz2
    import lzma

    start = file.read(3)
    file.seek(0)
    total = 0
    try:
        with bz2.open(file) if start == b"BZh" else lzma.open(file) as plain:
            while chunk := plain.read(CHUNK):
                total += len(chunk)
                if total > MAX_LAYER_BYTES:
                    raise malformed(f"{what} unpacks to more than {MAX_LAYER_BYTES} bytes")
                yield chunk
    except (EOFError, lzma.LZMAError) as error:
        raise malformed(f"{what} cannot be unpacked: {error}") from None
    except OSError as error:
        raise (of_oserror(error, what) if error.errno else malformed(f"{what} cannot be unpacked: {error}")) from None


def spooled(chunks: Iterator[bytes], scratch: str) -> IO[bytes]:
    """Writes the chunks into an unnamed file on the store's file system: nothing has to be cleaned up."""
    file = tempfile.TemporaryFile(dir=scratch)
    for chunk in chunks:
        file.write(chunk)
    file.flush()
    return file
