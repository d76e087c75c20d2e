"""Exports images from the store as an archive that skopeo, podman and docker can all read.

It is an OCI image layout in a tar file (image-layout.md of the OCI image specification), which also holds the
manifest.json of ``docker save`` with the paths of the layout's blobs: docker before 25 reads only that.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from podrun import atomic
from podrun.errors import WRONG_FILE, Failure, of_oserror
from podrun_hooks.image import manifest, reference
from podrun_hooks.image.layer.stream import chunks_of, compression, decompressed, malformed
from podrun_hooks.image.manifest import Descriptor
from podrun_hooks.image.sources.archive import spooled
from podrun_hooks.image.store import layout

#: Formats of archives: with layers as they are, or uncompressed, for docker before 23, which cannot read zstd.
FORMATS = ("oci-archive", "docker-archive")


class _Image(NamedTuple):
    """An image with what is written of it. ``layers``: the blob's digest and the diffID of each."""

    names: Sequence[str]
    found: manifest.Manifest
    content: bytes
    config: bytes
    layers: list[tuple[str, str]]
    ref: str


def export(root: str, images: Sequence[tuple[layout.Stored, Sequence[str]]], path: str, form: str) -> None:
    """Writes images, each with the names under which it is to be loaded, into a file, or to standard output if ``path``
    is "-". The file appears when it is complete.

    Raises Failure: MALFORMED if the store lacks a blob; else with the code for the OSError, such as CANNOT_CREATE.
    """
    whole = [_read(root, stored, names) for stored, names in images]
    if path == "-":
        _write(root, whole, sys.stdout.buffer, form)
        sys.stdout.buffer.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        raise Failure(f"{path} is not a plain file", code=WRONG_FILE, hint="'-' writes to standard output")

    def write(fd: int) -> None:
        with open(fd, "wb", closefd=False) as file:
            _write(root, whole, file, form)

    try:
        atomic.replace(path, write, None, sync=True)
    except OSError as error:
        raise of_oserror(error, "exporting") from None


def _read(root: str, stored: layout.Stored, names: Sequence[str]) -> _Image:
    content = _blob(root, stored.digest)
    found = manifest.manifest(content, Descriptor("", stored.digest, len(content)), stored.ref)
    config = _blob(root, found.config.digest)
    diff_ids = manifest.configuration(config, len(found.layers), stored.ref).diff_ids
    layers = [(layer.digest, diff_id) for layer, diff_id in zip(found.layers, diff_ids, strict=True)]
    return _Image(names, found, content, config, layers, stored.ref)


def _write(root: str, images: Sequence[_Image], file: IO[bytes], form: str) -> None:
    plain = form == "docker-archive"
    # "w|" writes a stream: standard output cannot seek.
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        layers = {pair[plain]: pair for one in images for pair in one.layers}
        for digest, diff_id in layers.values():
            with _open(root, digest) as blob:
                packed = compression(blob.read(6))
                blob.seek(0)
                if plain and packed:
                    with spooled(decompressed(chunks_of(blob), digest[:19]), f"{layout.base(root)}/tmp") as unpacked:
                        _add(archive, _place(diff_id), unpacked)
                else:
                    _add(archive, _place(diff_id if plain else digest), blob)
        for config in dict.fromkeys((one.found.config.digest, one.config) for one in images):
            _add(archive, _place(config[0]), io.BytesIO(config[1]))
        if not plain:
            _add_layout(archive, images)
        listed = [
            {
                "Config": _place(one.found.config.digest),
                "RepoTags": [*one.names] or None,
                "Layers": [_place(diff_id if plain else digest) for digest, diff_id in one.layers],
            }
            for one in images
        ]
        _add(archive, "manifest.json", io.BytesIO(json.dumps(listed).encode()))


def _add_layout(archive: tarfile.TarFile, images: Sequence[_Image]) -> None:
    """Adds the files of an image layout, except the blobs of configurations and layers."""
    manifests: list[dict[str, Any]] = []
    for one in images:
        content = (
            one.content if one.found.descriptor.media_type == manifest.OCI_MANIFEST else manifest.as_oci(one.found)
        )
        digest = manifest.digest_of(content)
        item: dict[str, Any] = {"mediaType": manifest.OCI_MANIFEST, "digest": digest, "size": len(content)}
        if not any(other["digest"] == digest for other in manifests):
            _add(archive, _place(digest), io.BytesIO(content))
        # podman takes the image's name from the first annotation, containerd and docker since 25 from the second.
        named = [
            {**item, "annotations": {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}}
            for name in one.names
        ]
        manifests += named or [item]
    index = {"schemaVersion": 2, "manifests": manifests}
    _add(archive, "index.json", io.BytesIO(json.dumps(index).encode()))
    _add(archive, "oci-layout", io.BytesIO(b'{"imageLayoutVersion":"1.0.0"}'))


def name_of(stored: layout.Stored) -> str:
    """The name under which to load the image: its own if it is a registry's, else the name in its file; or ""."""
    named = reference.parse(stored.ref)
    if named.kind == reference.REGISTRY:
        return "" if named.digest else named.text
    name = named.repository if named.kind == reference.DOCKER_DAEMON else named.tag
    try:
        found = reference.parse(name)
    except Failure:
        return ""
    return found.text if found.kind == reference.REGISTRY and not found.digest and not name.startswith("@") else ""


def _place(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size = file.seek(0, os.SEEK_END)
    member.mode = 0o644
    file.seek(0)
    archive.addfile(member, file)


def _open(root: str, digest: str) -> IO[bytes]:
    try:
        return open(layout.blob(root, digest), "rb")
    except FileNotFoundError:
        raise malformed(f"the store lacks {digest[7:19]}; pull the image again") from None


def _blob(root: str, digest: str) -> bytes:
    with _open(root, digest) as file:
        return file.read(manifest.MAX_DOCUMENT + 1)
