"""How things get into the store and out of it: locks, work in progress, and what becomes visible only when it is whole.

Everything is written below tmp/ first, in a directory that its process holds locked; then syncfs(2), rename(2) and
fsync(2) of the directory it went to. A power cut may lose what was written last, but nothing under a valid name is
ever incomplete (rename without the syncfs is not enough: the name can reach the disk before the data).
A lock ends with its process, so whoever finds work in progress unlocked may remove it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from podrun.errors import BUSY, Failure, of_oserror

from .. import linux
from . import store

_DIRECTORIES = ("blobs", "blobs/sha256", "layers", "refs", "verified", "unclaimed", "tmp", "locks")
#: Seconds between two looks at a lock that somebody else holds.
_POLL = 0.02
#: Seconds that layers of a failed pull are kept for the next try.
KEPT = 24 * 3600
_LAYOUT = '{"imageLayoutVersion":"1.0.0"}'


def prepare(root: str) -> None:
    """Makes the store's directories; raises Failure when that is not possible."""
    base = store.base(root)
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


@contextmanager
def locked(
    root: str, name: str, *, shared: bool = False, wait: bool = True, idle: Callable[[], None] | None = None
) -> Iterator[None]:
    """Holds the lock ``name``; with ``wait`` False raises Failure (BUSY) instead of waiting.

    While it waits it calls ``idle``, which may raise to give up. The file is removed with the lock: who has waited for
    it looks whether it is still the one that others would open.
    """
    path = f"{store.base(root)}/locks/{name.removeprefix('sha256:')}"
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait and not idle else fcntl.LOCK_NB)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise of_oserror(error, "the image store") from None
        try:
            fcntl.flock(fd, how)
            if _is_same(fd, path):
                break
        except BlockingIOError:
            os.close(fd)
            if idle:
                idle()
                time.sleep(_POLL)
                continue
            raise Failure("the image store is in use by another podrun", code=BUSY, hint="try again") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    try:
        yield
    finally:
        try:
            if shared:
                # Only the last one out may take the file away.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(fd, path):
                os.unlink(path)
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            os.close(fd)


def _is_same(fd: int, path: str) -> bool:
    try:
        there, ours = os.stat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


# --- work in progress


@contextmanager
def work(root: str) -> Iterator[str]:
    """A locked directory in tmp/, removed afterwards whatever happens."""
    parent = f"{store.base(root)}/tmp"
    while True:
        path = f"{parent}/{os.getpid()}-{os.urandom(6).hex()}"
        os.mkdir(path, 0o700)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        # A sweep may have found it between mkdir and flock.
        if _is_same(fd, path):
            break
        os.close(fd)
    try:
        yield path
    finally:
        try:
            remove(path)
        except OSError as error:
            # A thread that is still being stopped has written once more: the next sweep takes it.
            if error.errno != errno.ENOTEMPTY:
                raise
        finally:
            os.close(fd)


def sweep(root: str) -> None:
    """Removes the work and the locks of processes that are gone."""
    base = store.base(root)
    for directory, how in ((f"{base}/tmp", remove), (f"{base}/locks", os.unlink)):
        for name in _names(directory):
            path = f"{directory}/{name}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same(fd, path):
                    how(path)
            except (BlockingIOError, FileNotFoundError):
                continue
            finally:
                os.close(fd)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def remove(path: str) -> None:
    """Removes a directory tree of any depth; what is gone already is fine.

    Deeper directories are moved up to the top before they are emptied: an image may nest them deeper than a path can
    name, a stack recurse or descriptors be held.
    """
    token = os.urandom(6).hex()
    moved = 0
    deeper = True
    while deeper:
        deeper = False
        for directory in [item.path for item in _items(path) if _is_kept_directory(item)]:
            deeper = True
            for item in _items(directory):
                if _is_kept_directory(item):
                    moved += 1
                    _unless_gone(os.rename, item.path, f"{path}/{token}-{moved}")
            _unless_gone(os.rmdir, directory)
    _unless_gone(os.rmdir, path)


def _unless_gone(call: Callable[..., None], *paths: str) -> None:
    try:
        call(*paths)
    except FileNotFoundError:
        pass


