"""Streams of bytes: read exactly, hashed on the way, decompressed with bounds on what a few bytes may become."""

from __future__ import annotations

import queue
import select
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import IO, Any

from podrun.errors import MALFORMED, UNAVAILABLE, Failure

CHUNK = 1 << 18
#: More than this from one layer is refused.
MAX_LAYER_BYTES = 64 << 30
#: Above RATIO_FREE_BYTES of output, a stream may not have grown more than this many times.
MAX_RATIO = 250
RATIO_FREE_BYTES = 128 << 20
#: What zstd(1) itself decompresses without --long.
MAX_ZSTD_WINDOW = 128 << 20

#: Chunks of plain bytes, a MiB each at most, that wait to be unpacked.
_AHEAD = 4
_GZIP_OR_ZLIB_HEADER = 31


def malformed(what: str) -> Failure:
    """The Failure for an image that breaks its specification."""
    return Failure(what, code=MALFORMED)


class Reader:
    """Exact reads from an iterator of chunks. Whoever reads past the end gets a Failure (MALFORMED)."""

    __slots__ = ("_at", "_chunk", "_chunks", "_what", "position")

    def __init__(self, chunks: Iterator[bytes], what: str) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0
        self._what = what
        #: Bytes handed out or skipped so far.
        self.position = 0

    def _fill(self) -> bool:
        while self._at >= len(self._chunk):
            self._chunk = next(self._chunks, b"")
            self._at = 0
            if not self._chunk:
                return False
        return True

    def ended(self) -> bool:
        """Whether nothing is left."""
        return self._at >= len(self._chunk) and not self._fill()

    def some(self, limit: int) -> memoryview:
        """At least one byte, at most ``limit``."""
        if self._at >= len(self._chunk) and not self._fill():
            raise malformed(f"{self._what} is truncated")
        piece = memoryview(self._chunk)[self._at : self._at + limit]
        self._at += len(piece)
        self.position += len(piece)
        return piece

    def exactly(self, size: int) -> bytes:
        """``size`` bytes."""
        end = self._at + size
        if end <= len(self._chunk):
            piece = self._chunk[self._at : end]
            self._at = end
            self.position += size
            return piece
        parts = []
        while size:
            parts.append(bytes(self.some(size)))
            size -= len(parts[-1])
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Passes over ``size`` bytes."""
        if self._at + size <= len(self._chunk):
            self._at += size
            self.position += size
            return
        while size > 0:
            size -= len(self.some(size))

    def drain(self) -> None:
        """Reads to the end."""
        while self._fill():
            self.position += len(self._chunk) - self._at
            self._at = len(self._chunk)


def chunks_of(file: IO[bytes]) -> Iterator[bytes]:
    """A file's content from where it stands."""
    while chunk := file.read(CHUNK):
        yield chunk


