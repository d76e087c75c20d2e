"""Waiting until a service is registered and ready, on whichever host: it joins the chains of many pods.

A pod that waits leaves a note in the registry: its name, what it waits for, and what it will register itself. So pods
that wait for each other in a circle find out, and name the circle, instead of waiting for ever.
"""

from __future__ import annotations

import os
import time

from podrun import atomic, jsontext
from podrun.errors import NOT_ALLOWED, STEP_FAILED, UNAVAILABLE, Failure
from podrun.hook import TEXT, Kind, Wrong, checked, option
from podrun.identity import Identity
from podrun.record import NamedTuple
from podrun_hooks.registry import file
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.record import service_name
from podrun_hooks.registry.source import REGISTRY, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Protocol

    from podrun.hook import Facts, Problem, Step
    from podrun_hooks.registry.record import Record

takes: Sequence[str] = ()
gives: Sequence[str] = ("waited",)
resident = False
default_name = ""

#: Seconds between two polls of a directory and of a server, and that one call may take.
_LOOK_FILE, _LOOK_SERVER, _CALL = 0.02, 0.2, 1.5
#: Seconds between two notifications of systemd, and by how much each extends its time-out.
_TELL, _EXTEND = 1.0, 30
#: Seconds that a note outlives its author.
_NOTE = 30.0


