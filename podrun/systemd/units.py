#!/usr/bin/python3 -IS
"""systemd units of a pod file; the same file is the generator that makes them of /etc/podrun/*.toml.

As a generator (systemd.generator(7)) it runs early at boot and alone: it imports the standard library only, and of
podrun one file that needs no more and is copied into it (install.generator). Whatever is wrong with a pod file it
leaves to the unit, which fails with ``podrun up``'s own words.
"""

from __future__ import annotations

import glob
import os
import re
import signal
import sys
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from podrun import ownership

#: The absolute path that ExecStart= carries. 'podrun unit --install-generator' fills it in.
PODRUN = "/usr/local/bin/podrun"
ETC = "/etc/podrun"
#: Where ``podrun unit --install`` puts units, and where others of the same name would be hidden by a generated one.
INSTALLED = "/etc/systemd/system"
VENDORS = ("/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
#: Hooks whose steps leave a process running, with the options that they have then. 'podrun unit --install-generator'
#: adds those of installed packages.
RESIDENT: dict[str, dict[str, Any]] = {"container": {}, "ambassador": {"via": "haproxy"}}

# What the launcher needs, and what docker leaves to a container: the runtime can pass on no more than podrun has.
_LAUNCHER = "SYS_ADMIN NET_ADMIN SYS_PTRACE SETUID SETGID SETPCAP DAC_OVERRIDE MKNOD KILL CHOWN FOWNER".split()
_CONTAINER = "FSETID NET_BIND_SERVICE NET_RAW SYS_CHROOT AUDIT_WRITE SETFCAP".split()

_SECTIONS = ("unit", "service", "install")
_FD_NAME, _ONLINE = "FileDescriptorName", "network-online.target"
#: [service] settings that a pod unit needs as well when the containers have units of their own.
_SHARED = ("Environment", "EnvironmentFile", "PassEnvironment", "UnsetEnvironment", "Slice")


#: Settings of a section: keys and values.
Lines: TypeAlias = "list[tuple[str, str]]"


class Wrong(Exception):
    """What keeps a pod file from having its units."""


class Segment(NamedTuple):
    """A resident step and what follows it up to the next one: the tables of their steps. ``name`` "": before any."""

    name: str
    steps: list[dict[str, Any]]


class Pod(NamedTuple):
    """What the units of a pod depend on."""

    #: Without the instance.
    name: str
    #: What stands behind the name: "" for a plain pod, "@" for a template, "@blue" for an instance with a file.
    at: str
    file: str
    #: [pod], as written.
    about: dict[str, Any]
    #: The first one is the pod segment, which may be empty.
    segments: list[Segment]
    #: [unit], [service] and [install], as written.
    sections: dict[str, dict[str, Any]]
    #: [socket], or each [[socket]].
    sockets: list[dict[str, Any]]
    #: Whether there is a [placement]: a cluster may start and stop the pod.
    placed: bool = False

    def unit(self, segment: str = "", kind: str = "service") -> str:
        """The name of a unit of this pod: "web.service", "web.app@.service"."""
        return f"{self.name}{'.' if segment else ''}{segment}{self.at}.{kind}"

    def fellow(self, segment: str = "", kind: str = "service") -> str:
        """The same as another unit of the same instance names it."""
        return f"{self.name}{'.' if segment else ''}{segment}{self.instance}.{kind}"

    @property
    def instance(self) -> str:
        """What stands behind the name in a unit's own text."""
        return "@%i" if self.at == "@" else self.at

    @property
    def title(self) -> str:
        """What descriptions call it."""
        return f"podrun pod {self.name}{self.instance}"


class Command(NamedTuple):
    """How units call podrun: its absolute path and its global options."""

    path: str = PODRUN
    options: tuple[str, ...] = ()

    def line(self, *words: str) -> str:
        """A command line for an Exec setting. What is between the words "%i" and "${INVOCATION_ID}" is literal."""
        return " ".join([*map(quoted, (self.path, *self.options)), *words])


# --- reading a pod file ---------------------------------------------------------------------------------------------


def read(path: str, resident: Mapping[str, Mapping[str, Any]] = RESIDENT, *, strictly: bool = True) -> Pod:
    """The pod of the file at ``path`` with the drop-ins beside it.

    ``strictly``: what others than root can write is refused, because what it says is done as root. Raises Wrong, or
    OSError.
    """
    stem = os.path.basename(path).removesuffix(".toml")
    tables = _toml(path, strictly)
    chain = _array(tables.get("chain"), "chain")
    about = _table(tables.get("pod"))
    sections = {key: _table(tables.get(key)) for key in _SECTIONS}
    sockets = _array(tables.get("socket"), "socket")
    placed = "placement" in tables
    for drop_in in _files(f"{path}.d"):
        later = _toml(drop_in, strictly)
        about.update(_table(later.get("pod")))
        placed = placed or "placement" in later
        for key in _SECTIONS:
            sections[key].update(_table(later.get(key)))
        for entry in _array(later.get("socket"), "socket"):
            name = entry.get(_FD_NAME) if type(later["socket"]) is list else None
            same = [before for before in sockets if name in (None, before.get(_FD_NAME))]
            sockets.append(entry) if not same else same[0].update(entry)
        _apply(chain, _array(later.get("chain"), "chain"))
    name, at, instance = stem.partition("@")
    name = about.get("name") or name
    if type(name) is not str or not re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", name):
        raise Wrong(f"{name!r} cannot be a pod's name")
    return Pod(name, at + instance, os.path.abspath(path), about, cut(chain, resident), sections, sockets, placed)


def _toml(path: str, strictly: bool) -> dict[str, Any]:
    try:
        content = ownership.read(path, owners=frozenset({0}) if strictly else None)
    except ownership.Untrusted as error:
        raise Wrong(str(error)) from None
    return tomllib.loads(content.decode())


def _files(directory: str) -> list[str]:
    """The pod files or drop-ins of a directory that there may be, in the order of their names."""
    return sorted(glob.glob(f"{glob.escape(directory)}/*.toml"))


def _table(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if type(value) is not dict:
        raise Wrong(f"expected a table, not {value!r}")
    return dict(value)


def _array(value: Any, what: str) -> list[dict[str, Any]]:
    if what == "socket" and type(value) is dict:
        return [dict(value)]
    if value is not None and type(value) is not list:
        raise Wrong(f"{what}: expected an array of tables")
    return [_table(step) for step in value or ()]


def _apply(chain: list[dict[str, Any]], later: list[dict[str, Any]]) -> None:
    """Puts a drop-in's steps into the chain as docs/reference/pod-file.md says."""
    older = list(chain)
    for entry in later:
        same = [step for step in older if step.get("hook") == entry.get("hook")]
        same = [step for step in same if entry.get("name") in (None, _name(step))]
        before = entry.pop("before", None)
        if same:
            same[0].update(entry)
        else:
            at = next((n for n, step in enumerate(chain) if before and _name(step) == before), len(chain))
            chain.insert(at, entry)


def _name(step: dict[str, Any]) -> Any:
    return step.get("name") or ("main" if step.get("hook") == "container" else step.get("hook"))


def cut(chain: list[dict[str, Any]], resident: Mapping[str, Mapping[str, Any]] = RESIDENT) -> list[Segment]:
    """Cuts a chain at its resident steps; the first segment is the pod's. Raises Wrong for a name no unit can have."""
    found = [Segment("", [])]
    for step in chain:
        if _is_resident(step, resident):
            name = _name(step)
            if type(name) is not str or not re.fullmatch("[a-z0-9_.-]+", name):
                raise Wrong(f"{name!r} cannot be the name of a step")
            found.append(Segment(name, []))
        found[-1].steps.append(step)
    return found


def _is_resident(step: dict[str, Any], resident: Mapping[str, Mapping[str, Any]]) -> bool:
    wanted = resident.get(step["hook"]) if type(step.get("hook")) is str else None
    return wanted is not None and all(step.get(key) == value for key, value in wanted.items())


# --- units ----------------------------------------------------------------------------------------------------------


def units(pod: Pod, podrun: Command) -> dict[str, str]:
    """The pod's units: file names and their texts."""
    residents = pod.segments[1:]
    pulling = _pulling(pod, podrun) if pod.about.get("pull_unit") else {}
    if pod.about.get("type") == "job" or len(residents) == 1:
        made = {pod.unit(): single(pod, podrun, pulling=bool(pulling))}
    else:
        made = {pod.unit(): _oneshot(pod, podrun, residents, bool(pulling))}
        for n, segment in enumerate(residents):
            made[pod.unit(segment.name)] = _resident(pod, podrun, segment, residents[:n])
        if residents and pod.about.get("on_failure") == "stop":
            made[pod.unit("stop")] = _stopper(pod)
    for part, given in _listeners(pod).items():
        about = [("Description", f"{pod.title}: {'socket ' + part if part else 'sockets'}")]
        made[pod.unit(part, "socket")] = _text(pod, about, [], {"WantedBy": "sockets.target"}, _with([], given))
    return {**made, **pulling}


def single(pod: Pod, podrun: Command, *, pulling: bool = False) -> str:
    """The text of the one unit that does the whole chain."""
    service = [*_service(pod, podrun, "", pod.segments), *_watchdog(pod.segments[1:]), *_hardened(pod.segments)]
    if pod.about.get("type") == "job":
        not_its = ("Type", "TimeoutStartSec", "WatchdogSec", "WatchdogSignal")
        service = [("Type", "oneshot"), *(pair for pair in service if pair[0] not in not_its)]
    return _text(pod, _unit(pod, pulling=pulling), _with(service, pod.sections["service"]), pod.sections["install"])


def _oneshot(pod: Pod, podrun: Command, residents: list[Segment], pulling: bool) -> str:
    """A chain that leaves no process, or the pod segment of one whose containers have units of their own."""
    unit = _unit(pod, pulling=pulling)
    if residents:
        # Not Requires=: restarting one container must not restart the pod (systemd.unit(5), Requires=).
        unit.append(("Wants", " ".join(pod.fellow(segment.name) for segment in residents)))
    given = pod.sections["service"]
    service = [
        *[("Type", "oneshot"), ("RemainAfterExit", "yes"), ("NotifyAccess", "all"), ("Delegate", "yes")],
        ("SyslogIdentifier", pod.name),
        *_commands(pod, podrun, "pod" if residents else ""),
        ("TimeoutStopSec", _seconds(_stop_time(pod, pod.segments[:1]))),
        *_hardened(pod.segments[:1]),
    ]
    if residents:
        given = {key: value for key, value in given.items() if key in _SHARED}
    return _text(pod, unit, _with(service, given), pod.sections["install"])


def _resident(pod: Pod, podrun: Command, segment: Segment, earlier: list[Segment]) -> str:
    after = " ".join([pod.fellow(), *(pod.fellow(before.name) for before in earlier)])
    unit = [("Description", f"{pod.title}: {segment.name}"), ("BindsTo", pod.fellow()), ("PartOf", pod.fellow())]
    unit += [("After", after), *_before_cluster(pod)]
    if pod.about.get("on_failure") == "stop":
        unit.append(("OnFailure", pod.fellow("stop")))
    service = [*_service(pod, podrun, segment.name, [segment]), *_watchdog([segment]), *_hardened([segment])]
    return _text(pod, unit, _with(service, pod.sections["service"]), {})


def _stopper(pod: Pod) -> str:
    """Starting it stops the pod: what OnFailure= of a container can name."""
    unit = [("Description", f"{pod.title}: stopped because a container failed"), ("Conflicts", pod.fellow())]
    return _text(pod, unit, [("Type", "oneshot"), ("ExecStart", "/bin/true")], {})


def _listeners(pod: Pod) -> dict[str, dict[str, Any]]:
    """The settings of the socket units, by what their names have behind the pod's; a single one has nothing there.

    FileDescriptorName= is a unit's, not a socket's (systemd.socket(5)): each name is a unit of its own.
    """
    several = len(pod.sockets) > 1
    names = [str(given.get(_FD_NAME, "")) if several else "" for given in pod.sockets]
    if several and not (len({*names}) == len(names) and all(re.fullmatch("[A-Za-z0-9_-]+", name) for name in names)):
        raise Wrong(f"each [[socket]] needs a {_FD_NAME} of its own, of letters, digits, - and _")
    service = {"Service": pod.fellow(_first(pod))} if several or _first(pod) else {}
    return {name: {**service, **given} for name, given in zip(names, pod.sockets, strict=True)}


def _first(pod: Pod) -> str:
    """The segment whose unit the sockets are for: that of the first of several containers."""
    return pod.segments[1].name if len(pod.segments) > 2 else ""


def _pulling(pod: Pod, podrun: Command) -> dict[str, str]:
    """A unit that brings the images into the store: pulled at boot or by a timer, apart from the pod's own start."""
    steps = [step for segment in pod.segments for step in segment.steps]
    refs = [str(step.get("ref", "host:")) for step in steps if step.get("hook") == "image"]
    if not (refs := [ref for ref in refs if not ref.startswith(("host:", "dir:")) and "${" not in ref]):
        return {}
    unit = [("Description", f"{pod.title}: images"), ("Wants", _ONLINE), ("After", _ONLINE)]
    pulls = [("ExecStart", podrun.line("image", "pull", "--quiet", quoted(ref))) for ref in refs]
    return {pod.unit("pull"): _text(pod, unit, [("Type", "oneshot"), ("TimeoutStartSec", "infinity"), *pulls], {})}


# --- parts of units -------------------------------------------------------------------------------------------------


def _unit(pod: Pod, *, pulling: bool) -> Lines:
    network = f"{_ONLINE}{' ' + pod.fellow('pull') if pulling else ''}"
    about = _with([("Description", pod.title), ("Wants", network), ("After", network)], pod.sections["unit"], add=True)
    return [*about, *_before_cluster(pod)]


def _before_cluster(pod: Pod) -> Lines:
    """At shutdown, Pacemaker moves the pods away first: what it stops must not be stopped behind its back."""
    return [("Before", "pacemaker.service")] if pod.placed else []


def _service(pod: Pod, podrun: Command, segment: str, segments: list[Segment]) -> Lines:
    """What a unit with a container has, whose init becomes its main process."""
    steps = [step for part in segments for step in part.steps]
    start = 60 + sum(_span(step["ready"].get("timeout"), 30.0) for step in steps if type(step.get("ready")) is dict)
    sockets = " ".join(pod.fellow(part, "socket") for part in _listeners(pod) if part and segment == _first(pod))
    return [
        ("Type", "notify"),
        ("NotifyAccess", "all"),
        ("Delegate", "cpu memory pids io"),
        # Delegate= alone would turn it to continue (systemd.service(5)).
        ("OOMPolicy", "stop"),
        # What copies the last output outlives the payload: ExecStopPost= waits for it, and ends what is left.
        ("KillMode", "process"),
        ("SyslogIdentifier", f"{pod.name}.{segment}" if segment else pod.name),
        # A line arrives as the payload wrote it, "<3>" included.
        ("SyslogLevelPrefix", "no"),
        *_commands(pod, podrun, segment),
        *_reload(pod, podrun, segment, len(pod.segments) == 2 or bool(segment)),
        ("RestartPreventExitStatus", "78"),
        ("SuccessExitStatus", _asked_to_end(steps)),
        ("TimeoutStartSec", _seconds(start)),
        ("TimeoutStopSec", _seconds(_stop_time(pod, segments))),
        # They come up before the service, and go to it all together.
        *([("Sockets", sockets)] if sockets else []),
    ]


def _asked_to_end(steps: list[dict[str, Any]]) -> str:
    """Exit statuses of a payload that ended on the stop signal, as a shell or an init counts them: 128+n.

    SIGINT, SIGQUIT and SIGTERM are what images name; SIGKILL never is among them: what had to be killed has failed.
    """
    words = {str(step.get("stop_signal", "")).upper().removeprefix("SIG") for step in steps}
    asked = {n for n in _signals(words) if n != signal.SIGKILL} | {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
    return " ".join(str(128 + n) for n in sorted(asked))


def _signals(words: set[str]) -> set[int]:
    """The numbers of "TERM" and of "15"; what is no signal is for ``podrun up`` to refuse."""
    known = {name.removeprefix("SIG"): int(number) for name, number in signal.Signals.__members__.items()}
    numbers = {known.get(word, int(word) if word.isascii() and word.isdigit() else 0) for word in words}
    return {number for number in numbers if 0 < number < 65}


def _watchdog(segments: list[Segment]) -> Lines:
    """What has systemd act on the live probe of the one container, and notice when the probe itself is gone."""
    probe = segments[0].steps[0].get("live") if len(segments) == 1 else None
    if type(probe) is not dict:
        return []
    slowest = _span(probe.get("interval"), 10.0) + _span(probe.get("timeout"), 5.0)
    # Process 1 of a namespace that has no handler for the default SIGABRT does not heed it (pid_namespaces(7)).
    return [("WatchdogSec", _seconds(2 * slowest)), ("WatchdogSignal", "SIGKILL")]


def _commands(pod: Pod, podrun: Command, segment: str) -> Lines:
    file = quoted(pod.file.removesuffix("@.toml"), "@%i.toml") if pod.at == "@" else quoted(pod.file)
    part = ["--segment", segment] if segment else []
    # After a clean exit ExecStop= runs too, after a crash or a stop while activating ExecStopPost= alone does.
    down = podrun.line("down", "--invocation=${INVOCATION_ID}", *part, pod.name + pod.instance)
    return [("ExecStart", podrun.line("up", *part, file)), ("ExecStop", f"-{down}"), ("ExecStopPost", f"-{down}")]


def _reload(pod: Pod, podrun: Command, segment: str, possible: bool) -> Lines:
    wanted = pod.about.get("reload") if possible else None
    if not wanted:
        return []
    if type(wanted) is str:
        return [("ExecReload", f"/bin/kill -s {quoted(wanted.removeprefix('SIG'))} $MAINPID")]
    words = [*(["-c", segment] if segment else []), pod.name + pod.instance, *(quoted(str(word)) for word in wanted)]
    return [("ExecReload", podrun.line("exec", *words))]


def _hardened(segments: list[Segment]) -> Lines:
    """What a unit can do without, none of it with a mount namespace: the containers have their own."""
    steps = [step for segment in segments for step in segment.steps]
    added = {name for step in steps for name in _added(step)}
    settings = [("DevicePolicy", "closed"), ("LockPersonality", "yes"), ("NoNewPrivileges", "yes")]
    settings += [("ProtectClock", "yes"), ("RestrictRealtime", "yes"), ("SystemCallArchitectures", "native")]
    if not added & {"ALL", "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_RAWIO"}:
        # What the containers' own seccomp profile forbids as well.
        settings += [
            ("SystemCallFilter", "~@module @obsolete @raw-io @reboot @swap"),
            ("SystemCallErrorNumber", "EPERM"),
        ]
    if "ALL" in added:
        return settings
    names = [*_LAUNCHER, *_CONTAINER, *sorted(added - {*_LAUNCHER, *_CONTAINER})]
    return [*settings, ("CapabilityBoundingSet", " ".join(f"CAP_{name}" for name in names))]


def _added(step: dict[str, Any]) -> list[str]:
    table = step.get("capabilities")
    lists = [step.get("cap_add"), table.get("add") if type(table) is dict else None]
    return [str(word).upper().removeprefix("CAP_") for words in lists if type(words) is list for word in words]


def _stop_time(pod: Pod, segments: list[Segment]) -> float:
    """Seconds that an orderly stop may take: it bounds the whole of ExecStop=."""
    usual = _span(pod.about.get("stop_timeout"), 20.0)
    drains = [_span(step.get("drain"), 0.0) for segment in segments for step in segment.steps]
    return sum(drains + [_span(part.steps[0].get("stop_timeout"), usual) for part in segments if part.name]) + 15


_UNITS = {
    "us": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3, "": 1, "s": 1, "sec": 1, "second": 1, "seconds": 1, "m": 60,
    "min": 60, "minute": 60, "minutes": 60, "h": 3600, "hr": 3600, "hour": 3600, "hours": 3600, "d": 86400,
    "day": 86400, "days": 86400, "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip


def _span(value: Any, default: float) -> float:
    """Seconds of a systemd.time(7) span; what is no span (a variable, a mistake) counts as the default."""
    if type(value) in (int, float):
        return float(value)
    text = value.strip() if type(value) is str else ""
    if text == "infinity":
        return float("inf")
    part = re.compile("([0-9.]+) *([a-z]*) *")
    try:
        total = sum(float(number) * _UNITS[unit] for number, unit in part.findall(text))
    except (KeyError, ValueError):
        return default
    return total if text and not part.sub("", text) else default


def _seconds(seconds: float) -> str:
    return "infinity" if seconds == float("inf") else f"{seconds:g}s"


# --- text -----------------------------------------------------------------------------------------------------------


def quoted(word: str, specifiers: str = "") -> str:
    """A word for an Exec setting (systemd.service(5), "Command lines"); ``specifiers`` are added as they are."""
    text = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"') + specifiers
    plain = text and all(c.isalnum() or c in "/@._-+:=,%" for c in text)
    return text if plain else f'"{text}"'


def _with(settings: Lines, given: dict[str, Any], *, add: bool = False) -> Lines:
    """The settings, those of the pod file in the place of the same ones; ``add``: dependencies are both's."""
    replaced = {key for key in given if not (add and key in ("Wants", "After"))}
    lines = [pair for pair in settings if pair[0] not in replaced]
    for key, value in given.items():
        for item in value if type(value) is list else [value]:
            word = ("yes" if item else "no") if type(item) is bool else str(item)
            if "\n" in word or not (key.isascii() and key.isalnum()):
                raise Wrong(f"{key!r} is not a setting of one line")
            lines.append((key, word))
    return lines


def _text(pod: Pod, unit: Lines, service: Lines, install: dict[str, Any], socket: Lines | None = None) -> str:
    unit = [*unit, ("SourcePath", pod.file.replace("%", "%%"))]
    parts = [("Unit", unit), ("Service", service), ("Socket", socket or []), ("Install", _with([], install))]
    blocks = ["\n".join([f"[{head}]", *(f"{key}={value}" for key, value in lines)]) for head, lines in parts if lines]
    return f"# Made by podrun of {pod.file}; 'podrun unit' shows it.\n" + "\n\n".join(blocks) + "\n"


def broken(path: str, what: str, podrun: Command) -> dict[str, str]:
    """The unit of a pod file that cannot be read: starting it fails with the pod file's error. It starts at boot."""
    name = os.path.basename(path).removesuffix(".toml")
    line = "".join(c if c.isprintable() else " " for c in what).replace("%", "%%")
    file = quoted(path.removesuffix("@.toml"), "@%i.toml") if name.endswith("@") else quoted(path)
    lines = [f"# {path}: {line}", "[Unit]", f"Description=podrun pod {name}: {line}", "", "[Service]", "Type=oneshot"]
    lines += [f"ExecStart={podrun.line('up', file)}"]
    lines += [] if name.endswith("@") else ["", "[Install]", "WantedBy=multi-user.target"]
    return {f"{name}.service": "\n".join(lines) + "\n"}


def links(name: str, text: str) -> list[str]:
    """The links that [Install] asks for, as systemctl(1) enable makes them: "multi-user.target.wants/web.service"."""
    install = text.partition("[Install]\n")[2].splitlines()
    given = [line.partition("=")[::2] for line in install if "=" in line]
    stem, at, kind = name.partition("@.")
    if at:
        if not (default := next((value for key, value in given if key == "DefaultInstance"), "")):
            return []
        name = f"{stem}@{default}.{kind}"
    kinds = {"WantedBy": "wants", "RequiredBy": "requires"}
    return [f"{target}.{kinds[key]}/{name}" for key, value in given if key in kinds for target in value.split()]


# --- the generator --------------------------------------------------------------------------------------------------


def generate(directory: str) -> None:
    """Writes the units of every pod file in ETC into ``directory``. No file hides another one."""
    podrun = Command(PODRUN)
    for path in _files(ETC):
        try:
            made = units(read(path), podrun)
        except Exception as error:
            _tell(f"{path}: {error}")
            made = broken(path, str(error), podrun)
        for unit, text in made.items():
            try:
                _place(directory, unit, text)
            except OSError as error:
                _tell(f"{path}: {unit}: {error}")


def _place(directory: str, unit: str, text: str) -> None:
    vendor = next((place for place in VENDORS if os.path.lexists(f"{place}/{unit}")), None)
    if vendor:
        _tell(f"{unit} is not generated: it would hide {vendor}/{unit}; give the pod another name")
        return
    with open(f"{directory}/{unit}", "x", encoding="utf-8") as file:
        file.write(text)
    for link in links(unit, text):
        path = f"{directory}/{link}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(f"../{unit}", path)


def _tell(line: str) -> None:
    """One line for the journal: a generator has the kernel's log only (systemd.generator(7))."""
    try:
        with open("/dev/kmsg", "w", encoding="utf-8") as kmsg:
            kmsg.write(f"<3>podrun-generator: {line}")
    except OSError:
        print(f"podrun-generator: {line}", file=sys.stderr)


if __name__ == "__main__":
    generate(sys.argv[1])
