"""The command line beyond the plain forms of up, down and run: click reads it, podrun's modules do the work."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, BinaryIO

import click

from podrun import __version__, messages
from podrun.cli import (
    about,
    completion,
    convert,
    copying,
    doctor,
    generations,
    hooks,
    networks,
    payload,
    peers,
    registry,
    views,
    volumes,
)
from podrun.cli.images import image, login, logout
from podrun.cli.output import human, printed, say
from podrun.engine import hook_loader, segments
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.processes import alive
from podrun.engine.segments import label_of, resolve
from podrun.engine.world import Callbacks
from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Pod
from podrun.hook_extras import Collects, RunsCommands, offers
from podrun.host import Host
from podrun.identity import Identity
from podrun.launcher import detach, foreground, launch, run
from podrun.launcher.arguments import COMMANDS, GLOBAL, Flag
from podrun.launcher.commands import act, guarded, host_of, name_of
from podrun.podfile import cache, loader
from podrun.systemd import exit_records, notify

#: Where pods have their files.
ETC = "/etc/podrun"


def _option(flag: Flag) -> click.Option:
    if not flag.value:
        return click.Option([*flag.names, flag.key], is_flag=True, help=flag.doc)
    return click.Option(
        [*flag.names, flag.key], metavar=flag.value, multiple=flag.many, default=flag.default, help=flag.doc
    )


def _planned(name: str, doc: str) -> click.Command:
    """The click command of an entry in podrun.arguments: the same options, carried out by the same code."""
    declared = COMMANDS[name]

    @click.pass_context
    def callback(ctx: click.Context, /, **given: Any) -> None:
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
        ctx.exit(act(name, {**ctx.obj, **given}))

    words: list[click.Parameter] = [
        click.Argument([word], metavar=_METAVARS[word], shell_complete=completion.words if word == "word" else None)
        for word in declared.words
    ]
    if declared.rest:
        words.append(click.Argument(["command"], metavar="[COMMAND...]", nargs=-1, type=click.UNPROCESSED))
    settings = {"allow_interspersed_args": not declared.rest}
    return click.Command(
        name.rpartition(" ")[2],
        callback=callback,
        params=[*(_option(flag) for flag in declared.flags), *words],
        help=doc,
        context_settings=settings,
    )


_METAVARS = {"word": "FILE|NAME", "ref": "REF"}


@click.group(cls=peers.Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="podrun")
@click.pass_context
def podrun(ctx: click.Context, /, **given: Any) -> None:
    """Start container pods the way systemd starts services: no daemon, no shim, nothing left resident."""
    ctx.obj = given


podrun.params = [*(_option(flag) for flag in GLOBAL), *podrun.params]
podrun.add_command(_planned("up", "Start a pod and stay until it ends; with -d return when it is ready."))
podrun.add_command(_planned("down", "Undo a pod, in reverse."))
podrun.add_command(_planned("follow", "Keep this host's records and follow services: what podrun-follow.service runs."))
podrun.add_command(_planned("reload", "Do what [pod] reload says; 'swap': start the next generation and move to it."))
image.add_command(
    _planned("image pull", "Bring an image of any kind into the store; print the digest of its manifest.")
)
for group in (image, hooks.hook, networks.group, volumes.group, registry.group, convert.group):
    podrun.add_command(group)


class _Later(click.Group):
    """The group of another module, which is imported when it is asked for one of its commands."""

    def __init__(self, name: str, module: str, doc: str) -> None:
        super().__init__(name=name, help=doc)
        self.module = module

    def _group(self) -> click.Group:
        group: click.Group = import_module(self.module).group
        return group

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._group().list_commands(ctx)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return self._group().get_command(ctx, name)


podrun.add_command(_Later("cluster", "podrun.cli.cluster", "Pods on several hosts, placed by Pacemaker."))


def _run() -> click.Command:
    """The table's options for help and completion; every option of docker's for what is typed."""
    from podrun.cli.run import Run, extended

    plain = _planned("run", "Start a pod without a file, in docker's spelling.")

    @click.pass_context
    def callback(ctx: click.Context, /, arguments: list[str]) -> None:
        ctx.exit(guarded(lambda: extended(arguments, host_of(ctx.obj)), ctx.obj))

    return Run("run", callback=callback, params=plain.params, help=plain.help)


podrun.add_command(_run())
for command in (*payload.COMMANDS, *about.COMMANDS, copying.cp):
    podrun.add_command(command)
podrun.add_command(doctor.command)
for command in (generations.update, generations.history, generations.rollback):
    podrun.add_command(command)
podrun.add_command(login)
podrun.add_command(logout)


def _command(*parameters: click.Parameter) -> Callable[[Callable[..., int | None]], click.Command]:
    """Declares a command whose function takes the Host first and returns an exit code (None: 0)."""

    def declare(function: Callable[..., int | None]) -> click.Command:
        @click.pass_context
        def callback(ctx: click.Context, /, **given: Any) -> None:
            whole = {**ctx.obj, **given}
            ctx.exit(guarded(lambda: function(host_of(whole), **given), whole))

        name = function.__name__.strip("_")
        # What follows the first word of exec is the payload's, options included.
        settings = {"allow_interspersed_args": name != "exec"}
        command = click.Command(
            name, callback=callback, params=list(parameters), help=function.__doc__, context_settings=settings
        )
        podrun.add_command(command)
        return command

    return declare


_word = click.Argument(["word"], metavar="FILE|NAME", shell_complete=completion.words)
_format = click.Option(
    ["--format", "form"], type=click.Choice(["table", "json"]), default="table", help="How to print."
)
_quiet = click.Option(["-q", "--quiet"], is_flag=True, help="Names only.")
_container = click.Option(["-c", "--container"], default="", metavar="NAME", help="Which container; default: the last.")


@_command(_word)
def restart(host: Host, word: str) -> int:
    """Undo a pod and start it again, detached, from its file as it is now (or as it was run, without a file)."""
    name = name_of(word, host)
    header = next((journal.header for journal in journals.journals(host.run, name) if journal.header), None)
    if header and header.pod.unit and not notify.is_transient(header.pod.unit):
        found = journals.journals(host.run, name)
        return notify.ask("restart", [journal.header.pod.unit for journal in found if journal.header])
    if header and not header.file:
        text = _as_it_was_run(header.pod, host)
    else:
        text = loader.load(header.file if header else word, environ=host.environ, load_hook=hook_loader.load)
    launch.down(name, host)
    return detach.start(text, host)


def _as_it_was_run(pod: Pod, host: Host) -> loader.PodText:
    """The pod file that a ``podrun run`` amounted to, from its journals."""
    records = [dict(entry.step) for entry in states.entries(journals.journals(host.run, pod.name))]
    steps = tuple(loader.StepText(**{**record, "for_": tuple(record["for_"])}) for record in records)
    return loader.PodText(pod.name, "", steps, "service", pod.stop_timeout, {})


@_command(
    _format,
    _quiet,
    click.Option(["-a", "--all", "also_ended"], is_flag=True, help="Those too that have ended, with their status."),
    click.Option(["--filter", "filters"], multiple=True, metavar="KEY=VALUE", help="Only these."),
)
def ps(host: Host, form: str, quiet: bool, also_ended: bool, filters: Sequence[str]) -> None:
    """List the pods that are not absent; -a: and those that have ended in their units."""
    rows = views.rows(host.run)
    if also_ended:
        rows = [{**row, "status": None} for row in rows] + views.ended_rows(host.run)
    for condition in filters:
        key, equals, value = condition.partition("=")
        if not equals or key not in ("name", "state", "image", "unit", "file"):
            raise Failure(f"--filter {condition!r}: expected name=, state=, image=, unit= or file=", code=WRONG_FILE)
        rows = [row for row in rows if str(row[key]) == value]
    if quiet:
        for row in rows:
            say(row["name"])
    else:
        printed(rows, form)


@_command(_word)
def inspect(host: Host, word: str) -> None:
    """Print everything that is known of a pod as JSON."""
    name = name_of(word, host)
    whole = views.inspect(host.run, name) or views.ended(host.run, name)
    if whole is None:
        raise Failure("there is no such pod", code=UNAVAILABLE, hint="'podrun ps -a' lists those that there are")
    say(json.dumps(whole, indent=2))


@_command(
    _word, _container, click.Option(["-f", "--follow"], is_flag=True, help="Go on until the container has ended.")
)
def logs(host: Host, word: str, container: str, follow: bool) -> None:
    """Print what a container has written."""
    name = name_of(word, host)
    found = views.resident(host.run, name, container)
    if found is None:
        _logs_of_ended(host, name, container)
        return
    process = found[1].facts.get("process") or found[1].process or {"pid": 0, "start": 0}
    path = found[1].facts.get("log", {}).get("file")
    header = found[0].header
    if not path and header and header.pod.unit:
        from podrun.systemd.journalctl import show as show_entries

        show_entries(header.pod.unit, header.pod.invocation, process["pid"], process["start"], follow=follow)
        return
    if not path:
        raise Failure("its output was not captured: it went to podrun's own standard output", code=UNAVAILABLE)
    options = found[1].step["options"]
    for older in _older_logs(path, options.get("log_files", 3)) if options.get("log_size") else ():
        with _plain(older) as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
    file = _plain(path)
    try:
        while True:
            running = alive(process["pid"], process["start"])
            rotated = _is_another(path, file)
            while block := file.read(65536):
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
            if rotated:
                file.close()
                file = _plain(path)
                continue
            if not follow or not running:
                return
            _pause(0.1)
    finally:
        file.close()


def _older_logs(path: str, most: int) -> list[str]:
    """The files that a log has outgrown (``log_size``), the oldest first."""
    found = [f"{path}.{number}" for number in range(most, 0, -1)]
    return [older for older in found if os.path.lexists(older)]


def _is_another(path: str, file: BinaryIO) -> bool:
    """Whether the log has been begun anew since ``file`` was opened."""
    try:
        return os.stat(path, follow_symlinks=False).st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _logs_of_ended(host: Host, name: str, container: str) -> None:
    """What a container has written whose unit systemd has undone: the last thing that is known of it."""
    for ending in reversed(exit_records.all_of(host.run, name)):
        for ended in reversed(ending.containers):
            if container in ("", ended["name"]):
                if ended["log"]:
                    with _plain(ended["log"]) as file:
                        shutil.copyfileobj(file, sys.stdout.buffer)
                    return
                from podrun.systemd.journalctl import show as show_entries

                show_entries(ending.unit, ending.invocation, 0, 0, follow=False)
                return
    hint = f"see 'podrun inspect {name}'" if journals.journals(host.run, name) else "'podrun ps -a' lists the pods"
    raise Failure("there is no such container", code=UNAVAILABLE, hint=hint)


@_command(
    click.Option(["-i", "--interactive"], is_flag=True, help="Accepted: standard input is always passed on."),
    click.Option(["-t", "--tty"], is_flag=True, help="Give the command a terminal."),
    click.Option(["-e", "--env"], multiple=True, metavar="KEY=VALUE", help="An environment variable."),
    click.Option(["-u", "--user"], default="", metavar="UID[:GID]", help="As whom."),
    click.Option(["-w", "--workdir"], default="", metavar="DIR", help="The working directory."),
    _container,
    _word,
    click.Argument(["command"], nargs=-1, required=True, type=click.UNPROCESSED),
)
def exec_(host: Host, word: str, command: Sequence[str], container: str, **given: Any) -> int:
    """Run a command in a container."""
    name = name_of(word, host)
    found = views.resident(host.run, name, container)
    if found is None or found[0].header is None:
        raise Failure("there is no such container", code=UNAVAILABLE, hint=f"see 'podrun inspect {name}'")
    _, entry = found
    process = entry.facts.get("process") or entry.process
    if not process or not alive(process["pid"], process["start"]):
        raise Failure("the container has ended", code=BUSY, hint=f"'podrun restart {name}' starts it again")
    hook = hook_loader.load(entry.step["hook"])
    step = resolve(found[0].header.pod, hook, entry.step)
    running = offers(hook, RunsCommands)
    if running is None:
        raise Failure(f"{step.label}: its hook cannot run commands in it")
    wanted = {"tty": given["tty"], "user": given["user"], "workdir": given["workdir"]}
    running.exec_into(step, entry.facts, command, env=run.environment(list(given["env"]), host), **wanted)


@_command(_word)
def wait(host: Host, word: str) -> int:
    """Wait until the pod's last container has ended."""
    name = name_of(word, host)
    found = views.resident(host.run, name)
    waiting = launch.residents(host.run, name)
    if not waiting or found is None or found[0].header is None:
        if ending := exit_records.last(host.run, name):
            return ending.status or 0
        raise Failure("it has no container to wait for", code=UNAVAILABLE)
    last, header = waiting[-1], found[0].header
    while alive(last.pid, last.start):
        _pause(0.05)
    if header.pod.unit:
        # systemd tells its ExecStopPost= how the container ended.
        for _ in range(200):
            for part in ("", found[0].segment):
                ending = exit_records.read(host.run, name, part)
                if ending and ending.invocation == header.pod.invocation and ending.status is not None:
                    # Of several containers, with on_failure = "stop", the failure of another one ended this one.
                    whole = exit_records.last(host.run, name)
                    return (whole or ending).status or 0
            _pause(0.05)
    return foreground.reap(last)


