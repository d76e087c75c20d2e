"""``podrun hook``: which hooks there are, what they take, whether they keep the contract, and a start for a new one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Sequence
from typing import Any

import click

from podrun.cli import completion
from podrun.cli.output import say
from podrun.conformance import scaffold
from podrun.engine import hook_loader
from podrun.engine.segments import resolve
from podrun.errors import STEP_FAILED, WRONG_FILE, Failure
from podrun.facts import merged, wrong_facts
from podrun.hook import Facts, Hook, Pod, Step
from podrun.host import Host
from podrun.launcher.commands import guarded, host_of
from podrun.messages import printable
from podrun.options import REQUIRED, schema_of
from podrun.podfile import loader

_form = click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
_word = click.argument("word", metavar="HOOK", shell_complete=completion.hooks)


class _Guarded(click.Command):
    """A command whose failures are told as every command's are."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.exit(guarded(lambda: super(_Guarded, self).invoke(ctx), {**ctx.obj, "name": ctx.params.get("word")}))


@click.group()
def hook() -> None:
    """Hooks: what a chain's steps are made of."""


@hook.command(cls=_Guarded)
@_form
def ls(form: str) -> None:
    """List the hooks that a pod file can name."""
    from podrun.cli.output import printed

    rows = [_row(name) for name in hook_loader.names()]
    for name, source, by in hook_loader.hidden():
        rows.append({"name": name, "kind": "hidden", "source": source, "about": f"{by} has this name"})
    printed(rows, form)


@hook.command(cls=_Guarded)
@_word
@_form
def describe(word: str, form: str) -> None:
    """Say what a hook takes and gives. HOOK is a name, or the path of an executable."""
    name = _name(word)
    found = hook_loader.load(name)
    if hook_loader.executable(name):
        for problem in found.check(Step(Pod("describe", "/", "/"), name, name, {})):
            raise Failure(problem.what, code=problem.code, hint=problem.hint)
    about = _about(name, found)
    if form == "json":
        say(json.dumps(about, indent=2))
        return
    say(f"{name}: {about['doc']}\n")
    for key in ("source", "takes", "gives", "resident"):
        value = about[key]
        say(f"{key:9} {', '.join(value) or 'nothing' if isinstance(value, list) else value}")
    if found.Options is not None:
        say("\noptions")
        for option, field in found.Options._field_defaults.items():
            default = "required" if field.default is REQUIRED else f"default {field.default!r}"
            say(f"  {option} ({_kind(field.kind.schema)}, {default})\n      {field.doc}")
    elif about["schema"].get("properties"):
        say("\noptions")
        required = about["schema"].get("required", [])
        for option, declared in about["schema"]["properties"].items():
            default = f"default {declared['default']!r}" if "default" in declared else "optional"
            told = f"  {option} ({_kind(declared)}, {'required' if option in required else default})"
            say(f"{printable(told)}\n      {printable(str(declared.get('description', '')))}")


@hook.command(cls=_Guarded)
@_word
@click.option(
    "-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the step, as in TOML."
)
@click.option("--in", "file", metavar="FILE", help="Test the hook's step in this pod file, after the steps before it.")
@click.option("--facts", metavar="JSON", default="{}", help="Facts that earlier steps would have given.")
@click.option("--watch", "watched", multiple=True, metavar="DIR", help="A directory in which nothing may stay.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=6,
    show_default=True,
    metavar="N",
    help="How often to kill each verb.",
)
@click.option("--here", is_flag=True, help="In the host's network and mounts, not in namespaces of its own.")
@_form
@click.pass_context
def test(ctx: click.Context, /, word: str, form: str, **given: Any) -> int:
    """Test whether a hook keeps the contract: kill -9, time-outs, a second down, missing things.

    HOOK is a name, or the path of an executable. In an option's value, {scratch} stands for an empty directory.
    """
    return _test(host_of(ctx.obj), _name(word), form, **given)


@hook.command(cls=_Guarded)
@click.option("--language", type=click.Choice(["shell", "python"]), required=True, help="The language to write it in.")
@click.argument("word", metavar="NAME")
def new(word: str, language: str) -> None:
    """Write a sample hook and its test into a new directory NAME."""
    for path in scaffold.write(word, language):
        say(path)


def _name(word: str) -> str:
    """The hook's name for a word of the command line: a path means an executable."""
    return f"exec:{os.path.abspath(word)}" if "/" in word and not word.startswith("exec:") else word


def _row(name: str) -> dict[str, Any]:
    try:
        found = hook_loader.load(name)
    except Failure as failure:
        return {"name": name, "kind": "broken", "source": "", "about": failure.what}
    return {"name": name, "kind": hook_loader.kind(name), "source": _source(name, found), "about": _doc(name, found)}