def chunks_in_time(pipe: IO[bytes], what: str, silence: float | None) -> Iterator[bytes]:
    """What an unbuffered pipe brings, at most MAX_LAYER_BYTES, with no more than ``silence`` seconds between.

    Raises Failure: UNAVAILABLE when nothing comes, MALFORMED when it does not end.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    total = 0
    while True:
        if not poll.poll(None if silence is None else silence * 1000):
            raise Failure(f"{what}: nothing has come for {silence:g} s", code=UNAVAILABLE)
        chunk = pipe.read(CHUNK)
        if not chunk:
            return
        total += len(chunk)
        if total > MAX_LAYER_BYTES:
            raise malformed(f"{what} is larger than {MAX_LAYER_BYTES} bytes")
        yield chunk


def seen(chunks: Iterator[bytes], *watchers: Callable[[bytes], object]) -> Generator[bytes, None, None]:
    """The same chunks, each shown to the watchers (a hash's update, a file's write) first."""
    for chunk in chunks:
        for watch in watchers:
            watch(chunk)
        yield chunk


def ahead(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """The same chunks, made by a thread of their own: hashing and inflating go on while files are written.

    Close the generator when it is not read to its end.
    """
    made: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def hand_over(item: bytes | BaseException | None) -> None:
        while not stop.is_set():
            try:
                made.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for chunk in chunks:
                hand_over(chunk)
                if stop.is_set():
                    return
            hand_over(None)
        except BaseException as error:  # raised where the chunks are read
            hand_over(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        # Who waits for the network notices later: it dies with the process.
        thread.join(1)


def compression(start: bytes) -> str:
    """ "gzip", "zstd" or "" by the magic number: what registries call a layer cannot be relied on."""
    if start[:3] == b"\x1f\x8b\x08":
        return "gzip"
    # RFC 8878: a frame, or a skippable frame (its magic ends in 0x50 to 0x5f).
    if start[:4] == b"\x28\xb5\x2f\xfd" or (start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        return "zstd"
    if start[:3] == b"BZh" or start[:6] == b"\xfd7zXZ\x00":
        raise malformed("a layer compressed with bzip2 or xz; the OCI specification knows gzip and zstd")
    return ""


def decompressed(chunks: Iterator[bytes], what: str) -> Generator[bytes, None, None]:
    """The plain bytes of a stream, whatever compression it has; bounded as the constants above say."""
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= 6:
            break
    taken = [0]

    def again() -> Iterator[bytes]:
        if start:
            taken[0] += len(start)
            yield start
        for chunk in chunks:
            taken[0] += len(chunk)
            yield chunk

    kind = compression(start)
    plain = _gunzip(again(), what) if kind == "gzip" else _unzstd(again(), what) if kind == "zstd" else again()
    size = 0
    for chunk in plain:
        size += len(chunk)
        if size > MAX_LAYER_BYTES:
            raise malformed(f"{what} unpacks to more than {MAX_LAYER_BYTES} bytes")
        if size > RATIO_FREE_BYTES and size > taken[0] * MAX_RATIO:
            raise malformed(f"{what} unpacks to more than {MAX_RATIO} times its size")
        yield chunk


def prepare(media_types: Iterable[str]) -> None:
    """Imports once what layers of these types will want: in the parent of those that unpack them."""
    for kind in {media_type.rpartition("+")[2] for media_type in media_types}:
        if kind == "zstd":
            with suppress(ImportError):
                import zstandard  # noqa: F401
        else:
            _zlib()


def _zlib() -> Any:
    """Intel's zlib where it is installed: half the time."""
    try:
        from isal import isal_zlib  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return zlib
    return isal_zlib


def _gunzip(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    library, inflater = _zlib(), None
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if inflater is None:
                    # gzip(1) pads with zeros up to a tape's block; RFC 1952 members follow one another directly.
                    rest = rest.lstrip(b"\0")
                    if not rest:
                        break
                    inflater = library.decompressobj(_GZIP_OR_ZLIB_HEADER)
                plain = inflater.decompress(rest, 4 * CHUNK)
                if plain:
                    yield plain
                if inflater.eof:
                    rest, inflater = inflater.unused_data, None
                else:
                    rest = inflater.unconsumed_tail
                    if not rest:
                        # Output can be held back when the last call filled its buffer to the brim.
                        while len(plain) == 4 * CHUNK and not inflater.eof:
                            plain = inflater.decompress(b"", 4 * CHUNK)
                            if plain:
                                yield plain
                        if inflater.eof:
                            rest, inflater = inflater.unused_data, None
    except (zlib.error, library.error) as error:
        raise malformed(f"{what} is not valid gzip: {error}") from None
    if inflater is not None:
        raise malformed(f"{what} is truncated: its gzip stream has no end")


class _Pulled:
    """A file of an iterator of chunks, as zstandard reads one. ``read`` may return less than asked for."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        rest = self._rest or next(self._chunks, b"")
        self._rest = rest[size:] if 0 <= size < len(rest) else b""
        return rest[:size] if self._rest else rest


def _unzstd(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise Failure(
            f"{what} is compressed with zstd, and the Python module zstandard is missing",
            code=UNAVAILABLE,
            hint="apt install python3-zstandard",
        ) from None
    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
    try:
        with unpacker.stream_reader(_Pulled(chunks), read_size=CHUNK, read_across_frames=True) as plain:  # type: ignore[arg-type, unused-ignore]
            while chunk := plain.read(4 * CHUNK):
                yield chunk
    except zstandard.ZstdError as error:
        raise malformed(f"{what} is not valid zstd: {error}") from None
