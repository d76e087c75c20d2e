"""Images that cosign has to prove: what it is asked, and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import MALFORMED, UNAVAILABLE, Failure
from podrun_hooks.image import commands
from podrun_hooks.image.trust.requirements import Verify
from support.image_servers import Faulty
from support.image_trust import IMAGE

pytestmark = [pytest.mark.root, pytest.mark.server]


@pytest.fixture
def key(tmp_path: Path) -> Verify:
    (tmp_path / "cosign.pub").write_text("a key")
    return Verify(cosign_key=str(tmp_path / "cosign.pub"), policy="")


@pytest.fixture
def cosign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a cosign on the PATH that notes its arguments and then does as told: the real one is rarely installed."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")

    def install(then: str) -> Path:
        (place / "cosign").write_text(f'#!/bin/sh\necho "$@" >>{place}/asked\n{then}\n')
        (place / "cosign").chmod(0o755)
        return place / "asked"

    return install


def test_cosign_is_asked_for_the_digest_and_only_once(root: str, server: Faulty, key: Verify, cosign: Any) -> None:
    asked = cosign("exit 0")
    ref = f"{server.host}/team/web:1"
    for _ in range(2):
        assert commands.pull(root, ref, verify=key).digest == IMAGE.digest
    line = f"verify --key {key.cosign_key} {server.host}/team/web@{IMAGE.digest}"
    assert asked.read_text().splitlines() == [line]


def test_what_cosign_refuses_is_refused(root: str, server: Faulty, key: Verify, cosign: Any) -> None:
    cosign("echo 'Error: no matching signatures' >&2; exit 1")
    with pytest.raises(Failure, match="no matching signatures") as caught:
        commands.pull(root, f"{server.host}/team/web:1", verify=key)
    assert caught.value.code == MALFORMED
    assert commands.ls(root) == []


def test_without_cosign_nothing_passes(
    root: str, server: Faulty, key: Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure, match="cosign, which is not installed") as caught:
        commands.pull(root, f"{server.host}/team/web:1", verify=key)
    assert caught.value.code == UNAVAILABLE
