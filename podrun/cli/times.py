"""Moments on the command line, as docker and podman spell them, and the age of things for people."""

from __future__ import annotations

import re
import time
from datetime import datetime

from podrun.errors import WRONG_FILE, Failure

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "ms": 1e-3}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|min|d|h|m|s)\s*")


def moment(text: str, option: str) -> float:
    """Seconds since 1970 of "2026-11-26T17:30:00Z", "2026-11-26", "1795714200.5", or "10m": so long ago.

    A time without a zone is this host's. Raises Failure (WRONG_FILE) naming ``option``.
    """
    if text.replace(".", "", 1).isdigit() and text.isascii():
        return float(text)
    span = text.removeprefix("-")
    if span and not _PART.sub("", span):
        ago = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(span))
        return time.time() - ago
    try:
        # fromisoformat(3.11) takes microseconds; Go prints nanoseconds.
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.strip())).timestamp()
    except ValueError:
        hint = "such as 10m, 2026-11-26T17:30:00Z or 1795714200"
        raise Failure(f"{option} {text!r} is not a time", code=WRONG_FILE, hint=hint) from None


def stamp(seconds: float) -> str:
    """RFC 3339, in UTC, to the microsecond: what ``logs -t`` and ``events`` put in front of a line."""
    whole = int(seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1e6):06d}Z"


def age(seconds: float) -> str:
    """A length of time for people: "5 seconds", "3 minutes", "2 days"."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (unit == "day" and seconds >= length):
            return f"{seconds / length:.0f} {unit}s".replace("1 days", "1 day")
    return f"{max(0.0, seconds):.0f} second{'s' * (round(seconds) != 1)}"
