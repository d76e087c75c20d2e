"""``podrun update`` and ``rollback``: pods get what their images' names stand for now, or stood for before."""

from __future__ import annotations

import fcntl
import os
import time

from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.processes import alive
from podrun.engine.segments import resolve
from podrun.errors import STEP_FAILED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Pod
from podrun.hook_extras import KeepsVersions, offers
from podrun.launcher import detach, history, launch, once, pull, reload
from podrun.launcher.reload import Request
from podrun.record import NamedTuple
from podrun.systemd import notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from podrun.engine.journal import Header
    from podrun.host import Host
    from podrun.launcher.history import Change
    from podrun.podfile.loader import PodText, StepText

#: Without [update].
DEFAULTS: dict[str, Any] = {"from": "registry", "mode": "swap", "soak": 0.0, "watch": 60.0, "keep": 3}


class News(NamedTuple):
    """What there is for one image step of a pod."""

    step: str
    #: What the pod runs, and what it would get; "": not known before it has been fetched.
    now: str
    then: str
    #: Why it is left alone, or "".
    refused: str = ""


def update(name: str, host: Host, *, look: bool = False, dry: bool = False) -> int:
    """Brings a pod that is up to what its images' names stand for now; with ``look`` and ``dry`` only says so.

    A version that does not start, or does not run well within [update] watch, gives way to the one before: Failure, 76.
    """
    header, text = _pod(name, host)
    rules = {**DEFAULTS, **text.update}
    before = history.versions_of(host.root, text)
    news = [one for one in _news(text, rules, host, header) if one.then != one.now]
    for one in news:
        what = one.refused or (
            f"{one.then[:19]} instead of {one.now[:19]}" if one.then else "what its name stands for now"
        )
        host.report(f"image {one.step}: {what}")
    wanted = [one for one in news if not one.refused]
    if look or not wanted:
        if not news:
            host.report("it is up to date")
        return 0
    if dry:
        host.report(f"it would be {'swapped' if _swaps(text, header, host, rules) else 'stopped and started'}")
        return 0
    if rules["from"] == "registry":
        _fetch(text, host)
    if _running(header, host) == {step: one["digest"] for step, one in history.versions_of(host.root, text).items()}:
        host.report("it is up to date")
        return 0
    _change(text, header, host, rules, before, _request("update", host, rules), text)
    return 0


def rollback(name: str, host: Host, generation: int = 0) -> int:
    """Brings a pod back to an earlier generation: its pod file and images as they were; default: the one before."""
    past = history.read(host.root, name)
    now = history.current(past)
    target = _target(past, now, generation)
    assert now  # else there is no target
    text, back = _pinned(target), _pinned(now)
    header = _header(name, host)
    before = history.versions_of(host.root, back)
    try:
        history.bring_back(host.root, text, target.versions)
    except OSError as error:
        what = f"the images of generation {target.generation} are not in the store any more: {error.strerror}"
        raise Failure(what, code=UNAVAILABLE, hint="[update] keep says how many are kept") from None
    rules = {**DEFAULTS, **text.update}
    request = _request("rollback", host, rules)._replace(text=history.table_of(text))
    _change(text, header, host, rules, before, request, back)
    host.report(
        f"it is generation {target.generation} again; {text.file or 'its file'} is as it was, and a restart reads it"
    )
    return 0


def _request(how: str, host: Host, rules: dict[str, Any]) -> Request:
    return Request(how, history.who(host.environ), float(rules["soak"]), float(rules["watch"]))


def _target(past: Sequence[Change], now: Change | None, generation: int) -> Change:
    good = [change for change in past if change.result == history.OK]
    if generation:
        wanted = [change for change in good if change.generation == generation]
    else:
        wanted = [one for one in good if now and (one.digests, one.text) != (now.digests, now.text)]
    if not wanted:
        known = ", ".join(str(change.generation) for change in good) or "none"
        what = f"there is no generation {generation}" if generation else "there is no generation before this one"
        raise Failure(what, code=UNAVAILABLE, hint=f"those that went well: {known}; see 'podrun history'")
    return wanted[-1]


def _pinned(change: Change) -> PodText:
    """The pod of a generation, which takes what its images' names stand for here and asks no registry."""
    text = history.of_table(change.text)
    return text._replace(steps=tuple(_as_it_is(step) for step in text.steps))


def _as_it_is(step: StepText) -> StepText:
    keeping = offers(hook_loader.load(step.hook), KeepsVersions)
    return step._replace(options=keeping.as_it_is(step.options)) if keeping else step


def _pod(name: str, host: Host) -> tuple[Header, PodText]:
    header = _header(name, host)
    return header, reload.today(header, host)


def _header(name: str, host: Host) -> Header:
    header = next((journal.header for journal in journals.journals(host.run, name) if journal.header), None)
    if header is None or states.state(host.run, name) != "up":
        raise Failure(f"{name} is not up", code=UNAVAILABLE, hint=f"'podrun up {name}' starts it")
    return header


def _swaps(text: PodText, header: Header, host: Host, rules: dict[str, Any]) -> bool:
    if rules["mode"] != "swap" or text.reload != "swap":
        return False
    return not reload.obstacles(text, reload.next_of(header.pod, text), host)


# --- what there is -------------------------------------------------------------------------------------------------


