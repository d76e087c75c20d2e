"""``up -d`` and ``run -d`` where systemd runs: a transient unit, or those that ``podrun unit`` has made of the file.

What the pod file means is settled here, with the environment and the terminal at hand; the unit's podrun reads the
result (0600: it may hold secrets), on a restart too.
"""

from __future__ import annotations

import os
import sys
import time

from podrun import atomic, jsontext
from podrun import identity as identities
from podrun.engine import state as states
from podrun.errors import BUSY, CANNOT_CREATE, INTERNAL, UNAVAILABLE, WRONG_FILE, Failure
from podrun.identity import Identity
from podrun.options import Wrong
from podrun.podfile.loader import PodText, StepText
from podrun.systemd import exit_records, notify, syntax, units
from podrun.systemd.generator import declared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from podrun.host import Host

#: Settings of a unit file that systemd-run takes otherwise, or not at all.
_NOT_PROPERTIES = ("Type", "ExecStart", "Description", "SourcePath")


def start(text: PodText, host: Host) -> int:
    """Starts a pod as a transient unit; returns 0 when it is ready, else podrun's own exit code from the unit."""
    name = f"{Identity(text.name).tag(host.run)}.service"
    if states.state(host.run, text.name) not in ("absent", "dead", "failed"):
        raise Failure("it is already up", code=BUSY, hint=f"'podrun down {text.name}' stops it")
    pod = _described(text)
    forget_failure(text.name, host)
    path = write(text, host)
    podrun = units.Command(_program(), ("--root", host.root, "--run", host.run))
    try:
        wanted = list(_settings(pod, podrun))
    except Wrong as wrong:
        raise Failure(f"{text.file or text.name}: {wrong.what}", code=WRONG_FILE) from None
    reloading = podrun.line("reload", "--resolved", syntax.quoted(path)) if text.reload == "swap" else ""
    wanted = _off_the_command_line(wanted, text, path)
    settings = [(key, reloading if key == "ExecReload" and reloading else value) for key, value in wanted]
    properties = [f"--property={key}={value}" for key, value in settings]
    argv = [
        "systemd-run",
        "--quiet",
        f"--unit={name}",
        f"--description=podrun pod {text.name}",
        "--service-type=notify",
    ]
    began = time.time()
    if not _run([*argv, *properties, "--", podrun.path, *podrun.options, "up", "--resolved", path]):
        return 0
    ending = exit_records.last(host.run, text.name)
    if ending and ending.at >= began and ending.containers:
        return 0  # it was started, and has ended before systemd heard that it was ready
    return _why(name)


def _off_the_command_line(wanted: list[tuple[str, str]], text: PodText, path: str) -> list[tuple[str, str]]:
    """The settings, with variables and credentials in files (0600) beside ``path`` instead of in their values.

    Everybody may read the command line of systemd-run (proc(5)), and ask systemd for Environment= and SetCredential=.
    """
    secret = [value for key, value in wanted if key == "Environment"]
    if not secret and not any(key == "SetCredential" for key, _ in wanted):
        return wanted
    from podrun.podfile import unit_environment

    kept = [pair for pair in wanted if pair[0] not in ("Environment", "SetCredential")]
    stem = path.removesuffix(".json")
    if secret:
        found = unit_environment.of([{"service": {"Environment": secret}}], {}, text.name.partition("@")[2])
        # systemd.exec(5), EnvironmentFile=: between double quotes a backslash keeps these as they are.
        escapes = str.maketrans({letter: f"\\{letter}" for letter in '"\\`$'})
        lines = (f'{name}="{value.translate(escapes)}"\n' for name, value in found.items())
        atomic.replace(f"{stem}.env", "".join(lines))
        kept.append(("EnvironmentFile", f"{stem}.env"))
    for key, value in wanted:
        if key == "SetCredential":
            name, _, content = value.partition(":")
            if not name or set(name) & set("/%"):
                raise Failure(f"SetCredential={name}: is not the name of a credential", code=WRONG_FILE)
            atomic.replace(f"{stem}.{name}.credential", unit_environment.unescaped(content))
            kept.append(("LoadCredential", f"{name}:{stem}.{name}.credential"))
    return kept


def start_made(text: PodText, source: str, host: Host) -> int:
    """Starts the units that podrun has made of the pod's file; returns 0 when they are up, else podrun's exit code.

    ``source``: the file that they were made of. Raises Failure when that is another one.
    """
    if states.state(host.run, text.name) not in ("absent", "dead", "failed"):
        raise Failure("it is already up", code=BUSY, hint=f"'podrun down {text.name}' stops it")
    if os.path.realpath(source) != os.path.realpath(text.file):
        what = f"{text.name}.service is made of {source}, not of {text.file}"
        raise Failure(what, code=CANNOT_CREATE, hint="give the pod another name, or leave out -d")
    pod = _described(text)
    parts = ["", *(segment.name for segment in pod.segments[1:] if len(pod.segments) > 2)]
    units = [pod.unit(part) for part in parts]
    host.report(f"starting {' '.join(units)}")
    if not _run(["systemctl", "start", *units], quiet=True):
        return 0
    return next((code for name in units if (code := _why(name, forget=False))), INTERNAL)


