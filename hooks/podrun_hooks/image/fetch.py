"""Fetches layers into the store, several at once. Each is read once: verified, kept, decompressed and unpacked.

Worker processes fetch and unpack. One more, the publisher, flushes finished layers to the disk meanwhile and publishes
them. The parent process holds the locks and reports progress.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from typing import Any, NamedTuple

from podrun.errors import BUSY, Failure
from podrun_hooks.image.layer import workers
from podrun_hooks.image.layer.extract import Summary, extract
from podrun_hooks.image.layer.small_files import SmallFiles
from podrun_hooks.image.layer.stream import Reader, ahead, chunks_of, decompressed, malformed, prepare, seen
from podrun_hooks.image.layer.workers import Tell, Worker
from podrun_hooks.image.manifest import Descriptor
from podrun_hooks.image.sources.source import Source, verified
from podrun_hooks.image.store import layout, publish
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.scratch import remove

#: Layers that are fetched at once.
PARALLEL = 3
#: Blobs up to this many bytes are unpacked by a single process.
_LITTLE = 64 << 10
#: Seconds between two STATUS= lines, and the seconds by which each of them extends systemd's time-out.
_INTERVAL = 0.5
_EXTENSION = 60
#: Seconds between two calls of ``progress``, and between two progress messages of a worker.
_GLANCE = 0.1
#: Seconds between two checks whether another podrun has finished a layer.
_POLL = 0.02
#: Shortest pause between two flushes to the disk, in seconds; a flush that took longer is followed by as long a pause.
_BREATH = 0.15


class Moving(NamedTuple):
    """The progress of one layer; ``size`` and ``done`` are bytes of its blob."""

    digest: str
    size: int
    done: int
    #: The layer is in the store, from this pull or from an earlier one.
    stored: bool


#: Called a few times a second with the progress of the layers, in the image's order.
Progress = Callable[[list[Moving]], None]


class _Layer(NamedTuple):
    """A layer that is being fetched."""

    root: str
    source: Source
    blob: Descriptor
    diff_id: str
    #: A directory for this layer alone, created when its worker begins.
    scratch: str
    #: Unpacked by two processes: the layer is large enough, and a processor is free for the second.
    shared: bool

    @property
    def what(self) -> str:
        """For messages."""
        return f"{self.source.what}: layer {self.blob.digest[7:19]}"

    @property
    def written(self) -> publish.Written:
        return publish.Written(self.scratch, self.blob.digest, self.diff_id)

    def stored(self) -> bool:
        """Whether the store has the blob and the unpacked layer, and has verified that they belong together."""
        digest = self.blob.digest
        known = digest == self.diff_id or os.path.exists(publish.pair(self.root, digest, self.diff_id))
        blob = known and not self.source.claimed and os.path.exists(layout.blob(self.root, digest))
        return blob and publish.about_layer(self.root, self.diff_id) is not None


def fetch(
    root: str,
    source: Source,
    layers: Iterable[tuple[Descriptor, str]],
    blobs: dict[str, str],
    scratch: str,
    notify: Callable[[str], None],
    progress: Progress | None = None,
) -> None:
    """Fetches ``layers``, pairs of blob and diffID, into the store: PARALLEL at once, the largest first. Publishes with
    them ``blobs``: files in ``scratch``, by digest."""
    pairs = list(layers)
    spare = min(PARALLEL, len(pairs)) < len(os.sched_getaffinity(0))
    # A layer larger than all the others together is still being unpacked when they are finished.
    half = sum(blob.size for blob, _ in pairs) / 2
    wanted = [
        _Layer(root, source, *pair, f"{scratch}/{number}", pair[0].size > _LITTLE and (spare or pair[0].size > half))
        for number, pair in enumerate(pairs)
    ]
    pull = _Fetching(wanted, blobs, scratch, notify, progress)
    try:
        if pull.todo:
            source.disconnect()
            prepare([blob.media_type for blob, _ in pairs])
            # Fork before this process has locks or threads that a child would inherit.
            for _ in range(min(PARALLEL, len(pull.todo))):
                workers.start(pull.fetchers, pull.bring)
            workers.start(pull.publishers, pull.publish)
            pull.publisher = pull.publishers[0].pid
            pull.run()
        if not pull.failure:
            publish.publish_blobs(root, pull.blobs)
        pull.show()
    finally:
        workers.end(pull.fetchers)
        workers.end(pull.publishers)
        for lock in pull.locks.values():
            lock.close()
    if pull.failure:
        raise pull.failure


class _Fetching:
    """Assigns layers to workers and keeps track of them. A layer is identified by its index in ``layers``."""

    def __init__(
        self,
        layers: list[_Layer],
        blobs: dict[str, str],
        scratch: str,
        notify: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        self.layers = layers
        #: Files still to be published with the layers, by digest.
        self.blobs = blobs
        self.scratch = scratch
        self.notify = notify
        self.progress = progress
        self.stored = {number for number, layer in enumerate(layers) if layer.stored()}
        self.todo = sorted(set(range(len(layers))) - self.stored, key=lambda number: layers[number].blob.size)
        self.locks: dict[int, ExitStack] = {}
        self.fetchers: list[Worker] = []
        self.publishers: list[Worker] = []
        self.publisher = 0
        #: By a fetcher's pid, the layer that it works on; and the layers that the publisher works on.
        self.fetching: dict[int, int] = {}
        self.publishing: list[int] | None = None
        #: Unpacked layers that are not published yet, each with its metadata (None if it was in the store before).
        self.unpacked: dict[int, Any] = {}
        self.moved = [0] * len(layers)
        #: sum(moved) when the last flush began.
        self.at = 0
        self.failure: Exception | None = None
        self.began = time.monotonic()
        self.pause_until = self.began + _BREATH

    # --- in the workers

    def bring(self, number: int, tell: Tell) -> Any:
        return _bring(self.layers[number], _teller(tell))

    def publish(self, request: Any, _tell: Tell) -> None:
        numbers, blobs = request
        layers = [(self.layers[number].written, about) for number, about in numbers]
        publish.publish_written(self.layers[0].root, self.scratch, layers, blobs)

    # --- in the parent

    def run(self) -> None:
        """Returns when all layers are stored; or when one has failed and those unpacked before it are stored."""
        reported = reported_at = 0.0
        while len(self.stored) < len(self.layers):
            if not self.failure:
                self.assign()
            self.write()
            if self.failure and not self.publishing and not self.unpacked:
                return
            for worker, kind, value in workers.answers([*self.fetchers, *self.publishers], self.patience()):
                self.take(worker, kind, value)
            self.show()
            now, done = time.monotonic(), sum(self.moved)
            if done > reported and now - reported_at >= _INTERVAL:
                reported, reported_at = done, now
                total = sum(layer.blob.size for layer in self.layers)
                self.notify(
                    f"STATUS=Pulling {self.layers[0].source.what}: {done >> 20} of {total >> 20} MiB\n"
                    f"EXTEND_TIMEOUT_USEC={_EXTENSION * 1_000_000}"
                )

    def patience(self) -> float:
        """How many seconds to wait for an answer before looking for other work."""
        if self.todo and len(self.fetching) < len(self.fetchers):
            return _POLL
        longest = _GLANCE if self.progress else _INTERVAL
        if self.publishing is not None or (not self.unpacked and sum(self.moved) <= self.at):
            return longest
        return max(0.0, min(self.pause_until - time.monotonic(), longest))

    def assign(self) -> None:
        """Gives idle workers the largest layers that no other podrun is fetching."""
        idle = [worker for worker in self.fetchers if worker.pid not in self.fetching]
        for number in reversed(self.todo[:]):
            if not idle:
                return
            layer, lock = self.layers[number], ExitStack()
            try:
                lock.enter_context(locked(layer.root, layer.blob.digest, wait=False))
            except Failure as failure:
                if failure.code != BUSY:
                    raise
                continue
            self.todo.remove(number)
            if layer.stored():
                lock.close()
                self.stored.add(number)
                continue
            self.locks[number] = lock
            worker = idle.pop()
            self.fetching[worker.pid] = number
            worker.ask(number)

    def write(self) -> None:
        """Has the publisher flush finished layers from time to time, so that the final sync stays short."""
        more = (self.todo or self.fetching) and not self.failure
        if self.publishing is not None or (more and time.monotonic() < self.pause_until):
            return
        moved = sum(self.moved)
        if self.unpacked or (moved > self.at and not self.failure):
            self.publishing = list(self.unpacked)
            self.began, self.at = time.monotonic(), moved
            last = not (self.todo or self.fetching or self.failure)
            blobs, self.blobs = (self.blobs, {}) if last else ({}, self.blobs)
            self.publishers[0].ask([[[number, self.unpacked.pop(number)] for number in self.publishing], blobs])

    def take(self, worker: Worker, kind: str, value: Any) -> None:
        """Handles a worker's answer; ``kind`` and ``value`` are those of :func:`workers.answers`."""
        publisher = worker.pid == self.publisher
        if publisher and kind == "done":
            now = time.monotonic()
            self.pause_until = now + max(_BREATH, now - self.began)
            for number in self.publishing or ():
                self.stored.add(number)
                self.locks.pop(number).close()
            self.publishing = None
        elif kind == "failed":
            self.failure = self.failure or value
            workers.end(self.fetchers)
            self.fetching.clear()
            if publisher:
                self.publishing, self.unpacked = None, {}
        elif worker.pid not in self.fetching:
            return  # it was killed because another worker failed
        elif kind == "told":
            self.moved[self.fetching[worker.pid]] = value
        else:
            number = self.fetching.pop(worker.pid)
            self.moved[number] = self.layers[number].blob.size
            self.unpacked[number] = value

    def show(self) -> None:
        if self.progress:
            moved = zip(self.layers, self.moved, strict=True)
            self.progress(
                [
                    Moving(layer.blob.digest, layer.blob.size, done, number in self.stored)
                    for number, (layer, done) in enumerate(moved)
                ]
            )


