"""``podrun convert``: pod files from compose files, Quadlet units, Kubernetes manifests and docker's command lines."""

from __future__ import annotations

import os
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from podrun import atomic
from podrun.cli.output import Guarded, say
from podrun.engine import hook_loader
from podrun.errors import CANNOT_CREATE, INTERNAL, WRONG_FILE, Failure
from podrun.messages import tell
from podrun.podfile import loader, tables

if TYPE_CHECKING:
    from podrun.convert.draft import Draft
    from podrun.options import Option


#: Where podrun reads what networks are like, and the file's name.
ETC, NETWORKS = "/etc/podrun", "networks.toml"


@click.group(name="convert")
def group() -> None:
    """Write pod files for what other tools start.

    What has no equivalent is told on standard error, a line each with what to do by hand, and stands as a comment in
    the pod file. Nothing is started, and nothing but the named files is read.
    """


_output = click.option("-o", "--output", metavar="DIR", help="Write files there instead of to standard output.")
_force = click.option("--force", is_flag=True, help="With -o: replace existing files.")
_strict = click.option("--strict", is_flag=True, help="Exit with 78 when something is left to be done by hand.")


def settled(draft: Draft) -> None:
    """Compares a draft with what this podrun knows; what it does not know becomes a note."""
    from podrun.convert import settle

    network = import_module(f"{hook_loader.FIRST_PARTY['network']}.options").Network
    settle.settle(draft, _declared, tables.FileTable._field_defaults, tables.PodTable._field_defaults, network)


def _finished(draft: Draft, output: str | None, force: bool, strict: bool) -> None:
    """Prints or writes what a conversion made, once podrun's own reader has accepted it."""
    from podrun.convert import toml
    from podrun.convert.draft import Origin

    settled(draft)
    texts = {pod.file: toml.pod_file(pod) for pod in draft.pods}
    _check(texts)
    networks = toml.networks_file(draft)
    if networks and (output is None or os.path.realpath(output) != ETC):
        draft.note(Origin("", NETWORKS), f"podrun reads {ETC}/{NETWORKS} only", "add the tables there")
    if networks and output is not None:
        networks = _with_those_there(f"{output}/{NETWORKS}", networks, draft)
    if networks:
        texts[NETWORKS] = networks
    notes = draft.all_notes()
    for note in notes:
        tell(f"podrun: {note}")
    if output is not None:
        _write(output, texts, force)
    elif len(texts) == 1 and not networks:
        say("".join(texts.values()), nl=False)
    else:
        say("\n".join(f"# --- {name} ---\n{text}" for name, text in texts.items()), nl=False)
    if strict and any(note.by_hand for note in notes):
        raise Failure("something is left to be done by hand", code=WRONG_FILE, hint="the lines above say what")


def _with_those_there(path: str, networks: str, draft: Draft) -> str:
    """The text of a networks.toml with the tables that it lacks; "" when there is nothing to add.

    Raises Failure for a file that is not TOML.
    """
    from podrun.convert import toml
    from podrun.convert.draft import Draft, Origin

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        there = tomllib.loads(text).get("networks", {})
    except FileNotFoundError:
        return networks
    except ValueError as error:
        raise Failure(f"{path}: {error}", code=WRONG_FILE) from None
    missing = Draft()
    for name, step in draft.networks.items():
        if name not in there:
            missing.networks[name] = step
        elif there[name] != step.values:
            draft.note(Origin(path, f"networks.{name}"), f"is there already with other values: {step.values}")
    more = toml.networks_file(missing)
    return f"{text.rstrip()}\n\n{more}".lstrip() if more else ""


def _declared(hook: str) -> Mapping[str, Option]:
    options: Any = hook_loader.load(hook).Options
    return {**options._field_defaults, **tables.StepTable._field_defaults}


def _check(texts: Mapping[str, str]) -> None:
    """Reads the pod files as ``podrun check`` does. Raises Failure: then the converter has a fault."""
    with tempfile.TemporaryDirectory(prefix="podrun-convert-") as directory:
        for name, text in texts.items():
            path = f"{directory}/{name}"
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            # A template is only read with an instance.
            word = path.replace("@.toml", "@instance.toml")
            try:
                loader.load(word, environ=None, load_hook=hook_loader.load)
            except Failure as failure:
                what = failure.what.replace(f"{directory}/", "")
                raise Failure(f"the converter wrote what podrun refuses: {what}", code=INTERNAL) from None


