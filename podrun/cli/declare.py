"""How commands are declared: a function that takes the Host first, its options, and those that many have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from podrun.cli import completion
from podrun.cli.output import Switches
from podrun.launcher.commands import guarded, host_of

#: All commands that have been declared, for the group.
DECLARED: list[click.Command] = []


def command(*parameters: click.Parameter) -> Callable[[Callable[..., int | None]], click.Command]:
    """Declares a command whose function takes the Host first and returns an exit code (None: 0)."""

    def declare(function: Callable[..., int | None]) -> click.Command:
        @click.pass_context
        def callback(ctx: click.Context, /, **given: Any) -> None:
            whole = {**ctx.obj, **given}
            ctx.exit(guarded(lambda: function(host_of(whole), **given), whole))

        name = function.__name__.strip("_")
        made = Switches(name, callback=callback, params=list(parameters), help=function.__doc__)
        DECLARED.append(made)
        return made

    return declare


WORD = click.Argument(["word"], metavar="FILE|NAME", shell_complete=completion.words)
FORMAT = click.Option(["--format", "form"], type=click.Choice(["table", "json"]), default="table", help="How to print.")
QUIET = click.Option(["-q", "--quiet"], is_flag=True, help="Names only.")
CONTAINER = click.Option(
    ["-c", "--container"],
    default="",
    metavar="NAME",
    help="Which container; default: the last.",
    shell_complete=completion.containers,
)