def _teller(tell: Tell) -> Callable[[bytes], None]:
    """Adds up the sizes of chunks, and sends the sum to the parent every _GLANCE seconds."""
    moved, sent_at = 0, 0.0

    def moving(chunk: bytes) -> None:
        nonlocal moved, sent_at
        moved += len(chunk)
        now = time.monotonic()
        if now - sent_at >= _GLANCE:
            sent_at = now
            tell(moved)

    return moving


def _bring(layer: _Layer, moving: Callable[[bytes], None]) -> Any:
    """Writes into the scratch directory what the store lacks of a layer. Returns as :func:`_take` does."""
    path = layout.blob(layer.root, layer.blob.digest)
    os.mkdir(layer.scratch, 0o700)
    try:
        known = os.path.exists(path)
        if not known or layer.source.claimed:
            return _take(layer, verified(layer.source.open(layer.blob), layer.blob, layer.what), moving, keep=not known)
        with open(path, "rb") as kept:
            return _take(layer, verified(chunks_of(kept), layer.blob, layer.what), moving, keep=False)
    except BaseException:
        remove(layer.scratch)
        raise


def _take(layer: _Layer, chunks: Iterator[bytes], moving: Callable[[bytes], None], *, keep: bool) -> Any:
    """Reads a layer to its end: writes it as a blob if ``keep``, and unpacks it unless the store has it unpacked.

    Returns the metadata of the layer (the Summary as a dictionary), or None if the store has it unpacked.
    """
    with open(layer.written.blob if keep else os.devnull, "wb") as blob:
        watched = seen(chunks, moving, blob.write)
        if publish.about_layer(layer.root, layer.diff_id):
            _compare(layer, watched)
            return None
        about = _unpack(layer, watched, layer.written.unpacked)._asdict()
        about["size_on_disk"] = about.pop("size")
        return about


