"""Runs podrun's command line and prints where its time went, as JSON: [[piece, milliseconds], ...]."""

from __future__ import annotations

import os
import sys
import time

began = float(os.environ["BEGAN"])
at = [("interpreter", time.monotonic())]

from podrun.engine import hook_loader  # noqa: E402  # the imports are one of the pieces
from podrun.launcher import arguments, commands  # noqa: E402
from podrun.podfile.loader import load  # noqa: E402, F401

at.append(("import of the launcher", time.monotonic()))


def watch(event: str, label: str) -> None:
    at.append(
        (f"{event} {label.split(':')[0] if event == 'process' else label}".replace("notify ", "to "), time.monotonic())
    )


def main() -> None:
    recognised = arguments.plain(sys.argv[1:])
    assert recognised
    command, given = recognised
    for name in ("image", "network", "container"):
        hook_loader.load(name)
    at.append(("import of the hooks", time.monotonic()))
    code = commands.act(command, given, commands.host_of(given)._replace(watch=watch))
    at.append(("end", time.monotonic()))
    import json

    before = began
    rows = []
    for name, moment in at:
        rows.append([name, (moment - before) * 1000])
        before = moment
    print(json.dumps(rows))
    sys.exit(code)


main()
