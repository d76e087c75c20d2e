"""Commands about pod files: check, plan, trace, unit, schema."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from podrun import messages
from podrun.cli import completion, views
from podrun.cli.declare import FORMAT, WORD, command
from podrun.cli.output import printed, say
from podrun.engine import hook_loader, segments
from podrun.engine import journal as journals
from podrun.engine.segments import label_of
from podrun.engine.world import Callbacks
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Pod
from podrun.host import Host
from podrun.identity import Identity
from podrun.launcher import launch
from podrun.launcher.commands import name_of
from podrun.podfile import loader

#: Where pods have their files.
ETC = "/etc/podrun"


@command(WORD, click.Option(["--security"], is_flag=True, help="Show what the pod exposes of the host, with a score."))
def check(host: Host, word: str, security: bool) -> int:
    """Check a pod file for mistakes, and for what would keep the pod from starting."""
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


@command(WORD, FORMAT, click.Option(["--explain"], is_flag=True, help="With the commands that do the same by hand."))
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


@command(WORD, FORMAT, click.Option(["--svg"], is_flag=True, help="Print a picture instead of a table."))
def trace(host: Host, word: str, form: str, svg: bool) -> None:
    """Show where the time of the last start went, step by step."""
    name = name_of(word, host)
    found = journals.journals(host.run, name)
    if not found:
        raise Failure("there is no such pod", code=UNAVAILABLE, hint="'podrun ps' lists the pods")
    if svg:
        from podrun.cli import timeline_svg

        say(timeline_svg.svg(name, found), nl=False)
    else:
        printed(views.trace(found), form)


@command(
    click.Option(["--install"], is_flag=True, help="Put them where systemd reads them, and enable them."),
    click.Option(["--uninstall"], is_flag=True, help="Disable and remove the pod's installed units."),
    click.Option(["--install-generator"], is_flag=True, help="Have systemd make the units of /etc/podrun itself."),
    click.Argument(["word"], metavar="[FILE|NAME]", required=False, shell_complete=completion.words),
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
        for line in installing.install({**made, **installing.for_the_host(host)}):
            say(line)
        if not installing.starts_at_boot(made):
            host.report('nothing starts it at boot: the file has no [install] with WantedBy = "multi-user.target"')
        return
    for number, (name, text) in enumerate(made.items()):
        say(f"{chr(10) if number else ''}# {name}\n{text}", nl=False)


@command()
def schema(host: Host) -> None:
    """Print the JSON Schema of a pod file, for editors."""
    from podrun.podfile.jsonschema import schema as schema_of

    described = {name: hook_loader.described(name).get("options") for name in hook_loader.dropped_in()}
    say(json.dumps(schema_of(hook_loader.known(), described), indent=2))


def _problems(text: loader.PodText, host: Host) -> list[tuple[loader.StepText, Any]]:
    silent = messages.quiet
    world = Callbacks(hook_loader.load, host.report, silent, silent, silent, silent)
    return segments.problems(_pod(text, host), text.steps, world)


def _pod(text: loader.PodText, host: Host) -> Pod:
    """The pod that would be started, for hooks that are only asked."""
    return Pod(text.name, host.root, host.run, tag=Identity(text.name).tag(host.run), userns=text.userns, thorough=True)


def _is_file(word: str) -> bool:
    return "/" in word or word.endswith(".toml")
