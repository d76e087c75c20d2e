"""The plain forms of up, down, run and image pull mean the same whether podrun reads them itself or click does."""

import pytest

from podrun.cli import main
from podrun.launcher import arguments, commands


@pytest.mark.parametrize(
    "line",
    [
        "up web",
        "up -d ./web.toml",
        "up ./web.toml --detach",
        "down web",
        "down --force --invocation=abc web",
        "--run /r --root=/x down web",
        "run alpine",
        "run -it --rm alpine sh",
        "run --rm alpine true",
        "run -d --name web -e A=1 -e B -v /a:/b:ro -p 8080:80 --network host alpine sh -c 'x' --rm -d",
        "image pull alpine",
        "--root /r --debug image pull -q docker.io/library/alpine:3",
        "image pull oci:/x --platform=linux/arm64 --cosign-key k --policy p.json --quiet",
        "run --memory 64M --cap-drop ALL --cap-add NET_ADMIN --entrypoint sh --read-only alpine -c true",
    ],
)
def test_both_readers_agree(line, monkeypatch):
    words = line.split()
    seen = []
    monkeypatch.setattr(main, "act", lambda command, given: seen.append((command, given)) or 0)
    assert main.main(words) == 0
    assert arguments.plain(words) == seen[0]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--help",
        "up",
        "up --help",
        "up a b",
        "up --detahc web",
        "down -x web",
        "ps",
        "run",
        "run -ti x",
        "up -d=1 x",
        "image",
        "image pull",
        "image pull a b",
        "image pull --help",
        "image ls",
        "image --debug pull x",
        "pull x",
    ],
)
def test_anything_else_is_left_to_click(line):
    assert arguments.plain(line.split()) is None


def test_a_name_that_is_a_path_is_no_pods_name(capsys):
    assert commands.act("down", {"word": "..", "debug": False, "invocation": "", "force": False}) == 78
    assert "not the name of a pod" in capsys.readouterr().err
