"""What a pod file says: its tables and keys, its drop-ins and variables, and what a wrong one is told.

Drop-ins are ``web.toml.d/*.toml`` beside ``web.toml``, sorted by name; for ``web@blue`` first those of ``web@.toml.d``,
then those of ``web@blue.toml.d``. They are put on top of the pod file, one after the other:

- in [pod], [placement], [unit], [service], [install] and [socket], key by key, the later file wins;
- a [[chain]] entry with a ``name`` changes the step of that hook and name, one without changes the only step of its
  hook (several: an error); its keys replace the step's keys, whole;
- where the files before have no such step, the entry is a new step at the end of the chain, or before the first step
  that its key ``before`` names (a key that only drop-ins have).
"""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure
from podrun.hook import is_resident
from podrun.options import Wrong, read, unknown
from podrun.podfile import cache as parsed
from podrun.podfile import files as source
from podrun.podfile.tables import (
    COMMON,
    LOWER,
    POD_NAME,
    SECTIONS,
    STEP_NAME,
    FileTable,
    PlacementTable,
    PodTable,
    StepTable,
)
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any, TypeAlias

    from podrun.hook import Hook, Where

    LoadHook: TypeAlias = Callable[[str], Hook]
    Resolve: TypeAlias = Callable[[str], str]


class StepText(NamedTuple):
    """One ``[[chain]]`` entry as plain data: what the journal keeps of it."""

    #: As the pod file spells it: "network", "exec:/path", "plugin-name".
    hook: str
    name: str
    optional: bool
    background: bool
    #: The containers it serves; empty: all after it.
    for_: tuple[str, ...]
    #: Seconds; None: as long as it takes ("0" and "infinity" say so, too).
    timeout: float | None
    #: The hook's own keys as TOML values, variables substituted: what ``hook.read`` turns into its Options.
    options: dict[str, Any]


class PodText(NamedTuple):
    """A pod file as it is meant: checked, drop-ins and variables applied."""

    #: With "@instance" behind where the file is a template.
    name: str
    #: The absolute path of the pod file; "" for a pod without one.
    file: str
    steps: tuple[StepText, ...]
    #: "service", or "job": its payload ends by itself.
    type: str
    #: Seconds.
    stop_timeout: float
    #: The tables unit, service, install and socket that the file has, as written: systemd reads them.
    sections: dict[str, dict[str, Any]]
    #: What reloading does: the name of a signal, or a command in the container; "": nothing.
    reload: str | list[str] = ""
    #: The keys of [placement] with their defaults (podrun.podfile.tables.PlacementTable); empty without the table.
    placement: dict[str, Any] = {}


# --- reading ------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a table is written."""

    text: source.Source
    where: Where


class _Table(NamedTuple):
    """A table with the place that it is written at, and for keys set by drop-ins the places of those."""

    values: dict[str, Any]
    place: _Place
    later: dict[str, _Place]

    @property
    def key(self) -> tuple[str, str]:
        return self.values["hook"], self.values["name"]


def load(
    word: str,
    *,
    environ: Mapping[str, str] | None,
    load_hook: LoadHook,
    etc: str = "/etc/podrun",
    in_unit: bool = False,
    cache: str = "",
) -> PodText:
    """Reads a pod file, given by its path or by a pod's name.

    ``word`` with a slash or ending in .toml is a file; anything else is the name of ``etc``/NAME.toml, NAME@INSTANCE
    that of the template NAME@.toml. ``environ`` has the values of ``${VAR}``; None: they are not known yet (a unit is
    being written), strings with a variable stay as they are and such a step is not checked against its hook.
    ``load_hook`` returns the hook of a word, or raises Failure. ``in_unit``: the files must belong to root.
    ``cache`` is a directory for what has been parsed before (podrun.parsed).

    Raises Failure with WRONG_FILE and a message that begins with "file:line: " (in wrong TOML "file:line:column: ").
    """
    found = source.find(word, etc, in_unit=in_unit)
    if found.instance:
        _told(_Table({}, _Place(found.texts[0], ()), {}), STEP_NAME.parse, found.instance)
    resolve = source.resolver(environ, found.instance)
    with parsed.Results(cache) as results:
        files = [(text, results.of(text.text or "", source.tables, text)) for text in found.texts]
        return _understood(files, found.name, found.instance, load_hook, resolve, known=environ is not None)


def from_tables(
    tables: dict[str, Any],
    *,
    load_hook: LoadHook,
    file: str = "",
    name: str = "",
    environ: Mapping[str, str] | None = None,
) -> PodText:
    """The same for a pod file that is a dict already, such as that of ``podrun run``.

    ``file`` is what messages begin with and ``name`` the default of [pod] name; both may be "". Without ``environ`` the
    strings are final. Raises Failure with WRONG_FILE, without line numbers.
    """
    resolve = str if environ is None else source.resolver(environ)
    return _understood([(source.Source(file, None), tables)], name, "", load_hook, resolve, known=True)