def _news(text: PodText, rules: dict[str, Any], host: Host, header: Header) -> list[News]:
    running = _running(header, host)
    failed = _given_up(history.read(host.root, text.name))
    found = []
    for step, keeping, options in _keeping(text, host):
        stored = keeping.version(host.root, options)
        now = running.get(step, "")
        if not now:
            continue
        if rules["from"] == "local":
            then = str(stored.get("digest", now))
        else:
            told = keeping.available(host.root, options)
            # What a registry tells of may be an index, of which the store has one image.
            same = told and told == stored.get("remote")
            then = str(stored["digest"]) if same else told
        refused = f"{then[:19]} was tried and did not run well" if then and then in failed else ""
        found.append(News(step, now, then, refused))
    return found


def _keeping(text: PodText, host: Host) -> list[tuple[str, KeepsVersions, Any]]:
    found = []
    for step in text.steps:
        hook = hook_loader.load(step.hook)
        keeping = offers(hook, KeepsVersions)
        if keeping:
            found.append(
                (step.name, keeping, resolve(Pod(text.name, host.root, host.run), hook, step._asdict()).options)
            )
    return found


def _running(header: Header, host: Host) -> dict[str, str]:
    """The digests that the pod's image steps were started with."""
    found = {}
    for entry in states.entries(journals.journals(host.run, header.pod.name)):
        for name, image in entry.facts.get("images", {}).items():
            if image.get("digest"):
                found[str(name)] = str(image["digest"])
    return found


def _given_up(past: Sequence[Change]) -> set[str]:
    """What was tried and given up: digests, and what the registry had said of them."""
    good = {digest for change in past if change.result == history.OK for digest in change.digests.values()}
    bad = [version for change in past if change.result != history.OK for version in change.versions.values()]
    return {str(one[key]) for one in bad if one["digest"] not in good for key in ("digest", "remote") if one.get(key)}


def _fetch(text: PodText, host: Host) -> None:
    """Pulls while the pod runs, one pod of the host at a time: a hundred would get in each other's way."""
    os.makedirs(f"{host.run}/locks", mode=0o700, exist_ok=True)
    fd = os.open(f"{host.run}/locks/.update", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            host.report("waiting for another pod's pull")
            fcntl.flock(fd, fcntl.LOCK_EX)
        for _, keeping, options in _keeping(text, host):
            with pull.teller(quiet=False) as teller:
                keeping.refresh(host.root, options, teller.notify)
    finally:
        os.close(fd)


# --- the change ----------------------------------------------------------------------------------------------------


def _change(
    text: PodText,
    header: Header,
    host: Host,
    rules: dict[str, Any],
    before: dict[str, Any],
    request: Request,
    back: PodText,
) -> None:
    """Swaps, or stops and starts, and watches. Raises Failure (76) when the pod has had to go back.

    ``before`` and ``back``: the images and the pod as they are when it goes back.
    """
    began = time.monotonic()
    swaps = _swaps(text, header, host, rules)
    try:
        if swaps:
            reload.reload(text.name, host, request=request)
        else:
            _restart(text, header, host, once_only=request.text)
            _watch_from_outside(text.name, host, request.watch)
            history.note(host, text, request.how, request.by, began, restarted=True)
        return
    except Failure as failure:
        why = failure.what
    if not swaps:
        history.note(host, text, request.how, request.by, began, result=history.FAILED, why=why, restarted=True)
    # The name stands for the version before again, so that a restart takes that.
    history.bring_back(host.root, text, before)
    left = time.monotonic()
    if states.state(host.run, text.name) != "up" or not swaps:
        _restart(back, header, host, once_only=history.table_of(back) if request.text else {})
    took = time.monotonic() - left
    hint = f"it is back on the previous version after {took:.1f} s; 'podrun history {text.name}' has it"
    raise Failure(why, code=STEP_FAILED, hint=hint)


def _restart(text: PodText, header: Header, host: Host, once_only: dict[str, Any]) -> None:
    """Stops and starts a pod as ``text`` says; a unit that reads the pod's file does, or ``once_only`` where given."""
    if header.pod.unit and not notify.is_transient(header.pod.unit):
        found = [journal.header for journal in journals.journals(host.run, text.name)]
        code = once.restart([header.pod.unit, *(one.pod.unit for one in found if one)], once_only, host)
    else:
        launch.down(text.name, host)
        code = detach.start(text, host)
    if code:
        raise Failure("the new version did not start", code=STEP_FAILED, hint="its output says why")


def _watch_from_outside(name: str, host: Host, seconds: float) -> None:
    """Watches a pod that has been restarted for so long. Raises Failure when it is not the same any more."""
    first = launch.residents(host.run, name)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = launch.residents(host.run, name)
        if now != first or not all(alive(resident.pid, resident.start) for resident in now):
            ended = seconds - (deadline - time.monotonic())
            raise Failure(f"it ended {ended:.1f} s after its start", code=STEP_FAILED)
        time.sleep(0.05)


def each(names: Sequence[str], host_of: Callable[[str], Host], **wanted: bool) -> int:
    """Updates several pods one after another; the code is that of the first that failed."""
    code = 0
    for name in names:
        try:
            update(name, host_of(name), **wanted)
        except Failure as failure:
            host_of(name).report(str(failure))
            code = code or failure.code
    return code


def pods_with_updates(host: Host) -> list[str]:
    """The pods that are up and whose file has an [update]: those that ``--all`` means."""
    found = []
    for name in journals.pods(host.run):
        try:
            _, text = _pod(name, host)
        except Failure:
            continue
        if text.update:
            found.append(name)
    return found


def refuse_nothing(names: Sequence[str], everything: bool) -> None:
    """Raises Failure if a command line neither names pods nor says --all."""
    if not names and not everything:
        raise Failure("no pod is named", code=WRONG_FILE, hint="give names, or --all for those with an [update]")
