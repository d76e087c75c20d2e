"""Tar headers, read strictly: ustar and PAX (POSIX.1-2017, pax, "EXTENDED DESCRIPTION") and GNU's extensions.

What a lenient reader would guess at (a bad checksum, a negative size, half a record) is an error here: two readers that
guess differently see two different images under one digest.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from podrun.errors import Failure
from podrun_hooks.image.layer.stream import Reader, malformed

BLOCK = 512

FILE, HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_CONTIGUOUS, _OLD_FILE, _GNU_SPARSE, _GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL = b"7", b"\0", b"S", b"L", b"K", b"x", b"g"
_KINDS = frozenset((FILE, HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))

#: Bytes of one PAX header or GNU long name: names end at PATH_MAX, extended attributes at 64 KiB each.
MAX_EXTENSION = 1 << 20
#: Segments of data in one sparse file.
MAX_SEGMENTS = 1 << 16
#: Bytes of the longest file, sparse or not.
MAX_FILE_BYTES = 1 << 40
#: chown(2) takes 2^32-1 for "leave unchanged".
MAX_ID = (1 << 32) - 2
#: Entries in the cache of each parsed field.
_REMEMBERED = 1000

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_ZEROS = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
#: xattr(7): an image may have user.* and file capabilities. user.overlay.* is left out: it leaks from the machine that
#: built the image, and overlayfs would hide or redirect files by it (overlayfs.rst).
_USERS, _OVERLAY, _CAPABILITY = b"user.", b"user.overlay.", b"security.capability"


class Entry(NamedTuple):
    """One member of an archive. Names are bytes as they are in the archive."""

    name: bytes
    kind: bytes
    #: Permission bits, with setuid, setgid and the sticky bit.
    mode: int
    uid: int
    gid: int
    #: Bytes of data in the stream.
    size: int
    #: Nanoseconds since 1970.
    mtime: int
    link: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]
    #: The file's length: ``size`` unless it is sparse.
    length: int
    #: Of a sparse file: (offset, size) of each piece of data; None: it has no holes.
    segments: list[tuple[int, int]] | None


def entries(reader: Reader) -> Iterator[Entry]:
    """The members of an archive. The caller may read a member's ``size`` bytes of data before it takes the next one.

    Raises Failure (MALFORMED) for anything that is not a well-formed archive. The archive may also end where the stream
    ends in place of a header: archives without the two blocks of zeros are common.
    """
    pax: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    long_name = long_link = None
    while not reader.ended():
        block = reader.exactly(BLOCK)
        if block == _ZEROS:
            if not reader.ended() and reader.exactly(BLOCK) != _ZEROS:
                raise malformed("tar: a single block of zeros inside the archive")
            break
        fields = _HEADER.unpack(block)
        kind = fields[7]
        _check_sum(block, fields[6])
        size = _number(fields[4], "size", MAX_FILE_BYTES)
        if kind in (_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
            if size > MAX_EXTENSION:
                raise malformed(f"tar: an extended header of {size} bytes")
            content = reader.exactly(size)
            reader.skip(-size % BLOCK)
            if kind == _PAX:
                pax, sparse = _records(content)
            elif kind == _GNU_NAME:
                long_name = content.split(b"\0", 1)[0]
            elif kind == _GNU_LINK:
                long_link = content.split(b"\0", 1)[0]
            continue
        entry = _entry(fields, kind, size, pax, long_name, long_link)
        start, follows = reader.position, entry.size
        if kind == _GNU_SPARSE:
            entry = _gnu_sparse(entry, block, reader)
            start = reader.position
        elif sparse or b"GNU.sparse.major" in pax or b"GNU.sparse.map" in pax:
            entry = _pax_sparse(entry, pax, sparse, reader)
        yield entry
        reader.skip(start + follows + -follows % BLOCK - reader.position)
        pax, sparse, long_name, long_link = {}, [], None, None
    if pax or long_name or long_link:
        raise malformed("tar: the archive ends after an extended header")


def header_like(block: bytes) -> bool:
    """Whether a first block of 512 bytes can be the header of a tar archive, or the end of an empty one."""
    if len(block) < 512:
        return False
    try:
        _check_sum(block, block[148:156])
    except Failure:
        return not any(block)
    return True


def _check_sum(block: bytes, field: bytes) -> None:
    wanted = _number(field, "checksum", 1 << 20)
    # The low half of Adler-32 is the sum of the bytes modulo 65521 (RFC 1950), which 256 of them cannot reach.
    halves = (zlib.adler32(block[:256], 0) & 0xFFFF) + (zlib.adler32(block[256:], 0) & 0xFFFF)
    found = halves - sum(field) + 8 * 32
    if found != wanted:
        # Historic writers summed signed characters.
        signed = found - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if signed != wanted:
            raise malformed("tar: a header's checksum does not match")


def _number(field: bytes, what: str, most: int) -> int:
    """An octal field, or GNU's base-256 one: the first byte is 0x80, or 0xff of a negative number."""
    digits = field[:-1]
    if digits.isdigit() and field[-1] in b"\0 ":
        # Fast path: the common form.
        try:
            value = int(digits, 8)
        except ValueError:
            raise malformed(f"tar: {what} is {digits!r}") from None
    elif field[0] & 0x80:
        value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
    else:
        text = field.strip(b" \0")
        if not text:
            return 0
        try:
            if not text.isdigit():
                raise ValueError
            value = int(text, 8)
        except ValueError:
            raise malformed(f"tar: {what} is {text!r}") from None
    if not 0 <= value <= most:
        raise malformed(f"tar: {what} is {value}")
    return value


