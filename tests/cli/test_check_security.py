"""``podrun check --security``: what counts as given away, what it weighs, and the figure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from podrun.cli import security
from podrun.engine import hook_loader
from podrun.hook import Pod
from podrun.hook_extras import Exposes, Exposure
from podrun.podfile import loader
from podrun_hooks.storage import exposure

CAREFUL = {"user": "1000", "cap_drop": ["ALL"], "read_only": True, "memory": "64M", "apparmor": "own", "command": ["x"]}


def found(container: dict[str, Any], *more: dict[str, Any], userns: str = "auto") -> list[str]:
    steps = [{"hook": "image", "ref": "host:"}, *more, {"hook": "container", **container}]
    tables = {"pod": {"name": "web", "userns": userns}, "chain": steps}
    text = loader.from_tables(tables, load_hook=hook_loader.load)
    pod = Pod("web", "/nowhere/root", "/nowhere/run", userns=text.userns)
    return [exposed.what for _, exposed in security.exposures(text, pod)]


def test_a_careful_pod_gives_away_nothing() -> None:
    assert found(CAREFUL) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"user": "root"}, "it runs as root"),
        ({"user": "0:0"}, "it runs as root"),
        ({"user": ""}, "the image's USER"),
        ({"cap_drop": []}, "keeps 13 capabilities"),
        ({"cap_add": ["SYS_ADMIN"]}, "SYS_ADMIN"),
        ({"capabilities": {"add": ["ALL"]}}, "ALL"),
        ({"cap_add": ["NET_ADMIN"]}, "more capabilities"),
        ({"seccomp": "unconfined"}, "every system call"),
        ({"nested_userns": True}, "user namespaces"),
        ({"no_new_privileges": False}, "setuid"),
        ({"unmask": ["ALL"]}, "/proc and /sys"),
        ({"devices": ["/dev/null"]}, "the host's /dev/null"),
        ({"volumes": ["/:/host:ro"]}, "the whole host"),
        ({"volumes": ["/etc:/etc/host"]}, "the host's /etc"),
        ({"volumes": ["/var/run/docker.sock:/s"]}, "root on the host"),
        ({"env": {"DB_PASSWORD": "x"}}, "DB_PASSWORD looks like a secret"),
        ({"env": {"github_token": "x"}}, "github_token looks like a secret"),
        ({"read_only": False}, "can be changed"),
        ({"memory": 0}, "host's memory"),
        ({"pids": -1}, "as many processes"),
        ({"apparmor": ""}, "no AppArmor"),
    ],
)
def test_each_thing_that_a_container_is_given_is_one_line(given: dict[str, Any], words: str) -> None:
    given = {key: value for key, value in {**CAREFUL, **given}.items() if value not in ("", 0) or value is False}
    lines = found(given)
    assert len(lines) == 1, lines
    assert words in lines[0]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"hook": "network", "mode": "host"}, "the host's network"),
        ({"hook": "network", "publish": ["0.0.0.0:80:80"]}, "port 80 is open"),
        ({"hook": "storage", "source": "/", "target": "/x"}, "the whole host"),
        ({"hook": "storage", "source": "file:", "content": "x", "target": "/x"}, "in the pod file"),
    ],
)
def test_so_is_what_other_steps_give(step: dict[str, Any], words: str) -> None:
    [line] = found(CAREFUL, step)
    assert words in line


@pytest.mark.parametrize(
    "step",
    [
        {"hook": "network", "publish": ["127.0.0.1:80:80"]},
        {"hook": "storage", "source": "volume:data", "target": "/x"},
        {"hook": "storage", "source": "/usr/share", "target": "/x", "options": ["ro"]},
    ],
)
def test_what_is_meant_to_be_given_is_no_line(step: dict[str, Any]) -> None:
    assert found(CAREFUL, step) == []


def test_a_hook_that_says_nothing_of_itself_is_named(home: Path) -> None:
    program = home / "metrics"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    [line] = found(CAREFUL, {"hook": f"exec:{program}"})
    assert "runs as root on the host" in line


def test_a_link_to_the_host_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    assert "the host's /etc" in [each.what for each in exposure.of_path(f"{tmp_path}/link", read_only=False)]


@pytest.mark.root
def test_a_directory_that_a_user_can_change_is_told_with_the_user(home: Path) -> None:
    (home / "theirs/data").mkdir(parents=True)
    os.chown(home / "theirs", 1000, 1000)
    [each] = exposure.of_path(f"{home}/theirs/data", read_only=True)
    assert "user 1000 of the host may put something else" in each.what


@pytest.mark.parametrize(
    ("weights", "total", "word"),
    [([], 0.0, "OK"), ([1.0, 1.0], 2.0, "OK"), ([2.5], 2.5, "MEDIUM"), ([5.0], 5.0, "EXPOSED"), ([8.0, 9.0], 10.0, "UNSAFE")],
)  # fmt: skip
def test_the_figure_is_the_sum_and_has_a_word(weights: list[float], total: float, word: str) -> None:
    assert security.figure([Exposure("", weight) for weight in weights]) == total
    assert security.word(total) == word


def test_a_user_namespace_of_its_own_makes_root_and_capabilities_lighter() -> None:
    def total(userns: str) -> float:
        steps = [
            {"hook": "image", "ref": "host:"},
            {"hook": "container", "user": "0", "cap_add": ["ALL"], "command": ["x"]},
        ]
        tables = {"pod": {"name": "web", "userns": userns}, "chain": steps}
        text = loader.from_tables(tables, load_hook=hook_loader.load)
        return security.figure([each for _, each in security.exposures(text, Pod("web", "/n", "/n", userns=userns))])

    assert total("auto") < total("host") - 3


def test_what_exposes_is_what_pods_are_given() -> None:
    assert {name for name, _ in hook_loader.offering(Exposes)} == {"storage", "network", "container"}


def test_the_command_prints_lines_and_the_figure_and_is_no_failure(podrun: Any) -> None:
    path = podrun.file(
        "web",
        'chain = [ { hook = "image", ref = "host:" }, { hook = "container", command = ["x"], volumes = ["/:/h"] } ]',
    )
    lines = podrun("check", "--security", path, check=True).stdout.splitlines()
    assert lines[0].split()[:3] == ["10.0", "container", "main:"]
    assert lines[-1] == "web: overall exposure 10.0 of 10: UNSAFE"
