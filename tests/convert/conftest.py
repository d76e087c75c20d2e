"""The fixture of the conversions' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.convert_case import Converter


@pytest.fixture
def convert(tmp_path: Path) -> Any:
    """Runs ``podrun convert``; see support.convert_case."""
    return Converter(tmp_path)
