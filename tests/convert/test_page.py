"""docs/reference/conversions.md: every key of every front end, and nothing that is dropped in silence."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def conversions() -> Any:
    spec = importlib.util.spec_from_file_location("conversions", DOCS / "conversions.py")
    module = sys.modules["conversions"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(conversions: Any) -> Any:
    return conversions.page()


def test_the_page_is_what_the_converter_does(page: Any) -> None:
    assert (DOCS / "reference" / "conversions.md").read_text() == page, "python docs/conversions.py writes it"


def test_no_key_is_dropped_in_silence(page: Any) -> None:
    """Each sample changes the pod file, or people are told why it does not."""
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 270
    assert [row for row in rows if row.endswith("|  |  |")] == []
