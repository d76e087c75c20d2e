"""Layers from a source into the store, several at once, each read once: verified, kept, decompressed and unpacked."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from podrun.errors import MALFORMED, Failure

from . import publish, store
from .layer import Summary, extract
from .manifest import Descriptor
from .source import Source, verified
from .stream import Reader, ahead, chunks_of, decompressed, malformed, seen

#: Layers at work at once.
PARALLEL = 3
#: Seconds between two STATUS= lines, and how much longer each of them asks systemd to wait.
_INTERVAL = 0.5
_EXTENSION = 60
#: Seconds between two looks for ``progress``.
_GLANCE = 0.1


class _Stopped(Exception):
    """Another layer has failed, or the pull was interrupted."""


class Moving(NamedTuple):
    """How far a layer is; ``size`` and ``done`` are bytes of its blob."""

    digest: str
    size: int
    done: int
    #: It is in the store: just now, or before.
    stored: bool


#: Told a few times a second how far the layers are, in the image's order.
Progress = Callable[[list[Moving]], None]


class _Layer(NamedTuple):
    """A layer on its way."""

    root: str
    source: Source
    blob: Descriptor
    diff_id: str
    #: For messages.
    what: str
    #: A directory of its own.
    scratch: str
    #: A processor is free for reading ahead.
    spare: bool
    #: Told of every chunk; raises _Stopped.
    moving: Callable[[bytes], None]


def fetch(
    root: str,
    source: Source,
    layers: Iterable[tuple[Descriptor, str]],
    scratch: str,
    notify: Callable[[str], None],
    progress: Progress | None = None,
) -> None:
    """Brings layers, pairs of blob and diffID, into the store: PARALLEL at once, the largest first."""
    wanted = list(layers)
    todo = sorted(wanted, key=lambda pair: pair[0].size)
    total = sum(blob.size for blob, _ in todo)
    workers = min(PARALLEL, len(todo))
    spare = workers < len(os.sched_getaffinity(0))
    stop = threading.Event()
    failures: list[BaseException] = []
    moved = dict.fromkeys(wanted, 0)
    stored: set[tuple[Descriptor, str]] = set()
    # Not Thread.join(): one that a signal handler's exception interrupts takes the thread for ended (CPython 3.11).
    ended = [threading.Event() for _ in range(workers)]

    def run(worker: int) -> None:
        def moving(chunk: bytes) -> None:
            if stop.is_set():
                raise _Stopped
            moved[layer] += len(chunk)

        try:
            while todo:
                layer = todo.pop()
                blob, diff_id = layer
                what = f"{source.what}: layer {blob.digest[7:19]}"
                _bring(_Layer(root, source, blob, diff_id, what, f"{scratch}/{worker}", spare, moving))
                stored.add(layer)
        except IndexError:  # another worker took the last one
            pass
        except BaseException as failure:  # told to the main thread, which raises it
            failures.append(failure)
            stop.set()
        finally:
            ended[worker].set()

    def show() -> None:
        if progress:
            progress([Moving(blob.digest, blob.size, moved[blob, of], (blob, of) in stored) for blob, of in wanted])

    for number in range(workers):
        threading.Thread(target=run, args=(number,), daemon=True).start()
    told, last = 0, time.monotonic()
    try:
        for end in ended:
            while not end.wait(_GLANCE if progress else _INTERVAL):
                show()
                now, done = time.monotonic(), sum(moved.values())
                if done > told and now - last >= _INTERVAL:
                    told, last = done, now
                    notify(
                        f"STATUS=Pulling {source.what}: {done >> 20} of {total >> 20} MiB\n"
                        f"EXTEND_TIMEOUT_USEC={_EXTENSION * 1_000_000}"
                    )
        show()
    finally:
        stop.set()
        for end in ended:
            # A thread that waits for the network notices only when that answers; it dies with the process then.
            end.wait(2)
    for failure in failures:
        if not isinstance(failure, _Stopped):
            raise failure


def _bring(layer: _Layer) -> None:
    """Brings one layer into the store: the blob, and the directory that it unpacks to."""
    with publish.locked(layer.root, layer.blob.digest, idle=lambda: layer.moving(b"")):
        path = store.blob(layer.root, layer.blob.digest)
        stored = os.path.exists(path)
        if stored and publish.about_layer(layer.root, layer.diff_id):
            return
        os.mkdir(layer.scratch, 0o700)
        try:
            if stored:
                with open(path, "rb") as kept:
                    _take(layer, verified(chunks_of(kept), layer.blob, layer.what), keep=False)
            else:
                _take(layer, verified(layer.source.open(layer.blob), layer.blob, layer.what), keep=True)
        finally:
            publish.remove(layer.scratch)


def _take(layer: _Layer, chunks: Iterator[bytes], *, keep: bool) -> None:
    """Reads a layer to its end; with ``keep`` it is stored as a blob; it is unpacked unless it has been."""
    unpacked = f"{layer.scratch}/layer"
    about = publish.about_layer(layer.root, layer.diff_id)
    with open(f"{layer.scratch}/blob" if keep else os.devnull, "wb") as blob:
        watched = seen(chunks, layer.moving, blob.write)
        if about:
            for _ in watched:
                pass
        else:
            about = _unpack(layer, watched, unpacked)._asdict()
            about["size_on_disk"] = about.pop("size")
    publish.sync(layer.scratch)
    if keep:
        publish.publish_blob(layer.root, f"{layer.scratch}/blob", layer.blob.digest)
    if os.path.isdir(unpacked):
        publish.publish_layer(layer.root, layer.scratch, unpacked, layer.diff_id, about)


def _unpack(layer: _Layer, chunks: Iterator[bytes], target: str) -> Summary:
    digest = hashlib.sha256()
    os.mkdir(target)
    os.chmod(target, 0o755)
    plain = decompressed(chunks, layer.what)
    with closing(ahead(plain) if layer.spare else plain) as content:
        reader = Reader(seen(content, digest.update), layer.what)
        try:
            summary = extract(reader, target, layer.scratch)
            # The archive may end before its stream does: what follows belongs to both digests all the same.
            reader.drain()
        except Failure as failure:
            if failure.code == MALFORMED and not failure.what.startswith(layer.what):
                raise malformed(f"{layer.what}: {failure.what}") from None
            raise
    for _ in chunks:
        pass
    if f"sha256:{digest.hexdigest()}" != layer.diff_id:
        raise malformed(f"{layer.what}: its diffID is {digest.hexdigest()}, the configuration says {layer.diff_id[7:]}")
    return summary
