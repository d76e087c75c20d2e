"""Which code a hook's name stands for. Nothing is imported before a chain names it."""

from __future__ import annotations

import sys

from podrun.errors import INTERNAL, WRONG_FILE, Failure
from podrun.hook import unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Hook

#: First-party names resolve from this table: scanning entry points costs 60 ms.
FIRST_PARTY = {
    "image": "podrun_hooks.image",
    "storage": "podrun_hooks.storage",
    "network": "podrun_hooks.network",
    "container": "podrun_hooks.container",
    "register": "podrun_hooks.register",
}
#: What runs an executable as a hook.
EXECUTABLE = "podrun_hooks.command"
#: Where installed packages say which hooks they bring.
ENTRY_POINTS = "podrun.hooks"


def load(name: str) -> Hook:
    """The hook called ``name`` in a pod file: first-party, "exec:/path", or of an installed package.

    Raises Failure (WRONG_FILE) for a name that nothing answers to, with the nearest one, and for a package's hook that
    cannot be imported or lacks a verb.
    """
    if name.startswith("exec:"):
        if not name.startswith("exec:/"):
            raise Failure(f"{name!r}: an executable is named by its absolute path", code=WRONG_FILE)
        return _module(EXECUTABLE)
    if name in FIRST_PARTY:
        return _module(FIRST_PARTY[name])
    from importlib.metadata import entry_points

    installed = entry_points(group=ENTRY_POINTS)
    if name not in installed.names:
        names = [*FIRST_PARTY, *sorted(installed.names)]
        raise Failure(unknown(name, names, "hook"), code=WRONG_FILE, hint="or exec:/path for an executable")
    try:
        hook: Hook = installed[name].load()
    except Exception as error:
        raise Failure(f"the hook {name!r} cannot be imported: {error!r}", code=WRONG_FILE) from error
    missing = [word for word in ("Options", "up", "down") if not hasattr(hook, word)]
    if missing:
        raise Failure(f"the hook {name!r} lacks {', '.join(missing)}", code=WRONG_FILE, hint="see docs/hooks.md")
    return hook


def known() -> dict[str, Hook]:
    """Every hook that a pod file can name, executables apart: first-party ones and those of installed packages."""
    from importlib.metadata import entry_points

    return {name: load(name) for name in [*FIRST_PARTY, *sorted(entry_points(group=ENTRY_POINTS).names)]}


def _module(name: str) -> Hook:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise Failure(f"{name} is not installed beside podrun", code=INTERNAL) from error
    return sys.modules[name]
