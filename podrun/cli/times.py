"""Moments on the command line, as docker and podman spell them, and the age of things for people."""

from __future__ import annotations

import time

from podrun.errors import WRONG_FILE, Failure

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "ms": 1e-3}
#: More digits of a second than datetime takes: Go prints nanoseconds.
MICROSECONDS = r"(\.\d{6})\d+"
_PART = r"(\d+(?:\.\d+)?)(ms|min|d|h|m|s)\s*"


def moment(text: str, option: str) -> float:
    """Seconds since 1970 of "2026-11-26T17:30:00Z", "2026-11-26", "1795714200.5", or "10m": so long ago.

    A time without a zone is this host's. Raises Failure (WRONG_FILE) naming ``option``.
    """
    import re  # here: 'ps' does without
    from datetime import datetime

    if text.replace(".", "", 1).isdigit() and text.isascii():
        return float(text)
    span = text.removeprefix("-")
    if span and not re.sub(_PART, "", span):
        ago = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, span))
        return time.time() - ago
    try:
        return datetime.fromisoformat(re.sub(MICROSECONDS, r"\1", text.strip())).timestamp()
    except ValueError:
        hint = "such as 10m, 2026-11-26T17:30:00Z or 1795714200"
        raise Failure(f"{option} {text!r} is not a time", code=WRONG_FILE, hint=hint) from None


def stamp(seconds: float) -> str:
    """RFC 3339, in UTC, to the microsecond: what ``logs -t`` and ``events`` put in front of a line."""
    whole = int(seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1e6):06d}Z"


#: Units with their seconds, and from how many on they are used: as docker has it.
_AGES = (
    ("year", 365 * 86400, 2),
    ("month", 30 * 86400, 2),
    ("week", 7 * 86400, 2),
    ("day", 86400, 1),
    ("hour", 3600, 2),
    ("minute", 60, 2),
)


def age(seconds: float) -> str:
    """A length of time for people: "5 seconds", "3 minutes", "2 days", "4 years"."""
    for unit, length, least in _AGES:
        if seconds >= least * length:
            number = round(seconds / length)
            return f"{number} {unit}{'s' * (number != 1)}"
    return f"{max(0.0, seconds):.0f} second{'s' * (round(seconds) != 1)}"
