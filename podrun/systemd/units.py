"""systemd units of a pod file: which units there are, and what each of them says.

The generator (podrun.systemd.boot) runs where neither podrun nor its hooks can be imported: podrun.systemd.generator
joins this module and the few that it imports into one file. A mistake in a pod file is left to the unit,
which fails with the message of ``podrun up``.
"""

from __future__ import annotations

import os
import re
import signal

from podrun.options import DURATION, Wrong
from podrun.podfile import files
from podrun.podfile.known_hooks import HOOKS, NOTHING, Known
from podrun.podfile.model import assembled, pod_name
from podrun.podfile.tables import STEP_NAME
from podrun.record import NamedTuple
from podrun.systemd import following, syntax
from podrun.systemd.hardening import hardened
from podrun.systemd.syntax import quoted, with_given
from podrun.unit_needs import Span, UnitNeeds, at, counts, is_resident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from podrun.systemd.syntax import Lines

#: The absolute path that ExecStart= carries. A generator of its own has another one.
PODRUN = "/usr/local/bin/podrun"
ETC = "/etc/podrun"
#: Where ``podrun unit --install`` puts units, and where others of the same name would be hidden by a generated one.
INSTALLED = "/etc/systemd/system"
VENDORS = ("/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")

_FD_NAME, _ONLINE = "FileDescriptorName", "network-online.target"
#: [service] settings that a pod unit needs as well when the containers have units of their own.
_SHARED = ("Environment", "EnvironmentFile", "PassEnvironment", "UnsetEnvironment", "Slice")


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
    #: Whether there is an [update]: podrun-update.timer updates the pod.
    updates: bool = False
    #: The file that ``podrun up`` is given, where it is another one than ``file``: an instance of a template.
    word: str = ""
    known: Mapping[str, Known] = HOOKS
    #: The host's default registry, as written.
    registry: Any = None

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


def read(path: str, known: Mapping[str, Known] = HOOKS, *, strictly: bool = True) -> Pod:
    """The pod of a file with its drop-ins. A template (web@.toml) may be meant, or an instance of one (web@blue.toml).

    ``known``: the hooks; ``strictly``: what others than root can write is refused, because what it says is done as
    root. Raises Failure for a file that is wrong, and Wrong for what no unit can have.
    """
    found = files.find(path, "", in_unit=strictly, template=True)
    model = assembled(
        [(text, files.tables(text)) for text in found.texts],
        lambda step: known.get(step.values["hook"], NOTHING).default_name,
        files.resolver(None, found.instance),
        known=False,
        strict=False,
    )
    _, at, instance = os.path.basename(path).removesuffix(".toml").partition("@")
    return Pod(
        pod_name(model, found.name),
        at + instance,
        os.path.abspath(found.texts[0].path),
        model.own["pod"].values,
        cut([step.values for step in model.chain], known),
        {key: model.sections.get(key, {}) for key in ("unit", "service", "install", "timer")},
        model.sockets,
        "placement" in model.seen,
        "update" in model.seen,
        os.path.abspath(path),
        known,
    )


def cut(chain: list[dict[str, Any]], known: Mapping[str, Known] = HOOKS) -> list[Segment]:
    """Cuts a chain at its resident steps; the first segment is the pod's. Raises Wrong for a name no unit can have."""
    found = [Segment("", [])]
    for step in chain:
        if is_resident(known.get(step["hook"], NOTHING), step):
            found.append(Segment(STEP_NAME.parse(step["name"]), []))
        found[-1].steps.append(step)
    return found


def with_defaults(pod: Pod, given: Mapping[str, Any]) -> Pod:
    """The pod as podrun.toml completes it: its registry, and the time that its containers have to end."""
    about = {"stop_timeout": given["stop_timeout"], **pod.about} if "stop_timeout" in given else pod.about
    return pod._replace(registry=given.get("registry"), about=about)


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
            _add(made, {pod.unit("stop"): _stopper(pod)})
    for part, given in _listeners(pod).items():
        about = [("Description", f"{pod.title}: {'socket ' + part if part else 'sockets'}")]
        made[pod.unit(part, "socket")] = _text(
            pod, about, "Socket", with_given([], given), {"WantedBy": "sockets.target"}
        )
    if _follows(pod) and not podrun.options:
        made[following.UNIT] = following.text(podrun.line("follow"))
    if pod.updates and not podrun.options:
        made |= following.updating(podrun.line("update", "--all"))
    _add(made, pulling)
    if pod.about.get("timer") or pod.sections.get("timer"):
        _add(made, {pod.unit("", "timer"): _timer(pod)})
    return made


