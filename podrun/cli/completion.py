"""What a shell needs to complete podrun's command line, and what each word may be completed to."""

from __future__ import annotations

import os
from collections.abc import Iterable

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ZshComplete

from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.host import ROOT, RUN
from podrun.systemd.following import NO_PODS

_KINDS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
SHELLS = tuple(_KINDS)
#: The variable in which a shell asks; click derives the same name from that of the program.
_VARIABLE = "_PODRUN_COMPLETE"
_ETC = "/etc/podrun"


def script(command: click.Command, shell: str) -> str:
    """What ``shell`` has to evaluate."""
    return _KINDS[shell](command, {}, "podrun", _VARIABLE).source()


def words(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes FILE|NAME: the pods that there are, those that have a file, and paths once there is a slash."""
    if "/" in begun or begun.startswith("."):
        return [CompletionItem(begun, type="file")]
    return _beginning({*journals.pods(_run(ctx)), *_with_a_file()}, begun)


def images(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes the name of an image in the store; docker's own without its registry, too."""
    names = hook_loader.part("image", "commands").names(_root(ctx))
    return _beginning({*names, *(name.removeprefix("docker.io/library/") for name in names)}, begun)


def volumes(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes the name of a volume."""
    return _beginning(hook_loader.part("storage", "volumes").names(_root(ctx)), begun)


def networks(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes the name of a network."""
    return _beginning((row["name"] for row in hook_loader.part("network", "inspect").known(_run(ctx))), begun)


def hooks(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes the name of a hook, or a path."""
    if "/" in begun or begun.startswith("."):
        return [CompletionItem(begun, type="file")]
    return _beginning(hook_loader.names(), begun)


def containers(ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes the name of a container: of the pod that has been typed, else of any."""
    typed = ctx.params.get("word") or ctx.params.get("words") or ctx.params.get("name")
    pods = [typed] if isinstance(typed, str) else typed or journals.pods(_run(ctx))
    found = (journal for pod in pods for journal in journals.journals(_run(ctx), pod))
    return _beginning({e.step["name"] for journal in found for e in journal.entries if "process" in e.facts}, begun)


def _beginning(names: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(begun)]


def _run(ctx: click.Context) -> str:
    return ctx.find_root().params.get("run") or os.environ.get("PODRUN_RUN") or RUN


def _root(ctx: click.Context) -> str:
    return ctx.find_root().params.get("root") or os.environ.get("PODRUN_ROOT") or ROOT


def _with_a_file() -> set[str]:
    try:
        files = os.listdir(_ETC)
    except OSError:
        return set()
    pods = (name for name in files if name.endswith(".toml") and name not in NO_PODS)
    return {name[:-5] for name in pods if not name.endswith("@.toml")}
