"""What images of others hold: users in odd spellings and short rows, programs that cannot be executed, in words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from podrun.errors import CANNOT_EXECUTE, Failure
from podrun_hooks.container import executables, users
from podrun_hooks.container.users import User
from podrun_hooks.support.rooted_tree import Tree
from support.container_case import Case

pytestmark = pytest.mark.root

PASSWD = "root:x:0:0:root:/root:/bin/sh\nshort:x:1001:1002\nbare:x:1003\nodd:x\nweb:x:1000:1000::/srv/web:\n"


def resolved(tmp_path: Path, text: str, passwd: str = PASSWD, group: str = "web:x:1000\nlog:x:50:short\n") -> User:
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc/passwd").write_text(passwd)
    (tmp_path / "etc/group").write_text(group)
    root = os.open(tmp_path, os.O_PATH)
    try:
        return users.resolve(text, Tree(root), of_image=True)
    finally:
        os.close(root)


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("1000:", User(1000, 1000, [], "/srv/web")),
        (":1000", User(0, 1000, (), "/root")),
        (":web", User(0, 1000, (), "/root")),
        ("short", User(1001, 1002, [50], "/")),
        ("bare", User(1003, 0, [], "/")),
        ("4711", User(4711, 0, [], "/")),
    ],
)
def test_users_are_read_as_docker_reads_them(tmp_path: Path, text: str, user: User) -> None:
    assert resolved(tmp_path, text) == user


def test_the_last_row_of_a_large_passwd_file_counts(tmp_path: Path) -> None:
    many = "".join(f"u{number}:x:{number}:{number}::/home/u{number}:/bin/false\n" for number in range(10_000, 60_000))
    assert resolved(tmp_path, "last", passwd=f"{many}last:x:7:8::/l:\n") == User(7, 8, [], "/l")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"#!/bin/sh\r\necho\r\n", "CRLF"),
        (b"#!/usr/bin/python3\n", "/usr/bin/python3, which is not in the image"),
        (b"echo without a first line\n", "neither a program nor a script"),
        (b"", "is empty"),
        (b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xf7\0" + bytes(44), "is a program for machine 247"),
    ],
    ids=["CRLF", "interpreter", "no first line", "empty", "machine"],
)
def test_a_file_that_cannot_be_executed_is_told_with_the_reason(
    tmp_path: Path, content: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executables, "_others", lambda: False)
    case = Case(tmp_path)
    (case.layer / "bin/app").write_bytes(content)
    (case.layer / "bin/app").chmod(0o755)
    with pytest.raises(Failure, match=words) as caught:
        case.up("app")
    assert caught.value.code == CANNOT_EXECUTE
    case.down({})


def test_a_program_for_another_c_library_is_told(tmp_path: Path) -> None:
    case = Case(tmp_path)
    for name in ("true", "dynamic"):
        (case.layer / f"bin/{name}").unlink(missing_ok=True)
    subprocess.run(["cp", "/usr/bin/true", case.layer / "bin/dynamic"], check=True)
    with pytest.raises(Failure, match=r"needs the loader /lib.*, which is not in the image"):
        case.up("dynamic")
    case.down({})
