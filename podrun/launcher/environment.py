"""The variables that -e names on a command line."""

from __future__ import annotations

from podrun.errors import WRONG_FILE, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun.host import Host


def of(pairs: Sequence[str], host: Host) -> dict[str, str]:
    """-e KEY=VALUE, or -e KEY for the value in podrun's own environment, skipped when there is none as docker does."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key:
            raise Failure(f"-e {pair!r}: expected KEY=VALUE or KEY", code=WRONG_FILE)
        if equals:
            values[key] = value
        elif key in host.environ:
            values[key] = host.environ[key]
    return values
