"""``podrun unit``: shows and installs the units of a pod file, and installs the generator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from podrun import PROGRAM, ownership
from podrun.engine import hook_loader
from podrun.errors import NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook_extras import HasUnitNeeds, offers
from podrun.podfile import loader
from podrun.systemd import units as unit
from podrun.unit_needs import at, counts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from podrun.host import Host
    from podrun.podfile.loader import StepText

#: Where an administrator's generators are (systemd.generator(7)); a package would use /usr/lib/systemd.
GENERATOR = "/etc/systemd/system-generators/podrun-generator"

#: Settings that give each command of a unit a mount namespace of its own: a network namespace that ExecStart= pins
#: would be invisible to the host, to other units and to ExecStop=.
NAMESPACED = frozenset(
    """BindPaths BindReadOnlyPaths CacheDirectory DynamicUser ExecPaths ExtensionDirectories ExtensionImages
    InaccessiblePaths MountAPIVFS MountImages NoExecPaths PrivateDevices PrivateIPC PrivateMounts PrivateNetwork
    PrivateTmp PrivateUsers ProcSubset ProtectControlGroups ProtectHome ProtectHostname ProtectKernelLogs
    ProtectKernelModules ProtectKernelTunables ProtectProc ProtectSystem ReadOnlyPaths ReadWritePaths RootDirectory
    RootImage TemporaryFileSystem""".split()
)


def units(word: str, host: Host) -> dict[str, str]:
    """The units of a pod file or of a pod in /etc/podrun: names and texts. Raises Failure for a wrong pod file."""
    path = word if "/" in word or word.endswith(".toml") else f"{unit.ETC}/{word}.toml"
    stem = os.path.basename(path).removesuffix(".toml")
    # A template is checked as one of its instances.
    checked = f"{path.removesuffix('.toml')}i.toml" if stem.endswith("@") else path
    text = loader.load(checked, environ=None, load_hook=hook_loader.load)
    resident = residents({step.hook for step in text.steps})
    asked = text.sections.get("service", {}).get("WatchdogSec")
    if asked and not any(_answers_the_watchdog(step) for step in text.steps):
        host.report(
            f"nobody will answer WatchdogSec={asked}, and systemd will kill the container: "
            'it takes live = { ... }, or ready = { notify = "direct" }'
        )
    for setting in text.sections.get("service", {}):
        if setting in NAMESPACED:
            host.report(
                f"{setting}= gives each command a mount namespace of its own: the pod's network would not be found"
            )
    options: list[str] = []
    for name, value, usual in (("--root", host.root, "/var/lib/podrun"), ("--run", host.run, "/run/podrun")):
        options += [name, value] if value != usual else []
    try:
        source = path if os.path.exists(path) else f"{path.partition('@')[0]}@.toml"
        return unit.units(unit.read(source, resident, strictly=False), unit.Command(program(), tuple(options)))
    except unit.Wrong as error:
        raise Failure(f"{path}: {error}", code=WRONG_FILE) from None


def _answers_the_watchdog(step: StepText) -> bool:
    having = offers(hook_loader.load(step.hook), HasUnitNeeds)
    if having is None:
        return False
    needs, options = having.unit_needs, step.options
    return any(counts(options, span) for span in needs.watchdog) or any(
        at(options, path) == value for path, value in needs.answers
    )


def install(made: dict[str, str]) -> list[str]:
    """Writes the units, has systemd read them, and enables those with an [Install] section; returns what was done."""
    done = []
    for name, text in made.items():
        path = f"{unit.INSTALLED}/{name}"
        if os.path.exists(path) and "Made by podrun" not in _read(path):
            raise Failure(f"{path} exists and is not podrun's", code=NOT_ALLOWED, hint="give the pod another name")
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(f"{path}.new", path)
        done.append(path)
    wanted = [name for name, text in made.items() if unit.links(name, text)]
    subprocess.run(["systemctl", "daemon-reload"], check=False)
    if wanted:
        subprocess.run(["systemctl", "enable", "--quiet", *wanted], check=False)
        done += [f"enabled {name}" for name in wanted]
    return done


def install_generator() -> str:
    """Puts the generator where systemd runs it at boot and at daemon-reload.

    It imports nothing of podrun: podrun's path and the hooks that leave a process running are written into it.
    """
    resident = {**unit.RESIDENT, **residents(hook_loader.names())}
    os.makedirs(os.path.dirname(GENERATOR), exist_ok=True)
    with open(f"{GENERATOR}.new", "w", encoding="utf-8") as file:
        file.write(generator(program(), resident))
    os.chmod(f"{GENERATOR}.new", 0o755)
    os.rename(f"{GENERATOR}.new", GENERATOR)
    return GENERATOR


def generator(podrun: str, resident: Mapping[str, Mapping[str, Any]], etc: str = unit.ETC) -> str:
    """The text of a generator that is a program of its own: units.py with what it needs of podrun in it."""
    text = _read(unit.__file__)
    filled_in = {
        f'PODRUN = "{unit.PODRUN}"': f"PODRUN = {podrun!r}",
        '{"container": {}, "ambassador": {"via": "haproxy"}}': repr(dict(resident)),
        f'ETC = "{unit.ETC}"': f"ETC = {etc!r}",
        "from podrun import ownership\n": _module("ownership", _read(ownership.__file__)),
    }
    for line, wanted in filled_in.items():
        if line not in text:
            raise Failure(f"{unit.__file__} is not as it was installed", code=UNAVAILABLE)
        text = text.replace(line, wanted, 1)
    return text


def _module(name: str, text: str) -> str:
    """Python that makes a module of its text, in place of its import."""
    return f"import types\n\n{name} = types.ModuleType({name!r})\nexec(r'''{text}''', vars({name}))\n"


def residents(hooks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Those of the hooks that leave a process running, with the options that their steps have then."""
    found = {}
    for name in sorted(hooks):
        try:
            resident = getattr(hook_loader.load(name), "resident", False)
        except Failure:
            continue  # a package that cannot be imported is no reason to go without the others
        if resident:
            found[name] = resident if isinstance(resident, dict) else {}
    return found


def program() -> str:
    """The absolute path of podrun's command, for ExecStart=. Raises Failure when there is none."""
    own = PROGRAM or (sys.argv[0] if os.path.basename(sys.argv[0]) == "podrun" else shutil.which("podrun"))
    if not own or not os.path.isfile(own):
        raise Failure("podrun is not installed as a command", code=UNAVAILABLE, hint="a unit needs an absolute path")
    return os.path.abspath(own)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