def resolved(path: str) -> PodText:
    """The pod that :func:`start` has written for its unit."""
    with open(path, encoding="utf-8") as file:
        told = jsontext.loads(file.read())
    steps = [StepText(**{**step, "for_": tuple(step["for_"])}) for step in told["steps"]]
    return PodText(**{**told, "steps": tuple(steps)})


def path_of(name: str, host: Host) -> str:
    """What a transient unit's podrun reads."""
    return f"{host.run}/units/{Identity(name).text}.json"


def write(text: PodText, host: Host) -> str:
    """Writes what a transient unit's podrun reads, 0600: it may hold secrets. Returns the path.

    One that says the same already is left as it is: its time is that since when the pod's output belongs together.
    """
    path = path_of(text.name, host)
    content = _content(text)
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == content:
                return path
    except FileNotFoundError:
        pass
    atomic.replace(path, content, parents=0o700)
    return path


def _content(text: PodText) -> str:
    return jsontext.dumps({**text._asdict(), "steps": [step._asdict() for step in text.steps]})


def since(name: str, unit: str, host: Host) -> float:
    """When the pod of a transient unit was made, restarted since or not (seconds since 1970); 0.0: no such pod."""
    if unit != f"{Identity(name).tag(host.run)}.service":
        return 0.0
    try:
        return os.stat(path_of(name, host)).st_mtime
    except FileNotFoundError:
        return 0.0


def kept(name: str, host: Host) -> PodText | None:
    """What a pod without a file was created as, or started from; None when that is not kept."""
    for path in (exit_records.created_path(host.root, name), path_of(name, host)):
        try:
            text = resolved(path)
        except FileNotFoundError:
            continue
        return None if text.file else text
    return None


def create(text: PodText, host: Host) -> None:
    """Keeps a pod for ``podrun start`` without starting it. Raises Failure (BUSY) when there is one of that name."""
    if states.state(host.run, text.name) != "absent" or exit_records.is_created(host.root, text.name):
        hint = f"'podrun rm {text.name}' removes it"
        raise Failure("there is a pod of this name already", code=BUSY, hint=hint)
    path = exit_records.created_path(host.root, text.name)
    atomic.replace(path, _content(text), parents=0o700, sync=True)


def forget_created(name: str, host: Host) -> None:
    """The opposite of :func:`create`."""
    atomic.remove(exit_records.created_path(host.root, name))


def forget_failure(name: str, host: Host) -> None:
    """Has systemd drop a pod's transient unit that has failed: it stays for inspection until the next start or rm."""
    unit = f"{Identity(name).tag(host.run)}.service"
    if notify.is_transient(unit):
        _run(["systemctl", "reset-failed", unit], quiet=True)


def created(host: Host) -> list[str]:
    """The pods that ``podrun create`` made."""
    try:
        found = os.listdir(f"{host.root}/created")
    except FileNotFoundError:
        return []
    return [identities.of_text(name.removesuffix(".json")).pod for name in found if not name.startswith(".")]


def _described(text: PodText) -> units.Pod:
    """The pod as units see it. All of it is one unit: with several containers podrun stays and waits for them."""
    steps = [{"hook": step.hook, "name": step.name, **step.options} for step in text.steps]
    known = declared({step.hook for step in text.steps})
    segments = units.cut(steps, known)
    name, at, instance = text.name.partition("@")
    sections = {key: text.sections.get(key, {}) for key in ("unit", "service", "install")}
    about = {
        "stop_timeout": text.stop_timeout,
        "reload": text.reload,
        "after": [*text.after],
        "requires": [*text.requires],
        "drain": text.drain,
    }
    return units.Pod(name, at + instance, text.file, about, segments, sections, [], known=known)


def _settings(pod: units.Pod, podrun: units.Command) -> Iterator[tuple[str, str]]:
    """The properties of the unit that ``podrun unit`` would write for the pod as one unit."""
    for line in units.single(pod, podrun).splitlines():
        key, equals, value = line.partition("=")
        if line.startswith("[Install]"):
            return
        if equals and key not in _NOT_PROPERTIES and key.isalnum():
            yield key, value


def _program() -> str:
    """The absolute path of podrun's command. Raises Failure when there is none that a unit could start."""
    from podrun.systemd.install import program

    return program()


def _run(argv: list[str], *, quiet: bool = False) -> int:
    actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)] if quiet else []
    try:
        pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions)
    except FileNotFoundError:
        raise Failure(f"there is no {argv[0]}", code=UNAVAILABLE, hint="leave out -d") from None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _why(name: str, *, forget: bool = True) -> int:
    """Prints what podrun said in a unit; returns its exit code; without ``forget``, 0 when it has not failed."""
    import subprocess

    argv = ["systemctl", "show", "--value", "--property=ExecMainStatus,InvocationID", name]
    shown = subprocess.run(argv, check=False, capture_output=True, text=True).stdout.split()
    status = next((int(word) for word in shown if word.isdecimal() and len(word) < 4), INTERNAL)
    if not (status or forget):
        return 0
    invocation = next((word for word in shown if len(word) == 32), "")
    if invocation:
        entries = ["journalctl", "--quiet", "-o", "cat", f"_SYSTEMD_INVOCATION_ID={invocation}"]
        sys.stderr.write(subprocess.run(entries, check=False, capture_output=True, text=True).stdout)
    if forget:
        _run(["systemctl", "reset-failed", name], quiet=True)
    return status or INTERNAL
