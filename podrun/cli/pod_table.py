"""The table of ``podrun ps`` without options, which does without click: it takes 50 ms, more than 300 pods do."""

from __future__ import annotations

import sys

from podrun.cli import views
from podrun.messages import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.host import Host

COLUMNS = ("name", "status", "image", "command", "ports", "addresses", "unit")


def show(host: Host) -> None:
    """Prints the pods that are not absent."""
    rows = views.rows(host.run)
    table = [{name: row[name] for name in COLUMNS} for row in map(shortened, rows)]
    # A name that the terminal's encoding lacks ends no list.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stdout.write("".join(f"{escaped(line)}\n" for line in lines(table)))


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    """The row with as much of its command as a line has room for."""
    command = row["command"]
    return {**row, "command": command if len(command) <= 24 else f"{command[:23]}…"}


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows as a table for people; none without rows."""
    if not rows:
        return []
    table = [[head.upper() for head in rows[0]], *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in table]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value) or "-"
    return "-" if value is None else str(value)


def escaped(text: str) -> str:
    """Unprintable characters as their escapes; tabs stay."""
    return "\t".join(map(printable, text.split("\t")))