def _least(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 256:
        raise Wrong(f"expected a number from 1 to 256, not {value!r}")
    return value


class Options(NamedTuple):
    """A service to wait for."""

    service: str = option(checked(TEXT, service_name), "the service, as others register it")
    min: int = option(
        Kind(_least, {"type": "integer", "minimum": 1, "maximum": 256}), "how many instances have to be ready", 1
    )
    registry: Source = option(REGISTRY, "where the service is registered; default: as for register", Source())


def up(step: Step, facts: Facts) -> Facts:
    """Returns when the service is there. Raises Failure: after the step's ``timeout`` (69), or for a circle (76)."""
    del facts
    options: Options = step.options
    began = time.monotonic()
    # A moment before the chain would end the step: its message could not tell what the step waits for.
    patience = step.timeout - min(0.1, step.timeout / 20) if step.timeout < float("inf") else step.timeout
    registry = _registry(step)
    waiter = _identity(step)
    told, next_note = False, 0.0
    ready: list[Record] = []
    next_word = 0.0
    trouble = ""
    try:
        while True:
            now = time.monotonic()
            try:
                ready = [record for record in registry.records(options.service) if record.ready]
                if len(ready) >= options.min:
                    break
                if now >= next_note:
                    told = True
                    registry.note(waiter, _note(step))
                    next_note = now + _NOTE / 3
                circle = _circle(waiter, registry.notes())
                trouble = ""
            except _Away as away:
                trouble, circle = str(away), []
            if circle:
                # The others have to find the circle as well, before this note is gone.
                time.sleep(registry.look * 3)
                raise Failure(
                    f"pods wait for each other: {' -> '.join(circle)}",
                    code=STEP_FAILED,
                    hint="one of them has to start without waiting for another",
                )
            waited = now - began
            if waited >= patience:
                have = f"{len(ready)} of {options.min} ready" if options.min > 1 else "not ready"
                raise Failure(
                    f"{options.service} is {have} after {step.timeout:g} s{f' ({trouble})' if trouble else ''}",
                    code=UNAVAILABLE,
                    hint=f"'podrun registry get {options.service}' shows what there is",
                )
            if now >= next_word:
                why = f", the registry is away: {trouble}" if trouble else ""
                words = f"waiting for {options.service} for {waited:.0f} s{why}"
                step.status(words)
                step.extend(_EXTEND)
                next_word = now + _TELL
            time.sleep(min(registry.look, max(0.0, began + patience - now)))
    finally:
        if told:
            registry.unnote(waiter)
        registry.close()
    step.status(f"{options.service} is there, after {time.monotonic() - began:.1f} s")
    return {"waited": {options.service: round((time.monotonic() - began) * 1000, 1)}}


def down(step: Step, own: Facts) -> None:
    """Removes the note that a killed start may have left; in a server it ends by itself."""
    del own
    source = sources.resolved(step.options.registry, step.pod.run)
    if not source.has_server:
        atomic.remove(f"{source.directory}/.waiting/{_identity(step)}.json")
        try:
            os.rmdir(f"{source.directory}/.waiting")
        except OSError:
            pass


def exclusive(step: Step) -> str:
    """Nothing: waiting holds no resource."""
    return ""


def check(step: Step) -> list[Problem]:
    """A registry that is there, and a service that the pod does not register itself."""
    from podrun.hook import Problem

    options: Options = step.options
    problems = sources.problems(options.registry, step.pod.run)
    if options.service in step.pod.services:
        what = f"the pod would wait for {options.service}, which it registers itself"
        problems.append(Problem(what, STEP_FAILED, key="service"))
    return problems


def explain(step: Step) -> list[str]:
    """The command line that waits the same way."""
    options: Options = step.options
    url = sources.resolved(options.registry, step.pod.run).url
    return [f"podrun registry wait --registry {url} --min {options.min} {options.service}"]


# --- circles -------------------------------------------------------------------------------------------------------


def _identity(step: Step) -> str:
    return Identity(step.pod.name, step.name).record(os.uname().nodename)


def _note(step: Step) -> str:
    return jsontext.dumps(
        {"v": 1, "id": _identity(step), "waits": step.options.service, "offers": list(step.pod.services)}
    )


def _circle(waiter: str, notes: Iterable[str]) -> list[str]:
    """The way from ``waiter`` back to itself, each with what it waits for: "a (db)", "b (web)", "a"; [] for none."""
    table: dict[str, tuple[str, list[str]]] = {}
    for text in notes:
        try:
            note = jsontext.loads(text)
            if note["v"] == 1 and isinstance(note["offers"], list) and len(text) < 16384:
                table[str(note["id"])] = (str(note["waits"]), [str(one) for one in note["offers"]])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    if waiter not in table:
        return []
    ways: list[list[str]] = [[waiter]]
    seen = {waiter}
    while ways:
        way = ways.pop(0)
        service = table[way[-1]][0]
        for name, (_, offered) in sorted(table.items()):
            if service not in offered:
                continue
            if name == waiter:
                return [*(f"{one} ({table[one][0]})" for one in way), waiter]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


# --- the two kinds of registry -------------------------------------------------------------------------------------


class _Away(Exception):
    pass


if TYPE_CHECKING:

    class _Registry(Protocol):
        look: float

        def records(self, service: str) -> list[Record]: ...

        def note(self, identity: str, text: str) -> None: ...

        def unnote(self, identity: str) -> None: ...

        def notes(self) -> list[str]: ...

        def close(self) -> None: ...


def _registry(step: Step) -> _Registry:
    source = sources.resolved(step.options.registry, step.pod.run)
    return _Server(source, step.pod.run) if source.has_server else _Directory(source.directory)


class _Directory:
    look = _LOOK_FILE

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.waiting = f"{directory}/.waiting"

    def records(self, service: str) -> list[Record]:
        return file.records(self.directory, service)

    def note(self, identity: str, text: str) -> None:
        atomic.replace(f"{self.waiting}/{identity}.json", text, 0o644, parents=0o755)

    def unnote(self, identity: str) -> None:
        atomic.remove(f"{self.waiting}/{identity}.json")
        try:
            os.rmdir(self.waiting)
        except OSError:
            pass  # others wait as well

    def notes(self) -> list[str]:
        found = []
        try:
            for name in [name for name in os.listdir(self.waiting) if not name.startswith(".")]:
                with open(f"{self.waiting}/{name}", encoding="utf-8", errors="replace") as note:
                    found.append(note.read(16384))
        except OSError:
            pass
        return found

    def close(self) -> None:
        pass


class _Server:
    look = _LOOK_SERVER

    def __init__(self, source: Source, run: str) -> None:
        from podrun_hooks.registry import connect, wishes

        self.client = connect(source)
        self.leases = wishes.Leases(f"{run}/waiting")

    def records(self, service: str) -> list[Record]:
        found: list[Record] = self._asked(lambda: self.client.records(service, seconds=_CALL))
        return found

    def note(self, identity: str, text: str) -> None:
        self._asked(lambda: self.client.wait_begins(identity, text, _NOTE, self.leases, seconds=_CALL))

    def unnote(self, identity: str) -> None:
        try:
            self._asked(lambda: self.client.wait_ends(identity, seconds=_CALL))
        except (_Away, Failure):
            pass  # it goes with its lease

    def notes(self) -> list[str]:
        found: list[str] = self._asked(lambda: self.client.waiting(seconds=_CALL))
        return found

    def close(self) -> None:
        self.client.close()

    def _asked(self, call: Any) -> Any:
        from podrun_hooks.registry.http import Away, Refused

        try:
            return call()
        except Away as error:
            raise _Away(str(error)) from None
        except Refused as error:
            raise Failure(f"{self.client.source.url}: {error}", code=NOT_ALLOWED, key="registry") from None
