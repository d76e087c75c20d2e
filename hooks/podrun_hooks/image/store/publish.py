"""Publishes blobs, layers and records: each becomes visible in the store only when it is complete.

Everything is first written below tmp/, in a directory that the writing process holds locked. Then come syncfs(2),
rename(2) and fsync(2) of the target directory. A power cut may lose the latest data, but nothing under a valid name is
ever incomplete (rename(2) alone does not ensure that: the name can reach the disk before the data).
A lock ends with its process, so any process that finds work in progress unlocked may remove it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from podrun.errors import of_oserror
from podrun_hooks.image.store import layout
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.scratch import remove, unless_gone, work
from podrun_hooks.image.store.unclaimed import blob_mark, layer_mark, note_marks
from podrun_hooks.support import syscalls

_DIRECTORIES = ("blobs", "blobs/sha256", "layers", "pairs", "refs", "verified", "unclaimed", "tmp", "locks")
_LAYOUT = '{"imageLayoutVersion":"1.0.0"}'


def prepare(root: str) -> None:
    """Creates the store's directories. Raises Failure if that is not possible."""
    base = layout.base(root)
    try:
        os.makedirs(root, 0o755, exist_ok=True)
        for name in ("", *_DIRECTORIES):
            try:
                os.mkdir(f"{base}/{name}", 0o700)
            except FileExistsError:
                continue
        if not os.path.exists(f"{base}/index.json"):
            with locked(root, "index"), work(root) as scratch:
                if not os.path.exists(f"{base}/index.json"):
                    put(scratch, f"{base}/oci-layout", _LAYOUT)
                    put(scratch, f"{base}/index.json", json.dumps({"schemaVersion": 2, "manifests": []}))
    except OSError as error:
        raise of_oserror(error, "the image store") from None


# --- publishing


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put(scratch: str, path: str, text: str | bytes) -> None:
    """Writes a small file so that readers see either the old or the new one, also after a power cut.

    Which one they see after a power cut is open: the rename is on the disk once the file system writes its journal.
    """
    new = f"{scratch}/{os.urandom(6).hex()}"
    with open(new, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)


def put_blobs(root: str, scratch: str, contents: Iterable[bytes]) -> dict[str, str]:
    """Writes small blobs (manifests, a configuration) that the store lacks; returns files for :func:`publish_blobs`."""
    written: dict[str, str] = {}
    for content in contents:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if not os.path.exists(layout.blob(root, digest)):
            written[digest] = f"{scratch}/{digest[7:]}"
            with open(written[digest], "wb") as file:
                file.write(content)
    return written


def publish_blobs(root: str, written: dict[str, str]) -> None:
    """Flushes files, by digest, to the disk and moves them to their places among the blobs."""
    for path in written.values():
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    for digest, path in written.items():
        os.rename(path, layout.blob(root, digest))
    if written:
        _sync_directory(f"{layout.base(root)}/blobs/sha256")


class Written(NamedTuple):
    """A layer that is written but not published yet: its blob, its directory, or both."""

    scratch: str
    digest: str
    #: The diffID, or another name in layers/.
    name: str

    @property
    def blob(self) -> str:
        return f"{self.scratch}/blob"

    @property
    def unpacked(self) -> str:
        return f"{self.scratch}/layer"


def publish_written(
    root: str, scratch: str, layers: list[tuple[Written, dict[str, Any] | None]], blobs: dict[str, str]
) -> None:
    """Flushes everything written so far to the disk, then publishes ``layers``, each with its metadata, and ``blobs``,
    files by digest.

    One syncfs(2) serves them all. A layer exists only when both its directory and the metadata file beside it do
    (:func:`about_layer`), so the order in which these two reach the disk does not matter.
    """
    for layer, about in layers:
        if os.path.isdir(layer.unpacked):
            with open(f"{layer.scratch}/about", "w", encoding="utf-8") as file:
                json.dump(about, file, separators=(",", ":"))
    syscalls.syncfs(scratch)
    of_layers = {layer.digest: layer.blob for layer, _ in layers if os.path.exists(layer.blob)}
    note_marks(root, map(blob_mark, of_layers))
    note_marks(root, (layer_mark(layer.name) for layer, _ in layers if layer.digest and os.path.isdir(layer.unpacked)))
    for digest, written in (of_layers | blobs).items():
        os.rename(written, layout.blob(root, digest))
    for layer, _ in layers:
        if os.path.isdir(layer.unpacked):
            path = layout.layer(root, layer.name)
            os.rename(f"{layer.scratch}/about", f"{path}.json")
            try:
                os.rename(layer.unpacked, path)
            except OSError:
                # Another process was faster: it has unpacked a differently compressed blob of this layer.
                if not os.path.isdir(path):
                    raise
                unless_gone(os.unlink, f"{layout.base(root)}/unclaimed/{layer_mark(layer.name)}")
        if layer.digest:
            os.close(os.open(pair(root, layer.digest, layer.name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    # One right after the other: the journal commit that the first one causes usually covers the second directory too.
    if of_layers or blobs:
        _sync_directory(f"{layout.base(root)}/blobs/sha256")
    if layers:
        _sync_directory(f"{layout.base(root)}/layers")
    for layer, _ in layers:
        remove(layer.scratch)


# --- metadata of layers


def pair(root: str, digest: str, diff_id: str) -> str:
    """The file whose existence says that a blob was read and has this diffID; a manifest may claim anything."""
    return f"{layout.base(root)}/pairs/{digest.removeprefix('sha256:')}-{diff_id.removeprefix('sha256:')}"


def about_layer(root: str, name: str) -> dict[str, Any] | None:
    """A layer's metadata, as :func:`publish_written` got it; None if the layer is not in the store."""
    path = layout.layer(root, name)
    try:
        os.lstat(path)
        with open(f"{path}.json", encoding="utf-8") as file:
            value = json.load(file)
            return value if isinstance(value, dict) else None
    except (FileNotFoundError, ValueError):
        return None


def put_record(root: str, scratch: str, stored: layout.Stored) -> None:
    """Records an image under its name, for podrun only; for other tools see index.list_in_index()."""
    put(scratch, layout.record(root, stored.ref, stored.platform), layout.write_form(stored))
