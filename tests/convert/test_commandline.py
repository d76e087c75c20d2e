"""A command line of docker or podman becomes a pod file."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from podrun.convert.options import OPTIONS
from podrun.launcher.arguments import COMMANDS
from support.launcher import Podrun

#: The options, the step where they are found, and what is there.
LINES = [
    ("-p 80:80 -p127.0.0.1:81:81 --publish=82:82/UDP", "network", {"publish": ["0.0.0.0:80:80", "127.0.0.1:81:81", "0.0.0.0:82:82/udp"]}),
    ("-p localhost:8080:80", "network", {"publish": ["127.0.0.1:8080:80"]}),
    ("-e A=1 --env B='2 3' -eC=4", "container", {"env": {"A": "1", "B": "2 3", "C": "4"}}),
    ("-e HOME", "container", {"env": {"HOME": "${HOME}"}}),
    ("-e 'A=${X} 5$'", "container", {"env": {"A": "$${X} 5$"}}),
    ("-v /etc:/e:ro -v data:/d -v /own", "container", {"volumes": ["/etc:/e:ro", "data:/d", "/own"]}),
    ("--mount type=bind,source=/etc,target=/e,readonly", "container", {"volumes": ["/etc:/e:ro"]}),
    ("--mount 'type=bind,source=/etc,\"target=/e,e\"'", "storage", {"source": "/etc"}),
    ("--network host", "network", {"mode": "host"}),
    ("--net container:db", "network", {"mode": "pod:db"}),
    ("--network cni:lan --tz UTC", "network", {"mode": "cni:lan"}),
    ("--network macvlan:eth0", "network", {"mode": "macvlan:eth0"}),
    ("--network netns:/run/netns/x", "network", {"mode": "netns:/run/netns/x"}),
    ("--network lan --network other", "network", {"bridge": "lan"}),
    ("-h front --dns 9.9.9.9 --ip 10.9.0.2 --mac-address 02:00:00:00:00:01", "network", {"hostname": "front", "dns": ["9.9.9.9"], "address": "10.9.0.2", "mac": "02:00:00:00:00:01"}),
    ("-u 1000:1000 -w /app --entrypoint /x", "container", {"user": "1000:1000", "workdir": "/app", "entrypoint": ["/x"]}),
    ("--log-driver none --log-driver journald", "container", {"log": None}),
    ("--cpu-quota 50000", "container", {"cpus": 0.5}),
    ("--cpu-period 50000 --cpu-quota 75000", "container", {"cpus": 1.5}),
    ("-m 64mb --cpus=1.5 --pids-limit 100", "container", {"memory": "64M", "cpus": 1.5, "pids": 100}),
    ("--cap-add A,B --cap-drop ALL", "container", {"cap_drop": ["ALL"]}),
    ("--read-only=true --init=false", "container", {"read_only": True, "init": None}),
    ("--health-cmd 'curl -f x' --health-retries 2", "container", {"live": {"exec": ["/bin/sh", "-c", "curl -f x"], "interval": "30s", "timeout": "30s", "retries": 2}}),
    ("--platform linux/arm64 --pull always", "image", {"platform": "linux/arm64", "pull": "always"}),
    ("--log-driver none --rm -di", "container", {"interactive": True}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "hook", "found"), LINES, ids=[line[0] for line in LINES])
def test_an_option_becomes_the_key_that_means_the_same(convert: Any, options: Any, hook: Any, found: Any) -> None:
    done = convert("run", f"docker run --name web {options} nginx:1.27 nginx -g 'daemon off;'")
    assert done.code == 0, done.told
    step = done.step("web", hook)
    assert {key: step.get(key) for key in found} == found
    assert done.step("web")["command"] == ["nginx", "-g", "daemon off;"]


@pytest.mark.parametrize(
    "words",
    [
        ["docker", "run", "--name", "web", "nginx:1.27", "-x"],
        ["podman", "container", "create", "--name=web", "nginx:1.27", "-x"],
        ["sudo docker run \\\n  --name web \\\n  nginx:1.27 -x  # a comment"],
        ["DOCKER_HOST=unix:///x /usr/bin/docker run --name web nginx:1.27 -x"],
        ["--name", "given", "docker", "run", "--name", "web", "nginx:1.27", "-x"],
    ],
)
def test_a_command_line_is_its_words_or_one_text_as_in_a_script(convert: Any, words: Any) -> None:
    done = convert("run", *words)
    name = "given" if words[0] == "--name" else "web"
    assert done.step(name, "image")["ref"] == "nginx:1.27", done.told
    assert done.step(name)["command"] == ["-x"]


def test_a_command_line_may_come_from_standard_input(convert: Any) -> None:
    assert convert("run", "-", stdin="docker run registry.example:5000/team/Web_App:1\n").files.keys() == {
        "web-app.toml"
    }


def test_a_restart_policy_is_systemd_s(convert: Any) -> None:
    done = convert("run", "docker", "run", "--restart", "on-failure:3", "a")
    assert done.files["a.toml"]["service"] == {"Restart": "on-failure"}
    assert done.files["a.toml"]["unit"]["StartLimitBurst"] == 4


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("docker ps", "`run`"),
        ("docker run --name web", "no image"),
        ("docker run --frobnicate a", "--frobnicate"),
        ("docker run -Z a", "-Z"),
        ("docker run -p", "takes a value"),
        ("docker run 'a", "split"),
        (" ", "no command line"),
    ],
)
def test_what_is_no_run_is_refused(convert: Any, line: str, word: str) -> None:
    done = convert("run", "-", stdin=line)
    assert done.code == 78, done.told
    assert word in done.told[-1]


def test_an_option_without_an_equivalent_is_told_with_its_name(convert: Any) -> None:
    done = convert("run", "docker run -t --gpus all --uts host --frobnicate=1 a")
    for option in ("-t", "--uts", "--frobnicate"):
        assert done.notes("by hand", f"{option}:"), done.told


def test_every_option_of_podrun_run_is_known() -> None:
    """What podrun's own ``run`` takes in docker's spelling, the converter takes too."""
    own = {"save"}
    names = {name[2:] for flag in COMMANDS["run"].flags for name in flag.names if name.startswith("--")}
    assert names - own <= OPTIONS.keys()


@pytest.mark.parametrize(
    "options",
    [
        ["-p", "127.0.0.1:8080:80", "-e", "A=${B} c", "-v", "data:/d:ro", "-w", "/app", "-u", "1000"],
        ["--network", "host", "--read-only", "--init", "-m", "64M", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL"],
        ["--hostname", "front", "--pull", "always", "--entrypoint", "/x", "--restart", "always"],
    ],
)
def test_podrun_s_own_command_line_becomes_what_save_writes(convert: Any, podrun: Podrun, options: Any) -> None:
    saved = convert.directory / "saved.toml"
    line = ["run", "--name", "web", *options]
    assert podrun(*line[:1], "--save", str(saved), *line[1:], "registry.example/a", "x y").returncode == 0
    own = tomllib.loads(saved.read_text())
    done = convert("run", "podrun", *line, "registry.example/a", "x y")
    for hook in ("image", "network", "container"):
        step = {"mode": "bridge", **done.step("web", hook)} if hook == "network" else done.step("web", hook)
        assert step == next(step for step in own["chain"] if step["hook"] == hook)
    assert done.files["web.toml"].get("service") == own.get("service")
