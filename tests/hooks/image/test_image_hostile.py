"""Layers that try to reach beyond their directory, and layers that lie: nothing outside is ever touched."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from podrun.errors import MALFORMED, Failure
from podrun_hooks.image.layer import extract, stream
from podrun_hooks.image.store.scratch import remove
from support import image_builder as build
from support.image_samples import outside, place, refused, unpack

__all__ = ["place"]

pytestmark = pytest.mark.root


# --- staying inside


ESCAPES = {
    "dotdot": build.file("../outside/file", b"evil"),
    "many dotdots": build.file("../" * 30 + "podrun-escaped", b"evil"),
    "dotdot in the middle": build.file("a/../../../outside/file", b"evil"),
    "absolute": build.file("/podrun-escaped", b"evil"),
    "absolute with many slashes": build.file("////podrun-escaped", b"evil"),
    "absolute directory": build.directory("/tmp/podrun-escaped"),
    "through an absolute symlink": build.symlink("d", "/tmp") + build.file("d/podrun-escaped", b"evil"),
    "through a relative symlink": build.symlink("d", "../outside") + build.file("d/file", b"evil"),
    "through two symlinks": build.symlink("a", "..") + build.symlink("b", "a/../..") + build.file("b/podrun-escaped"),
    "through a symlink to the root": build.symlink("r", "/") + build.file("r/podrun-escaped", b"evil"),
    "symlink with dotdots through a symlink": build.symlink("d", "/etc")
    + build.symlink("d/e", "../../..")
    + build.file("d/e/podrun-escaped"),
    "through a symlink over a directory": build.directory("d")
    + build.file("d/x")
    + build.symlink("d", "/tmp")
    + build.file("d/podrun-escaped"),
    "file over a symlink": build.symlink("f", "../outside/file") + build.file("f", b"evil"),
    "file over an absolute symlink": build.symlink("f", "/podrun-escaped") + build.file("f", b"evil"),
    "directory over a symlink": build.symlink("d", "../outside") + build.directory("d", 0o777) + build.file("d/file"),
    "whiteout through a symlink": build.symlink("d", "../outside") + build.file("d/.wh.file"),
    "opaque through a symlink": build.symlink("d", "../outside") + build.file("d/.wh..wh..opq"),
    "whiteout with dotdot": build.file("../outside/.wh.file"),
    "mode of a symlink's target": build.symlink("d", "../outside/file") + build.directory("d/", 0o777),
    "fifo through a symlink": build.symlink("d", "../outside") + build.header(b"d/fifo", b"6"),
    "device through a symlink": build.symlink("d", "/tmp") + build.header(b"d/podrun-escaped", b"3", device=(1, 3)),
    "hard link to a symlink and then a write": build.symlink("l", "../outside/file")
    + build.hardlink("h", "l")
    + build.file("h", b"evil"),
    "symlink through a symlink": build.symlink("d", "../outside") + build.symlink("d/new", "/etc"),
    "PAX path": build.pax({b"path": b"../outside/file"}) + build.file("fine", b"evil"),
    "PAX absolute path": build.pax({b"path": b"/podrun-escaped"}) + build.file("fine", b"evil"),
    "prefix field": build.header(b"file", size=4, prefix=b"../outside") + build.padded(b"evil"),
    "proc as a way out": build.symlink("p", "/proc/self/root/tmp") + build.file("p/podrun-escaped", b"evil"),
    "proc's cwd": build.symlink("p", "/proc/self/cwd") + build.file("p/podrun-escaped", b"evil"),
    "extended attribute of the target": build.symlink("f", "../outside/file")
    + build.pax({b"SCHILY.xattr.user.evil": b"1"})
    + build.symlink("f", "../outside/file"),
    "replaced parent": build.directory("a")
    + build.file("a/b")
    + build.symlink("l", "a")
    + build.file("l/c")
    + build.symlink("a", "/tmp")
    + build.file("l/podrun-escaped"),
}


@pytest.mark.parametrize("case", ESCAPES)
def test_nothing_is_touched_outside_of_the_layer(place: Path, case: str) -> None:
    untouched = outside(place)
    try:
        unpack(place, build.tar(ESCAPES[case]))
    except Failure as failure:
        assert failure.code == MALFORMED, failure
    assert outside(place) == untouched


LINKS_OUT = {
    "dotdot": build.hardlink("h", "../outside/file"),
    "absolute": build.hardlink("h", "/etc/passwd"),
    "through a symlink": build.symlink("d", "../outside") + build.hardlink("h", "d/file"),
    "through an absolute symlink": build.symlink("d", "/etc") + build.hardlink("h", "d/passwd"),
    "PAX linkpath": build.pax({b"linkpath": b"../outside/file"}) + build.hardlink("h", "fine"),
    "lower layer": build.hardlink("h", "only/in/a/lower/layer"),
    "nothing": build.hardlink("h", ""),
    "the root": build.hardlink("h", "/"),
    "a directory": build.directory("d") + build.hardlink("h", "d"),
    "a whiteout": build.file(".wh.w") + build.hardlink("h", "w"),
    "below a file": build.file("f") + build.hardlink("h", "f/x"),
}


@pytest.mark.parametrize("case", LINKS_OUT)
def test_a_hard_link_to_what_the_layer_has_not_is_refused(place: Path, case: str) -> None:
    untouched = outside(place)
    refused(place, build.tar(LINKS_OUT[case]))
    assert outside(place) == untouched


def test_a_hard_link_to_itself_changes_nothing(place: Path) -> None:
    unpack(place, build.tar(build.file("f", b"kept"), build.hardlink("f", "f"), build.hardlink("./f", "/f")))
    assert (place / "layer/f").read_bytes() == b"kept"


def test_a_symlink_of_the_layer_is_followed_within_it_even_to_what_is_not_there_yet(place: Path) -> None:
    unpack(
        place,
        build.tar(
            build.symlink("lib", "usr/lib"),
            build.file("lib/a", b"1"),
            build.symlink("deep/abs", "/usr/share"),
            build.file("deep/abs/b", b"2"),
            build.symlink("deep/rel", "../../../x"),
            build.file("deep/rel/c", b"3"),
        ),
    )
    assert [(place / "layer" / name).read_bytes() for name in ("usr/lib/a", "usr/share/b", "x/c")] == [b"1", b"2", b"3"]


# --- refusals


def bad_sum() -> bytes:
    block = bytearray(build.header(b"f"))
    block[0] ^= 1
    return bytes(block)


LYING = {
    "whiteout of nothing": build.file(".wh."),
    "whiteout of dot": build.file("d/.wh.."),
    "whiteout of dotdot": build.file("d/.wh..."),
    "file in a whiteout": build.file("a/.wh.b/c"),
    "root as a file": build.file("./"),
    "root as a symlink": build.symlink("/", "/etc"),
    "root by dotdot": build.symlink("a/..", "/etc"),
    "empty name": build.file(""),
    "file below a file": build.file("f") + build.file("f/x"),
    "symlink loop": build.symlink("a", "b") + build.symlink("b", "a") + build.file("a/x"),
    "empty symlink": build.symlink("l", ""),
    "name too long": build.pax({b"path": b"n" * 300}) + build.file("f"),
    "path too long": build.pax({b"path": b"d/" * 3000 + b"f"}) + build.file("f"),
    "checksum": bad_sum() + bytes(512),
    "negative size": build.header(b"f", size=-1),
    "very negative size": build.header(b"f", size=b"\xff" * 11 + b"\0"),
    "huge size": build.header(b"f", size=1 << 62),
    "largest size": build.header(b"f", size=b"\x80" + b"\xff" * 11),
    "size that is no number": build.header(b"f", size=b"0000000009x\0"),
    "size with a sign": build.header(b"f", size=b"-0000000001\0"),
    "size with an underscore": build.header(b"f", size=b"0000_000001\0"),
    "negative size of a directory": build.header(b"d/", b"5", size=-512),
    "negative size of an extension": build.header(b"x", b"x", size=-512),
    "huge extension": build.header(b"x", b"x", size=1 << 40),
    "huge GNU name": build.header(b"x", b"L", size=1 << 40),
    "PAX negative size": build.pax({b"size": b"-1"}) + build.file("f"),
    "PAX huge size": build.pax({b"size": b"9" * 30}) + build.file("f"),
    "PAX size of many digits": build.pax({b"size": b"9" * 5000}) + build.file("f"),
    "PAX size that is no number": build.pax({b"size": b"0x10"}) + build.file("f"),
    "PAX size beyond the data": build.pax({b"size": b"4096"}) + build.file("f"),
    "PAX huge uid": build.pax({b"uid": b"4294967295"}) + build.file("f"),
    "PAX negative gid": build.pax({b"gid": b"-1"}) + build.file("f"),
    "PAX time": build.pax({b"mtime": b"soon"}) + build.file("f"),
    "PAX name with NUL": build.pax({b"path": b"a\0b"}) + build.file("f"),
    "PAX link with NUL": build.pax({b"linkpath": b"a\0b"}) + build.symlink("l", "x"),
    "PAX record cut off": build.pax(b"30 path=x\n") + build.file("f"),
    "PAX record of length zero": build.pax(b"0 path=x\n") + build.file("f"),
    "PAX record of negative length": build.pax(b"-9 path=x\n") + build.file("f"),
    "PAX record without end": build.pax(b"10 path=xy") + build.file("f"),
    "PAX record without key": build.pax(b"5 =x\n") + build.file("f"),
    "PAX record without equals": build.pax(b"8 pathx\n") + build.file("f"),
    "PAX and nothing after": build.pax({b"path": b"x"}),
    "huge uid": build.header(b"f", uid=(1 << 32) - 1),
    "negative uid": build.header(b"f", uid=-1),
    "unknown type": build.header(b"f", b"Z"),
    "volume label": build.header(b"f", b"V"),
    "multi-volume": build.header(b"f", b"M"),
    "single zero block": bytes(512) + build.file("f", b"1"),
    "garbage": b"this is not a tar archive".ljust(512, b"!"),
    "less than a block": b"x" * 100,
    "sparse beyond its length": build.pax({b"GNU.sparse.map": b"0,4", b"GNU.sparse.size": b"2"}) + build.file("f", b"1234"),
    "sparse backwards": build.pax({b"GNU.sparse.map": b"9,2,0,2", b"GNU.sparse.size": b"20"}) + build.file("f", b"1234"),
    "sparse odd": build.pax({b"GNU.sparse.map": b"0", b"GNU.sparse.size": b"20"}) + build.file("f"),
    "sparse of more than it has": build.pax({b"GNU.sparse.map": b"0,8", b"GNU.sparse.size": b"20"}) + build.file("f", b"1"),
    "sparse huge": build.pax({b"GNU.sparse.map": b"0,1", b"GNU.sparse.size": b"9223372036854775807"}) + build.file("f", b"1"),
    "sparse of terabytes": build.pax({b"GNU.sparse.map": b"0,1", b"GNU.sparse.size": b"1000000000000"}) + build.file("f", b"1"),
    "sparse negative": build.pax({b"GNU.sparse.map": b"-4,4", b"GNU.sparse.size": b"20"}) + build.file("f", b"1234"),
    "sparse directory": build.pax({b"GNU.sparse.map": b"", b"GNU.sparse.size": b"20"}) + build.directory("d"),
    "sparse 1.0 without a map": build.pax({b"GNU.sparse.major": b"1", b"GNU.sparse.realsize": b"9"}) + build.file("f", b"1" * 512),
    "sparse 1.0 of a map without end": build.pax({b"GNU.sparse.major": b"1", b"GNU.sparse.realsize": b"9"})
    + build.file("f", b"99999\n" + b"0\n" * 253),
    "old GNU sparse": build.header(b"f", b"S", size=512) + bytes(512),
}  # fmt: skip


@pytest.mark.parametrize("case", LYING)
def test_what_no_layer_may_contain_is_refused(place: Path, case: str) -> None:
    untouched = outside(place)
    refused(place, build.tar(LYING[case]))
    assert outside(place) == untouched


@pytest.mark.parametrize("kept", [1, 511, 513, 700, 1023, 1500])
def test_a_truncated_tar_is_refused(place: Path, kept: int) -> None:
    content = build.tar(build.file("a", b"1" * 900))
    refused(place, content[:kept])


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("lost", [1, 4, 9, 100])
def test_a_truncated_stream_never_passes(place: Path, compression: str, lost: int) -> None:
    content = build.tar(build.file("a", os.urandom(4000)), build.file("b", os.urandom(4000)))
    blob = build.Layer(content, compression).blob()
    if compression == "gzip":
        refused(place, blob[:-lost])
        return
    try:
        found = b"".join(stream.decompressed(iter([blob[:-lost]]), "layer"))
    except Failure as failure:
        assert failure.code == MALFORMED
    else:
        # Four bytes at its end are a checksum. What else the decompressor lets through lacks bytes: the diffID tells.
        assert content.startswith(found)
        assert (found == content) == (lost <= 4)


@pytest.mark.parametrize(
    "blob",
    [
        gzip.compress(build.tar(build.file("a", b"1")))[:-8] + bytes(8),
        gzip.compress(build.tar(build.file("a", b"1"))) + b"garbage",
        b"\x1f\x8b\x08" + b"\xff" * 50,
        b"\x28\xb5\x2f\xfd" + b"\xff" * 50,
        b"BZh91AY&SY" + bytes(50),
        b"\xfd7zXZ\x00" + bytes(50),
    ],
    ids=["crc", "trailing garbage", "no gzip", "no zstd", "bzip2", "xz"],
)
def test_a_broken_or_unknown_compression_is_refused(place: Path, blob: bytes) -> None:
    refused(place, blob)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_is_refused_before_it_fills_the_disk(
    place: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "RATIO_FREE_BYTES", 4 << 20)
    plain = build.tar(build.file("zeros", bytes(64 << 20)))
    bomb = gzip.compress(plain, 9) if compression == "gzip" else build.Layer(plain, compression).blob()
    assert "times its size" in refused(place, bomb)
    assert (place / "layer/zeros").stat().st_size < 16 << 20


def test_a_layer_of_too_many_entries_or_bytes_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "MAX_ENTRIES", 3)
    refused(place, build.tar(*[build.file(f"f{number}") for number in range(4)]))
    monkeypatch.setattr(extract, "MAX_LAYER_BYTES", 1000)
    refused(place, build.tar(build.file("g", bytes(2000))))


def test_directories_nested_deeper_than_any_path_can_be_removed_again(place: Path) -> None:
    parts = []
    for number in range(8):
        parts.append(
            build.pax({b"path": b"s%d/" % number + b"d/" * 1000 if number else b"d/" * 1000}) + build.directory("d")
        )
        target = b"s%d/" % number + b"d/" * 1000 if number else b"d/" * 1000
        parts.append(build.pax({b"linkpath": target}) + build.symlink(f"s{number + 1}", "x"))
    unpack(place, build.tar(*parts))
    remove(str(place / "layer"))
    assert not (place / "layer").exists()
    (place / "layer").mkdir()


def test_symlinks_to_standard_output_are_told_of(place: Path) -> None:
    found = unpack(
        place,
        build.tar(
            build.symlink("var/log/access.log", "/dev/stdout"),
            build.symlink("var/log/gone.log", "/dev/stderr"),
            build.file("var/log/gone.log", b"1"),
        ),
    )
    assert found.stdio == ["/var/log/access.log"]
