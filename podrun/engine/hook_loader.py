"""Which code a hook's name stands for. Nothing is imported before a chain names it."""

from __future__ import annotations

import os
import sys

from podrun.errors import INTERNAL, WRONG_FILE, Failure
from podrun.hook import Pod, Step
from podrun.hook_extras import offers
from podrun.host import add_site_packages
from podrun.options import Option, unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.metadata import EntryPoints
    from typing import Any, TypeVar

    from podrun.hook import Hook, Problem
    from podrun.hook_extras import RunsExecutables

    P = TypeVar("P")

#: First-party names resolve from this table: scanning entry points costs 60 ms.
FIRST_PARTY = {
    "userns": "podrun_hooks.userns",
    "image": "podrun_hooks.image",
    "storage": "podrun_hooks.storage",
    "network": "podrun_hooks.network",
    "container": "podrun_hooks.container",
    "ambassador": "podrun_hooks.ambassador",
    "register": "podrun_hooks.register",
    "wait-for": "podrun_hooks.wait_for",
    "oci-hooks": "podrun_hooks.oci_hooks",
}
#: What runs an executable as a hook.
EXECUTABLE = "podrun_hooks.executable.hook"
#: The registries of services; the process that follows them.
REGISTRY, FOLLOWER = "podrun_hooks.registry", "podrun_hooks.follow.process"
#: Where installed packages say which hooks they bring.
ENTRY_POINTS = "podrun.hooks"


def load(name: str) -> Hook:
    """The hook called ``name`` in a pod file: first-party, "exec:/path", an executable in a drop-in directory, or
    of an installed package, in this order.

    Raises Failure (WRONG_FILE) for a name that nothing answers to, with the nearest one, and for a package's hook that
    cannot be imported or lacks a verb.
    """
    if name.startswith("exec:"):
        if not name.startswith("exec:/"):
            raise Failure(f"{name!r}: an executable is named by its absolute path", code=WRONG_FILE)
        return _hook(EXECUTABLE)
    if name in FIRST_PARTY:
        return _hook(FIRST_PARTY[name])
    if executable(name):
        return _hook(EXECUTABLE)
    from contextlib import redirect_stdout

    installed = _installed()
    if name not in installed.names:
        raise Failure(unknown(name, names(), "hook"), code=WRONG_FILE, hint="or exec:/path for an executable")
    try:
        # Standard output is podrun's own, also while a module prints at its import.
        with redirect_stdout(sys.stderr):
            hook: Hook = installed[name].load()
    except SyntaxError as error:
        what = f"the hook {name!r} cannot be imported: {error.filename}:{error.lineno}: {error.msg}"
        raise Failure(what, code=WRONG_FILE) from error
    except (Exception, SystemExit) as error:
        raise Failure(f"the hook {name!r} cannot be imported: {error!r}", code=WRONG_FILE) from error
    for what in odd(hook):
        raise Failure(f"the hook {name!r} {what}", code=WRONG_FILE, hint="see docs/reference/hooks.md")
    return hook if all(hasattr(hook, word) for word in _DEFAULTS) else _completed(hook)


def odd(hook: Any) -> Iterator[str]:
    """What a package's hook lacks, and the attributes whose type nobody can use."""
    if missing := [word for word in ("Options", "up", "down") if not hasattr(hook, word)]:
        yield f"lacks {', '.join(missing)}"
        return
    for word in ("up", "down", "check"):
        if not callable(getattr(hook, word, finds_nothing)):
            yield f"has a {word} that cannot be called"
    for word in ("takes", "gives"):
        names = getattr(hook, word, ())
        # A string is a sequence of strings, too: its letters.
        if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
            yield f"has {word} = {names!r}, which is not a list of names"
    declared = getattr(hook.Options, "_field_defaults", None) if hook.Options is not None else {}
    if declared is None or (hook.Options is not None and set(declared) != set(hook.Options._fields)):
        yield "has Options that are not a NamedTuple of option() fields"
    elif wrong := [key for key, field in declared.items() if not isinstance(field, Option)]:
        yield f"has options that are not made by option(): {', '.join(wrong)}"


