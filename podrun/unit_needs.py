"""What a systemd unit has to know of a hook's steps, as data: units are made where no hook can be imported."""

from __future__ import annotations

from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol, TypeAlias

    #: Keys from a step's table down to a value: ("ready", "timeout").
    Path: TypeAlias = tuple[str, ...]

    class Resident(Protocol):  # noqa: D101
        @property
        def resident(self) -> bool | Mapping[str, Any]: ...


class Span(NamedTuple):
    """An option that is a time, and its default in seconds (None: the pod's stop_timeout).

    It counts where the table that holds it is there: ``ready.timeout`` only with ``ready = { ... }``.
    """

    path: Path
    default: float | None


class UnitNeeds(NamedTuple):
    """Which options of a hook matter to the unit of its step."""

    #: Times that the start may take.
    start: tuple[Span, ...] = ()
    #: Times that the stop may take.
    stop: tuple[Span, ...] = ()
    #: What one attempt of a probe that answers the unit's watchdog takes, from one to the next.
    watchdog: tuple[Span, ...] = ()
    #: Options, and the value with which the payload itself answers the watchdog.
    answers: tuple[tuple[Path, Any], ...] = ()
    #: Lists of capabilities that the unit must not take away.
    capabilities: tuple[Path, ...] = ()
    #: Lists of devices (HOST[:CONTAINER][:rwm]) that the unit must let it open.
    devices: tuple[Path, ...] = ()
    #: Lists of rules for devices ("c 189:* rwm") that the unit must not contradict.
    device_rules: tuple[Path, ...] = ()
    #: Tables of limits of setrlimit(2), by their names in lower case.
    limits: tuple[Path, ...] = ()
    #: Options that are false when programs may gain privileges.
    gains: tuple[Path, ...] = ()
    #: Options that are the payload's stop signal.
    signals: tuple[Path, ...] = ()
    #: Registries that have to be followed where they have a server.
    follows: tuple[Path, ...] = ()
    #: References of images that can be pulled before the pod starts.
    images: tuple[Path, ...] = ()


def is_resident(hook: Resident, options: Mapping[str, Any]) -> bool:
    """Whether a step with these options, as the pod file spells them, leaves a process running."""
    if isinstance(hook.resident, bool):
        return hook.resident
    return all(options.get(key) == value for key, value in hook.resident.items())


def at(table: Any, path: Path) -> Any:
    """The value that a path leads to; None where there is none."""
    for key in path:
        if type(table) is not dict:
            return None
        table = table.get(key)
    return table


def counts(table: Any, span: Span) -> bool:
    """Whether the table that holds the option is there."""
    return type(at(table, span.path[:-1])) is dict