@_command(
    _word, click.Option(["--security"], is_flag=True, help="Say instead what the pod is given of the host, in figures.")
)
def check(host: Host, word: str, security: bool) -> int:
    """Say what is wrong with a pod file, and what would keep the pod from starting."""
    from podrun.systemd import settings

    text = loader.load(word, environ=host.environ, load_hook=hook_loader.load)
    if security:
        from podrun.cli.security import report

        for line in report(text, _pod(text, host)):
            say(line)
        return 0
    code = said = 0
    for step, problem in _problems(text, host):
        if problem.key == "credential" and step.options.get("credential") in _credentials(text):
            continue  # the file itself has systemd hand it in
        kind = "error" if problem.fatal else "warning"
        at = launch.located(text, host, step.hook, step.name, problem.key or "hook")
        hint = f"; {problem.hint}" if problem.hint else ""
        say(f"{at}{label_of(step._asdict())}: {kind}: {problem.what}{hint}")
        said += 1
        if problem.fatal:
            code = code or problem.code
    for section, key, what in settings.problems(text.sections):
        fatal = (section, key) == ("socket", "Accept")
        at = loader.line_of(text, (section, key))
        say(f"{at}[{section}]: {'error' if fatal else 'warning'}: {what}")
        said += 1
        code = code or (WRONG_FILE if fatal else 0)
    for what in [] if said or not text.sections else _verified(word, host):
        say(f"[unit]: warning: {what}")
        said += 1
    for reason in _unswappable(text, host) if text.reload == "swap" and not code else ():
        say(f"{text.name}: reloading stops and starts it, two generations cannot run at once: {reason}")
    if text.placement:
        say(f"{text.name}: [placement] means nothing on one machine; 'podrun cluster export' shows its use")
    if not said:
        say(f"{text.name}: {len(text.steps)} steps, nothing wrong")
    return code