def place(
    text: PodText, hook: str, name: str, key: str, *, environ: Mapping[str, str] | None, load_hook: LoadHook
) -> str:
    """Where a step, or that option of it, stands: "/etc/podrun/web.toml:12"; "" where no file has it (any more).

    For when there is something to tell: reads the pod file and its drop-ins once more.
    """
    directory, file = os.path.split(text.file)
    stem, extension = os.path.splitext(file)
    word = f"{stem}{text.name.partition('@')[2]}{extension}" if stem.endswith("@") else file
    try:
        found = source.find(f"{directory}/{word}", "", in_unit=False) if file else None
        files = [(one, source.tables(one)) for one in found.texts] if found else []
        resolve = source.resolver(environ, found.instance if found else "")
        chain = _assembled(files, _own_tables(files[0][0]), {}, load_hook, resolve) if files else []
    except (Failure, RecursionError):
        return ""
    for table in chain:
        if table.key == (hook, name):
            at = table.later.get(key, table.place)
            return at.text.at((*at.where, key) if key in table.values else at.where)
    return ""


def _own_tables(first: source.Source) -> dict[str, _Table]:
    """The tables that are read key by key, still empty."""
    return {key: _Table({}, _Place(first, (key,)), {}) for key in ("pod", "placement")}


def _assembled(
    files: Sequence[tuple[source.Source, dict[str, Any]]],
    own: dict[str, _Table],
    sections: dict[str, dict[str, Any]],
    load_hook: LoadHook,
    resolve: Resolve,
) -> list[_Table]:
    """The chain of the files, each put on top of those before it, with names; ``own`` and ``sections`` are filled."""
    chain: list[_Table] = []
    for text, tables in files:
        _add(text, tables, own, sections, chain, resolve)
        _name(chain, load_hook)
    return chain


def _understood(
    files: Sequence[tuple[source.Source, dict[str, Any]]],
    stem: str,
    instance: str,
    load_hook: LoadHook,
    resolve: Resolve,
    *,
    known: bool,
) -> PodText:
    first = files[0][0]
    try:
        own = _own_tables(first)
        pod, placement = own["pod"], own["placement"]
        sections: dict[str, dict[str, Any]] = {}
        chain = _assembled(files, own, sections, load_hook, resolve)
        if not chain:
            raise _failure(_Place(first, ()), Wrong("there is no [[chain]]: a pod is at least one step"))
        about: PodTable = _told(pod, read, PodTable, pod.values)
        name = about.name or _told(pod, _default_name, stem)
        return PodText(
            name=f"{name}@{instance}" if instance else name,
            file=first.path if first.text is None else os.path.abspath(first.path),
            steps=_steps(chain, load_hook, known),
            type=about.type,
            stop_timeout=about.stop_timeout,
            sections=sections,
            reload=about.reload,
            placement=dict(_told(placement, read, PlacementTable, placement.values)) if placement.values else {},
        )
    except RecursionError:
        raise Failure(f"{source.shown(first.path)}: arrays or tables are nested too deeply", code=WRONG_FILE) from None


def _default_name(stem: str) -> str:
    try:
        return POD_NAME.parse(stem)
    except Wrong:
        what = f"{stem!r}, from the file's name, cannot be a pod's name" if stem else "the pod has no name"
        raise Wrong(f"{what}: set name in [pod]") from None


def _add(
    text: source.Source,
    tables: dict[str, Any],
    own: dict[str, _Table],
    sections: dict[str, dict[str, Any]],
    chain: list[_Table],
    resolve: Resolve,
) -> None:
    """Puts one file on top of those before it."""
    whole = _Table({}, _Place(text, ()), {})
    _told(whole, read, FileTable, tables)
    before = tuple(chain)
    for key, value in tables.items():
        copy = _told(whole, _resolved, value, (key,), str if key in SECTIONS else resolve)
        if type(copy) is list and key in SECTIONS:
            sections[key] = {str(number): entry for number, entry in enumerate(copy)}
        elif key in SECTIONS:
            sections.setdefault(key, {}).update(copy)
        elif key in own:
            _override(own[key], copy, _Place(text, (key,)))
        else:
            for index, values in enumerate(copy):
                step = _Table(values, _Place(text, (key, index)), {})
                _told(step, _common, values)
                _told(step, _apply, chain, before, step)


def _override(table: _Table, values: dict[str, Any], place: _Place) -> None:
    table.values.update(values)
    table.later.update(dict.fromkeys(values, place))


def _apply(chain: list[_Table], older: Sequence[_Table], entry: _Table) -> None:
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


def _resolved(value: Any, where: Where, resolve: Resolve) -> Any:
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


