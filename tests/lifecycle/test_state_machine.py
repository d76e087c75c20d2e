"""Pods against a model, by chance: ./dev test takes a few short stories, ``./dev prove machine`` many long ones."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from support.state_machine import Pods

pytestmark = [pytest.mark.root, pytest.mark.slow]


def _told(examples: int, steps: int, *, derandomize: bool) -> None:
    # Shrinking a story of ten seconds takes an hour: the story itself says what was done.
    run_state_machine_as_test(
        Pods,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, derandomize=derandomize, deadline=None, database=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=True,
        ),
    )  # fmt: skip


def test_whatever_is_done_to_pods_they_are_as_the_model_says() -> None:
    _told(2, 16, derandomize=True)


@pytest.mark.prove
def test_state_machine_long() -> None:
    began = time.monotonic()
    examples, steps = int(os.environ.get("PODRUN_PROVE_STORIES", "200")), 30
    _told(examples, steps, derandomize=False)
    print(f"\n{examples} stories of up to {steps} acts in {time.monotonic() - began:.0f} s")