def _credentials(text: loader.PodText) -> set[str]:
    """The credentials that the file's [service] gives (systemd.exec(5), "Credentials")."""
    service = text.sections.get("service", {})
    keys = ("LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted")
    values = [service.get(key, ()) for key in keys]
    texts = [item for value in values for item in (value if isinstance(value, list) else [value]) if item]
    return {str(item).partition(":")[0] for item in texts}


def _verified(word: str, host: Host) -> list[str]:
    """What systemd itself finds in the pod's units; nothing where they cannot be made here."""
    from podrun.systemd import install, settings

    try:
        return settings.verified(install.units(word, host))
    except Failure:
        return []


def _unswappable(text: loader.PodText, host: Host) -> list[str]:
    from podrun.launcher import reload

    return reload.obstacles(text, _pod(text, host), host)


@_command(_word, _format, click.Option(["--explain"], is_flag=True, help="With the commands that do the same by hand."))
def plan(host: Host, word: str, form: str, explain: bool) -> None:
    """Show what up would do, in order, and what down would undo now."""
    by_hand: list[list[str]] = []
    if _is_file(word) or os.path.exists(f"{ETC}/{word}.toml"):
        text = loader.load(word, environ=host.environ, load_hook=hook_loader.load)
        name, steps, problems = text.name, views.plan_up(text), _problems(text, host)
        placement = text.placement
        if explain:
            by_hand = views.explain(text, _pod(text, host))
            steps = [{**step, "explain": lines} for step, lines in zip(steps, by_hand, strict=True)]
    else:
        name, steps, problems, placement = word, [], [], {}
    undo = views.plan_down(journals.journals(host.run, name))
    if form == "json":
        told = [{"step": label_of(step._asdict()), **problem._asdict()} for step, problem in problems]
        whole = {"pod": name, "up": steps, "problems": told, "down": undo, "placement": placement}
        say(json.dumps(whole, indent=2))
        return
    for number, step in enumerate(steps, 1):
        notes = f"  ({', '.join(step['notes'])})" if step["notes"] else ""
        notes += f"  {step['path']}" if step.get("path") else ""
        options = " ".join(f"{key}={json.dumps(value)}" for key, value in step["options"].items())
        say(f"up   {number:2} {step['step']}{notes}  {options}".rstrip())
        for line in step.get("explain", ()):
            say(f"          {line}")
    for found, problem in problems:
        say(f"     {'!' if problem.fatal else '?'}  {label_of(found._asdict())}: {problem.what}")
    for number, step in enumerate(undo, 1):
        say(f"down {number:2} {step['step']}")
    if placed := {key: value for key, value in placement.items() if value}:
        options = " ".join(f"{key}={json.dumps(value)}" for key, value in placed.items())
        say(f"in a cluster: {options}")
    if not steps and not undo:
        say(f"{name}: nothing to start and nothing to undo: there is no such pod, and no {ETC}/{name}.toml")


