"""What a pod file and its drop-ins say together: the one reader for ``podrun up`` and for units.

Drop-ins are ``web.toml.d/*.toml`` beside ``web.toml``, sorted by name; for ``web@blue`` first those of ``web@.toml.d``,
then those of ``web@blue.toml.d``. They are put on top of the pod file, one after the other:

- in [pod], [placement], [update], [unit], [service], [install] and [socket], key by key, the later file wins;
- a [[socket]] entry changes the one with its FileDescriptorName, or is one more;
- a [[chain]] entry with a ``name`` changes the step of that hook and name, one without changes the only step of its
  hook (several: an error); its keys replace the step's keys, whole;
- where the files before have no such step, the entry is a new step at the end of the chain, or before the first step
  that its key ``before`` names (a key that only drop-ins have).

The generator of units carries this file: nothing but the standard library and what else it carries may be imported.
"""

from __future__ import annotations

from podrun.options import Wrong, read, unknown
from podrun.podfile.files import Source
from podrun.podfile.tables import COMMON, LOWER, POD_NAME, SECTIONS, FileTable, StepTable
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from podrun.errors import Failure
    from podrun.options import Where

    #: A file and its tables.
    File: TypeAlias = tuple[Source, dict[str, Any]]

#: The tables that are read key by key, beside the sections for systemd.
OWN = ("pod", "placement", "update")
_FD_NAME = "FileDescriptorName"


class Place(NamedTuple):
    """Where a table is written."""

    text: Source
    where: Where


class Table(NamedTuple):
    """A table with the place that it is written at, and for keys set by drop-ins the places of those."""

    values: dict[str, Any]
    place: Place
    later: dict[str, Place]

    @property
    def key(self) -> tuple[str, str]:
        """What tells a step from all others."""
        return self.values["hook"], self.values["name"]


class Model(NamedTuple):
    """The tables of all files as one."""

    #: [pod], [placement] and [update].
    own: dict[str, Table]
    #: Each step with its name.
    chain: list[Table]
    #: [unit], [service] and [install], as written.
    sections: dict[str, dict[str, Any]]
    #: [socket], or each [[socket]].
    sockets: list[dict[str, Any]]
    #: Which tables there are.
    seen: set[str]


def assembled(
    files: Sequence[File],
    default_name: Callable[[Table], str],
    resolve: Callable[[str], str],
    *,
    known: bool,
    strict: bool = True,
) -> Model:
    """The pod file and its drop-ins, each put on top of those before it; steps without a name get one.

    ``default_name``: the one that the step's hook declares, or ""; ``resolve``: of a string, what is meant by it, or
    Wrong. ``known``: the values of variables are; strings with a variable are not looked at otherwise. Without
    ``strict`` unknown tables are left out: units are made by a generator that may be older than the file.
    Raises Failure (WRONG_FILE) that says where.
    """
    first = files[0][0]
    model = Model({key: Table({}, Place(first, (key,)), {}) for key in OWN}, [], {}, [], set())
    for text, tables in files:
        _add(model, text, tables, resolve, known, strict)
        _name(model.chain, default_name)
    return model


def pod_name(model: Model, stem: str) -> str:
    """The pod's name without the instance: its own, or ``stem`` of the file's name. Raises Failure."""
    pod = model.own["pod"]
    if pod.values.get("name"):
        return str(located(pod, POD_NAME.parse, pod.values["name"]))
    return str(located(pod, _default_name, stem))


def common_keys(values: dict[str, Any], *, known: bool) -> dict[str, Any]:
    """The keys that every step may have, with their defaults. Raises Wrong."""
    own = {key: values[key] for key in COMMON if key in values}
    common: dict[str, Any] = read(StepTable, own if known else without_variables(own, "hook"))
    return common


def without_variables(values: dict[str, Any], *but: str) -> dict[str, Any]:
    """A table without the keys that only a start completes; ``but``: keys that have to be known before."""
    return {key: value for key, value in values.items() if key in but or not (type(value) is str and "${" in value)}


