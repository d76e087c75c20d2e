"""What people write out of habit: several mistakes at once, words of other tools, settings that systemd does not know."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from podrun.convert.compose import service
from podrun.engine import hook_loader
from podrun.foreign_words import FOREIGN, OPTIONS
from podrun.options import Wrong
from podrun.podfile import unit_environment
from podrun.systemd import settings, syntax
from podrun.systemd import units as unit
from support.launcher import Podrun

CHAIN = '[[chain]]\nhook = "image"\nref = "host:"\n[[chain]]\nhook = "container"\ncommand = ["true"]\n'


def checked(podrun: Podrun, text: str, name: str = "web", **more: str) -> tuple[int, list[str]]:
    done = podrun("check", podrun.file(name, text), **more)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_each_mistake_has_a_line_and_all_are_told_at_once(podrun: Podrun) -> None:
    text = '[pod]\nstop_timeout = "soon"\nnmae = "x"\n' + CHAIN + 'memory = "lots"\nports = ["80"]\nuser = "a b"\n'
    code, lines = checked(podrun, text)
    assert code == 78
    for number, words in ((2, "stop_timeout"), (3, "nmae"), (10, "memory"), (11, "publish"), (12, "user")):
        assert [line for line in lines if f"web.toml:{number}: " in line and words in line], (number, lines)
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("ports", "publish"),
        ("environment", "env"),
        ("healthcheck", "live"),
        ("restart", "Restart"),
        ("depends_on", "after"),
    ],
)
def test_words_of_compose_and_docker_lead_to_podruns(podrun: Podrun, key: str, word: str) -> None:
    code, [line] = checked(podrun, f"{CHAIN}{key} = []\n")
    assert code == 78
    assert f"unknown key {key!r}; " in line
    assert word in line


@pytest.mark.parametrize(
    ("word", "converter"),
    [("compose.yaml", "compose"), ("docker-compose.yml", "compose"), ("web.container", "quadlet")],
)
def test_files_of_other_tools_are_told_who_reads_them(podrun: Podrun, word: str, converter: str) -> None:
    path = podrun.home / word
    path.write_text("services: {}\n")
    for command in ("up", "check", "plan"):
        done = podrun(command, str(path))
        assert done.returncode == 78
        assert f"'podrun convert {converter} {path}' makes pod files of it" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("table", "key", "steps"),
    [
        ("[pod]", "user", "container"),
        ("[pod]", "publish", "network"),
        ("[pod]", "hostname", "network and the container"),
        (f"{CHAIN}[[chain]]\nhook = 'network'", "ref", "image"),
    ],
)
def test_an_option_in_a_table_that_has_none_of_it_is_told_its_step(
    podrun: Podrun, table: str, key: str, steps: str
) -> None:
    code, lines = checked(podrun, f"{table}\n{key} = 'x'\n" + (CHAIN if table == "[pod]" else ""))
    assert code == 78
    assert any(line.endswith(f"unknown key {key!r}; it is an option of the {steps} step") for line in lines), lines


def test_an_inline_chain_below_pod_is_told_where_it_belongs(podrun: Podrun) -> None:
    code, lines = checked(podrun, '[pod]\nname = "web"\nchain = [ { hook = "image", ref = "host:" } ]\n')
    assert code == 78
    assert any("above [pod]" in line for line in lines), lines


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ('[unit]\nRequires = "db"\n', "'db.service'"),
        ('[service]\nrestart = "always"\n', "'Restart'"),
        ('[service]\nRestart = "sometimes"\n', "Restart"),
        ("[service]\nRestartSecs = 3\n", "RestartSec"),
        ('[service]\nWantedBy = "multi-user.target"\n', "[install]"),
        ('[service]\nRemainAfterExit = "maybe"\n', "yes or no"),
        ('[install]\nWantedBy = "multi-user"\n', "multi-user"),
    ],
)
def test_what_systemd_would_ignore_is_told_with_its_line(podrun: Podrun, sections: str, words: str) -> None:
    code, lines = checked(podrun, sections + CHAIN)
    [line] = lines
    assert code == 0
    assert "web.toml:2: [" in line
    assert ": warning: " in line
    assert words in line


def test_a_socket_for_each_connection_is_refused(podrun: Podrun) -> None:
    code, [line] = checked(podrun, f"{CHAIN}[socket]\nListenStream = 80\nAccept = true\n")
    assert code == 78
    assert "Accept" in line


def test_what_is_right_is_said_to_be(podrun: Podrun) -> None:
    text = f'[unit]\nAfter = ["db.service"]\n[service]\nRestart = "on-failure"\nRestartSec = "2s"\nNice = 3\n{CHAIN}'
    assert checked(podrun, text) == (0, ["web: 2 steps, nothing wrong"])


def test_every_setting_of_this_machines_systemd_is_known() -> None:
    done = subprocess.run(["/lib/systemd/systemd", "--dump-configuration-items"], capture_output=True, text=True)
    section, seen = "", 0
    for line in done.stdout.splitlines():
        if line.startswith("["):
            section = line.strip("[]").lower()
        key = line.partition("=")[0]
        if "=" in line and section in settings.KNOWN:
            assert key in settings.KNOWN[section], (section, key)
            seen += 1
    assert seen > 200


# --- variables -----------------------------------------------------------------------------------------------------


def test_a_variable_means_by_hand_what_it_means_in_the_unit(podrun: Podrun, tmp_path: Path) -> None:
    file = tmp_path / "environment"
    file.write_text('# comment\nTAG="1.4 x"\nPLAIN=a b\n')
    text = f'[service]\nEnvironment = ["A=1", "\\"B=two words\\" C=3"]\nEnvironmentFile = "-{file}"\n{CHAIN}'
    text = text.replace('["true"]', '["${A}", "${B}", "${C}", "${TAG}", "${PLAIN}"]')
    assert checked(podrun, text)[0] == 0
    done = podrun("plan", podrun.file("web", text))
    assert '["1", "two words", "3", "1.4 x", "a b"]' in done.stdout, done.stderr


def test_drop_ins_and_instances_count(tmp_path: Path) -> None:
    files = [{"service": {"Environment": "A=%i"}}, {"service": {"EnvironmentFile": str(tmp_path / "none")}}]
    assert dict(unit_environment.of(files, {"A": "shell", "B": "2"}, "blue")) == {"A": "blue", "B": "2"}


# --- pods and pods -------------------------------------------------------------------------------------------------


def made(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "web.toml"
    path.write_text(text)
    return unit.units(unit.read(str(path), strictly=False), unit.Command("/opt/podrun"))


def test_pods_that_depend_on_pods_become_settings_of_the_unit(tmp_path: Path) -> None:
    text = made(tmp_path, f'[pod]\nafter = ["cache"]\nrequires = ["db@blue"]\n{CHAIN}')["web.service"]
    assert "\nRequires=db@blue.service\n" in text
    assert "\nAfter=cache.service db@blue.service\n" in text


def test_a_job_with_a_timer_has_a_timer_unit(tmp_path: Path) -> None:
    units = made(tmp_path, f'[pod]\ntype = "job"\ntimer = "daily"\n{CHAIN}')
    assert sorted(units) == ["web.service", "web.timer"]
    assert "\n[Timer]\nOnCalendar=daily\nPersistent=yes\n" in units["web.timer"]
    assert syntax.links("web.timer", units["web.timer"]) == ["timers.target.wants/web.timer"]


def test_a_pod_that_requires_one_that_is_not_up_says_so(podrun: Podrun) -> None:
    done = podrun("up", podrun.file("web", f'[pod]\nrequires = ["db"]\n{CHAIN}'))
    assert done.returncode == 69
    assert "it requires the pod db, which is not there; podrun up -d db" in done.stderr


def test_the_pods_name_is_in_messages_and_not_the_files(podrun: Podrun) -> None:
    path = podrun.file("some-file", f'[pod]\nname = "web"\n{CHAIN}'.replace("true", "/no/such"))
    done = podrun("up", path)
    assert done.stderr.startswith("podrun: web: "), done.stderr


def test_a_name_that_never_was_is_told(podrun: Podrun) -> None:
    for words, code in ((("down", "nobody"), 0), (("stats", "nobody"), 69), (("plan", "nobody"), 0)):
        done = podrun(*words)
        assert done.returncode == code
        assert "there is no" in done.stdout + done.stderr


def test_the_table_timer_is_the_section_of_the_timer(tmp_path: Path) -> None:
    job = f'[pod]\ntype = "job"\n{{}}{CHAIN}[timer]\n{{}}\n'
    for pod, table, lines in [
        ("", 'OnCalendar = ["Mon 03:00", "Thu 03:00"]', "Persistent=yes\nOnCalendar=Mon 03:00\nOnCalendar=Thu 03:00\n"),
        ("", "OnBootSec = 60\nOnUnitActiveSec = '1h'", "Persistent=yes\nOnBootSec=60\nOnUnitActiveSec=1h\n"),
        ('timer = "daily"\n', "RandomizedDelaySec = '1h'\nPersistent = false", "OnCalendar=daily\nRandomizedDelaySec=1h\nPersistent=no\n"),
    ]:  # fmt: skip
        assert f"\n[Timer]\n{lines}" in made(tmp_path, job.format(pod, table))["web.timer"]
    with pytest.raises(Wrong, match="does not say when"):
        made(tmp_path, job.format("", "Persistent = true"))


def test_settings_of_a_timer_are_checked(podrun: Podrun) -> None:
    code, lines = checked(
        podrun, f"{CHAIN}[timer]\nOnCalender = 'daily'\nPersistent = 'sometimes'\nRestart = 'always'\n"
    )
    told = "\n".join(lines)
    assert "did you mean 'OnCalendar'" in told
    assert "Persistent takes yes or no" in told
    assert "Restart belongs in [service]" in told
    assert code == 0


def test_every_word_of_compose_is_podruns_or_leads_to_it() -> None:
    hooks = ("image", "network", "storage", "container", "register")
    own = {key for name in hooks for key in hook_loader.load(name).Options._fields} | {"name"}
    # What no engine on Linux needs, and what podrun has nothing like.
    without = "attach credential_spec isolation develop provider models use_api_socket storage_opt label_file".split()
    without += "cgroup uts mem_swappiness cpu_percent cpu_rt_period cpu_rt_runtime".split()
    assert {*service.KEYS, *service.ELSEWHERE} - own - {*without} - FOREIGN.keys() == set()
    # And what it leads to is there.
    for name, options in OPTIONS.items():
        assert {*options} <= {*hook_loader.load(name).Options._fields}
    for hint in FOREIGN.values():
        if match := re.match("podrun's words? (?:is|are) ([a-z_0-9]+)", hint):
            assert match[1] in own | {"userns", "stop_timeout"}, hint