def _items(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as items:
            return list(items)
    except FileNotFoundError:
        return []


def _is_kept_directory(item: os.DirEntry[str]) -> bool:
    """Removes a file or an empty directory; True for a directory with something in it."""
    try:
        if item.is_dir(follow_symlinks=False):
            os.rmdir(item.path)
        else:
            os.unlink(item.path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return True
    return False


# --- publishing


def sync(path: str) -> None:
    """Everything written so far to the file system of ``path`` is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.syncfs(fd)
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
        if not os.path.exists(store.blob(root, digest)):
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
        os.rename(path, store.blob(root, digest))
    if written:
        _sync_directory(f"{store.base(root)}/blobs/sha256")


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
    _mark(root, map(_blob_mark, of_layers))
    _mark(root, (_layer_mark(layer.name) for layer, _ in layers if layer.digest and os.path.isdir(layer.unpacked)))
    for digest, written in (of_layers | blobs).items():
        os.rename(written, store.blob(root, digest))
    for layer, _ in layers:
        if os.path.isdir(layer.unpacked):
            path = store.layer(root, layer.name)
            os.rename(f"{layer.scratch}/about", f"{path}.json")
            try:
                os.rename(layer.unpacked, path)
            except OSError:
                # Somebody else was faster: another compression of the same layer.
                if not os.path.isdir(path):
                    raise
                _unless_gone(os.unlink, f"{store.base(root)}/unclaimed/{_layer_mark(layer.name)}")
    # One after the other: a journal that has written the first has written the second.
    if of_layers or blobs:
        _sync_directory(f"{store.base(root)}/blobs/sha256")
    if layers:
        _sync_directory(f"{store.base(root)}/layers")
    for layer, _ in layers:
        remove(layer.scratch)


# --- layers of pulls that failed


def _mark(root: str, written: Iterable[str]) -> None:
    """Notes blobs and layers, by :func:`_blob_mark` and :func:`_layer_mark`, of an image that is not in the store yet:
    before they are, so that none is forgotten, and only what is new, so that nobody uses it."""
    for name in written:
        os.close(os.open(f"{store.base(root)}/unclaimed/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _blob_mark(digest: str) -> str:
    return f"blob-{digest.removeprefix('sha256:')}"


def _layer_mark(diff_id: str) -> str:
    return f"layer-{diff_id.removeprefix('sha256:')}"


def claim(root: str, layers: Iterable[tuple[str, str]]) -> None:
    """Pairs of digest and diffID belong to an image from here on: called before it is one, lest what is used should
    ever look as if it were not."""
    for digest, diff_id in layers:
        for mark in (_blob_mark(digest), _layer_mark(diff_id)):
            _unless_gone(os.unlink, f"{store.base(root)}/unclaimed/{mark}")


def expired(root: str) -> list[str]:
    """What came whole with pulls that failed, and has not been tried again for a while: "layer-HEX", "blob-HEX"."""
    found = []
    for name in sorted(_names(f"{store.base(root)}/unclaimed")):
        try:
            age = time.time() - os.lstat(f"{store.base(root)}/unclaimed/{name}").st_mtime
        except FileNotFoundError:
            continue
        if age > KEPT:
            found.append(name)
    return found


def expire(root: str) -> list[str]:
    """Removes what has expired, and tells what; unless a pull is at work: the next one does then."""
    if not expired(root):
        return []
    base = store.base(root)
    try:
        with locked(root, "store", wait=False), work(root) as scratch:
            records = filter(None, (store.read(f"{base}/refs/{name}") for name in _names(f"{base}/refs")))
            # Somebody may have put its directory back under an image that had lost it.
            used = {_layer_mark(layer) for record in records for layer in record.layers}
            gone = [name for name in expired(root) if name not in used]
            for name in expired(root):
                kind, _, key = name.partition("-")
                paths = [store.blob(root, key)] if kind == "blob" else [store.layer(root, key)]
                for path in [*paths, *(f"{path}.json" for path in paths)] if name in gone else ():
                    _unless_gone(os.rename, path, f"{scratch}/{os.urandom(6).hex()}")
                _unless_gone(os.unlink, f"{base}/unclaimed/{name}")
            return gone
    except Failure as failure:
        if failure.code != BUSY:
            raise
        return []


def forget_marks(root: str) -> None:
    """Removes all marks: nothing is left in the store that is not used."""
    for name in _names(f"{store.base(root)}/unclaimed"):
        _unless_gone(os.unlink, f"{store.base(root)}/unclaimed/{name}")


def about_layer(root: str, name: str) -> dict[str, Any] | None:
    """What publish_layer was told of a layer; None when the layer is not there."""
    path = store.layer(root, name)
    try:
        os.lstat(path)
        with open(f"{path}.json", encoding="utf-8") as file:
            value = json.load(file)
            return value if isinstance(value, dict) else None
    except (FileNotFoundError, ValueError):
        return None


def put_record(root: str, scratch: str, stored: store.Stored) -> None:
    """Makes an image known by its name: to podrun only, see :func:`list_in_index`."""
    put(scratch, store.record(root, stored.ref, stored.platform), store.write_form(stored))


def list_in_index(root: str, scratch: str, name: str, descriptor: dict[str, Any] | None) -> None:
    """Sets, or with None removes, the entry ``name`` of index.json."""
    path = f"{store.base(root)}/index.json"
    with locked(root, "index"):
        try:
            with open(path, encoding="utf-8") as file:
                index = json.load(file)
        except (FileNotFoundError, ValueError):
            index = {"schemaVersion": 2, "manifests": []}
        before = json.dumps(index)
        index["manifests"] = [item for item in index["manifests"] if _name_of(item) != name]
        if descriptor:
            named = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}
            index["manifests"].append(named)
        if json.dumps(index) != before:
            put(scratch, path, json.dumps(index, separators=(",", ":")))


def listed_digests(root: str) -> set[str]:
    """The digests of the manifests that index.json lists."""
    try:
        with open(f"{store.base(root)}/index.json", encoding="utf-8") as file:
            return {str(item.get("digest")) for item in json.load(file)["manifests"]}
    except (FileNotFoundError, ValueError, LookupError):
        return set()


def _name_of(item: dict[str, Any]) -> str:
    return str((item.get("annotations") or {}).get("org.opencontainers.image.ref.name", ""))
