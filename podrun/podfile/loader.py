"""What a pod file means: the tables of podrun.podfile.model, checked against the hooks that they name."""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure
from podrun.hook import is_resident
from podrun.options import Wrong, read, together, unknown
from podrun.podfile import defaults, files
from podrun.podfile.cache import Results
from podrun.podfile.model import Place, Table, assembled, common_keys, located, pod_name, without_variables
from podrun.podfile.tables import COMMON, FIRST_STEPS, STEP_NAME, PlacementTable, PodTable, UpdateTable
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any, TypeAlias

    from podrun.hook import Hook
    from podrun.options import Where
    from podrun.podfile.model import File, Model

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
    #: What reloading does: "swap", the name of a signal, or a command in the container; "": nothing.
    reload: str | list[str] = ""
    #: The keys of [placement] with their defaults (podrun.podfile.tables.PlacementTable); empty without the table.
    placement: dict[str, Any] = {}
    #: Seconds that a generation which has been swapped out may go on serving.
    drain: float = 0.0
    #: "auto": the pod has a user namespace of its own.
    userns: str = "host"
    #: Names of other pods.
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    #: The keys of [update] with their defaults (podrun.podfile.tables.UpdateTable); empty without the table.
    update: dict[str, Any] = {}


# --- reading ------------------------------------------------------------------------------------------------------


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
    ``cache`` is a directory for what has been parsed before (podrun.podfile.cache).

    Raises Failure with WRONG_FILE and a message that begins with "file:line: " (in wrong TOML "file:line:column: ").
    """
    found = files.find(word, etc, in_unit=in_unit)
    if found.instance:
        located(Table({}, Place(found.texts[0], ()), {}), STEP_NAME.parse, found.instance)
    with Results(cache) as results:
        read_files = [(text, results.of(text.text or "", files.tables, text)) for text in found.texts]
        given = defaults.load(results)
        if environ is not None and not in_unit and any("service" in tables for _, tables in read_files):
            from podrun.podfile import unit_environment

            # By hand, a variable means what it will mean in the unit.
            environ = unit_environment.of([tables for _, tables in read_files], environ, found.instance)
        resolve = files.resolver(environ, found.instance)
        return _understood(read_files, given, found.name, found.instance, load_hook, resolve, known=environ is not None)


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
    resolve = str if environ is None else files.resolver(environ)
    with Results("") as results:
        given = defaults.load(results)
    return _understood([(files.Source(file, None), tables)], given, name, "", load_hook, resolve, known=True)


def line_of(text: PodText, where: Where) -> str:
    """Where a key of a section stands, in front of a message: "web.toml:12: "; the last file that has it."""
    try:
        found = files.find(text.file, "", in_unit=False) if text.file else None
    except Failure:
        found = None
    for source in reversed(found.texts if found else ()):
        try:
            table = files.tables(source).get(str(where[0]))
        except Failure:
            continue
        if isinstance(table, dict) and where[1] in table:
            return f"{source.at(where)}: "
    return ""


def place(
    text: PodText, hook: str, name: str, key: str, *, environ: Mapping[str, str] | None, load_hook: LoadHook
) -> str:
    """Where a step, or that option of it, stands: "/etc/podrun/web.toml:12"; "" where no file has it (any more).

    For when there is something to tell: reads the pod file and its drop-ins once more.
    """
    directory, file = os.path.split(text.file)
    if not file:
        return ""
    stem, extension = os.path.splitext(file)
    word = f"{stem}{text.name.partition('@')[2]}{extension}" if stem.endswith("@") else file
    try:
        found = files.find(f"{directory}/{word}", "", in_unit=False)
        read_files = [(source, files.tables(source)) for source in found.texts]
        resolve = files.resolver(environ, found.instance)
        model = _assembled(read_files, load_hook, resolve, known=environ is not None)
    except (Failure, RecursionError):
        return ""
    for table in model.chain:
        if table.key == (hook, name):
            at = table.later.get(key, table.place)
            return at.text.at((*at.where, key) if key in table.values else at.where)
    return ""


def _assembled(read_files: Sequence[File], load_hook: LoadHook, resolve: Resolve, *, known: bool) -> Model:
    return assembled(read_files, lambda step: _hook(step, load_hook).default_name, resolve, known=known)


def _understood(
    read_files: Sequence[File],
    given: defaults.Defaults,
    stem: str,
    instance: str,
    load_hook: LoadHook,
    resolve: Resolve,
    *,
    known: bool,
) -> PodText:
    first = read_files[0][0]
    try:
        model = _assembled(read_files, load_hook, resolve, known=known)
        if not model.chain and "chain" in model.own["pod"].values:
            located(model.own["pod"], read, PodTable, {"chain": []})
        if not model.chain:
            raise first.failure("there is no [[chain]]: a pod is at least one step", ())
        pod, placement, update = (model.own[key] for key in ("pod", "placement", "update"))
        given.complete(pod, model.chain)
        values = pod.values if known else without_variables(pod.values, "name")
        mistakes = _Mistakes()
        about = read(PodTable, {})
        with mistakes:
            about = located(pod, read, PodTable, values)
        for key, hooks in FIRST_STEPS.items():
            if hook := hooks.get(getattr(about, key)):
                model.chain.insert(0, Table({"hook": hook, "name": hook}, pod.place, {}))
        steps = _steps(model.chain, load_hook, known, mistakes)
        name = pod_name(model, stem)
        return PodText(
            name=f"{name}@{instance}" if instance else name,
            file=first.path if first.text is None else os.path.abspath(first.path),
            steps=steps,
            type=about.type,
            stop_timeout=about.stop_timeout,
            sections={**model.sections, **_sockets(model)},
            reload=about.reload,
            drain=about.drain,
            userns=about.userns,
            after=tuple(about.after),
            requires=tuple(about.requires),
            update=dict(located(update, read, UpdateTable, update.values)) if "update" in model.seen else {},
            placement=dict(located(placement, read, PlacementTable, placement.values)) if placement.values else {},
        )
    except RecursionError:
        raise Failure(f"{files.shown(first.path)}: arrays or tables are nested too deeply", code=WRONG_FILE) from None


def _sockets(model: Model) -> dict[str, dict[str, Any]]:
    """The section "socket": the one table, or several by their numbers."""
    if not model.sockets:
        return {}
    several = {str(number): table for number, table in enumerate(model.sockets)}
    return {"socket": several if len(several) > 1 else model.sockets[0]}


# --- the chain ----------------------------------------------------------------------------------------------------


def _hook(step: Table, load_hook: LoadHook) -> Hook:
    try:
        return load_hook(step.values["hook"])
    except Failure as failure:
        place = step.place
        wrong = place.text.failure(failure.what, (*place.where, "hook"))
        raise Failure(wrong.what, code=failure.code, hint=failure.hint) from failure


class _Mistakes:
    """``with mistakes``: a Failure is kept; :meth:`tell` raises all of them as one."""

    def __init__(self) -> None:
        self.all: list[Failure] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _where: object) -> bool:
        if isinstance(error, Failure):
            self.all += [error, *error.others]
            return True
        return False

    def tell(self) -> None:
        if self.all:
            first, *first.others = self.all
            raise first


def _steps(chain: Sequence[Table], load_hook: LoadHook, known: bool, mistakes: _Mistakes) -> tuple[StepText, ...]:
    taken: set[tuple[str, str]] = set()
    for table in chain:
        located(table, _check_name, table.key, taken)
        taken.add(table.key)
    hooks = [_hook(table, load_hook) for table in chain]
    pairs = list(zip(chain, hooks, strict=True))
    later = [table.values["name"] for table, hook in pairs if is_resident(hook, table.values)]
    steps: list[StepText] = []
    for table, hook in pairs:
        if is_resident(hook, table.values):
            later = later[1:]
        with mistakes:
            steps.append(located(table, _step, table.values, hook, later, known))
    mistakes.tell()
    for index, table in enumerate(chain):
        located(table, _check_references, table.values, load_hook, chain[:index])
    return tuple(steps)


def _check_references(values: dict[str, Any], load_hook: LoadHook, earlier: Sequence[Table]) -> None:
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
    common = common_keys(values, known=known)
    options = {key: value for key, value in values.items() if key not in COMMON}
    if hook.Options is not None:
        declared = hook.Options._field_defaults
        mistakes = [Wrong(unknown(key, [*declared, *COMMON]), (key,)) for key in options if key not in declared]
        if known or "${" not in repr(options):
            try:
                read(hook.Options, {key: value for key, value in options.items() if key in declared})
            except Wrong as wrong:
                # A key that is spelled wrong is not missing besides.
                found = [wrong, *wrong.others]
                mistakes += [one for one in found if one.where or not mistakes]
        if mistakes:
            raise together(mistakes)
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
        name=values["name"],
        optional=common["optional"],
        background=common["background"],
        for_=tuple(common["for"]),
        timeout=limit if limit and limit < float("inf") else None,
        options=options,
    )


def _check_resident(common: dict[str, Any], later: Sequence[str]) -> None:
    if common["background"]:
        raise Wrong("a step that leaves a process running cannot be in the background", ("background",))
    # It names a unit, a journal and a cgroup, beside those of the pod segment and of the launcher.
    if common["name"] in ("pod", "podrun"):
        raise Wrong(f"{common['name']!r} is podrun's own name: choose another step name", ("name",))
    if common["name"] in later:
        raise Wrong(f"a later step that leaves a process running is named {common['name']!r} too", ("name",))
