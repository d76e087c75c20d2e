"""The generator as a program of its own: podrun.systemd.boot and what it imports, joined into one file.

systemd runs generators early at boot, where podrun's environment need not be mounted yet (systemd.generator(7)).
"""

from __future__ import annotations

import os

from podrun import __version__, atomic
from podrun.engine import hook_loader
from podrun.errors import Failure
from podrun.hook_extras import HasUnitNeeds, offers
from podrun.podfile.known_hooks import HOOKS, Known
from podrun.systemd.units import ETC
from podrun.unit_needs import UnitNeeds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Where an administrator's generators are (systemd.generator(7)); a package would use /usr/lib/systemd.
PATH = "/etc/systemd/system-generators/podrun-generator"
#: In an order in which each can be imported: none imports one behind it.
MODULES = (
    "errors", "record", "options", "ownership", "host_defaults", "unit_needs", "podfile.position",
    "podfile.files", "podfile.tables",
    "podfile.known_hooks", "podfile.model", "systemd.following", "systemd.hardening", "systemd.syntax", "systemd.units",
    "systemd.boot",
)  # fmt: skip

_HEAD = '''#!/usr/bin/python3 -IS
"""Makes systemd units of podrun's pod files. 'podrun unit --install-generator' of podrun {version} made this file.

It stands alone: the modules of podrun that it needs are in it, as texts.
"""

import sys
import types


def _module(name, text):
    module = types.ModuleType(name)
    parent, _, own = name.rpartition(".")
    sys.modules[name] = module
    if parent:
        if parent not in sys.modules:
            _module(parent, "")
        setattr(sys.modules[parent], own, module)
    exec(compile(text, f"{{sys.argv[0]}}:{{name}}", "exec"), vars(module))


'''
_TAIL = """
from podrun.podfile.known_hooks import Known
from podrun.systemd.boot import generate
from podrun.systemd.units import Command
from podrun.unit_needs import Span, UnitNeeds

PODRUN = {podrun!r}
HOOKS = {hooks!r}
generate(sys.argv[1], Command(PODRUN), HOOKS, {etc!r})
"""


def text(podrun: str, known: Mapping[str, Known] = HOOKS, etc: str = ETC) -> str:
    """The generator for a ``podrun`` (absolute path), which knows these hooks."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parts = [_HEAD.format(version=__version__)]
    for name in MODULES:
        with open(f"{top}/{name.replace('.', '/')}.py", encoding="utf-8") as file:
            parts.append(f"_module({f'podrun.{name}'!r}, {_literal(file.read())})\n\n\n")
    return "".join(parts).rstrip("\n") + "\n" + _TAIL.format(podrun=podrun, hooks=dict(known), etc=etc)


def install(podrun: str) -> str:
    """Puts the generator where systemd runs it at boot and at daemon-reload; returns where that is."""
    atomic.replace(PATH, text(podrun, {**HOOKS, **declared(hook_loader.names())}), 0o755, parents=0o755)
    return PATH


def is_stale() -> bool:
    """Whether a generator is installed that this podrun, with today's hooks, would write differently."""
    try:
        with open(PATH, encoding="utf-8") as file:
            installed = file.read()
    except FileNotFoundError:
        return False
    # Which of several paths of the same podrun it names does not matter.
    podrun = installed.rpartition("\nPODRUN = ")[2].partition("\n")[0].strip("'\"")
    return installed != text(podrun, {**HOOKS, **declared(hook_loader.names())})


def declared(hooks: Iterable[str]) -> dict[str, Known]:
    """What these hooks declare. It skips a package that cannot be imported."""
    known = {}
    for name in sorted(hooks):
        try:
            hook = hook_loader.load(name)
        except Failure:
            continue
        having = offers(hook, HasUnitNeeds)
        known[name] = Known(hook.resident, hook.default_name, having.unit_needs if having else UnitNeeds())
    return known


def _literal(source: str) -> str:
    """A module's text as a Python string that can be read."""
    return repr(source) if "'''" in source else f"r'''{source}'''"
