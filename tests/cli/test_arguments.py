"""The plain forms of up, down, run and image pull mean the same whether podrun reads them itself or click does."""

from __future__ import annotations

import os

import pytest

from podrun.cli import main, stopping
from podrun.cli import run as extended
from podrun.host import Host
from podrun.launcher import arguments, commands, run


@pytest.mark.parametrize(
    "line",
    [
        "up web",
        "up -d ./web.toml",
        "up ./web.toml --detach",
        "down web",
        "down --force --invocation=abc web",
        "--run /r --root=/x down web",
        "image pull alpine",
        "--root /r --debug image pull -q docker.io/library/alpine:3",
        "image pull oci:/x --platform=linux/arm64 --cosign-key k --policy p.json --quiet",
    ],
)
def test_both_readers_agree(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = line.split()
    seen = []
    for module in (main, stopping):
        monkeypatch.setattr(module, "act", lambda command, given: seen.append((command, given)) or 0)
    assert main.main(words) == 0
    assert arguments.plain(words) == seen[0]


@pytest.mark.parametrize(
    "line",
    [
        "run alpine",
        "run --rm alpine true",
        "run -d --name web -e A=1 -e B -v /a:/b:ro -p 127.0.0.1:8080:80 --network bridge alpine sh -c 'x' --rm -d",
        "run --memory 64M --cap-drop ALL --cap-add NET_ADMIN --entrypoint sh --read-only alpine -c true",
        "run --init -u 1000:1000 -w /srv --hostname x --pull always alpine",
        "run --userns auto alpine true",
    ],
)
def test_both_readers_make_the_same_pod_of_a_command_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B", "from outside")
    recognised = arguments.plain(line.split())
    assert recognised is not None
    given = {**recognised[1], "name": "web"}
    plain = run.tables(given, Host(environ=os.environ))
    other, notes = extended.tables(extended.taken_apart(line.split()[1:]), "web", os.environ)
    assert not [note for note in notes if "on this host yet" not in note]
    for step in plain["chain"]:
        if step["hook"] == "network" and step["mode"] == "bridge":
            del step["mode"]  # the default
    assert plain == other


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
def test_anything_else_is_left_to_click(line: str) -> None:
    assert arguments.plain(line.split()) is None


def test_a_name_that_is_a_path_is_no_pods_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.act("down", {"word": "..", "debug": False, "invocation": "", "force": False}) == 78
    assert "not the name of a pod" in capsys.readouterr().err
