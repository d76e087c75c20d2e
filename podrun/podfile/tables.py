"""The keys that every pod file may have, whichever hooks it names; declared as hooks declare their options."""

from __future__ import annotations

from podrun.options import (
    ANYTHING,
    BOOLEAN,
    DURATION,
    INTEGER,
    REQUIRED,
    TEXT,
    Kind,
    Option,
    Wrong,
    checked,
    choice,
    list_of,
    option,
    table_of,
)
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")


def _word(what: str, others: str) -> Kind[str]:
    def parse(text: str) -> str:
        if text[:1] not in LOWER or not LOWER.issuperset(text.translate(dict.fromkeys(map(ord, others)))):
            raise Wrong(f"expected {what} (a-z, 0-9 and {' '.join(others)}, first a letter or digit), not {text!r}")
        if len(text) > 63:
            raise Wrong(f"expected {what} of at most 63 characters, not {len(text)}")
        return text

    return checked(TEXT, parse, {"pattern": f"^[a-z0-9][a-z0-9{others}]{{0,62}}$"})


POD_NAME = _word("a pod's name", "-")
STEP_NAME = _word("a name", "_.-")


def _chain(value: Any) -> list[dict[str, Any]]:
    if type(value) is dict:
        raise Wrong("expected an array of tables, [[chain]] rather than [chain]")
    return list_of(table_of(ANYTHING)).parse(value)


def _setting(value: Any) -> Any:
    for word in value if type(value) is list else [value]:
        if type(word) not in (str, int, float, bool):
            raise Wrong("expected a string, a number, true, false or an array of these")
        if type(word) is str and not word.isprintable():
            raise Wrong(f"a line break or control character cannot be part of a systemd setting: {word!r}")
    return value


def _settings(table: dict[str, Any]) -> dict[str, Any]:
    for key in table:
        if not (key.isascii() and key.isalnum()):
            raise Wrong(f"{key!r} is not the name of a systemd setting", (key,))
    return table


_SCALAR = {"type": ["string", "number", "boolean"]}
_SETTINGS = checked(
    table_of(Kind(_setting, {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]})),
    _settings,
    {"propertyNames": {"pattern": "^[A-Za-z0-9]+$"}},
)
_ONE_OR_SEVERAL = Kind(
    lambda value: (list_of(_SETTINGS) if type(value) is list else _SETTINGS).parse(value),
    {"anyOf": [_SETTINGS.schema, {"type": "array", "items": _SETTINGS.schema}]},
)
_DESCRIBED = {
    "unit": "settings for the [Unit] section of the pod's unit",
    "service": "settings for its [Service] section",
    "install": "settings for its [Install] section",
    "socket": "settings for the [Socket] section of its socket unit; [[socket]]: of several, each with a name",
    "timer": "settings for the [Timer] section of the timer unit that starts the pod, a job as a rule",
}


def _reload(value: Any) -> Any:
    if type(value) is str and value.isascii() and value.replace("+", "").replace("-", "").isalnum():
        return value
    return list_of(TEXT).parse(value)


