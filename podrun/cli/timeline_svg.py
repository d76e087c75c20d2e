"""A start as a picture: one bar for each step on one axis of time, as SVG."""

from __future__ import annotations

import os

from podrun.engine import state as states
from podrun.engine.segments import label_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    from podrun.engine.journal import Journal

    #: label, milliseconds from the beginning, milliseconds that it took, kind.
    Bar: TypeAlias = tuple[str, float, float, str]

_LEFT, _RIGHT, _ROW, _HEAD, _FOOT, _WIDTH = 170, 90, 26, 58, 34, 960
_COLOURS = {"podrun": "#9aa5b1", "step": "#3b7dd8", "resident": "#2f9e63", "background": "#b07cd8", "failed": "#d64545"}
_MEANING = {
    "podrun": "podrun itself", "step": "step", "resident": "container", "background": "in the background",
    "failed": "failed, optional",
}  # fmt: skip


def svg(name: str, found: Sequence[Journal]) -> str:
    """The last start of a pod, from the launcher's first instruction to the end of the last step."""
    bars = list(_bars(found))
    whole = max((begin + took for _, begin, took, _ in bars), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / whole
    height = _HEAD + _ROW * len(bars) + _FOOT
    kinds = dict.fromkeys(kind for *_, kind in bars)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
            f' viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="12" y="24" font-size="16" font-weight="600">{_escaped(name)}: {whole:.1f} ms</text>',
            *_legend(kinds),
            *_axis(whole, scale, height),
            *(line for row, bar in enumerate(bars) for line in _bar(row, bar, scale)),
            "</svg>\n",
        ]
    )


def _bars(found: Sequence[Journal]) -> Iterator[Bar]:
    """The launcher's own time before the first step, and then every step."""
    entries = [entry for entry in states.entries(found) if entry.began]
    if not entries:
        return
    first = min(entry.began for entry in entries)
    header = next((journal.header for journal in found if journal.header), None)
    origin = first
    if header and header.start:
        # proc(5): clock ticks since boot; on most machines a hundredth of a second, so that this one bar is rough.
        origin = min(first, max(header.start * 1000 / os.sysconf("SC_CLK_TCK"), first - 10_000))
    if first > origin:
        yield "podrun", 0.0, first - origin, "podrun"
    for entry in entries:
        kind = "resident" if entry.process or "process" in entry.facts else "step"
        kind = "background" if entry.step.get("background") else kind
        kind = "failed" if entry.at == "failed" else kind
        yield label_of(entry.step), entry.began - origin, entry.milliseconds, kind


def _legend(kinds: Sequence[str] | dict[str, None]) -> Iterator[str]:
    x = float(_WIDTH - 12)
    for kind in reversed(list(kinds)):
        x -= 7.2 * len(_MEANING[kind]) + 26
        yield f'<rect x="{x:.0f}" y="13" width="12" height="12" rx="2" fill="{_COLOURS[kind]}"/>'
        yield f'<text x="{x + 17:.0f}" y="24" fill="#52606d">{_MEANING[kind]}</text>'


def _axis(whole: float, scale: float, height: int) -> Iterator[str]:
    step = _round_step(whole / 8)
    bottom = height - _FOOT + 6
    for n in range(int(whole / step) + 1):
        x = _LEFT + n * step * scale
        yield f'<path d="M{x:.1f} {_HEAD - 8}V{bottom}" stroke="#e4e7eb"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#7b8794">{n * step:g} ms</text>'


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, and no less than ``least``."""
    power = 0.001
    while True:
        for times in (1, 2, 5):
            if power * times >= least:
                return power * times
        power *= 10


def _bar(row: int, bar: Bar, scale: float) -> Iterator[str]:
    label, begin, took, kind = bar
    y = _HEAD + row * _ROW
    x, width = _LEFT + begin * scale, max(took * scale, 1.5)
    shown = label if len(label) <= 22 else f"{label[:10]}…{label[-11:]}"
    yield f'<text x="{_LEFT - 10}" y="{y + 13}" text-anchor="end">{_escaped(shown)}</text>'
    yield f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 8}" rx="2" fill="{_COLOURS[kind]}">'
    yield f"<title>{_escaped(label)}: from {begin:.1f} ms, {took:.1f} ms</title></rect>"
    yield f'<text x="{x + width + 6:.1f}" y="{y + 13}" fill="#52606d">{took:.1f} ms</text>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
