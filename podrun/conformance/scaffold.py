"""What ``podrun hook new`` writes: a hook that does something small and whole, and the test that goes with it."""

from __future__ import annotations

import os
import sys
from keyword import iskeyword

from podrun.engine.hook_loader import FIRST_PARTY
from podrun.errors import CANNOT_CREATE, WRONG_FILE, Failure

_SHELL = """\
#!/bin/sh
# NAME: gives the containers after it a file, /run/NAME, with a greeting.
#
#   [[chain]]
#   hook = "exec:/etc/podrun/hooks.d/NAME"
#   greeting = "hello"                      # default: hello
#
# The contract is in docs/reference/hooks.md: facts go to standard output, the log to standard error.
set -eu

file=$PODRUN_DIRECTORY/NAME-$PODRUN_STEP # a name of the pod's own: down finds it whatever happened to up

[ "$PODRUN_HOOK_VERSION" = 1 ] || {
    echo '{"error": "NAME knows version 1 of the contract only", "hint": "update it"}'
    exit 78
}

case $PODRUN_VERB in
up)
    echo "writing $file" >&2
    echo "${PODRUN_OPTION_GREETING:-hello}" >"$file"
    cat <<END
{"mounts": [{"hostPath": "$file", "containerPath": "/run/NAME", "type": "bind", "options": ["ro", "bind"]}]}
END
    ;;
down)
    rm -f "$file"
    ;;
check)
    [ -n "${PODRUN_OPTION_GREETING-hello}" ] || echo '{"problems": ["the greeting is empty"]}'
    ;;
describe)
    cat <<'END'
{"doc": "gives the containers after it a file with a greeting",
 "takes": [], "gives": ["mounts"],
 "options": {"type": "object", "additionalProperties": false,
  "properties": {"greeting": {"type": "string", "default": "hello", "description": "what the file says"}}}}
END
    ;;
esac
"""

_SHELL_TEST = """\
#!/bin/sh
# Tests NAME: ./NAME.test
set -eu
here=$(cd "$(dirname "$0")" && pwd)

podrun hook test "$here/NAME" --option greeting=moin

# Once in a whole pod.
cat >"$here/NAME.toml" <<END
[pod]
name = "DASHED-test"

[[chain]]
hook = "image"
ref = "host:"

[[chain]]
hook = "exec:$here/NAME"
greeting = "moin"

[[chain]]
hook = "container"
command = ["cat", "/run/NAME"]
END
said=$(podrun up "$here/NAME.toml")
[ "$said" = moin ] || { echo "the container read '$said'" >&2; exit 1; }
echo "NAME: ok"
"""

_PYTHON = '''\
"""Gives the containers after it a file with a greeting."""

from __future__ import annotations

import os

from podrun.hook import TEXT, Problem, option
from podrun.record import NamedTuple

takes = ()
gives = ("mounts",)
resident = False
default_name = ""


class Options(NamedTuple):
    """What the file says, and where."""

    greeting: str = option(TEXT, "what the file says", "hello")
    target: str = option(TEXT, "where the containers see it", "/run/NAME")


def up(step, facts):
    """Writes the file."""
    step.status("writing the greeting")
    with open(_file(step), "w", encoding="utf-8") as file:
        file.write(f"{step.options.greeting}\\n")
    target = step.options.target
    return {"mounts": [{"hostPath": _file(step), "containerPath": target, "type": "bind", "options": ["ro", "bind"]}]}


def down(step, own):
    """Removes it; it may be gone, and ``own`` is {} when up was killed."""
    try:
        os.unlink(_file(step))
    except FileNotFoundError:
        pass


def check(step):
    """Says what would go wrong, without doing anything."""
    if not step.options.greeting:
        return [Problem("the greeting is empty", fatal=False)]
    return []


def _file(step):
    return f"{step.pod.directory}/NAME-{step.name}"
'''

_PYTHON_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "podrun-NAME"
version = "0.1.0"
description = "A hook for podrun"
requires-python = ">=3.11"
dependencies = ["podrun"]

[project.entry-points."podrun.hooks"]
NAME = "MODULE"

[tool.hatch.build.targets.wheel]
include = ["MODULE.py"]
"""

_PYTHON_TEST = '''\
"""Tests of the hook NAME: python -m unittest, after it has been installed."""

import subprocess
import tempfile
import unittest
from pathlib import Path

import MODULE

from podrun.hook import Pod, Step, read


class Test(unittest.TestCase):
    def test_the_file_says_what_the_option_says(self):
        with tempfile.TemporaryDirectory() as home:
            pod = Pod("web", f"{home}/root", home)
            Path(pod.directory).mkdir(parents=True)
            step = Step(pod, "NAME", "NAME", read(MODULE.Options, {"greeting": "moin"}))
            [mount] = MODULE.up(step, {})["mounts"]
            self.assertEqual(Path(mount["hostPath"]).read_text(), "moin\\n")
            MODULE.down(step, {})
            self.assertFalse(Path(mount["hostPath"]).exists())

    def test_it_keeps_the_contract(self):
        done = subprocess.run(["podrun", "hook", "test", "NAME"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
'''

#: Modules that the skeleton itself imports.
_TAKEN = ("podrun",)
_FILES = {
    "shell": (("NAME", _SHELL, 0o755), ("NAME.test", _SHELL_TEST, 0o755)),
    "python": (
        ("pyproject.toml", _PYTHON_PROJECT, 0o644),
        ("MODULE.py", _PYTHON, 0o644),
        ("test_MODULE.py", _PYTHON_TEST, 0o644),
    ),
}


def write(name: str, language: str) -> list[str]:
    """Writes the skeleton of a hook into a new directory ``name``; returns the paths. Raises Failure."""
    words = name.replace("_", "-").split("-")
    plain = all(word.isalnum() and word.isascii() for word in words) and name[0].isalpha() and name == name.lower()
    if not plain or len(name) > 50:
        hint = "at most 50 letters a-z and digits, words joined by - or _"
        raise Failure(f"{name!r} is not a name for a hook", code=WRONG_FILE, hint=hint)
    if name in FIRST_PARTY:
        raise Failure(f"{name} is a hook of podrun's own, which is found first", code=WRONG_FILE)
    if language == "python" and (name in sys.stdlib_module_names or iskeyword(name) or name in _TAKEN):
        raise Failure(f"a Python module cannot be called {name}", code=WRONG_FILE, hint=f"call it {name}-hook")
    try:
        os.mkdir(name)
    except FileExistsError:
        raise Failure(f"there is a {name} already", code=CANNOT_CREATE) from None
    paths = []
    for file, text, mode in _FILES[language]:
        path, content = (_filled(part, name) for part in (file, text))
        path = f"{name}/{path}"
        with open(path, "w", encoding="utf-8") as out:
            out.write(content)
        os.chmod(path, mode)
        paths.append(path)
    return paths


def _filled(text: str, name: str) -> str:
    """A text of the skeleton for a hook: a Python module has no -, a pod no _ in its name."""
    for word, value in (("NAME", name), ("MODULE", name.replace("-", "_")), ("DASHED", name.replace("_", "-"))):
        text = text.replace(word, value)
    return text