def _about(name: str, found: Hook) -> dict[str, Any]:
    told = hook_loader.described(name)
    takes, gives = found.takes, found.gives
    return {
        "name": name,
        "kind": hook_loader.kind(name),
        "source": _source(name, found),
        "doc": str(told.get("doc") or _doc(name, found)),
        "takes": told.get("takes", ["any"] if takes is None else list(takes)),
        "gives": told.get("gives", ["any"] if hook_loader.executable(name) else list(gives)),
        "resident": found.resident,
        "schema": told.get("options") or (schema_of(found.Options) if found.Options is not None else {}),
    }


def _source(name: str, found: Hook) -> str:
    return hook_loader.executable(name) or str(getattr(found, "__file__", "") or "")


def _doc(name: str, found: Hook) -> str:
    if hook_loader.executable(name):
        return "an executable"
    return (getattr(found, "__doc__", None) or "").strip().partition("\n")[0]


def _kind(schema: Any) -> str:
    """A JSON Schema's type in a word or two."""
    if isinstance(schema.get("enum"), list):
        return " | ".join(str(word) for word in schema["enum"])
    kind = schema.get("type", "any")
    return " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


# --- the conformance kit -------------------------------------------------------------------------------------------


def _test(
    host: Host, name: str, form: str, *, options: Sequence[str], file: str | None, facts: str, watched: Sequence[str],
    rounds: int, here: bool,
) -> int:  # fmt: skip
    from podrun.cli.output import printed
    from podrun.conformance import snapshot
    from podrun.conformance.kit import FAILED, Kit

    home = tempfile.mkdtemp(prefix="podrun-kit-", dir="/run" if os.geteuid() == 0 else None)
    undo: list[tuple[Hook, Step, Facts]] = []
    netns = ""
    try:
        if os.geteuid() == 0 and not here:
            snapshot.isolate(f"{home}/temporary")
            watched = [*watched, f"{home}/temporary"]
        pod = Pod("conformance", f"{home}/root", f"{home}/run", tag="podrun-conformance", attached=False)
        os.makedirs(pod.directory, mode=0o700)
        os.makedirs(f"{home}/scratch")
        found = hook_loader.load(name)
        given = merged([_facts(facts)])
        if file:
            text, before = _in(file, name, host)
            for earlier in before:
                given = merged([given, _start(earlier, pod, given, undo)])
        else:
            table = dict(_assignment(word, f"{home}/scratch") for word in options)
            made = loader.from_tables(
                {"chain": [{"hook": name, **table}]}, load_hook=hook_loader.load, name="conformance"
            )
            text = made.steps[-1]
        wanted = (found.takes is None or "netns" in found.takes) and "netns" not in found.gives
        if wanted and "netns" not in given and os.geteuid() == 0:
            netns = "podrun-kit"
            given["netns"] = snapshot.make_netns(netns)
        step = resolve(pod, found, text._asdict())
        alone = os.geteuid() == 0 and not here
        places = [f"{home}/scratch", *map(os.path.abspath, watched)]
        rows = list(Kit(found, step, given, places, rounds, alone=alone, netns=netns).rows())
        printed([row._asdict() for row in rows], form)
        return STEP_FAILED if any(row.result == FAILED for row in rows) else 0
    finally:
        for earlier_hook, step, own in reversed(undo):
            earlier_hook.down(step, own)
        if netns:
            snapshot.remove_netns(netns)
        # What a hook has left mounted in there is not the kit's to delete.
        if not snapshot.unmount_below(home):
            raise Failure(f"{home} is kept: something is mounted in it", hint="umount it, then remove the directory")
        shutil.rmtree(home, ignore_errors=True)


def _in(file: str, name: str, host: Host) -> tuple[loader.StepText, Sequence[loader.StepText]]:
    """The step of a hook in a pod file, and those before it."""
    steps = loader.load(file, environ=host.environ, load_hook=hook_loader.load).steps
    for number, text in enumerate(steps):
        if name in (text.hook, text.name):
            return text, steps[:number]
    raise Failure(f"{file} has no step of this hook", code=WRONG_FILE)


def _start(text: loader.StepText, pod: Pod, given: Facts, undo: list[tuple[Hook, Step, Facts]]) -> Facts:
    found = hook_loader.load(text.hook)
    step = resolve(pod, found, text._asdict())
    undo.append((found, step, {}))
    own = found.up(step, given) or {}
    undo[-1] = (found, step, own)
    return own


def _facts(text: str) -> Facts:
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise Failure(f"--facts: {error}", code=WRONG_FILE) from None
    if not isinstance(facts, dict):
        raise Failure("--facts: expected a JSON object", code=WRONG_FILE)
    for wrong in wrong_facts(facts, None):
        raise Failure(f"--facts: {wrong}", code=WRONG_FILE)
    return facts


def _assignment(word: str, scratch: str) -> tuple[str, Any]:
    """KEY=VALUE: the value as TOML spells it, or a string where it is no TOML."""
    key, equals, value = word.partition("=")
    if not (key and equals):
        raise Failure(f"--option {word!r}: expected KEY=VALUE", code=WRONG_FILE)
    if key == "hook":
        raise Failure(f"--option {word!r}: the hook is given by HOOK", code=WRONG_FILE)
    value = value.replace("{scratch}", scratch)
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
