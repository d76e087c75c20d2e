"""Who is not root: every command says so in one sentence, or works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from podrun.cli import main as cli
from support.launcher import Podrun

pytestmark = pytest.mark.root

#: Runs every command of the command line as nobody, each in a child; prints a line of JSON for each.
EVERY_COMMAND = """
import json, os, signal, sys, tempfile
import click
from podrun import __main__ as entry
from podrun.cli import main as cli

def leaves(command, words):
    if isinstance(command, click.Group):
        with click.Context(command) as ctx:
            for name in command.list_commands(ctx):
                yield from leaves(command.get_command(ctx, name), [*words, name])
    else:
        yield words, command

file, home = sys.argv[1:]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.environ["HOME"] = home
os.chdir("/")
WORDS = {"ref": "host:", "word": file, "shell": "bash", "language": "shell"}
for words, command in leaves(cli.podrun, []):
    argv = list(words)
    for given in command.params:
        if isinstance(given, click.Option) and given.required:
            argv += [given.opts[0], WORDS.get(given.name, "web")]
    argv += [WORDS.get(given.name, "web") for given in command.params if isinstance(given, click.Argument)]
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if not child:
            for fd in (1, 2):
                os.dup2(out.fileno(), fd)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.alarm(10)  # one that watches
            code = 125
            try:
                code = entry.run(argv)
            except SystemExit as ended:
                code = ended.code
            finally:
                sys.stdout.flush(); sys.stderr.flush()
                os._exit(code or 0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        print(json.dumps([argv, code, out.read()]))
"""


def test_every_command_says_so_in_one_sentence_or_works(podrun: Podrun, home: Path) -> None:
    podrun("run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", "host:", "sleep", "60", check=True)
    file = podrun.file(
        "web", 'chain = [ { hook = "image", ref = "host:" }, { hook = "container", command = ["true"] } ]'
    )
    home.chmod(0o755)
    (home / "web.toml").chmod(0o644)
    argv = [sys.executable, "-c", EVERY_COMMAND, file, str(home / "nobody")]
    try:
        done = subprocess.run(argv, env=podrun.environ, capture_output=True, text=True, timeout=120)
    finally:
        podrun("kill", "-s", "KILL", "web")
        podrun("down", "web", check=True)
    rows: list[Any] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 80, done.stderr
    for words, code, told in rows:
        assert "Traceback" not in told and "internal error" not in told, (words, told)
        if words[0] in cli.FOR_ANYBODY:
            assert code not in (125, 1), (words, code, told)
        else:
            assert (code, told.count("podrun needs root: "), told.count("\n")) == (77, 1, 1), (words, code, told)