def _add(made: dict[str, str], more: dict[str, str]) -> None:
    """Raises Wrong where a container has the name of a unit of podrun's own."""
    for name in more:
        if name in made:
            raise Wrong(f"{name} is the unit of a container and one that podrun makes: give the container another name")
    made.update(more)


def _follows(pod: Pod) -> bool:
    steps = [step for segment in pod.segments for step in segment.steps]
    needs = [(step, pod.known.get(step["hook"], NOTHING).needs.follows) for step in steps]
    return any(following.uses_server(step, paths, pod.registry) for step, paths in needs)


def single(pod: Pod, podrun: Command, *, pulling: bool = False) -> str:
    """The text of the one unit that does the whole chain."""
    service = [
        *_service(pod, podrun, "", pod.segments),
        *_watchdog(pod, pod.segments[1:]),
        *hardened([*_steps(pod, pod.segments)]),
    ]
    if pod.about.get("type") == "job":
        not_its = ("Type", "TimeoutStartSec", "WatchdogSec", "WatchdogSignal")
        service = [("Type", "oneshot"), *(pair for pair in service if pair[0] not in not_its)]
    settings = with_given(service, pod.sections["service"])
    return _text(pod, _unit(pod, pulling=pulling), "Service", settings, pod.sections["install"])


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
        *hardened([*_steps(pod, pod.segments[:1])]),
    ]
    if residents:
        given = {key: value for key, value in given.items() if key in _SHARED}
    return _text(pod, unit, "Service", with_given(service, given), pod.sections["install"])


def _resident(pod: Pod, podrun: Command, segment: Segment, earlier: list[Segment]) -> str:
    after = " ".join([pod.fellow(), *(pod.fellow(before.name) for before in earlier)])
    unit = [("Description", f"{pod.title}: {segment.name}"), ("BindsTo", pod.fellow()), ("PartOf", pod.fellow())]
    unit += [("After", after), *_before_cluster(pod)]
    if pod.about.get("on_failure") == "stop":
        unit.append(("OnFailure", pod.fellow("stop")))
    service = [
        *_service(pod, podrun, segment.name, [segment]),
        *_watchdog(pod, [segment]),
        *hardened([*_steps(pod, [segment])]),
    ]
    return _text(pod, unit, "Service", with_given(service, pod.sections["service"]))


def _stopper(pod: Pod) -> str:
    """Starting it stops the pod: what OnFailure= of a container can name."""
    unit = [("Description", f"{pod.title}: stopped because a container failed"), ("Conflicts", pod.fellow())]
    return _text(pod, unit, "Service", [("Type", "oneshot"), ("ExecStart", "/bin/true")])


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
    refs = [str(at(step, path)) for step, needs in _steps(pod, pod.segments) for path in needs.images if at(step, path)]
    if not (refs := [ref for ref in refs if not ref.startswith(("host:", "dir:")) and "${" not in ref]):
        return {}
    unit = [("Description", f"{pod.title}: images"), ("Wants", _ONLINE), ("After", _ONLINE)]
    pulls = [("ExecStart", podrun.line("image", "pull", "--quiet", quoted(ref))) for ref in refs]
    service = [("Type", "oneshot"), ("TimeoutStartSec", "infinity"), *pulls]
    return {pod.unit("pull"): _text(pod, unit, "Service", service)}


# --- parts of units -------------------------------------------------------------------------------------------------