def _installed() -> EntryPoints:
    """The hooks that installed packages bring."""
    add_site_packages()
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINTS)


def finds_nothing(step: Step) -> Sequence[Problem]:
    """The ``check`` of a hook that has none."""
    return ()


#: What a package's hook may leave out.
_DEFAULTS = {"takes": None, "gives": (), "resident": False, "default_name": "", "check": finds_nothing}


def _completed(hook: Any) -> Any:
    """The hook with the defaults of what it leaves out."""
    from types import SimpleNamespace

    own = {name: getattr(hook, name) for name in dir(hook)}
    return SimpleNamespace(**{**_DEFAULTS, **own})


def executable(name: str) -> str:
    """The path of the executable that a hook's name stands for; "" when it is no executable."""
    if name in FIRST_PARTY:
        return ""
    return _command().placed(name)


def dropped_in() -> list[str]:
    """The names of the executables in the drop-in directories, sorted."""
    return sorted({name for name, _ in _executables()} - set(FIRST_PARTY))


def _executables() -> Iterator[tuple[str, str]]:
    """The executables in the drop-in directories: name and path."""
    for directory in _command().directories():
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        yield from ((name, f"{directory}/{name}") for name in names if _is_executable(f"{directory}/{name}"))


def _is_executable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK) and not os.path.basename(path).startswith(".")


def names() -> list[str]:
    """Every name that a pod file can give a hook without a path, in the order in which they are looked for."""
    return list(dict.fromkeys([*FIRST_PARTY, *dropped_in(), *sorted(_installed().names)]))


def hidden() -> Iterator[tuple[str, str, str]]:
    """What a pod file cannot name, because another hook has its name: the name, where it is, and what hides it."""
    for name, path in _executables():
        if name in FIRST_PARTY:
            yield name, path, "podrun's own hook"
    for point in _installed():
        if point.name in FIRST_PARTY:
            yield point.name, point.value, "podrun's own hook"
        elif path := executable(point.name):
            yield point.name, point.value, path


def kind(name: str) -> str:
    """Where a hook comes from: "first-party", "executable" or "package"."""
    if name in FIRST_PARTY:
        return "first-party"
    return "executable" if executable(name) else "package"


def known() -> dict[str, Hook]:
    """Every hook that a pod file can name without a path: first-party ones, drop-ins, those of installed packages."""
    return {name: load(name) for name in names()}


def described(name: str) -> dict[str, Any]:
    """What an executable answers to ``describe`` (runs it); {} for one that does not answer, and for other hooks.

    Any of "doc" (a line), "takes" and "gives" (names of facts), "options" (a JSON Schema).
    """
    if not executable(name):
        return {}
    return _command().describe(Step(Pod("describe", "/", "/", tag="podrun-describe"), name, name, {}))


def part(hook: str, module: str) -> Any:
    """A module of a first-party hook's: what commands for people (``podrun image``, ``network``) need of it."""
    return _module(f"{FIRST_PARTY[hook]}.{module}")


def registry(module: str) -> Any:
    """A module of the registries: what ``podrun registry`` needs of them."""
    return _module(f"{REGISTRY}.{module}")


def follower() -> Any:
    """The module whose ``become`` follows registries: ``podrun follow``."""
    return _module(FOLLOWER)


def offering(protocol: type[P]) -> Iterator[tuple[str, P]]:
    """The first-party hooks that offer one of the protocols of podrun.hook_extras, with their names."""
    for name in FIRST_PARTY:
        if offered := offers(load(name), protocol):
            yield name, offered


def _command() -> RunsExecutables:
    """What runs executables; it knows where they are."""
    hook: RunsExecutables = _module(EXECUTABLE)
    return hook


def _hook(module: str) -> Hook:
    hook: Hook = _module(module)
    return hook


def _module(name: str) -> Any:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise Failure(f"{name} is not installed beside podrun", code=INTERNAL) from error
    return sys.modules[name]
