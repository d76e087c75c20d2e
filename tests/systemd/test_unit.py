"""The units of a pod file, as text: what depends on which key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import Failure
from podrun.options import Wrong
from podrun.systemd import generator, syntax
from podrun.systemd import units as unit

CONTAINER = '[[chain]]\nhook = "container"\ncommand = ["true"]\n'


def units(tmp_path: Path, text: str, name: str = "web") -> dict[str, str]:
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    path.chmod(0o644)
    return unit.units(unit.read(str(path), strictly=False), unit.Command("/opt/podrun"))


def settings(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (CONTAINER, ["web.service"]),
        (CONTAINER + CONTAINER + 'name = "b"\n', ["web.b.service", "web.main.service", "web.service"]),
        ('[[chain]]\nhook = "network"\n', ["web.service"]),
        (CONTAINER + "[socket]\nListenStream = 80\n", ["web.service", "web.socket"]),
        ('[pod]\npull_unit = true\n[[chain]]\nhook = "image"\nref = "r.example/x"\n' + CONTAINER, ["web.pull.service", "web.service"]),
        ('[pod]\nname = "other"\n' + CONTAINER, ["other.service"]),
        (CONTAINER + "[[socket]]\nListenStream = 80\n", ["web.service", "web.socket"]),
        (CONTAINER + '[[socket]]\nFileDescriptorName = "a"\n[[socket]]\nFileDescriptorName = "b"\n', ["web.a.socket", "web.b.socket", "web.service"]),
    ],
)  # fmt: skip
def test_which_units_a_pod_has(tmp_path: Path, text: Any, names: Any) -> None:
    assert sorted(units(tmp_path, text)) == names


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        (CONTAINER, "60s", "35s"),
        ('[pod]\nstop_timeout = "1min 5s"\n' + CONTAINER, "60s", "80s"),
        (CONTAINER + 'stop_timeout = 3\nready = { tcp = ":80", timeout = "2min" }\n', "180s", "18s"),
        (CONTAINER + 'ready = { tcp = ":80" }\n[[chain]]\nhook = "register"\ndrain = "7s"\n', "90s", "42s"),
        # A swap is a start and a stop, with the time that the old generation may drain.
        ('[pod]\nreload = "swap"\ndrain = "30s"\n' + CONTAINER + 'ready = { tcp = ":80" }\n', "155s", "65s"),
        (CONTAINER + 'stop_timeout = "infinity"\n', "60s", "infinity"),
        (CONTAINER + 'stop_timeout = "${LATER}"\n', "60s", "35s"),
    ],
)
def test_the_time_outs_are_computed(tmp_path: Path, text: Any, start: str, stop: str) -> None:
    made = units(tmp_path, text)["web.service"]
    assert settings(made, "TimeoutStartSec") == [start]
    assert settings(made, "TimeoutStopSec") == [stop]


def test_several_sockets_are_units_each_and_go_to_one_service(tmp_path: Path) -> None:
    sockets = '[[socket]]\nFileDescriptorName = "a"\nListenStream = 80\n[[socket]]\nFileDescriptorName = "b"\n'
    made = units(tmp_path, CONTAINER + sockets)
    assert settings(made["web.service"], "Sockets") == ["web.a.socket web.b.socket"]
    assert settings(made["web.b.socket"], "Service") == ["web.service"]
    made = units(tmp_path, CONTAINER + CONTAINER + 'name = "side"\n' + sockets, "web@")
    assert settings(made["web.main@.service"], "Sockets") == ["web.a@%i.socket web.b@%i.socket"]
    assert settings(made["web.side@.service"], "Sockets") == settings(made["web@.service"], "Sockets") == []
    assert settings(made["web.a@.socket"], "Service") == ["web.main@%i.service"]


def test_a_drop_in_changes_a_socket_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "web.toml.d").mkdir()
    (tmp_path / "web.toml.d/10.toml").write_text('[[socket]]\nFileDescriptorName = "b"\nListenStream = 81\n')
    sockets = '[[socket]]\nFileDescriptorName = "a"\nListenStream = 80\n[[socket]]\nFileDescriptorName = "b"\n'
    made = units(tmp_path, CONTAINER + sockets)
    assert [settings(made[f"web.{name}.socket"], "ListenStream") for name in "ab"] == [["80"], ["81"]]


@pytest.mark.parametrize(
    ("live", "watchdog"),
    [
        ('{ tcp = ":80" }', "30s"),
        ('{ tcp = ":80", interval = "1min", timeout = 2, retries = 5 }', "124s"),
        ('{ exec = ["true"], interval = "${LATER}" }', "30s"),
    ],
)
def test_a_live_probe_makes_the_unit_ask_for_its_word(tmp_path: Path, live: str, watchdog: str) -> None:
    made = units(tmp_path, CONTAINER + f"live = {live}\n")["web.service"]
    assert (settings(made, "WatchdogSec"), settings(made, "WatchdogSignal")) == ([watchdog], ["SIGKILL"])
    assert settings(units(tmp_path, CONTAINER)["web.service"], "WatchdogSec") == []
    job = units(tmp_path, f'[pod]\ntype = "job"\n{CONTAINER}live = {live}\n')["web.service"]
    assert settings(job, "WatchdogSec") == [], "podrun stays, and nobody speaks for it"


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("/etc/podrun/web.toml", "/etc/podrun/web.toml"),
        ("a b", '"a b"'),
        ("100%", "100%%"),
        ("$HOME", '"$$HOME"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("", '""'),
    ],
)
def test_words_are_quoted_for_exec_settings(word: str, quoted: str) -> None:
    assert syntax.quoted(word) == quoted


def test_a_setting_of_the_pod_file_takes_the_place_of_podruns(tmp_path: Path) -> None:
    made = units(
        tmp_path, CONTAINER + '[service]\nOOMPolicy = "continue"\nEnvironment = ["A=1", "B=2"]\nPrivateTmp = false\n'
    )
    assert settings(made["web.service"], "OOMPolicy") == ["continue"]
    assert settings(made["web.service"], "Environment") == ["A=1", "B=2"]
    assert settings(made["web.service"], "PrivateTmp") == ["no"]


def test_dependencies_are_added_to_podruns(tmp_path: Path) -> None:
    made = units(tmp_path, CONTAINER + '[unit]\nAfter = "db.service"\n')["web.service"]
    assert settings(made, "After") == ["network-online.target podrun-gc.service", "db.service"]


def test_restart_goes_to_the_containers_and_install_to_the_pod(tmp_path: Path) -> None:
    tables = '[service]\nRestart = "always"\nEnvironment = "A=1"\n[install]\nWantedBy = "multi-user.target"\n'
    made = units(tmp_path, CONTAINER + CONTAINER + 'name = "b"\n' + tables)
    assert [settings(made[name], "Restart") for name in ("web.service", "web.main.service", "web.b.service")] == [
        [], ["always"], ["always"],
    ]  # fmt: skip
    assert [settings(made[name], "Environment") for name in made] == [["A=1"]] * 3
    assert [name for name in made if syntax.links(name, made[name])] == ["web.service"]


def test_the_bounding_set_grows_by_what_the_containers_add(tmp_path: Path) -> None:
    assert "CAP_SYS_TIME" not in settings(units(tmp_path, CONTAINER)["web.service"], "CapabilityBoundingSet")[0]
    made = units(tmp_path, CONTAINER + 'cap_add = ["sys_time"]\n')["web.service"]
    assert "CAP_SYS_TIME" in settings(made, "CapabilityBoundingSet")[0].split()
    made = units(tmp_path, CONTAINER + 'capabilities = { add = ["ALL"] }\n')["web.service"]
    assert settings(made, "CapabilityBoundingSet") == []


def test_drop_ins_change_the_units_as_they_change_the_pod(tmp_path: Path) -> None:
    beside = tmp_path / "web.toml.d"
    beside.mkdir()
    (beside / "10.toml").write_text(
        '[pod]\nstop_timeout = 5\n[service]\nRestart = "no"\n[[chain]]\nhook = "container"\nname = "side"\nbefore = "main"\n'
    )
    made = units(tmp_path, CONTAINER + '[service]\nRestart = "always"\n')
    assert settings(made["web.service"], "Wants")[-1] == "web.side.service web.main.service"
    assert settings(made["web.main.service"], "Restart") == ["no"]
    assert settings(made["web.main.service"], "TimeoutStopSec") == ["20s"]


def test_a_templates_units_are_templates(tmp_path: Path) -> None:
    made = units(tmp_path, CONTAINER + CONTAINER + 'name = "b"\n', "web@")
    assert sorted(made) == ["web.b@.service", "web.main@.service", "web@.service"]
    assert settings(made["web.b@.service"], "BindsTo") == ["web@%i.service"]
    assert settings(made["web.b@.service"], "ExecStart") == [f"/opt/podrun up --segment b {tmp_path}/web@%i.toml"]
    assert settings(made["web.b@.service"], "ExecStopPost")[0].endswith("--segment b web@%i")


@pytest.mark.parametrize(
    "text",
    [
        "[pod]\nname = 3\n",
        "chain = 1",
        '[service]\n"Bad Key" = 1\n' + CONTAINER,
        "[[socket]]\n[[socket]]\n",
        "socket = 7",
        f'[pod]\non_failure = "stop"\n{CONTAINER}{CONTAINER}name = "stop"\n',
        f'[pod]\npull_unit = true\n[[chain]]\nhook = "image"\nref = "x"\n{CONTAINER}{CONTAINER}name = "pull"\n',
    ],
)
def test_what_cannot_be_a_unit_is_refused(tmp_path: Path, text: Any) -> None:
    with pytest.raises((Wrong, Failure)):
        units(tmp_path, text)


@pytest.mark.parametrize(
    ("given", "statuses"),
    [
        ("", "130 131 143"),
        ('stop_signal = "SIGUSR2"\n', "130 131 140 143"),
        ("stop_signal = 10\n", "130 131 138 143"),
        ('stop_signal = "SIGKILL"\n', "130 131 143"),
        ('stop_signal = "${SIGNAL}"\n', "130 131 143"),
    ],
)
def test_ending_on_the_stop_signal_is_success_and_being_killed_is_not(
    tmp_path: Path, given: str, statuses: str
) -> None:
    [text] = units(tmp_path, CONTAINER + given).values()
    assert settings(text, "SuccessExitStatus") == [statuses]


def test_what_copies_the_last_output_is_left_to_end(tmp_path: Path) -> None:
    for text in units(tmp_path, CONTAINER + CONTAINER + 'name = "b"\n').values():
        if "--segment pod" not in text:
            assert settings(text, "KillMode") == ["process"]
            assert settings(text, "SyslogLevelPrefix") == ["no"]


# --- services ------------------------------------------------------------------------------------------------------

REGISTER = '[[chain]]\nhook = "register"\nservice = "web"\nport = 80\n'
FOLLOWER = "podrun-follow.service"


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        (CONTAINER + REGISTER, False),
        (CONTAINER + REGISTER + 'registry = "file:/srv/registry"\n', False),
        (CONTAINER + REGISTER + 'registry = "etcd://10.0.0.1"\n', True),
        (CONTAINER + REGISTER + 'registry = { url = "consuls://10.0.0.1", user = "u" }\n', True),
        ('[[chain]]\nhook = "ambassador"\nregistry = "etcds://10.0.0.1"\n' + CONTAINER, True),
        (CONTAINER, False),
    ],
)
def test_the_follower_has_a_unit_where_a_pod_uses_a_registry_with_a_server(
    tmp_path: Path, text: Any, follows: bool
) -> None:
    made = units(tmp_path, text)
    assert (FOLLOWER in made) is follows
    assert (f"After=network-online.target {FOLLOWER} podrun-gc.service" in made["web.service"].splitlines()) is follows
    if follows:
        assert {"ExecStart=/opt/podrun follow", "Restart=always"} <= {*made[FOLLOWER].splitlines()}


def test_the_hosts_default_registry_counts_and_files_that_are_no_pods_do_not(tmp_path: Path) -> None:
    etc, out = tmp_path / "etc", tmp_path / "out"
    etc.mkdir()
    out.mkdir()
    for name, text in {
        "web": CONTAINER + REGISTER,
        "db": CONTAINER + REGISTER,
        "podrun": '[defaults]\nregistry = "etcd://10.0.0.1"\n',
        "networks": "[networks.lan0]\nrouted = true\n",
        "registries": '[registry."docker.io"]\n',
    }.items():
        (etc / f"{name}.toml").write_text(text)
        (etc / f"{name}.toml").chmod(0o644)
    (tmp_path / "generator").write_text(generator.text("/opt/podrun", etc=str(etc)))
    done = subprocess.run([sys.executable, "-IS", tmp_path / "generator", out], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in out.glob("*.service")) == [
        "db.service",
        FOLLOWER,
        "podrun-gc.service",
        "web.service",
    ]


@pytest.mark.parametrize(
    ("via", "names"), [("nft", ["web.service"]), ("haproxy", ["web.db.service", "web.main.service", "web.service"])]
)
def test_an_ambassador_has_a_unit_of_its_own_only_where_it_leaves_a_process(
    tmp_path: Path, via: str, names: Any
) -> None:
    text = f'[[chain]]\nhook = "ambassador"\nname = "db"\nvia = "{via}"\n{CONTAINER}'
    assert sorted(units(tmp_path, text)) == names