@_command(_word, _format, click.Option(["--svg"], is_flag=True, help="Print a picture instead of a table."))
def trace(host: Host, word: str, form: str, svg: bool) -> None:
    """Show where the time of the last start went, step by step."""
    name = name_of(word, host)
    found = journals.journals(host.run, name)
    if not found:
        raise Failure("there is no such pod", code=UNAVAILABLE, hint="'podrun ps' lists those that there are")
    if svg:
        from podrun.cli import timeline_svg

        say(timeline_svg.svg(name, found), nl=False)
    else:
        printed(views.trace(found), form)


@_command(click.Option(["--check", "only_check"], is_flag=True, help="Say what would be removed, remove nothing."))
def gc(host: Host, only_check: bool) -> int:
    """Undo pods that are dead, failed or from before the reboot, and remove what belongs to none."""
    if only_check:
        for line in (lines := doctor.stale(host)):
            say(line)
        return 1 if lines else 0
    for name in journals.pods(host.run):
        state = states.state(host.run, name)
        if state in ("dead", "failed", "absent") and launch.sweep(name, host):
            say(f"{name}: {state}")
    cache.forget(cache.directory(host.run))
    exit_records.forget(host.run, journals.pods(host.run))
    for hook, collecting in hook_loader.offering(Collects):
        for line in collecting.collect(host.root, host.run, {*journals.pods(host.run)}, False):
            say(f"{hook}: {line}")
    return 0