def _decimal(pax: dict[bytes, bytes], key: bytes, otherwise: int, most: int) -> int:
    text = pax.get(key)
    if not text:
        return otherwise
    if not text.isdigit() or len(text) > 20 or int(text) > most:
        raise malformed(f"tar: PAX {key.decode(errors='replace')} is {text[:40]!r}")
    return int(text)


# The fields that the next two functions parse take few distinct values in a layer, so the results are cached.
@lru_cache(_REMEMBERED)
def _owner(fields: tuple[bytes, bytes, bytes]) -> tuple[int, int, int]:
    """Mode, uid and gid."""
    mode, uid, gid = fields
    return _number(mode, "mode", 1 << 62) & 0o7777, _number(uid, "uid", MAX_ID), _number(gid, "gid", MAX_ID)


@lru_cache(_REMEMBERED)
def _mtime(field: bytes, text: bytes | None) -> int:
    """Nanoseconds, from a PAX record or else the header, clamped to what every file system can store."""
    if text:
        seconds, _, fraction = text.partition(b".")
        digits = seconds.removeprefix(b"-")
        if not (digits or fraction).isdigit() or (fraction and not fraction.isdigit()) or len(digits) > 20:
            raise malformed(f"tar: PAX mtime is {text[:40]!r}")
        value = int(digits or b"0") * 10**9 + int((fraction + b"0" * 9)[:9])
        value = -value if seconds.startswith(b"-") else value
    elif field[0] & 0x80:
        value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        value *= 10**9
    else:
        value = _number(field, "mtime", 1 << 36) * 10**9
    return max(-(1 << 31) * 10**9, min(value, (1 << 33) * 10**9))


def _is_an_images(key: bytes) -> bool:
    """True for the extended attributes that an image may have; security labels and trusted.* belong to the host."""
    return key == _CAPABILITY or (key.startswith(_USERS) and not key.startswith(_OVERLAY))


def _entry(
    fields: tuple[bytes, ...],
    kind: bytes,
    size: int,
    pax: dict[bytes, bytes],
    long_name: bytes | None,
    long_link: bytes | None,
) -> Entry:
    name = fields[0].partition(b"\0")[0]
    # Only POSIX's "ustar\0" "00" has a prefix field; GNU's "ustar  \0" keeps times there.
    if fields[9][:6] == b"ustar\0" and fields[14][0]:
        name = fields[14].split(b"\0", 1)[0] + b"/" + name
    name = pax.get(b"path") or long_name or name
    link = pax.get(b"linkpath") or long_link or fields[8].partition(b"\0")[0]
    if b"\0" in name or b"\0" in link:
        raise malformed("tar: a name with a NUL in it")
    if pax:
        size = _decimal(pax, b"size", size, MAX_FILE_BYTES)
    if kind in (_OLD_FILE, _CONTIGUOUS, _GNU_SPARSE):
        # Before ustar a directory was a file whose name ends in a slash.
        kind = DIRECTORY if kind == _OLD_FILE and name.endswith(b"/") else FILE
    if kind not in _KINDS:
        raise malformed(f"tar: {_shown(name)} is of the unknown type {kind!r}")
    if kind != FILE:
        size = 0
    device = (0, 0)
    if kind in (CHARACTER, BLOCK_DEVICE):
        device = (_number(fields[12], "device number", MAX_ID), _number(fields[13], "device number", MAX_ID))
    mode, uid, gid = _owner(fields[1:4])
    xattrs: dict[bytes, bytes] = {}
    if pax:
        uid, gid = _decimal(pax, b"uid", uid, MAX_ID), _decimal(pax, b"gid", gid, MAX_ID)
        named = {key[len(_XATTR) :]: value for key, value in pax.items() if key.startswith(_XATTR)}
        xattrs = {key: value for key, value in named.items() if _is_an_images(key)}
    mtime = _mtime(fields[5], pax.get(b"mtime"))
    return Entry(name, kind, mode, uid, gid, size, mtime, link, device, xattrs, size, None)


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _records(content: bytes) -> tuple[dict[bytes, bytes], list[bytes]]:
    """PAX records ("length key=value\\n"), and separately GNU's repeated offsets and sizes in their order."""
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + 12)
        length = content[at:space] if space > 0 else b""
        if not length.isdigit():
            if not content[at:].strip(b"\0"):
                break
            raise malformed("tar: a PAX record without a length")
        end = at + int(length)
        record = content[space + 1 : end]
        key, equals, value = record.partition(b"=")
        if end > len(content) or end <= space or not record.endswith(b"\n") or not key or not equals:
            raise malformed("tar: a PAX record that is cut off")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse.append(value[:-1])
        else:
            records[key] = value[:-1]
        at = end
    return records, sparse