_RELOAD: Kind[str | list[str]] = Kind(
    _reload, {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
)


def _other_pod(text: str) -> str:
    name, at, instance = text.partition("@")
    POD_NAME.parse(name)
    if at:
        STEP_NAME.parse(instance)
    return text


_POD: Kind[str] = checked(TEXT, _other_pod)


def _calendar(text: str) -> str:
    if text and not (text.isprintable() and text.isascii() and text.strip()):
        raise Wrong(f"expected a time of systemd.time(7) such as 'daily' or 'Mon 03:00', not {text!r}")
    return text


class PodTable(NamedTuple):
    """The keys of ``[pod]``."""

    name: str = option(POD_NAME, "the pod's name; default: the file's name without .toml", "")
    stop_timeout: float = option(DURATION, "how long a container may take to end before it is killed", 20.0)
    type: str = option(choice("service", "job"), "a job's payload ends by itself; a service's should not", "service")
    reload: str | list[str] = option(
        _RELOAD,
        "what reloading does: 'swap' starts the next generation beside this one and moves to it; or a signal's name, "
        "or a command inside",
        "",
    )
    drain: float = option(
        DURATION, "how long a generation that has been swapped out may go on serving before it is asked to end", 0.0
    )
    on_failure: str = option(
        choice("keep", "stop"),
        "with units of their own: whether a container that failed for good stops the pod",
        "keep",
    )
    userns: str = option(
        choice("host", "auto"),
        "auto: a user namespace of the pod's own, with a range of 65,536 ids that no other pod has; host: the host's",
        "host",
    )
    after: list[str] = option(
        list_of(_POD), "pods that start before this one, if they start at all; this one stops before them", []
    )
    requires: list[str] = option(
        list_of(_POD), "pods that have to be up; started by systemd together with this one, which ends with them", []
    )
    timer: str = option(
        checked(TEXT, _calendar),
        "of a job: when systemd starts it (OnCalendar=, systemd.time(7)): 'daily'; more settings: [timer]",
        "",
    )
    pull_unit: bool = option(BOOLEAN, "have a unit of its own pull the images before the pod's starts", False)


def _keep(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 100:
        raise Wrong(f"expected an integer from 1 to 100, not {value!r}")
    return value


class UpdateTable(dict[str, object]):
    """The keys of ``[update]``. A dict, because ``from`` cannot be a field's name."""

    _field_defaults = {
        "from": Option(
            choice("registry", "local"),
            "where a new version comes from: what a tag stands for, or has been pulled",
            "registry",
        ),
        "mode": Option(choice("swap", "restart"), "how the pod gets it; what cannot be swapped is restarted", "swap"),
        "soak": Option(
            DURATION, "how long a new version runs before it takes traffic; a failure by then harms no client", 0.0
        ),
        "watch": Option(
            DURATION, "how long a new version is watched; after a failure the pod goes back to the one before", 60.0
        ),
        "keep": Option(
            Kind(_keep, {"type": "integer", "minimum": 1, "maximum": 100}), "how many versions stay in the store", 3
        ),
    }


_LETTERS = LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_PATTERN, _MACHINE, _ATTRIBUTE = LOWER | frozenset("-_.@*?[]!"), _LETTERS | frozenset(".-"), _LETTERS | frozenset("_.-")


def _made_of(what: str, letters: frozenset[str], most: int, schema: str, first: frozenset[str] = LOWER) -> Kind[str]:
    def parse(text: str) -> str:
        if text[:1] not in first or len(text) > most or not letters.issuperset(text):
            raise Wrong(f"expected {what}, not {text!r}")
        return text

    return checked(TEXT, parse, {"pattern": schema})


def _priority(value: int) -> int:
    if not -1000000 <= value <= 1000000:
        raise Wrong(f"expected an integer from -1000000 to 1000000, not {value}")
    return value


def _metadata(table: dict[str, str]) -> dict[str, str]:
    for key in table:
        # What crm(8) takes for a word of its own in a rule.
        if not _ATTRIBUTE.issuperset(key) or not key[:1].isalpha() or key in ("date", "defined", "not_defined"):
            raise Wrong(f"{key!r} cannot be the name of a node attribute", (key,))
    return table


_POD = _made_of("a pod's name", LOWER | frozenset("-_.@"), 127, "^[a-z0-9][a-z0-9-]*(@[a-z0-9_.-]+)?$")
_VALUE = _made_of(
    "a value of letters, digits and _.-:@+",
    _ATTRIBUTE | frozenset(":@+"),
    255,
    "^[A-Za-z0-9][A-Za-z0-9_.:@+-]*$",
    _LETTERS,
)
_PODS = _made_of(
    "a pod's name or a pattern of names", _PATTERN, 127, "^[][a-z0-9*?][][a-z0-9_.@*?!-]*$", LOWER | {*"*?["}
)
_HOST = _made_of("the name of a machine", _MACHINE, 253, "^[A-Za-z0-9][A-Za-z0-9.-]*$", _LETTERS)


class PlacementTable(dict[str, object]):
    """The keys of ``[placement]``. A dict, because ``global`` cannot be a field's name."""

    _field_defaults = {
        "conflicts": Option(list_of(_PODS), "pods that must not run on the same machine: names or patterns (*, ?)", ()),
        "global": Option(BOOLEAN, "run on every machine of the cluster", False),
        "machine_of": Option(_POD, "run on the machine of this pod", ""),
        "metadata": Option(
            checked(table_of(_VALUE), _metadata, {"propertyNames": {"pattern": "^[A-Za-z][A-Za-z0-9_.-]*$"}}),
            "run only on machines with these node attributes",
            {},
        ),
        "prefer": Option(list_of(_HOST), "machines to start on when there is a choice, the best one first", ()),
        "priority": Option(
            checked(INTEGER, _priority, {"minimum": -1000000, "maximum": 1000000}),
            "when the machines that are left cannot run all pods, those with the higher number run",
            0,
        ),
    }


class StepTable(dict[str, object]):
    """The keys that every ``[[chain]]`` table may have. A dict, because ``for`` cannot be a field's name."""

    _field_defaults = {
        "hook": Option(TEXT, "the hook that does this step: a name, or exec: and the path of an executable", REQUIRED),
        "name": Option(STEP_NAME, "the step's name, its own among the steps of the same hook", ""),
        "optional": Option(BOOLEAN, "when this step fails, report it and go on", False),
        "background": Option(BOOLEAN, "go on with the next steps until one needs this one's facts", False),
        "for": Option(list_of(TEXT), "the containers after it that this step serves; default: all", ()),
        "timeout": Option(DURATION, "how long the step may take", None),
    }


class FileTable(dict[str, object]):
    """The tables of a pod file."""

    _field_defaults = {
        "pod": Option(table_of(ANYTHING), "the pod itself", {}),
        "placement": Option(table_of(ANYTHING), "where a cluster may run the pod; no effect on a single machine", {}),
        "update": Option(table_of(ANYTHING), "what podrun update does with the pod", {}),
        "chain": Option(Kind(_chain, {"type": "array"}), "the steps, in the order of the start", ()),
        **{key: Option(_ONE_OR_SEVERAL if key == "socket" else _SETTINGS, doc, {}) for key, doc in _DESCRIBED.items()},
    }


#: Keys of [pod] that stand for a step before all others: the value, and the hook.
FIRST_STEPS = {"userns": {"auto": "userns"}}
COMMON = tuple(StepTable._field_defaults)
SECTIONS = tuple(_DESCRIBED)
