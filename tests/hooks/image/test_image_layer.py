"""Unpacking a layer: everything a tar can say."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from podrun_hooks.support import syscalls
from support import image_builder as build
from support.image_samples import outside, place, unpack

__all__ = ["place"]

pytestmark = pytest.mark.root


# --- what layers hold


def test_files_directories_links_and_devices_come_out_as_they_went_in(place: Path) -> None:
    unpack(
        place,
        build.tar(
            build.directory("./", 0o711),
            build.directory("dir/", 0o2750, uid=7, gid=8, mtime=1),
            build.file("dir/setuid", b"x" * 3000, mode=0o4755, uid=1000, gid=1001, mtime=12345),
            build.symlink("dir/link", "../outside", uid=5),
            build.hardlink("dir/hard", "dir/setuid"),
            build.header(b"fifo", b"6", mode=0o640),
            build.header(b"null", b"3", mode=0o666, device=(1, 3)),
            build.header(b"loop", b"4", mode=0o660, device=(7, 0), gid=6),
        ),
    )
    found = place / "layer"
    at = {name: os.lstat(found / name) for name in ("", "dir", "dir/setuid", "dir/link", "fifo", "null", "loop")}
    assert stat.S_IMODE(at[""].st_mode) == 0o711
    assert (stat.S_IMODE(at["dir"].st_mode), at["dir"].st_uid, at["dir"].st_gid, at["dir"].st_mtime) == (
        0o2750,
        7,
        8,
        1,
    )
    assert (stat.S_IMODE(at["dir/setuid"].st_mode), at["dir/setuid"].st_uid) == (0o4755, 1000)
    assert (at["dir/setuid"].st_mtime, at["dir/setuid"].st_nlink, at["dir/setuid"].st_size) == (12345, 2, 3000)
    assert os.readlink(found / "dir/link") == "../outside"
    assert at["dir/link"].st_uid == 5
    assert stat.S_ISFIFO(at["fifo"].st_mode)
    assert (stat.S_ISCHR(at["null"].st_mode), at["null"].st_rdev) == (True, os.makedev(1, 3))
    assert (stat.S_ISBLK(at["loop"].st_mode), at["loop"].st_rdev, at["loop"].st_gid) == (True, os.makedev(7, 0), 6)


def test_a_setgid_directory_hands_its_group_to_nothing_in_the_layer(place: Path) -> None:
    unpack(
        place,
        build.tar(
            build.directory("var/", 0o2775, gid=50),
            build.file("var/file", b"x", mode=0o644),
            build.directory("var/dir/", 0o755),
            build.file("var/implied/file", b"x"),
            build.symlink("var/link", "file"),
            build.hardlink("var/hard", "var/file"),
            build.header(b"var/fifo", b"6", mode=0o640),
            build.symlink("alias", "var"),
            build.file("alias/through", b"x"),
        ),
    )
    found = {str(path): path.lstat() for path in (place / "layer/var").rglob("*")}
    assert len(found) == 8
    assert {name: status.st_gid for name, status in found.items()} == dict.fromkeys(found, 0)
    assert not [name for name, status in found.items() if status.st_mode & stat.S_ISGID]


def test_a_default_acl_changes_no_mode_in_the_layer(place: Path) -> None:
    # acl(5) as xattrs have it: version 2, then (tag, permissions, id) of user, group, mask and others.
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, 0xFFFFFFFF) for tag, permissions in ((1, 7), (4, 0), (0x10, 0), (0x20, 0))
    )
    unpack(
        place,
        build.tar(
            build.pax({b"SCHILY.xattr.system.posix_acl_default": acl}),
            build.directory("dir/", 0o755),
            build.file("dir/file", b"x", mode=0o644),
            build.directory("dir/below/", 0o755),
            build.file("dir/implied/file", b"x", mode=0o644),
        ),
    )
    found = place / "layer/dir"
    modes = {name: stat.S_IMODE((found / name).stat().st_mode) for name in ("file", "below", "implied", "implied/file")}
    assert modes == {"file": 0o644, "below": 0o755, "implied": 0o755, "implied/file": 0o644}


def test_a_store_below_a_setgid_directory_changes_nothing(place: Path) -> None:
    (place / "layer").chmod(0o2755)
    os.chown(place / "layer", 0, 50)
    unpack(place, build.tar(build.file("file", b"x"), build.directory("dir/", 0o755), build.file("a/b", b"x")))
    for name in ("file", "dir", "a", "a/b"):
        status = (place / "layer" / name).stat()
        assert (status.st_gid, status.st_mode & stat.S_ISGID) == (0, 0), name


def test_renames_elsewhere_do_not_disturb_the_walk_through_dotdot(place: Path) -> None:
    # openat2(2): RESOLVE_IN_ROOT answers EAGAIN when a rename anywhere comes between, which a busy machine is full of.
    parent = os.getpid()
    renaming = os.fork()
    if not renaming:
        one, other = str(place / "outside/one"), str(place / "outside/other")
        os.mkdir(one)
        while os.getppid() == parent:
            os.rename(one, other)
            os.rename(other, one)
        os._exit(0)
    try:
        (place / "layer/a/b").mkdir(parents=True)
        (place / "layer/a/link").symlink_to("../a/../a/../a/b")
        root = os.open(place / "layer", os.O_PATH)
        for _ in range(20_000):
            os.close(syscalls.openat2(root, b"a/link", os.O_PATH))
        os.close(root)
    finally:
        os.kill(renaming, 9)
        os.waitpid(renaming, 0)


def test_the_umask_changes_nothing(place: Path) -> None:
    before = os.umask(0o077)
    try:
        unpack(place, build.tar(build.file("a/b", mode=0o666), build.directory("c", 0o777)))
    finally:
        os.umask(before)
    assert [stat.S_IMODE((place / "layer" / name).stat().st_mode) for name in ("a", "a/b", "c")] == [
        0o755,
        0o666,
        0o777,
    ]


def test_extended_attributes_are_kept_capabilities_included(place: Path) -> None:
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)
    unpack(
        place,
        build.tar(
            build.pax({b"SCHILY.xattr.security.capability": capability, b"SCHILY.xattr.user.note": b"a=b\nc\0d"}),
            build.file("ping", b"elf", uid=3),
            build.pax({b"SCHILY.xattr.user.dir": b"1"}),
            build.directory("d"),
        ),
    )
    assert os.getxattr(place / "layer/ping", "security.capability") == capability
    assert os.getxattr(place / "layer/ping", "user.note") == b"a=b\nc\0d"
    assert os.getxattr(place / "layer/d", "user.dir") == b"1"


def test_long_names_and_names_that_are_not_utf8_are_kept(place: Path) -> None:
    long = "d" * 200 + "/" + "f" * 200
    odd = b"\xff\xfe-odd \n name"

    def fill(archive: tarfile.TarFile) -> None:
        build.add_to(archive, long, b"long")

    with tarfile.open(place / "gnu.tar", "w", format=tarfile.GNU_FORMAT) as gnu:
        build.add_to(gnu, "g" + long, b"gnu")
        link = tarfile.TarInfo("gnu-link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 150
        gnu.addfile(link)
    unpack(place, build.tar_of(fill))
    unpack(place, (place / "gnu.tar").read_bytes())
    unpack(
        place, build.tar(build.file(odd, b"1"), build.header(b"name", size=1, prefix=b"pre/fix") + build.padded(b"2"))
    )
    found = os.fsencode(place / "layer")
    assert (place / "layer" / long).read_bytes() == b"long"
    assert (place / "layer" / f"g{long}").read_bytes() == b"gnu"
    assert os.readlink(place / "layer/gnu-link") == "t" * 150
    assert os.path.exists(found + b"/" + odd)
    assert (place / "layer/pre/fix/name").read_bytes() == b"2"


@pytest.mark.parametrize(
    "form", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"]
)
def test_sparse_files_keep_their_holes(place: Path, form: str) -> None:
    original = place / "outside" / "sparse"
    with original.open("wb") as file:
        for number in range(40):
            file.seek(number * 100_000)
            file.write(b"data %d" % number)
        file.truncate(8_000_000)
    argv = ["tar", "-C", str(original.parent), f"--format={form.split()[0]}", *form.split()[1:], "-S", "-cf", "-"]
    content = subprocess.run([*argv, "sparse", "file"], capture_output=True, check=True).stdout
    unpack(place, content)
    made = place / "layer/sparse"
    assert made.read_bytes() == original.read_bytes()
    assert made.stat().st_blocks * 512 < 1_000_000
    assert (place / "layer/file").read_text() == "untouched"


@pytest.mark.parametrize(
    ("mtime", "seconds"),
    [(b"1.5", 1.5), (b"-3", -3), (b"1700000000.123456789", 1700000000.123456789), (b"99999999999999", 1 << 33)],
)
def test_times_of_pax_headers_are_kept_within_what_a_disk_can_hold(place: Path, mtime: bytes, seconds: float) -> None:
    unpack(place, build.tar(build.pax({b"mtime": mtime}), build.file("f")))
    assert (place / "layer/f").stat().st_mtime == pytest.approx(seconds)


def test_gzip_of_several_members_and_padding_is_one_stream(place: Path) -> None:
    content = build.tar(build.file("a", b"1" * 5000), build.file("b", b"2"))
    unpack(place, gzip.compress(content[:700]) + gzip.compress(content[700:]) + bytes(100))
    assert (place / "layer/b").read_bytes() == b"2"


def test_zstd_of_several_frames_is_one_stream(place: Path) -> None:
    content = build.tar(build.file("a", b"1" * 5000), build.file("b", b"2"))
    frames = [build.Layer(part, "zstd").blob() for part in (content[:700], content[700:])]
    unpack(place, frames[0] + b"\x50\x2a\x4d\x18\x04\0\0\0skip" + frames[1])
    assert (place / "layer/b").read_bytes() == b"2"


def test_an_archive_may_end_without_its_blocks_of_zeros(place: Path) -> None:
    unpack(place, build.tar(build.file("a", b"1"), end=False))
    assert (place / "layer/a").read_bytes() == b"1"


# --- whiteouts


def is_whiteout(path: Path) -> bool:
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def test_whiteouts_become_those_of_overlayfs(place: Path) -> None:
    found = unpack(place, build.tar(build.file("d/.wh.gone"), build.file(".wh.top"), build.file("o/.wh..wh..opq")))
    assert is_whiteout(place / "layer/d/gone")
    assert is_whiteout(place / "layer/top")
    assert is_opaque(place / "layer/o")
    assert not list((place / "layer").rglob(".wh*"))
    assert not found.opaque


def test_an_opaque_root_is_told_of(place: Path) -> None:
    assert unpack(place, build.tar(build.file(".wh..wh..opq"), build.file("a"))).opaque


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_beside_a_file_of_the_same_name_hides_only_the_lower_one(place: Path, order: int) -> None:
    unpack(place, build.tar(*[build.file(".wh.f"), build.file("f", b"new")][::order]))
    assert (place / "layer/f").read_bytes() == b"new"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("described", [True, False])
def test_a_whiteout_beside_a_directory_of_the_same_name_makes_it_opaque(
    place: Path, order: int, described: bool
) -> None:
    own = (build.directory("d") if described else b"") + build.file("d/new", b"new")
    unpack(place, build.tar(*[build.file(".wh.d"), own][::order]))
    assert is_opaque(place / "layer/d")
    assert os.listdir(place / "layer/d") == ["new"]


def test_what_aufs_kept_for_itself_is_left_out(place: Path) -> None:
    unpack(
        place,
        build.tar(
            build.directory(".wh..wh.plnk"), build.file(".wh..wh.plnk/1.2"), build.file(".wh..wh.aufs"), build.file("a")
        ),
    )
    assert os.listdir(place / "layer") == ["a"]


# --- replaced types


THINGS = {
    "file": build.file("x", b"old"),
    "directory": build.directory("x") + build.file("x/deep/er", b"old"),
    "symlink": build.symlink("x", "elsewhere"),
    "symlink to a directory": build.directory("real") + build.symlink("x", "real"),
    "symlink outside": build.symlink("x", "/outside"),
    "fifo": build.header(b"x", b"6"),
    "hard link": build.file("y", b"y") + build.hardlink("x", "y"),
    "whiteout": build.file(".wh.x"),
}


@pytest.mark.parametrize("before", THINGS)
@pytest.mark.parametrize("after", ["file", "directory", "symlink", "fifo", "hard link"])
def test_a_later_entry_replaces_an_earlier_one_of_another_type(place: Path, before: str, after: str) -> None:
    untouched = outside(place)
    unpack(place, build.tar(THINGS[before], THINGS[after]))
    mode = os.lstat(place / "layer/x").st_mode
    kinds = {
        "file": stat.S_ISREG,
        "directory": stat.S_ISDIR,
        "symlink": stat.S_ISLNK,
        "fifo": stat.S_ISFIFO,
        "hard link": stat.S_ISREG,
    }
    assert kinds[after](mode)
    if after == "directory":
        assert (place / "layer/x/deep/er").read_bytes() == b"old"
    assert outside(place) == untouched


def test_a_directory_that_comes_again_keeps_what_is_in_it(place: Path) -> None:
    unpack(place, build.tar(build.directory("d", 0o700), build.file("d/f"), build.directory("d", 0o711)))
    assert stat.S_IMODE((place / "layer/d").stat().st_mode) == 0o711
    assert (place / "layer/d/f").exists()
