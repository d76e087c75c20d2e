"""Who the payload runs as: users and groups, looked up in the image's own files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podrun.errors import MALFORMED, WRONG_FILE, Failure
from support.container_case import Case


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "uid=0(root) gid=0(root)"),
        ("web", "uid=1000(web) gid=1000(web) groups=33(www),50(log),1000(web)"),
        ("1000", "uid=1000(web) gid=1000(web) groups=33(www),50(log),1000(web)"),
        ("1000:50", "uid=1000(web) gid=50(log) groups=50(log)"),
        ("web:www", "uid=1000(web) gid=33(www)"),
        ("4000", "uid=4000 gid=0(root)"),
        ("4000:4001", "uid=4000 gid=4001"),
    ],
)
def test_the_user_is_looked_up_in_the_image(tmp_path: Path, runtime: str, user: str, expected: str) -> None:
    found = Case(tmp_path).run("id", user=user, runtime=runtime) if user else Case(tmp_path).run("id", runtime=runtime)
    words = found.strip().split(" groups=")
    groups = (
        ",".join(sorted(words[1].split(","), key=lambda text: int(text.partition("(")[0]))) if len(words) > 1 else ""
    )
    plain, _, expected_groups = expected.partition(" groups=")
    assert words[0] == plain
    if expected_groups:
        assert groups == expected_groups


NUMBERS_AS_NAMES = "1000:x:0:0::/root:/bin/sh\n0:x:7:7::/:\nweb:x:1000:1000::/srv/web:/bin/sh\n007:x:0:0::/:\n"


@pytest.mark.root
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("1000", "1000 1000 1000 50"), ("1000:1000", "1000 1000 1000"), ("0", "0 0 0 50"), ("01000", "1000 1000 1000 50"),
        ("7", "7 7 7"), ("5000:50", "5000 50 50"), ("web:33", "1000 33 33"), ("web", "1000 1000 1000 50"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["pod file", "image", "exec"])
def test_a_number_is_a_number_whatever_name_looks_like_it(tmp_path: Path, user: str, expected: str, way: str) -> None:
    case = Case(tmp_path)
    (case.layer / "etc/passwd").write_text(NUMBERS_AS_NAMES)
    (case.layer / "etc/group").write_text("1000:x:0:\n50:x:0:\n33:x:0:\nlog:x:50:web,1000\n")
    script = "id -u; id -g; id -G"
    if way == "image":
        case.config = {"User": user}
    if way == "exec":
        case.up("sleep", "60")
        try:
            found = case.exec("sh", "-c", script, user=user)
        finally:
            case.down()
    else:
        found = case.run("sh", "-c", script, **({"user": user} if way == "pod file" else {}))
    assert found.split() == expected.split()


@pytest.mark.root
@pytest.mark.parametrize(
    ("in_image", "text", "code"),
    [
        (True, "nobody-here", MALFORMED),
        (True, "4294967296", MALFORMED),
        (True, "a b", MALFORMED),
        (True, "web:no-group", MALFORMED),
        (False, "nobody-here", WRONG_FILE),
        (False, "web:no-group", WRONG_FILE),
    ],
)
def test_an_unknown_user_is_refused_and_nothing_is_left(tmp_path: Path, in_image: bool, text: str, code: int) -> None:
    case = Case(tmp_path)
    case.config = {"User": text} if in_image else {}
    with pytest.raises(Failure) as failure:
        case.up("id", **({} if in_image else {"user": text}))
    assert failure.value.code == code
    case.down({})
    assert case.left() == []


@pytest.mark.root
def test_a_passwd_that_is_a_fifo_or_out_of_range_does_no_harm(tmp_path: Path) -> None:
    case = Case(tmp_path)
    (case.layer / "etc/passwd").unlink()
    os.mkfifo(case.layer / "etc/passwd")
    assert case.run("sh", "-c", "echo $HOME") == "/\n"
    (case.layer / "etc/passwd").unlink()
    (case.layer / "etc/passwd").write_text("web:x:4294967295:0::/:\n")
    with pytest.raises(Failure) as failure:
        case.up("id", user="web")
    assert failure.value.code == WRONG_FILE
    case.down({})
    assert case.left() == []


@pytest.mark.root
def test_a_passwd_linked_out_of_the_image_is_read_inside_it(tmp_path: Path) -> None:
    outside = tmp_path / "passwd"
    outside.write_text("web:x:77:77::/:\n")
    case = Case(tmp_path)
    (case.layer / "etc/passwd").unlink()
    (case.layer / "etc/passwd").symlink_to(f"../../../../../../../..{outside}")
    with pytest.raises(Failure, match="not in the image"):
        case.up("id", user="web")
    case.down({})