def _unit(pod: Pod, *, pulling: bool) -> Lines:
    network = f"{_ONLINE}{' ' + pod.fellow('pull') if pulling else ''}"
    network += f" {following.UNIT}" if _follows(pod) else ""
    own = [("Description", pod.title), ("Wants", network), ("After", f"{network} {following.GC}")]
    about = with_given(own, pod.sections["unit"], add=True)
    return [*about, *_other_pods(pod), *_before_cluster(pod)]


def _other_pods(pod: Pod) -> Lines:
    """What [pod] after and requires mean: their units have their names."""
    after, requires = ([f"{name}.service" for name in pod.about.get(key) or ()] for key in ("after", "requires"))
    lines = [("Requires", " ".join(requires))] if requires else []
    return [*lines, ("After", " ".join(dict.fromkeys([*after, *requires])))] if after or requires else []


def _timer(pod: Pod) -> str:
    """The timer of a job; it catches up on a run that was missed while the machine was off."""
    about = [("Description", f"{pod.title}: timer")]
    given = pod.sections.get("timer", {})
    own = [("OnCalendar", str(pod.about["timer"]).replace("%", "%%"))] if pod.about.get("timer") else []
    if not own and not any(key.startswith("On") for key in given):
        raise Wrong("[timer] does not say when: OnCalendar = 'daily', or another setting of systemd.timer(5)")
    return _text(pod, about, "Timer", with_given([*own, ("Persistent", "yes")], given), {"WantedBy": "timers.target"})


def _before_cluster(pod: Pod) -> Lines:
    """At shutdown, Pacemaker moves the pods away first: what it stops must not be stopped behind its back."""
    return [("Before", "pacemaker.service")] if pod.placed else []


def _service(pod: Pod, podrun: Command, segment: str, segments: list[Segment]) -> Lines:
    """What a unit with a container has, whose init becomes its main process."""
    start = 60 + sum(_seconds_of(pod, step, span) for step, needs in _steps(pod, segments) for span in needs.start)
    sockets = " ".join(pod.fellow(part, "socket") for part in _listeners(pod) if part and segment == _first(pod))
    swaps = pod.about.get("reload") == "swap" and len(pod.segments) == 2
    stop = _stop_time(pod, segments) + (_span(pod.about.get("drain"), 0.0) if swaps else 0.0)
    return [
        ("Type", "notify"),
        ("NotifyAccess", "all"),
        ("Delegate", "cpu memory pids io"),
        # Delegate= alone would turn it to continue (systemd.service(5)), which a swap needs: what is killed may be a
        # version that is only starting, beside the one that serves.
        ("OOMPolicy", "continue" if swaps else "stop"),
        # What copies the last output outlives the payload: ExecStopPost= waits for it, and ends what is left.
        ("KillMode", "process"),
        ("SyslogIdentifier", f"{pod.name}.{segment}" if segment else pod.name),
        # A line arrives as the payload wrote it, "<3>" included.
        ("SyslogLevelPrefix", "no"),
        *_commands(pod, podrun, segment),
        *_reload(pod, podrun, segment, len(pod.segments) == 2 or bool(segment)),
        ("RestartPreventExitStatus", "78"),
        ("SuccessExitStatus", _asked_to_end(pod, segments)),
        # It bounds ExecReload= too: a swap is a start and a stop.
        ("TimeoutStartSec", _seconds(start + stop if swaps else start)),
        ("TimeoutStopSec", _seconds(stop)),
        # They come up before the service, and go to it all together.
        *([("Sockets", sockets)] if sockets else []),
    ]


def _steps(pod: Pod, segments: list[Segment]) -> Iterator[tuple[dict[str, Any], UnitNeeds]]:
    """The steps, and what a unit has to know of each."""
    for segment in segments:
        for step in segment.steps:
            yield step, pod.known.get(step["hook"], NOTHING).needs


