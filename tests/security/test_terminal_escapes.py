"""What others have said reaches the operator's terminal as text: no escape, no second line, no hidden letter."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

import podrun
from podrun.cli import output
from podrun.hook import Pod, Step
from podrun_hooks.executable import hook as executable
from support import image_builder as build
from support.launcher import Podrun

#: Clears the screen, sets the title, types into some terminals, turns the text around, starts anew.
TALK = "\x1b[2J\x1b]0;root\x07\x9b5n\u202e\r\x08\x7f"
CONTROL = set("\x1b\x07\x9b\u202e\r\x08\x7f")


def test_the_writer_of_commands_leaves_lines_and_tabs_alone_and_shows_the_rest() -> None:
    import click

    @click.command()
    def command() -> None:
        output.say(f"a\tb\nc{TALK}")
        output.printed([{"name": TALK, "more": ["x", TALK]}], "table")
        output.printed([{"name": TALK}], "json")

    said = CliRunner().invoke(command).output
    assert not CONTROL & set(said)
    assert said.startswith("a\tb\nc\\x1b[2J")
    assert len(said.splitlines()) == 5


def test_commands_print_by_the_one_writer() -> None:
    paths = sorted((Path(podrun.__file__).parent / "cli").glob("*.py"))
    assert "output.py" in [path.name for path in paths]
    for path in paths:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        echoes = [
            ast.unparse(call.func) for call in calls if ast.unparse(call.func) in ("click.echo", "click.secho", "print")
        ]
        assert len(echoes) == (1 if path.name == "output.py" else 0), path


def test_an_executables_log_is_text(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = home / "hook"
    script.write_text("#!/bin/sh\nprintf 'fine\\n\\033[2Jbad\\rworse\\n\\377\\n' >&2\necho '{}'\n")
    script.chmod(0o755)
    pod = Pod("web", f"{home}/root", f"{home}/run", tag="podrun-web")
    executable.up(Step(pod, f"exec:{script}", "hook", {}), {})
    told = capfd.readouterr().err
    assert told == "hook: fine\nhook: \\x1b[2Jbad\\rworse\nhook: \ufffd\n"


@pytest.mark.root
def test_an_images_own_words_are_text_in_every_command(podrun: Podrun) -> None:
    place = podrun.home / f"image{TALK}".replace("\r", "")
    layout = build.layout(str(place), {"web": build.image(build.tar(build.file("a")), Cmd=[TALK], Labels={TALK: TALK})})
    ref = f"oci:{layout}:web"
    for words in (
        ["image", "pull", ref], ["image", "ls"], ["image", "history", ref], ["image", "inspect", ref], ["run", "--rm", ref],
        ["image", "rm", ref], ["image", "pull", f"{ref}x"],
    ):  # fmt: skip
        done = podrun(*words)
        assert not CONTROL & set(done.stdout + done.stderr), words
    assert os.path.isdir(place)
