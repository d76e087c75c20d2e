"""Queries to a registry of any kind, for ``podrun registry``."""

from __future__ import annotations

import time

from podrun.errors import NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Wrong
from podrun_hooks.registry import connect, file, wishes
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.http import Away, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from podrun_hooks.registry.record import Record
    from podrun_hooks.registry.source import Source

    T = TypeVar("T")

#: Seconds to wait for an answer, and between two polls of ``watch``.
_PATIENCE, _LOOK = 5.0, 0.2


def opened(url: str, run: str) -> Source:
    """The registry that the command line names: a URL, or "" for this host's default. Raises Failure."""
    try:
        return sources.resolved(sources.parse(url), run)
    except Wrong as wrong:
        raise Failure(wrong.what, code=WRONG_FILE) from None


def services(source: Source) -> list[str]:
    """The services that have a record. Raises Failure."""
    if not source.has_server:
        return file.services(source.directory)
    return _asked(source, lambda client: client.services(seconds=_PATIENCE))


def records(source: Source, service: str, wrong: list[str]) -> list[Record]:
    """The records of a service; ``wrong`` collects what is not a record, and why. Raises Failure."""
    _no_place(service)
    if not source.has_server:
        return file.records(source.directory, service, wrong=wrong)
    return _asked(source, lambda client: client.records(service, seconds=_PATIENCE, wrong=wrong))


def remove(run: str, source: Source, service: str, identity: str) -> bool:
    """Removes a record, whoever wrote it; True when it was there. Raises Failure."""
    _no_place(service)
    _no_place(identity)
    if source.has_server:
        removed: bool = _asked(source, lambda client: client.remove(service, identity, seconds=_PATIENCE))
        return removed
    with wishes.Locked(run, source.directory):
        removed = file.delete(source.directory, service, identity)
        from podrun_hooks.ambassador import reach

        reach.refresh(run, source, service)
    return removed


def changes(source: Source, wanted: str) -> Iterator[tuple[str, list[Record]]]:
    """A service and its records each time they change, for ever; ``wanted`` "": of all services. Raises Failure.

    It waits for a registry that does not answer.
    """
    known: dict[str, list[Record]] = {}
    while True:
        try:
            names = [wanted] if wanted else sorted({*services(source), *known})
            for name in names:
                now = records(source, name, [])
                if known.get(name, []) != now:
                    known[name] = now
                    yield name, now
        except Failure as failure:
            if failure.code != UNAVAILABLE:
                raise
        time.sleep(_LOOK)


def _no_place(name: str) -> None:
    """Refuses what no service or record can be called: it would stand in a path, or in a URL's. Raises Failure."""
    if not name or name[0] == "." or "/" in name or not name.isprintable():
        raise Failure(f"expected a name without '/', not {name!r}", code=WRONG_FILE)


def _asked(source: Source, question: Callable[[Any], T]) -> T:
    client = connect(source)
    client.limit(_PATIENCE)
    try:
        return question(client)
    except Away as error:
        raise Failure(f"{source.url}: {error}", code=UNAVAILABLE, hint="is it running, and reachable?") from None
    except Refused as error:
        raise Failure(f"{source.url}: {error}", code=NOT_ALLOWED) from None
    finally:
        client.close()
