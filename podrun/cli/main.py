"""The command line beyond the plain forms of up, down and run: click reads it, podrun's modules do the work."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import click

from podrun import __version__, atomic
from podrun.cli import (
    about,
    attach,
    completion,
    convert,
    copying,
    doctor,
    events,
    generations,
    hooks,
    inspecting,
    listing,
    logs,
    networks,
    payload,
    peers,
    podfiles,
    pods,
    registry,
    secrets,
    stopping,
    usage,
    volumes,
)
from podrun.cli.declare import DECLARED, command
from podrun.cli.images import image
from podrun.cli.logins import login, logout
from podrun.cli.output import Switches, say
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.locks import Lock
from podrun.engine.verbs import failed
from podrun.errors import NOT_ALLOWED, WRONG_FILE, Failure
from podrun.hook_extras import Collects
from podrun.host import Host
from podrun.launcher import launch
from podrun.launcher.arguments import COMMANDS, GLOBAL, Flag
from podrun.launcher.commands import act, guarded, host_of
from podrun.podfile import cache
from podrun.systemd import exit_records

#: Modules whose commands are in DECLARED as soon as they are imported.
DECLARING = (pods, podfiles)


def _option(flag: Flag) -> click.Option:
    if not flag.value:
        return click.Option([*flag.names, flag.key], is_flag=True, help=flag.doc)
    return click.Option(
        [*flag.names, flag.key],
        metavar=flag.value,
        multiple=flag.many,
        default=flag.default,
        help=flag.doc,
        shell_complete=_COMPLETED.get(flag.key),
    )


def _planned(name: str, doc: str) -> click.Command:
    """The click command of an entry in podrun.launcher.arguments: the same options, carried out by the same code."""
    declared = COMMANDS[name]

    @click.pass_context
    def callback(ctx: click.Context, /, **given: Any) -> None:
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
        ctx.exit(act(name, {**ctx.obj, **given}))

    words: list[click.Parameter] = [
        click.Argument([word], metavar=_METAVARS[word], shell_complete=_COMPLETED[word]) for word in declared.words
    ]
    if declared.rest:
        needed = declared.needs_rest
        metavar = "COMMAND..." if needed else "[COMMAND...]"
        words.append(click.Argument(["command"], metavar=metavar, nargs=-1, required=needed, type=click.UNPROCESSED))
    settings = {"allow_interspersed_args": not declared.rest}
    return Switches(
        name.rpartition(" ")[2],
        callback=callback,
        params=[*(_option(flag) for flag in declared.flags), *words],
        help=doc,
        context_settings=settings,
    )


_METAVARS = {"word": "FILE|NAME", "ref": "REF"}
_COMPLETED = {"word": completion.words, "ref": completion.images, "container": completion.containers}


@click.group(cls=peers.Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-v", "--version", prog_name="podrun")
@click.pass_context
def podrun(ctx: click.Context, /, **given: Any) -> None:
    """Start container pods the way systemd starts services: no daemon, no shim, nothing left resident."""
    ctx.obj = given
    if os.geteuid() and ctx.invoked_subcommand not in FOR_ANYBODY:
        code = guarded(lambda: _refuse_without_root(given), given)
        if code:
            ctx.exit(code)


#: Commands that give a true answer to others than root. The rest would see nothing, and say that there is nothing.
FOR_ANYBODY = (
    "check", "completion", "convert", "doctor", "hook", "info", "login", "logout", "registry", "schema", "unit",
    "version",
)  # fmt: skip


def _refuse_without_root(given: dict[str, Any]) -> int:
    """Raises Failure (NOT_ALLOWED) if a directory with podrun's state is somebody else's."""
    host = host_of(given)
    for path in (f"{host.root}/images", f"{host.root}/volumes", f"{host.run}/locks", f"{host.run}/runtime"):
        if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
            what = f"podrun needs root: only root can open {path}"
            raise Failure(what, code=NOT_ALLOWED, hint="sudo podrun ...")
    return 0


podrun.params = [*(_option(flag) for flag in GLOBAL), *podrun.params]
podrun.add_command(_planned("up", "Start a pod and stay until it ends; with -d return when it is ready."))
podrun.add_command(stopping.down)
podrun.add_command(_planned("follow", "Keep this host's records and follow services: what podrun-follow.service runs."))
podrun.add_command(_planned("exec", "Run a command in a container."))
podrun.add_command(_planned("reload", "Do what [pod] reload says; 'swap': start the next generation and move to it."))
image.add_command(
    _planned("image pull", "Bring an image of any kind into the store; print the digest of its manifest.")
)
for group in (
    image,
    hooks.hook,
    networks.group,
    volumes.group,
    registry.group,
    convert.group,
    pods.healthcheck,
    secrets.group,
):
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


def _run(name: str, doc: str) -> click.Command:
    """The table's options for help and completion; every option of docker's for what is typed."""
    from podrun.cli.run import Run, extended

    @click.pass_context
    def callback(ctx: click.Context, /, arguments: list[str]) -> None:
        own = {**ctx.obj}  # gets the pod's name, which messages begin with
        ctx.exit(guarded(lambda: extended(arguments, host_of(own), own, create=name == "create"), own))

    return Run(name, callback=callback, params=_planned("run", doc).params, help=doc)


podrun.add_command(_run("run", "Start a pod without a file, in docker's spelling."))
podrun.add_command(_run("create", "Keep what 'run' would start, for 'podrun start'; print the pod's name."))
podrun.add_command(doctor.command)
OF_MODULES = (
    generations.update,
    generations.history,
    generations.rollback,
    login,
    logout,
    copying.cp,
    logs.logs,
    listing.ps,
    events.events,
    attach.attach,
    usage.stats,
    inspecting.inspect,
)


@command(click.Option(["--check", "only_check"], is_flag=True, help="Say what would be removed, remove nothing."))
def gc(host: Host, only_check: bool) -> int:
    """Undo pods that are dead, failed or from before the reboot, and remove what belongs to none.

    It goes on after what cannot be undone or removed, and reports it.
    """
    if only_check:
        for line in (lines := doctor.stale(host)):
            say(line)
        return 1 if lines else 0
    failures: list[Failure] = []
    for name in journals.pods(host.run):
        try:
            state = states.state(host.run, name)
            if state in ("dead", "failed", "absent") and launch.sweep(name, host):
                say(f"{name}: {state}")
        except Exception as error:
            failures.append(failed(name, error))
    cache.forget(cache.directory(host.run))
    root, run = glob.escape(host.root), glob.escape(host.run)
    for place in (f"{root}/*/", f"{run}/*/", f"{run}/*/*/"):
        for directory in glob.glob(place):
            atomic.sweep(directory)
    exit_records.forget(host.run, journals.pods(host.run))
    with contextlib.ExitStack() as held:
        busy = {*_locked(host, held)}
        for hook, collecting in hook_loader.offering(Collects):
            try:
                for line in collecting.collect(host.root, host.run, {*journals.pods(host.run), *busy}, False):
                    say(f"{hook}: {line}")
            except Exception as error:
                failures.append(failed(hook, error))
    for failure in failures[:-1]:
        host.report(str(failure))
    if failures:
        raise failures[-1]
    return 0


def _locked(host: Host, held: contextlib.ExitStack) -> Iterator[str]:
    """Locks the pods with something on the disk but no journal, which a power cut has ended, so that none of them
    starts while that is removed. Yields those that cannot be locked: another podrun is at work on them."""
    with contextlib.suppress(FileNotFoundError):
        for name in {*os.listdir(f"{host.root}/pods")} - {*journals.pods(host.run)}:
            try:
                held.enter_context(Lock(host.run, name, wait=False))
            except Failure:
                yield name


@command(click.Argument(["shell"], type=click.Choice(completion.SHELLS)))
def completion_(host: Host, shell: str) -> None:
    """Print the script with which a shell completes podrun's commands, options and pods."""
    say(completion.script(podrun, shell))


for declared in (*DECLARED, *payload.COMMANDS, *about.COMMANDS, *OF_MODULES):
    podrun.add_command(declared)


def main(arguments: Sequence[str]) -> int:
    """Runs the click command line; returns the exit code."""
    if "--debug" not in arguments:
        # Errors of a finaliser whose constructor has failed (asyncio's, by pyroute2) help nobody.
        sys.unraisablehook = lambda _: None
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
