"""``podrun unit``: shows and installs the units of a pod file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from podrun import PROGRAM, atomic, host_defaults
from podrun.engine import hook_loader
from podrun.errors import BUSY, NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook_extras import HasUnitNeeds, offers
from podrun.options import Wrong
from podrun.podfile import loader
from podrun.systemd import following, syntax
from podrun.systemd import units as unit_files
from podrun.systemd.generator import declared
from podrun.unit_needs import at, counts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.host import Host
    from podrun.podfile.loader import StepText

#: Where systemd looks for units (systemd.unit(5), "Unit File Load Path").
UNIT_PATHS = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    unit_files.INSTALLED,
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)

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
    path = word if "/" in word or word.endswith(".toml") else f"{unit_files.ETC}/{word}.toml"
    stem = os.path.basename(path).removesuffix(".toml")
    # A template is checked as one of its instances.
    checked = f"{path.removesuffix('.toml')}i.toml" if stem.endswith("@") else path
    text = loader.load(checked, environ=None, load_hook=hook_loader.load)
    asked = text.sections.get("service", {}).get("WatchdogSec")
    if asked and not any(_answers_the_watchdog(step) for step in text.steps):
        host.report(
            f"nothing answers WatchdogSec={asked}: systemd will kill the container; "
            'set live = { ... }, or ready = { notify = "direct" }'
        )
    for setting in text.sections.get("service", {}):
        if setting in NAMESPACED:
            host.report(
                f"{setting}= gives each command a mount namespace of its own: the pod's network would not be found"
            )
    options: list[str] = []
    for name, value, usual in (("--root", host.root, "/var/lib/podrun"), ("--run", host.run, "/run/podrun")):
        options += [name, value] if value != usual else []
    # The units of an instance are its template's, unless it has a file or drop-ins of its own.
    own = stem.endswith("@") or os.path.exists(path) or os.path.exists(f"{path}.d")
    source = path if own or "@" not in stem else f"{path.rpartition('@')[0]}@.toml"
    known = declared({step.hook for step in text.steps})
    # systemd starts the unit without the caller's PODRUN_CONFIG.
    given = host_defaults.read(host_defaults.PATH)
    try:
        pod = unit_files.with_defaults(unit_files.read(source, known, strictly=False), given)
        return unit_files.units(pod, unit_files.Command(program(), tuple(options)))
    except Wrong as error:
        raise Failure(f"{path}: {error}", code=WRONG_FILE) from None


def for_the_host(host: Host) -> dict[str, str]:
    """The unit that this host has once and that no pod's file asks for, where no package brings it."""
    usual = (host.root, host.run) == ("/var/lib/podrun", "/run/podrun")
    packaged = any(os.path.lexists(f"{place}/{following.GC}") for place in unit_files.VENDORS)
    return (
        {following.GC: following.collecting(unit_files.Command(program()).line("gc"))} if usual and not packaged else {}
    )


def _answers_the_watchdog(step: StepText) -> bool:
    having = offers(hook_loader.load(step.hook), HasUnitNeeds)
    if having is None:
        return False
    needs, options = having.unit_needs, step.options
    return any(counts(options, span) for span in needs.watchdog) or any(
        at(options, path) == value for path, value in needs.answers
    )


def install(texts: dict[str, str]) -> list[str]:
    """Writes the units, has systemd read them, and enables those with an [Install] section; returns what was done."""
    done = []
    for name in texts:
        if found := theirs(name):
            what = f"{name} would take the place of {found}, which is not podrun's"
            raise Failure(what, code=NOT_ALLOWED, hint="give the pod another name")
    for name, text in texts.items():
        path = f"{unit_files.INSTALLED}/{name}"
        atomic.replace(path, text, 0o644)
        done.append(path)
    wanted = [name for name, text in texts.items() if syntax.links(name, text)]
    subprocess.run(["systemctl", "daemon-reload"], check=False)
    if wanted:
        subprocess.run(["systemctl", "enable", "--quiet", *wanted], check=False)
        done += [f"enabled {name}" for name in wanted]
    return done


def uninstall(name: str) -> list[str]:
    """Disables and removes the units that podrun has made of a pod's file; returns what was done.

    Raises Failure: UNAVAILABLE when there are none, BUSY while one of them runs.
    """
    stem, at, instance = name.partition("@")
    own = re.compile(rf"{re.escape(stem)}(\.[^.@]+)?{re.escape(at + instance)}\.(service|socket|timer)")
    try:
        names = sorted(entry for entry in os.listdir(unit_files.INSTALLED) if own.fullmatch(entry))
    except FileNotFoundError:
        names = []
    paths = [f"{unit_files.INSTALLED}/{entry}" for entry in names]
    paths = [path for path in paths if _read(path).startswith("# Made by podrun ")]
    if not paths:
        raise Failure(f"podrun has installed no units of {name}", code=UNAVAILABLE)
    made = [os.path.basename(path) for path in paths]
    for unit in made:
        if not subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode:
            raise Failure(f"{unit} is active", code=BUSY, hint=f"systemctl stop {unit}")
    subprocess.run(["systemctl", "disable", "--quiet", *made], check=False)
    for path in paths:
        atomic.remove(path)
    subprocess.run(["systemctl", "daemon-reload"], check=False)
    return [f"removed {path}" for path in paths]


def starts_at_boot(texts: dict[str, str]) -> bool:
    """Whether anything starts the pod at boot: an [Install] section of one of its units."""
    return any("\n[Install]\n" in text for text in texts.values())


def theirs(name: str) -> str:
    """The unit of that name, or the script that systemd makes one of, that is not podrun's; "" when there is none.

    One that is hidden by another unit counts as well: it is still somebody's.
    """
    for directory in UNIT_PATHS:
        path = f"{directory}/{name}"
        if os.path.lexists(path) and not _is_ours(path):
            return path
    script = f"/etc/init.d/{name.removesuffix('.service')}"
    return script if name.endswith(".service") and os.path.lexists(script) else ""


def _is_ours(path: str) -> bool:
    try:
        return os.path.isfile(path) and _read(path).startswith("# Made by podrun ")
    except (OSError, UnicodeDecodeError):
        return False


def program() -> str:
    """The absolute path of podrun's command, for ExecStart=. Raises Failure when there is none."""
    own = PROGRAM or (sys.argv[0] if os.path.basename(sys.argv[0]) == "podrun" else shutil.which("podrun"))
    if not own or not os.path.isfile(own):
        raise Failure("podrun is not installed as a command", code=UNAVAILABLE, hint="a unit needs an absolute path")
    return os.path.abspath(own)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