def located(table: Table, verb: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``verb``; what it finds wrong with the table becomes a Failure that says where."""
    try:
        return verb(*arguments)
    except Wrong as wrong:
        first, *others = [_failure(table, one) for one in (wrong, *wrong.others)]
        first.others = others
        raise first from None


def _failure(table: Table, wrong: Wrong) -> Failure:
    key = wrong.where[0] if wrong.where else None
    place = table.later.get(str(key), table.place)
    return place.text.failure(wrong.what, (*place.where, *wrong.where))


def _default_name(stem: str) -> str:
    try:
        return POD_NAME.parse(stem)
    except Wrong:
        what = f"{stem!r}, from the file's name, cannot be a pod's name" if stem else "the pod has no name"
        raise Wrong(f"{what}: set name in [pod]") from None


# --- one file on top of those before it ----------------------------------------------------------------------------


def _add(
    model: Model, text: Source, tables: dict[str, Any], resolve: Callable[[str], str], known: bool, strict: bool
) -> None:
    whole = Table({}, Place(text, ()), {})
    tables = tables if strict else {key: tables[key] for key in tables if key in FileTable._field_defaults}
    located(whole, read, FileTable, tables)
    older = tuple(model.chain)
    model.seen.update(tables)
    for key, value in tables.items():
        copy = located(whole, _resolved, value, (key,), str if key in SECTIONS else resolve)
        if key == "socket":
            _add_sockets(model.sockets, copy)
        elif key in SECTIONS:
            model.sections.setdefault(key, {}).update(copy)
        elif key in model.own:
            _override(model.own[key], copy, Place(text, (key,)))
        else:
            for index, values in enumerate(copy):
                step = Table(values, Place(text, (key, index)), {})
                located(step, lambda values: common_keys(values, known=known), values)
                located(step, _apply, model.chain, older, step)


def _add_sockets(sockets: list[dict[str, Any]], later: Any) -> None:
    older = list(sockets)
    for entry in later if type(later) is list else [later]:
        name = entry.get(_FD_NAME) if type(later) is list else None
        same = [before for before in older if name in (None, before.get(_FD_NAME))]
        sockets.append(entry) if not same else same[0].update(entry)


def _override(table: Table, values: dict[str, Any], place: Place) -> None:
    table.values.update(values)
    table.later.update(dict.fromkeys(values, place))


def _apply(chain: list[Table], older: Sequence[Table], entry: Table) -> None:
    """Puts an entry into the chain: as a change of one of the ``older`` files' steps, or as a new step."""
    hook, name = entry.values["hook"], entry.values.get("name")
    same = [step for step in older if step.values["hook"] == hook and name in (None, step.values["name"])]
    before = entry.values.pop("before", None) if older else None
    if len(same) > 1:
        names = ", ".join(step.values["name"] for step in same)
        raise Wrong(f"the pod has several {hook} steps: name the one to change ({names}), or choose a new name")
    if same:
        if before is not None:
            raise Wrong(f"before is for a new step, and the pod has this {hook} step already", ("before",))
        _override(same[0], entry.values, entry.place)
    elif before is None:
        chain.append(entry)
    else:
        following = next((step for step in older if step.values["name"] == before), None)
        if following is None:
            raise Wrong(unknown(str(before), [step.values["name"] for step in older], "step"), ("before",))
        chain.insert(next(n for n, step in enumerate(chain) if step is following), entry)


def _resolved(value: Any, where: Where, resolve: Callable[[str], str]) -> Any:
    """A copy of a TOML value with its strings resolved. Raises Wrong for what JSON cannot say."""
    kind = type(value)
    if kind is str:
        try:
            return resolve(value)
        except Wrong as wrong:
            raise Wrong(wrong.what, where) from None
    if kind is dict:
        return {key: _resolved(item, (*where, key), resolve) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_resolved(item, (*where, index), resolve) for index, item in enumerate(value)]
    if kind is int and not -(1 << 63) <= value < 1 << 63:
        raise Wrong("an integer has at most 64 bits", where)
    if kind is float and value - value != 0:
        raise Wrong("inf and nan are not numbers here", where)
    if kind not in (bool, int, float):
        raise Wrong("a date or time is not allowed here: write it as a string", where)
    return value


# --- names ---------------------------------------------------------------------------------------------------------


def _name(chain: Sequence[Table], default_name: Callable[[Table], str]) -> None:
    """Names the steps that have no name: the hook's default, or the hook's own name, counted from the second on."""
    taken = {step.key for step in chain if "name" in step.values}
    for step in chain:
        if "name" in step.values:
            continue
        word = step.values["hook"]
        default = default_name(step)
        stem = name = default or _own_name(word)
        count = 1
        while not default and (word, name) in taken:
            count += 1
            name = f"{stem}-{count}"
        step.values["name"] = name
        taken.add((word, name))


def _own_name(hook: str) -> str:
    """A step's name from its hook: "network", and "metrics" of "exec:/opt/Metrics"."""
    base = hook.rpartition("/")[2].rpartition(":")[2].lower()
    return "".join(c if c in LOWER or c in "_.-" else "-" for c in base).lstrip("_.-")[:60] or "step"