def _second(layer: _Layer) -> AbstractContextManager[SmallFiles | None]:
    try:
        return closing(SmallFiles()) if layer.shared else nullcontext()
    except OSError:
        return nullcontext()  # no more processes can be started: this one unpacks alone


def _unpack(layer: _Layer, chunks: Iterator[bytes], target: str) -> Summary:
    digest = hashlib.sha256()
    os.mkdir(target)
    os.chmod(target, 0o755)
    plain = seen(decompressed(chunks, layer.what), digest.update)
    with _second(layer) as small, closing(ahead(plain) if layer.shared else plain) as content:
        reader = Reader(content, layer.what)
        try:
            summary = extract(reader, target, layer.scratch, small)
            # The archive may end before its stream does. The rest is still part of both digests.
            reader.drain()
        except Failure as failure:
            if failure.what.startswith(layer.source.what):
                raise
            what = f"{layer.what}: {failure.what}"
            raise Failure(what, code=failure.code, hint=failure.hint) from None
    for _ in chunks:
        pass
    _check_diff_id(layer, digest.hexdigest())
    return summary


def _compare(layer: _Layer, chunks: Iterator[bytes]) -> None:
    """Reads a blob whose diffID names a layer in the store: only the content proves that it is that layer."""
    if layer.blob.digest == layer.diff_id:
        for _ in chunks:
            pass
        return  # not compressed: verifying the blob has verified the diffID
    digest = hashlib.sha256()
    for _ in seen(decompressed(chunks, layer.what), digest.update):
        pass
    for _ in chunks:
        pass
    _check_diff_id(layer, digest.hexdigest())


def _check_diff_id(layer: _Layer, computed: str) -> None:
    if f"sha256:{computed}" != layer.diff_id:
        raise malformed(f"{layer.what}: its diffID is {computed}, the configuration says {layer.diff_id[7:]}")
