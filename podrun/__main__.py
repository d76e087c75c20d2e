"""The entry point: plain forms of up, down and run go straight to the launcher, everything else to click."""

from __future__ import annotations

import os
import sys

from podrun.arguments import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs podrun with the given arguments (default: those of the process); returns the exit code."""
    os.umask(0o022)
    given = list(sys.argv[1:] if arguments is None else arguments)
    recognised = plain(given)
    if recognised is None:
        from podrun import cli

        return cli.main(given)
    from podrun.acts import act

    return act(*recognised)


if __name__ == "__main__":
    sys.exit(main())
