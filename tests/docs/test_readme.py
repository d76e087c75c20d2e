"""Every command of the README does what the README says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from podrun.engine import hook_loader
from podrun.podfile import loader
from support.launcher import HERE, Podrun

README = (HERE.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.root
def test_the_commands_of_the_readme_work_in_their_order(podrun: Podrun, home: Path) -> None:
    [pod_file] = blocks("toml")
    (home / "web.toml").write_text(pod_file)
    (home / "bin").mkdir()
    command = home / "bin" / "podrun"
    command.write_text(f'#!/bin/sh\nexec {" ".join(podrun.argv())} "$@"\n')
    command.chmod(0o755)
    environ = {**podrun.environ, "PATH": f"{home}/bin:{os.environ['PATH']}"}
    seen = {}
    for block in blocks("console"):
        for line in block.splitlines():
            words = line.removeprefix("# ")
            if words.startswith("./dev"):
                continue  # that is what runs this test
            done = subprocess.run(
                ["sh", "-c", words], cwd=home, env=environ, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{words}: {done.stderr}"
            seen[words] = done.stdout
    assert "nothing wrong" in seen["podrun check ./web.toml"]
    assert "Directory listing" in seen["curl -s http://127.0.0.1:8080/"]
    assert seen["podrun exec web hostname"] == "web\n"
    assert seen["podrun run --rm -e GREETING=hello host: sh -c 'echo $GREETING'"] == "hello\n"


def test_the_pod_file_of_the_readme_is_right(tmp_path: Path) -> None:
    path = tmp_path / "web.toml"
    path.write_text(blocks("toml")[0])
    path.chmod(0o644)
    assert [step.hook for step in loader.load(str(path), environ={}, load_hook=hook_loader.load).steps] == [
        "image", "storage", "network", "container", "register",
    ]  # fmt: skip


def test_the_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 5
    for target in targets:
        assert (HERE.parent / target).exists(), target
