"""docs/tutorials/writing-a-hook.md followed to the letter: every file is written, every command run, every output compared.

PODRUN_TRANSCRIPT=FILE writes down what a reader would have seen.
"""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.launcher import HERE, Podrun

PAGE = (HERE.parent / "docs" / "tutorials" / "writing-a-hook.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[tuple[str, list[str]]]:
    """(command, what it has to print) of a console block."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("# "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def fits(output: str, expected: list[str]) -> bool:
    """``...`` stands for any text in a line, and alone for any lines."""
    pattern = "".join(f"{line}\n" for line in expected)
    escaped = re.escape(pattern).replace(re.escape("..."), "\0")
    escaped = re.sub("(?m)^\0$\n?", "(?:.*\n)*", escaped.replace("\\\n", "\n")).replace("\0", ".*")
    return re.fullmatch(escaped, output) is not None


def tools(podrun: Podrun, home: Path) -> dict[str, str]:
    """An environment in which podrun, python3 and pip are those of this test, and packages go into a directory."""
    (home / "bin").mkdir()
    site = home / "site"
    for name, line in {
        "podrun": f"exec {' '.join(podrun.argv())}",
        "python3": f"exec {sys.executable}",
        "pip": f'exec {sys.executable} -m pip "$@" --target {site}',
    }.items():
        (home / "bin" / name).write_text(f"#!/bin/sh\n{line}" + ("" if "$@" in line else ' "$@"') + "\n")
        (home / "bin" / name).chmod(0o755)
    return {
        **podrun.environ,
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": f"{podrun.environ['PYTHONPATH']}:{site}",
        "PYTHONDONTWRITEBYTECODE": "",
    }


@pytest.mark.root
@pytest.mark.server  # pip fetches the build backend
def test_writing_a_hook_works_as_it_is_written(podrun: Podrun, home: Path) -> None:
    environ = tools(podrun, home)
    place = home / "work"
    place.mkdir()
    seen = []
    for language, file, text in BLOCKS:
        if file:
            (place / file).parent.mkdir(exist_ok=True)
            (place / file).write_text(text)
            seen.append(f"[{file} is written]\n")
            continue
        assert language == "console", f"what is to be done with {text!r}?"
        for command, expected in commands(text):
            done = subprocess.run(
                ["sh", "-c", f"{command}\nstatus=$?\nexport -p >{home}/exported\nexit $status"],
                cwd=place, env=environ, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            seen.append(f"# {command}\n{done.stdout}{done.stderr}")
            assert done.returncode == 0, "".join(seen)
            assert fits(done.stdout, expected), f"{seen[-1]}\nis not what the page says:\n" + "\n".join(expected)
            exported = re.search(r"PODRUN_HOOKS='([^']*)'", (home / "exported").read_text())
            environ |= {"PODRUN_HOOKS": exported[1]} if exported else {}
    if "PODRUN_TRANSCRIPT" in os.environ:
        with open(os.environ["PODRUN_TRANSCRIPT"], "w") as out:
            out.write("".join(seen))


@pytest.mark.root
@pytest.mark.parametrize("language", ["shell", "python"])
def test_what_new_writes_passes_its_own_test(podrun: Podrun, home: Path, language: str) -> None:
    environ = tools(podrun, home)
    subprocess.run(["podrun", "hook", "new", "--language", language, "greet-all"], cwd=home, env=environ, check=True)
    if language == "python":
        # What pip would write, without the build.
        metadata = home / "site" / "podrun_greet_all-0.1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: podrun-greet-all\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text("[podrun.hooks]\ngreet-all = greet_all\n")
        environ["PYTHONPATH"] += f":{home / 'greet-all'}"
    argv = {"shell": ["./greet-all.test"], "python": [sys.executable, "-m", "unittest"]}[language]
    done = subprocess.run(argv, cwd=home / "greet-all", env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contract_names_every_row_of_the_kit_and_every_variable() -> None:
    text = (HERE.parent / "docs" / "reference" / "hooks.md").read_text()
    kit = (HERE.parent / "podrun" / "conformance" / "kit.py").read_text()
    rows = re.findall(r'^            \("([^"]+)", ', kit, re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        assert row.replace(" in down", "") in text or fnmatch.filter([text], f"*{row}*"), row
    command = (HERE.parent / "hooks" / "podrun_hooks" / "executable" / "hook.py").read_text()
    variables = re.findall(r'"(PODRUN_[A-Z_]+)"', command)
    assert "PODRUN_VERB" in variables
    for variable in variables:
        assert f"`{variable}`" in text, variable


@pytest.mark.parametrize(
    ("language", "name"),
    [("shell", name) for name in ("", "a/b", "../x", "A", "a b", "\u00e4", "1a", "_a", "a-", "a--b", "a\nb", "image", "a" * 51)]
    + [("python", name) for name in ("json", "class", "podrun", "oci-hooks")],
)  # fmt: skip
def test_new_refuses_a_name_under_which_a_hook_would_not_work(
    podrun: Podrun, home: Path, language: Any, name: Any
) -> None:
    done = subprocess.run(
        podrun.argv("hook", "new", "--language", language, "--", name), cwd=home, env=podrun.environ, capture_output=True, text=True
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert list(home.iterdir()) == []


@pytest.mark.root
def test_a_name_with_an_underscore_works_as_well(podrun: Podrun, home: Path) -> None:
    environ = tools(podrun, home)
    subprocess.run(["podrun", "hook", "new", "--language", "shell", "greet_all"], cwd=home, env=environ, check=True)
    done = subprocess.run(["./greet_all.test"], cwd=home / "greet_all", env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
