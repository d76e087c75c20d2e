"""How things get into the store and out of it: locks, work in progress, and what becomes visible only when it is whole.

Everything is written below tmp/ first, in a directory that its process holds locked; then syncfs(2), rename(2) and
fsync(2) of the directory it went to. A power cut may lose what was written last, but nothing under a valid name is
ever incomplete (rename without the syncfs is not enough: the name can reach the disk before the data).
A lock ends with its process, so whoever finds work in progress unlocked may remove it.
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
    """Makes the store's directories; raises Failure when that is not possible."""
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


# --- locks


# --- work in progress


# --- publishing


def sync(path: str) -> None:
    """Everything written so far to the file system of ``path`` is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put(scratch: str, path: str, text: str | bytes) -> None:
    """Writes a small file so that readers see either the old or the new one, also after a power cut.

    Which of the two is another matter: the name is on the disk when the file system next writes its journal.
    """
    new = f"{scratch}/{os.urandom(6).hex()}"
    with open(new, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)


def put_blobs(root: str, scratch: str, contents: Iterable[bytes]) -> dict[str, str]:
    """Writes small blobs (manifests, a configuration) that the store lacks; for :func:`publish_blobs`."""
    written: dict[str, str] = {}
    for content in contents:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if not os.path.exists(layout.blob(root, digest)):
            written[digest] = f"{scratch}/{digest[7:]}"
            with open(written[digest], "wb") as file:
                file.write(content)
    return written


def publish_blobs(root: str, written: dict[str, str]) -> None:
    """Moves written files to their place among the blobs, by digest, once they are on the disk."""
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
    """A layer that has been written but is not visible yet: its blob, its directory, or both."""

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
    """Has everything so far written to the disk, and then makes visible ``layers``, with what is known of each, and
    ``blobs``, files by digest.

    One syncfs(2) serves them all. A layer counts as there when its directory and its file beside it are
    (:func:`about_layer`), so the order in which these two reach the disk does not matter.
    """
    for layer, about in layers:
        if os.path.isdir(layer.unpacked):
            with open(f"{layer.scratch}/about", "w", encoding="utf-8") as file:
                json.dump(about, file, separators=(",", ":"))
    sync(scratch)
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
                # Somebody else was faster: another compression of the same layer.
                if not os.path.isdir(path):
                    raise
                unless_gone(os.unlink, f"{layout.base(root)}/unclaimed/{layer_mark(layer.name)}")
        if layer.digest:
            os.close(os.open(pair(root, layer.digest, layer.name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    # One after the other: a journal that has written the first has written the second.
    if of_layers or blobs:
        _sync_directory(f"{layout.base(root)}/blobs/sha256")
    if layers:
        _sync_directory(f"{layout.base(root)}/layers")
    for layer, _ in layers:
        remove(layer.scratch)


# --- what is known of layers


def pair(root: str, digest: str, diff_id: str) -> str:
    """The file that says that a blob has been read, and is the layer of this diffID: a manifest may claim anything."""
    return f"{layout.base(root)}/pairs/{digest.removeprefix('sha256:')}-{diff_id.removeprefix('sha256:')}"


def about_layer(root: str, name: str) -> dict[str, Any] | None:
    """What publish_layer was told of a layer; None when the layer is not there."""
    path = layout.layer(root, name)
    try:
        os.lstat(path)
        with open(f"{path}.json", encoding="utf-8") as file:
            value = json.load(file)
            return value if isinstance(value, dict) else None
    except (FileNotFoundError, ValueError):
        return None


def put_record(root: str, scratch: str, stored: layout.Stored) -> None:
    """Makes an image known by its name: to podrun only, see :func:`list_in_index`."""
    put(scratch, layout.record(root, stored.ref, stored.platform), layout.write_form(stored))
