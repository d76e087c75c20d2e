"""Figures of a run: collected, then written as JSON, as a table and as plots."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
#: What podrun wants to be, as a share of a peer's median (of a rate: at least).
AIMS = {
    ("start and end", "podman"): 0.13,
    ("start and end", "docker"): 0.12,
    ("start and end", "bare runc"): 0.85,
    ("first answer over HTTP", "podman"): 0.25,
    ("8 starts at a time", "podman"): 5.0,
}


class Figures:
    """Rows of (what, unit), with the values of each engine in the order in which they were taken."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, list[float]]] = {}

    def add(self, what: str, unit: str, engine: str, value: float) -> None:
        self.rows.setdefault((what, unit), {}).setdefault(engine, []).append(value)


def _ratio(what: str, engine: str, mine: float, theirs: float) -> str:
    if engine == "podrun" or not theirs:
        return ""
    ratio = mine / theirs
    aim = AIMS.get((what, engine))
    if aim is None:
        return f"{ratio:.2f}"
    reached = ratio >= aim if aim > 1 else ratio <= aim
    return f"**{ratio:.2f}** ({'at least' if aim > 1 else 'at most'} {aim:g}: {'reached' if reached else 'missed'})"


def table(figures: Figures) -> str:
    lines = []
    for (what, unit), engines in figures.rows.items():
        lines += [
            f"### {what[0].upper()}{what[1:]}",
            "",
            f"| | median {unit} | min | max | podrun / it |",
            "| --- | --- | --- | --- | --- |",
        ]
        mine = statistics.median(engines.get("podrun", [0]))
        for engine, values in sorted(engines.items(), key=lambda item: statistics.median(item[1])):
            median = statistics.median(values)
            ratio = _ratio(what, engine, mine, median)
            lines.append(f"| {engine} | {_told(median)} | {_told(min(values))} | {_told(max(values))} | {ratio} |")
        lines += ["", f"![{what}](../performance/{_file(what)})", ""]
    return "\n".join(lines)


def _told(value: float) -> str:
    """Three figures are enough, and two behind the point."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _file(what: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in what.lower()).strip("-") + ".svg"


def plots(figures: Figures, place: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "podrun"  # the same figures, the same file
    from matplotlib import pyplot

    for (what, unit), engines in figures.rows.items():
        order = sorted(engines, key=lambda name: statistics.median(engines[name]))
        drawn, axes = pyplot.subplots(figsize=(7, 0.45 * len(order) + 1.1))
        for row, name in enumerate(reversed(order)):
            values = engines[name]
            median = statistics.median(values)
            axes.barh(row, median, color="#2a6f97" if name.startswith("podrun") else "#b8c4cc")
            axes.plot(values, [row] * len(values), ".", color="#222222", markersize=2)
            axes.text(median, row, f" {_told(median)}", va="center", fontsize=8)
        axes.set_yticks(range(len(order)), list(reversed(order)), fontsize=8)
        axes.set_xlabel(f"{unit}; the bar is the median, each dot a run", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(what, loc="left", fontsize=9)
        drawn.tight_layout()
        drawn.savefig(place / _file(what), metadata={"Date": None})
        pyplot.close(drawn)


def write(figures: Figures, left_out: list[str], rounds: int) -> None:
    """Writes all three, and prints the table."""
    place = DOCS / "performance"
    place.mkdir(exist_ok=True)
    rows = [{"what": what, "unit": unit, "engines": engines} for (what, unit), engines in figures.rows.items()]
    machine = f"Linux {platform.release()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    told = {"machine": machine, "rounds": rounds, "left out": left_out, "rows": rows}
    (place / "figures.json").write_text(json.dumps(told, indent=1) + "\n")
    plots(figures, place)
    text = table(figures)
    page = [
        "# Performance",
        "",
        "Made by `./dev bench all`, which anyone can run again: one run, everybody in random order, on the same root",
        "file system. What counts are the ratios; the milliseconds are this machine's. Every value is in",
        "[figures.json](../performance/figures.json).",
        "",
        f"Machine: {machine}. Rounds: {rounds}. Left out: {'; '.join(left_out) or 'nobody'}.",
        "",
        text,
    ]
    (DOCS / "explanation" / "performance.md").write_text("\n".join(page).rstrip() + "\n")
    print(text)