def _write(directory: str, texts: Mapping[str, str], force: bool) -> None:
    """Writes the files, none of them when one is there already."""
    paths = {f"{directory}/{name}": text for name, text in texts.items()}
    # To networks.toml only tables are added.
    there = [path for path in paths if os.path.lexists(path) and not path.endswith(f"/{NETWORKS}")]
    if there and not force:
        raise Failure(f"{', '.join(there)} already exists", code=WRONG_FILE, hint="--force replaces it")
    try:
        os.makedirs(directory, exist_ok=True)
        for path, text in paths.items():
            # Environment variables of a pod file may be secrets; a link at the path is replaced, not followed.
            atomic.replace(path, text)
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}", code=CANNOT_CREATE) from None
    for path in paths:
        say(path)


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in words)
    for name, value in pairs.items():
        if not name or not value:
            raise Failure(f"{option} {name}={value}: expected SERVICE=REF", code=WRONG_FILE)
    return pairs


@group.command(cls=Guarded)
@click.argument("files", nargs=-1, metavar="[FILE|DIR]...", type=click.Path())
@click.option("-f", "--file", "more", multiple=True, metavar="FILE", help="The same as FILE, as docker has it.")
@click.option("-p", "--project-name", "project", default="", metavar="NAME", help="Default: the directory's name.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="A profile to activate; '*': all.")
@click.option("--env-file", "env_files", multiple=True, metavar="FILE", help="Instead of the project's .env.")
@click.option("--image", "images", multiple=True, metavar="SERVICE=REF", help="The image of a service that is built.")
@click.option("--allow-outside", "outside", is_flag=True, help="Let extends, include and env_file leave the project.")
@click.option("--one-network", is_flag=True, help="One bridge for the project, on which each pod knows all names.")
@_output
@_force
@_strict
def compose(
    files: Sequence[str],
    more: Sequence[str],
    project: str,
    profiles: Sequence[str],
    env_files: Sequence[str],
    images: Sequence[str],
    outside: bool,
    one_network: bool,
    output: str | None,
    force: bool,
    strict: bool,
) -> None:
    """Convert a compose project: one pod for each service; a later FILE overrides the ones before."""
    from podrun.convert import compose as front

    asked = front.Asked([*more, *files], os.environ, project, profiles, env_files, outside, one_network)
    _finished(front.convert(asked, _pairs(images, "--image")), output, force, strict)


@group.command(cls=Guarded)
@click.argument("paths", nargs=-1, required=True, metavar="FILE|DIR...", type=click.Path())
@_output
@_force
@_strict
def quadlet(paths: Sequence[str], output: str | None, force: bool, strict: bool) -> None:
    """Convert Quadlet units: .container, .pod, .kube, .volume, .network, .image, with their drop-ins."""
    from podrun.convert import quadlet as front

    _finished(front.convert(paths, os.environ), output, force, strict)


@group.command(cls=Guarded)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@_output
@_force
@_strict
def kube(files: Sequence[str], output: str | None, force: bool, strict: bool) -> None:
    """Convert Kubernetes manifests: pods, and what holds a pod's template."""
    from podrun.convert import kube as front

    _finished(front.convert(files), output, force, strict)


@group.command(cls=Guarded, context_settings={"allow_interspersed_args": False})
@click.argument("words", nargs=-1, metavar="[docker run ...]", type=click.UNPROCESSED)
@click.option("--name", default="", metavar="NAME", help="The pod's name; default: --name, else the image's.")
@_output
@_force
@_strict
def run(words: Sequence[str], name: str, output: str | None, force: bool, strict: bool) -> None:
    """Convert a `docker run` or `podman run` command line: its words, one text, or "-" for standard input."""
    from podrun.convert import commandline, inputs

    if not words or list(words) == ["-"]:
        words = [inputs.plain(sys.stdin.read(inputs.LIMIT), "standard input")]
        if not words[0].strip():
            raise Failure("there is no command line on standard input", code=WRONG_FILE)
    for word in words:
        inputs.plain(word, "the command line")
    _finished(commandline.convert(words, os.environ, name=name), output, force, strict)
