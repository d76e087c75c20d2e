"""A chain cut at its resident steps, and the step of a journal's record."""

from __future__ import annotations

from podrun.engine.journal import POD_SEGMENT
from podrun.engine.verbs import failed, verb
from podrun.engine.world import Callbacks
from podrun.errors import Failure
from podrun.hook import Pod, Problem, Step, is_resident
from podrun.hook_extras import ChecksChain, Registers, offers
from podrun.messages import quiet
from podrun.options import Wrong, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from podrun.hook import Hook
    from podrun.podfile.loader import StepText


def segments(steps: Sequence[StepText], load: Callable[[str], Hook]) -> Iterator[tuple[str, list[StepText]]]:
    """Cuts a chain at its resident steps: the pod segment, then one for each with the steps after it."""
    name = POD_SEGMENT
    members: list[StepText] = []
    for step in steps:
        if is_resident(load(step.hook), step.options):
            if members:
                yield name, members
            name, members = step.name, []
        members.append(step)
    if members:
        yield name, members


def resolve(
    pod: Pod,
    hook: Hook,
    record: Any,
    notify: Callable[[str], None] = quiet,
    announce: Callable[[int], None] = quiet,
    report: Callable[[str], None] = quiet,
) -> Step:
    """The Step of a journal's record of it (or of a pod file's). Raises Failure for options that are not the hook's."""
    declared = hook.Options
    try:
        options = record["options"] if declared is None else read(declared, record["options"])
    except Wrong as wrong:
        raise Failure(wrong.what, hint="was it started by another version of the hook?") from None
    timeout = float("inf") if record.get("timeout") is None else record["timeout"]
    label = label_of(record)

    def reported(line: str) -> None:
        report(f"{label}: {line}")

    return Step(pod, record["hook"], record["name"], options, notify, timeout, announce, reported)


def problems(pod: Pod, steps: Sequence[StepText], world: Callbacks) -> list[tuple[StepText, Problem]]:
    """What the hooks' checks found, with the step; nothing is changed by asking.

    Raises Failure, naming the step, for a check that fails itself.
    """
    found = []
    before: list[Step] = []
    for text in steps:
        hook = world.load(text.hook)
        step = resolve(pod, hook, text._asdict(), report=world.report)
        try:
            with verb(step):
                found += [(text, problem) for problem in hook.check(step)]
        except Exception as error:
            raise failed(label_of(text._asdict()), error) from error
        if checking := offers(hook, ChecksChain):
            found += [(text, problem) for problem in checking.check_in_chain(step, before)]
        before.append(step)
    return found


def services(steps: Sequence[StepText], load: Callable[[str], Hook]) -> list[str]:
    """The services that a chain registers, as its hooks say."""
    found: list[str] = []
    for text in steps:
        if registering := offers(load(text.hook), Registers):
            found += registering.services_of(text.options)
    return found


def label_of(record: Any) -> str:
    """How messages name the step of a journal's record."""
    return str(record["hook"] if record["name"] == record["hook"] else f"{record['hook']} {record['name']}")
