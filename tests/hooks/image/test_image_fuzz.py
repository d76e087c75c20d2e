"""A few seconds of the fuzzer; any number by hand: python tests/support/image_fuzz.py ROUNDS [SEED]."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support import image_fuzz

pytestmark = pytest.mark.root


def test_mutated_images_touch_nothing_and_end_with_a_failure_or_a_tree(tmp_path: Path) -> None:
    count = int(os.environ.get("PODRUN_FUZZ_ROUNDS", "2000"))
    assert image_fuzz.rounds(tmp_path, count, seed=1, seconds=10 if count == 2000 else 1e9) > 50
