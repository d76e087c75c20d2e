"""A hot swap: the next generation of a pod starts beside the one that serves, takes over, and the old one is undone.

:func:`swap` is the order of it. Each generation has journals of its own, so a kill at any point leaves one that serves,
and what is left of the other is known: :func:`recover` takes it away, and ``down`` undoes both.
"""

from __future__ import annotations

from podrun.engine import chain
from podrun.engine import journal as journals
from podrun.engine.journal import Entry, Writer
from podrun.engine.segments import resolve
from podrun.engine.verbs import failed
from podrun.hook import Pod
from podrun.hook_extras import RunsBeside, TakesOver, offers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from podrun.engine.world import Callbacks
    from podrun.hook import Hook, Step
    from podrun.podfile.loader import StepText


def swap(
    pod: Pod,
    file: str,
    steps: Sequence[StepText],
    world: Callbacks,
    *,
    drain: float,
    proven: Callable[[], None] | None = None,
    moved: Callable[[], None],
    well: Callable[[], None] | None = None,
) -> None:
    """Starts ``pod``, a generation beside the one that serves, moves to it what only one can have, undoes the other.

    ``proven`` is called while the new generation is ready and the old one serves, ``well`` while the new one serves and
    the old one is still there: both may take their time to watch, and raise Failure to go back. Then ``moved`` is
    called: from then on the new generation is the pod.
    The caller holds the pod's lock and has called :func:`recover`. Raises Failure if the new generation does not start
    or is not well; the old one serves on then.
    """
    before = journals.serving(pod.run, pod.name)
    chain.up(pod, file, steps, world)
    try:
        if proven:
            proven()
        move(pod.run, before, pod.key, world)
        if well:
            well()
    except BaseException as error:
        move_back(pod.run, before, pod.key, world)
        raise chain.given_up(error, pod, world, "") from error
    moved()
    retire(pod.run, before, world, drain)


def obstacles(pod: Pod, steps: Sequence[StepText], load: Callable[[str], Hook]) -> list[tuple[StepText, str]]:
    """The steps that two generations cannot have at once, each with the reason."""
    found = []
    for text in steps:
        hook = load(text.hook)
        beside = offers(hook, RunsBeside)
        what = "the hook does not say that two generations can have it at once"
        if why := beside.exclusive(resolve(pod, hook, text._asdict())) if beside else what:
            found.append((text, why))
    return found


def next_generation(run: str, name: str) -> int:
    """The number of the generation after those that there are."""
    newest = journals.generations(run, name)[-1]
    return int(newest.partition("/+")[2] or 1) + 1


def recover(run: str, name: str, world: Callbacks) -> list[str]:
    """Takes away what a swap that was killed left beside the generation that serves; returns the undone steps."""
    serving = journals.serving(run, name)
    undone: list[str] = []
    keys = journals.generations(run, name)
    for key in reversed(keys[keys.index(serving) + 1 :] if keys else []):
        if any(journal.moving for journal in journals.of_generation(run, key)):
            move_back(run, serving, key, world)
        undone += chain.down(run, key, world)
    for key in keys[: keys.index(serving)] if keys else []:
        undone += retire(run, key, world, 0.0)
    return undone


def move(run: str, before: str, after: str, world: Callbacks) -> None:
    """Moves what only one generation can have to ``after``, which is the pod from then on."""
    first = journals.of_generation(run, after)[0]
    with Writer(first.path) as journal:
        journal.moving()
        world.watch("moving", after)
        _take_over(run, after, before, world)
        journal.serving()
    world.watch("serving", after)


def move_back(run: str, before: str, after: str, world: Callbacks) -> None:
    """Moves it to ``before`` again, as far as it had been moved."""
    with Writer(journals.of_generation(run, after)[0].path) as journal:
        journal.moving_back()
    _take_over(run, before, after, world)
    world.watch("moved back", before)


def retire(run: str, key: str, world: Callbacks, drain: float) -> list[str]:
    """Undoes a generation that has been replaced, once the clients that were on their way to it have been served."""
    for entry, step in _taking_over(run, key, world):
        hook = offers(world.load(step.hook), TakesOver)
        if hook and entry.at in ("up", "stopping"):
            world.watch("settling", step.label)
            try:
                hook.settle(step, entry.facts, drain)
            except Exception as error:
                raise failed(step.label, error) from error
    return chain.down(run, key, world)


def _take_over(run: str, key: str, other: str, world: Callbacks) -> None:
    others = {(step.hook, step.name): (entry, step) for entry, step in _taking_over(run, other, world)}
    for entry, step in _taking_over(run, key, world):
        hook = offers(world.load(step.hook), TakesOver)
        counterpart = others.get((step.hook, step.name))
        if hook and counterpart and entry.facts:
            world.watch("taking over", step.label)
            try:
                hook.take_over(step, entry.facts, counterpart[1], counterpart[0].facts)
            except Exception as error:
                raise failed(step.label, error) from error
            world.watch("taken over", step.label)


def _taking_over(run: str, key: str, world: Callbacks) -> Iterator[tuple[Entry, Step]]:
    """The steps of a generation that have something which only one can have, in start order."""
    for journal in journals.of_generation(run, key):
        for entry in journal.entries:
            hook = world.load(entry.step["hook"])
            if journal.header and offers(hook, TakesOver) and entry.at != "down":
                yield entry, chain.step_of(journal.header, entry, world)


def takers(steps: Iterable[Mapping[str, Any]], load: Callable[[str], Hook]) -> set[tuple[str, str]]:
    """Those of the steps, as journals have them, that have something which only one generation can have."""
    return {(step["hook"], step["name"]) for step in steps if offers(load(step["hook"]), TakesOver)}