def _asked_to_end(pod: Pod, segments: list[Segment]) -> str:
    """Exit statuses of a payload that ended on the stop signal, as a shell or an init counts them: 128+n.

    SIGINT, SIGQUIT and SIGTERM are what images name; SIGKILL never is among them: what had to be killed has failed.
    """
    asked_for = [at(step, path) for step, needs in _steps(pod, segments) for path in needs.signals]
    words = {str(word or "").upper().removeprefix("SIG") for word in asked_for}
    asked = {n for n in _signals(words) if n != signal.SIGKILL} | {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
    return " ".join(str(128 + n) for n in sorted(asked))


def _signals(words: set[str]) -> set[int]:
    """The numbers of "TERM" and of "15"; what is no signal is for ``podrun up`` to refuse."""
    known = {name.removeprefix("SIG"): int(number) for name, number in signal.Signals.__members__.items()}
    numbers = {known.get(word, int(word) if word.isascii() and word.isdigit() else 0) for word in words}
    return {number for number in numbers if 0 < number < 65}


def _watchdog(pod: Pod, segments: list[Segment]) -> Lines:
    """What has systemd act on the live probe of the one container, and notice when the probe itself is gone."""
    if len(segments) != 1:
        return []
    step, needs = next(_steps(pod, segments))
    if not any(counts(step, span) for span in needs.watchdog):
        return []
    slowest = sum(_seconds_of(pod, step, span) for span in needs.watchdog)
    # Process 1 of a namespace that has no handler for the default SIGABRT does not heed it (pid_namespaces(7)).
    return [("WatchdogSec", _seconds(2 * slowest)), ("WatchdogSignal", "SIGKILL")]


def _commands(pod: Pod, podrun: Command, segment: str) -> Lines:
    file = _file(pod)
    part = ["--segment", segment] if segment else []
    # After a clean exit ExecStop= runs too, after a crash or a stop while activating ExecStopPost= alone does.
    down = podrun.line("down", "--invocation=${INVOCATION_ID}", *part, pod.name + pod.instance)
    return [("ExecStart", podrun.line("up", *part, file)), ("ExecStop", f"-{down}"), ("ExecStopPost", f"-{down}")]


def _file(pod: Pod) -> str:
    word = pod.word or pod.file
    return quoted(word.removesuffix("@.toml"), "@%i.toml") if pod.at == "@" else quoted(word)


def _reload(pod: Pod, podrun: Command, segment: str, possible: bool) -> Lines:
    wanted = pod.about.get("reload") if possible else None
    if not wanted:
        return []
    if wanted == "swap":
        swaps = len(pod.segments) == 2 and not pod.sockets and pod.about.get("type") != "job"
        return [("ExecReload", podrun.line("reload", _file(pod)))] if swaps else []
    if type(wanted) is str:
        return [("ExecReload", f"/bin/kill -s {quoted(wanted.removeprefix('SIG'))} $MAINPID")]
    words = [*(["-c", segment] if segment else []), pod.name + pod.instance, *(quoted(str(word)) for word in wanted)]
    return [("ExecReload", podrun.line("exec", *words))]


def _stop_time(pod: Pod, segments: list[Segment]) -> float:
    """Seconds that an orderly stop may take: it bounds the whole of ExecStop=."""
    return 15 + sum(_seconds_of(pod, step, span) for step, needs in _steps(pod, segments) for span in needs.stop)


def _seconds_of(pod: Pod, step: dict[str, Any], span: Span) -> float:
    """An option that is a time; 0 where the table that holds it is not there."""
    if not counts(step, span):
        return 0.0
    usual = _span(pod.about.get("stop_timeout"), 20.0)
    return _span(at(step, span.path), usual if span.default is None else span.default)


def _span(value: Any, default: float) -> float:
    """Seconds of a time span; what is none (a variable, a mistake) counts as the default."""
    try:
        return DURATION.parse(value)
    except Wrong:
        return default


def _seconds(seconds: float) -> str:
    return "infinity" if seconds == float("inf") else f"{seconds:g}s"


def _text(pod: Pod, unit: Lines, kind: str, settings: Lines, install: dict[str, Any] | None = None) -> str:
    """A unit whose own section is ``kind``."""
    about = [*unit, ("SourcePath", pod.file.replace("%", "%%"))]
    return syntax.text(pod.file, [("Unit", about), (kind, settings), ("Install", with_given([], install or {}))])
