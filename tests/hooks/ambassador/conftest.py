"""Services and those who call them, each in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.ambassador_case import Services


@pytest.fixture
def services() -> Iterator[Services]:
    found = Services()
    try:
        yield found
    finally:
        found.close()