@_command(_format, click.Argument(["words"], metavar="[FILE|NAME]...", nargs=-1))
def stats(host: Host, form: str, words: Sequence[str]) -> None:
    """Show what containers use: processor, memory (bytes), processes."""
    from podrun.cli import stats as usage

    names = [name_of(word, host) for word in words] or journals.pods(host.run)
    for name in names:
        if not journals.journals(host.run, name):
            raise Failure(f"there is no pod {name}", code=UNAVAILABLE, hint="'podrun ps' lists those that there are")
    shown = usage.rows(host.run, names)
    printed(shown if form == "json" else [{**row, "memory": human(row["memory"])} for row in shown], form)


@_command(
    click.Option(["--install"], is_flag=True, help="Put them where systemd reads them, and enable them."),
    click.Option(["--uninstall"], is_flag=True, help="Disable and remove the pod's installed units."),
    click.Option(["--install-generator"], is_flag=True, help="Have systemd make the units of /etc/podrun itself."),
    click.Argument(["word"], metavar="[FILE|NAME]", required=False),
)
def unit(host: Host, word: str | None, install: bool, uninstall: bool, install_generator: bool) -> None:
    """Print the systemd units of a pod file."""
    from podrun.systemd import generator
    from podrun.systemd import install as installing

    if install_generator:
        say(generator.install(installing.program()))
    if word is None:
        if not install_generator:
            raise Failure("which pod's units?", code=WRONG_FILE, hint="podrun unit FILE|NAME")
        return
    if uninstall:
        for line in installing.uninstall(name_of(word, host)):
            say(line)
        return
    made = installing.units(word, host)
    if install:
        for line in installing.install(made):
            say(line)
        if not installing.starts_at_boot(made):
            host.report('nothing starts it at boot: the file has no [install] with WantedBy = "multi-user.target"')
        return
    for number, (name, text) in enumerate(made.items()):
        say(f"{chr(10) if number else ''}# {name}\n{text}", nl=False)