# --- the chain ----------------------------------------------------------------------------------------------------


def _common(values: dict[str, Any]) -> dict[str, Any]:
    common: dict[str, Any] = read(StepTable, {key: values[key] for key in COMMON if key in values})
    return common


def _hook(step: _Table, load_hook: LoadHook) -> Hook:
    try:
        return load_hook(step.values["hook"])
    except Failure as failure:
        told = _failure(step.place, Wrong(failure.what, ("hook",)))
        raise Failure(told.what, code=failure.code, hint=failure.hint) from failure


def _name(chain: Sequence[_Table], load_hook: LoadHook) -> None:
    """Names the steps that have no name: the hook's default, or the hook's own name, counted from the second on."""
    taken = {step.key for step in chain if "name" in step.values}
    for step in chain:
        if "name" in step.values:
            continue
        word = step.values["hook"]
        default = _hook(step, load_hook).default_name
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


def _steps(chain: Sequence[_Table], load_hook: LoadHook, known: bool) -> tuple[StepText, ...]:
    taken: set[tuple[str, str]] = set()
    for table in chain:
        _told(table, _check_name, table.key, taken)
        taken.add(table.key)
    hooks = [_hook(table, load_hook) for table in chain]
    pairs = list(zip(chain, hooks, strict=True))
    later = [table.values["name"] for table, hook in pairs if is_resident(hook, table.values)]
    steps: list[StepText] = []
    for table, hook in pairs:
        if is_resident(hook, table.values):
            later = later[1:]
        steps.append(_told(table, _step, table.values, hook, later, known))
    for index, table in enumerate(chain):
        _told(table, _check_references, table.values, load_hook, chain[:index])
    return tuple(steps)


def _check_references(values: dict[str, Any], load_hook: LoadHook, earlier: Sequence[_Table]) -> None:
    """Options that name an earlier step by what it gives (``step_giving``): such a step has to be there."""
    declared = load_hook(values["hook"]).Options
    for key, field in declared._field_defaults.items() if declared is not None else ():
        fact = field.kind.refers_to
        givers = [(load_hook(step.values["hook"]), step.values["name"]) for step in earlier] if fact else []
        # What declares nothing (an executable) may give anything.
        if not fact or any(hook.Options is None for hook, _ in givers):
            continue
        names = [name for hook, name in givers if fact in hook.gives]
        if not names:
            raise Wrong(f"no step above it gives {fact}", ("hook",))
        if values.get(key) and values[key] not in names:
            raise Wrong(f"{key}: {unknown(values[key], names, 'step')}", (key,))


def _check_name(key: tuple[str, str], taken: Collection[tuple[str, str]]) -> None:
    if key in taken:
        raise Wrong(f"an earlier {key[0]} step is named {key[1]!r}, too: give this one another name")


def _step(values: dict[str, Any], hook: Hook, later: Sequence[str], known: bool) -> StepText:
    common = _common(values)
    options = {key: value for key, value in values.items() if key not in COMMON}
    if hook.Options is not None:
        declared = hook.Options._field_defaults
        for key in options:
            if key not in declared:
                raise Wrong(unknown(key, [*declared, *COMMON]), (key,))
        if known or "${" not in repr(options):
            read(hook.Options, options)
    if is_resident(hook, values):
        _check_resident(common, later)
    for index, name in enumerate(common["for"]):
        if not later:
            raise Wrong(f"for: no container comes after this step, so none is named {name!r}", ("for", index))
        if name not in later:
            raise Wrong(f"for: {unknown(name, later, 'container')}", ("for", index))
    limit = common["timeout"]
    return StepText(
        hook=common["hook"],
        name=common["name"],
        optional=common["optional"],
        background=common["background"],
        for_=tuple(common["for"]),
        timeout=limit if limit and limit < float("inf") else None,
        options=options,
    )


def _check_resident(common: dict[str, Any], later: Sequence[str]) -> None:
    if common["background"]:
        raise Wrong("background is not for a step that leaves a process running", ("background",))
    # It names a unit, a journal and a cgroup, beside those of the pod segment and of the launcher.
    if common["name"] in ("pod", "podrun"):
        raise Wrong(f"{common['name']!r} is podrun's own name: call this step otherwise", ("name",))
    if common["name"] in later:
        raise Wrong(f"a later step that leaves a process running is named {common['name']!r} too", ("name",))


# --- what is told ---------------------------------------------------------------------------------------------------


def _told(table: _Table, verb: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``verb``; what it finds wrong with the table as a Failure that says where."""
    try:
        return verb(*arguments)
    except Wrong as wrong:
        key = wrong.where[0] if wrong.where else None
        raise _failure(table.later.get(str(key), table.place), wrong) from None


def _failure(place: _Place, wrong: Wrong) -> Failure:
    return place.text.failure(wrong.what, (*place.where, *wrong.where))
