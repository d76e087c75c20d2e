"""Fixtures of tests on a booted host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.systemd_case import GENERATOR, Pods, sh


@pytest.fixture
def generator(pods: Pods) -> Iterator[None]:
    done = sh("podrun", "unit", "--install-generator")
    assert done.stdout.strip() == str(GENERATOR), done.stderr
    yield
    GENERATOR.unlink()
