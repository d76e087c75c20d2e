"""``check`` asks whether an image's registry accepts connections where the image has to be pulled."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from podrun.errors import UNAVAILABLE
from podrun_hooks import image as hook
from podrun_hooks.image import commands
from support.image_samples import step
from support.image_servers import faulty
from support.image_trust import IMAGE


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def asked(root: Path, registry: str, *, thorough: bool = True) -> list[tuple[int, bool, str]]:
    wanted = step(root, f"{registry}/web:1")
    problems = hook.check(wanted._replace(pod=wanted.pod._replace(thorough=thorough)))
    return [(problem.code, problem.fatal, problem.what) for problem in problems]


def test_a_registry_that_does_not_answer_is_a_warning_and_is_asked_by_check_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"127.0.0.1:{server.getsockname()[1]}"
        assert asked(tmp_path, nobody) == []
    what = f"registry {nobody} does not answer: Connection refused"
    assert asked(tmp_path, nobody) == [(UNAVAILABLE, False, what)]
    assert asked(tmp_path, nobody, thorough=False) == [], "a start finds out by itself"
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert asked(tmp_path, nobody) == [], "whether a proxy reaches it nobody can tell"


@pytest.mark.server
@pytest.mark.root
def test_the_registry_of_an_image_that_is_stored_is_not_asked(root: str) -> None:
    with faulty(IMAGE) as server:
        commands.pull(root, f"{server.host}/web:1")
    assert asked(Path(root), server.host) == []
