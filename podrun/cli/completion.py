"""What a shell needs to complete podrun's command line, and the pods that a word may be completed to."""

from __future__ import annotations

import os

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ZshComplete

from podrun.engine import journal as journals
from podrun.host import RUN

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
    run = ctx.find_root().params.get("run") or os.environ.get("PODRUN_RUN") or RUN
    names = {*journals.pods(run), *_with_a_file()}
    return [CompletionItem(name) for name in sorted(names) if name.startswith(begun)]


def _with_a_file() -> set[str]:
    try:
        files = os.listdir(_ETC)
    except OSError:
        return set()
    return {name[:-5] for name in files if name.endswith(".toml") and not name.endswith("@.toml")}
