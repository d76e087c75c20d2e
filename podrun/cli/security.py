"""``podrun check --security``: what a pod file exposes, in the manner of systemd-analyze security."""

from __future__ import annotations

from podrun.engine import hook_loader
from podrun.engine.segments import label_of, resolve
from podrun.hook_extras import Exposes, Exposure, offers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from podrun.hook import Pod
    from podrun.podfile.loader import PodText

#: Up to which sum of the weights a pod is called what.
_WORDS = ((2.0, "OK"), (4.5, "MEDIUM"), (7.5, "EXPOSED"))
_MOST = 10.0


def report(text: PodText, pod: Pod) -> Iterator[str]:
    """The lines: one for each exposure, the most serious first, and the figure, from 0.0 to 10.0."""
    found = sorted(exposures(text, pod), key=lambda pair: -pair[1].weight)
    width = max((len(exposure.what) + len(label) + 2 for label, exposure in found), default=0)
    for label, exposure in found:
        line = f"{label}: {exposure.what}"
        yield f"{exposure.weight:4.1f}  {line.ljust(min(width, 100))}  {exposure.hint}".rstrip()
    total = figure([exposure for _, exposure in found])
    yield f"{text.name}: overall exposure {total:.1f} of {_MOST:g}: {word(total)}"


def exposures(text: PodText, pod: Pod) -> Iterator[tuple[str, Exposure]]:
    """Pairs of a step's label and an exposure of it."""
    for record in text.steps:
        hook = hook_loader.load(record.hook)
        step = resolve(pod, hook, record._asdict())
        label = label_of(record._asdict())
        if exposing := offers(hook, Exposes):
            yield from ((label, exposure) for exposure in exposing.exposes(step))
        elif hook_loader.kind(step.hook) != "first-party":
            yield label, Exposure(f"{step.hook} runs as root on the host, and says nothing of what it does", 0.5)


def figure(found: list[Exposure]) -> float:
    """The sum of the weights, 10 at most."""
    return min(_MOST, sum(exposure.weight for exposure in found))


def word(total: float) -> str:
    """What a figure is called."""
    return next((name for most, name in _WORDS if total <= most), "UNSAFE")