@_command(click.Argument(["shell"], type=click.Choice(completion.SHELLS)))
def completion_(host: Host, shell: str) -> None:
    """Print what makes a shell complete podrun's commands, options and pods."""
    say(completion.script(podrun, shell))


@_command()
def schema(host: Host) -> None:
    """Print the JSON Schema of a pod file, for editors."""
    from podrun.podfile.jsonschema import schema as schema_of

    described = {name: hook_loader.described(name).get("options") for name in hook_loader.dropped_in()}
    say(json.dumps(schema_of(hook_loader.known(), described), indent=2))


def _problems(text: loader.PodText, host: Host) -> list[tuple[loader.StepText, Any]]:
    silent = messages.quiet
    world = Callbacks(hook_loader.load, silent, silent, silent, silent, silent)
    return segments.problems(_pod(text, host), text.steps, world)


def _pod(text: loader.PodText, host: Host) -> Pod:
    """The pod that would be started, for hooks that are only asked."""
    return Pod(text.name, host.root, host.run, tag=Identity(text.name).tag(host.run), userns=text.userns, thorough=True)


def _plain(path: str) -> BinaryIO:
    """A log file to read. It may lie where the payload can write: a link or a device in its place is refused."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Failure(f"{path} is not a plain file", code=UNAVAILABLE)
    return open(fd, "rb")


def _is_file(word: str) -> bool:
    return "/" in word or word.endswith(".toml")


def _pause(seconds: float) -> None:
    from time import sleep

    sleep(seconds)


def main(arguments: Sequence[str]) -> int:
    """Runs the click command line; returns the exit code."""
    try:
        result = podrun.main(list(arguments), prog_name="podrun", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.Abort:
        return 130
    except click.ClickException as wrong:
        wrong.show()
        return WRONG_FILE
