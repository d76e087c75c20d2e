"""``device_rules``: what the container's rules and its unit's become."""

from __future__ import annotations

from typing import Any

import pytest

import podrun_hooks.container as hook
from podrun.systemd.hardening import hardened
from podrun_hooks.container import devices


@pytest.mark.parametrize(
    ("text", "rule", "allowed"),
    [
        ("c 189:* rwm", {"type": "c", "major": 189, "access": "rwm"}, ["char-189 rwm"]),
        ("b 7:3 r", {"type": "b", "major": 7, "minor": 3, "access": "r"}, ["block-7 r"]),
        ("a *:* rw", {"type": "a", "access": "rw"}, ["char-* rw", "block-* rw"]),
        ("a 7 m", {"type": "a", "major": 7, "access": "m"}, ["char-7 m", "block-7 m"]),
    ],
)
def test_a_rule_is_the_containers_and_its_unit_allows_as_much(
    text: str, rule: dict[str, Any], allowed: list[str]
) -> None:
    assert devices.rules([], [text]) == [{"allow": False, "access": "rwm"}, {"allow": True, **rule}]
    settings = hardened([({"hook": "container", "device_rules": [text]}, hook.unit_needs)])
    assert [value for key, value in settings if key == "DeviceAllow"] == allowed
    assert ("DevicePolicy", "closed") in settings