def _with_segments(entry: Entry, length: int, numbers: list[int]) -> Entry:
    if len(numbers) % 2 or len(numbers) > 2 * MAX_SEGMENTS:
        raise malformed(f"tar: {_shown(entry.name)} has a wrong map of its holes")
    segments = list(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for offset, size in segments:
        if offset < end or offset + size > length:
            raise malformed(f"tar: {_shown(entry.name)} has a wrong map of its holes")
        end = offset + size
    if sum(size for _, size in segments) != entry.size or length > MAX_FILE_BYTES:
        raise malformed(f"tar: {_shown(entry.name)} has a map of other data than it has")
    return entry._replace(length=length, segments=segments)


def _gnu_sparse(entry: Entry, block: bytes, reader: Reader) -> Entry:
    """GNU's old format: four segments in the header, 21 in each block after it."""
    numbers: list[int] = []

    def take(block: bytes, at: int, count: int) -> None:
        for index in range(at, at + 24 * count, 24):
            if not block[index : index + 24].strip(b"\0 "):
                break
            numbers.append(_number(block[index : index + 12], "offset", MAX_FILE_BYTES))
            numbers.append(_number(block[index + 12 : index + 24], "size", MAX_FILE_BYTES))

    take(block, 386, 4)
    more = block[482]
    while more:
        if len(numbers) > 2 * MAX_SEGMENTS:
            raise malformed(f"tar: {_shown(entry.name)} has too many holes")
        extension = reader.exactly(BLOCK)
        take(extension, 0, 21)
        more = extension[504]
    return _with_segments(entry, _number(block[483:495], "size", MAX_FILE_BYTES), numbers)


def _pax_sparse(entry: Entry, pax: dict[bytes, bytes], repeated: list[bytes], reader: Reader) -> Entry:
    """GNU tar's PAX formats 0.0 (repeated records), 0.1 (one record) and 1.0 (the map leads the data)."""
    if entry.kind != FILE:
        raise malformed(f"tar: {_shown(entry.name)} has holes and is not a file")
    entry = entry._replace(name=pax.get(b"GNU.sparse.name") or entry.name)
    key = b"GNU.sparse.realsize" if b"GNU.sparse.realsize" in pax else b"GNU.sparse.size"
    length = _decimal(pax, key, 0, MAX_FILE_BYTES)
    if pax.get(b"GNU.sparse.major", b"0") != b"1":
        texts = repeated or [text for text in pax.get(b"GNU.sparse.map", b"").split(b",") if text]
        return _with_segments(entry, length, [_plain(text) for text in texts])
    start = reader.position
    rest = b""
    numbers: list[int] = []
    wanted = 1
    while len(numbers) < wanted:
        if b"\n" not in rest:
            if reader.position - start + BLOCK > min(entry.size, 40 * MAX_SEGMENTS):
                raise malformed(f"tar: {_shown(entry.name)} has a wrong map of its holes")
            rest += reader.exactly(BLOCK)
            continue
        text, _, rest = rest.partition(b"\n")
        numbers.append(_plain(text))
        if len(numbers) == 1:
            if numbers[0] > MAX_SEGMENTS:
                raise malformed(f"tar: {_shown(entry.name)} has too many holes")
            wanted = 1 + 2 * numbers[0]
    taken = reader.position - start
    return _with_segments(entry._replace(size=entry.size - taken), length, numbers[1:])


def _plain(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise malformed(f"tar: a map of holes says {text[:40]!r}")
    return int(text)
