"""The fixture of the conversions' tests."""

from __future__ import annotations

import pytest

from support.convert_case import Converter


@pytest.fixture
def convert(tmp_path):
    """Runs ``podrun convert``; see support.convert_case."""
    return Converter(tmp_path)
