"""ps, inspect, logs, wait, down, exec and healthcheck of several pods, with their options."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.launcher import Podrun
from support.pods import until

pytestmark = pytest.mark.root

SCRIPT = "for n in 1 2 3; do echo line $n; done; printf end; trap '' TERM; while :; do sleep 0.1; done"
HEALTH = ["--health-cmd", "test -e /tmp/well", "--health-interval", "100ms", "--health-retries", "1000"]


def second(podrun: Podrun) -> None:
    script = "touch /tmp/well; exec sleep 1000"
    podrun("run", "-d", "--name", "second", "--network", "none", *HEALTH, "host:", "sh", "-c", script, check=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podrun]:
    """A podrun with two pods: one with everything, and a plain one."""
    home = Path("/var/lib") / f"podrun-test-listing-{os.getpid()}"
    home.mkdir(mode=0o755)
    podrun = Podrun(home)
    words = ["--label", "a.b=c", "--label", "d=e", "-e", "API_TOKEN=hidden", "-e", "PLAIN=shown", "--network", "none"]
    podrun("run", "-d", "--name", "first", *words, "host:", "sh", "-c", SCRIPT, check=True)
    second(podrun)
    until(lambda: podrun("logs", "first").stdout.endswith("end"))
    until(lambda: names(podrun, "--filter", "health=healthy") == ["second"])
    yield podrun
    podrun("down", "-t", "0", "--all", check=True)
    podrun("gc", check=True)
    subprocess.run(["rm", "-rf", str(home)], check=True)


def names(podrun: Podrun, *words: str) -> list[str]:
    return podrun("ps", "-q", *words, check=True).stdout.split()


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["network=podrun0"], []),
        (["since=first"], ["second"]),
        (["before=second"], ["first"]),
        (["volume=/nowhere"], []),
        (["name=^f"], ["first"]),
        (["name=s"], ["first", "second"]),
        (["name=first", "name=sec"], ["first", "second"]),
        (["label=a.b"], ["first"]),
        (["label=a.b=c", "label=d=e"], ["first"]),
        (["label=a.b=c", "label=d=f"], []),
        (["status=running"], ["first", "second"]),
        (["status=exited"], []),
        (["health=none"], ["first"]),
        (["image=host:", "name=second"], ["second"]),
        (["exited=3"], []),
    ],
)
def test_ps_filters(two: Podrun, filters: list[str], found: list[str]) -> None:
    assert names(two, *(word for text in filters for word in ("--filter", text))) == found


def test_ps_filters_by_the_beginning_of_an_id(two: Podrun) -> None:
    [id] = two("ps", "--filter", "name=second", "--format", "id").stdout.split()
    assert names(two, "--filter", f"id={id[:12]}") == ["second"]
    for word in (id[:12], id):
        assert two("inspect", word, "-f", "{name}", check=True).stdout == "second\n"
        assert two("exec", word, "echo", "here", check=True).stdout == "here\n"
        assert two("exec", "-e", "A=b", word, "sh", "-c", "echo $A", check=True).stdout == "b\n"
    for word in (id[:11], "0" * 32):
        assert two("inspect", word).returncode == 69


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["--sort", "command"], "second\nfirst\n"),
        (["-n", "1"], "second\n"),
        (["--latest"], "second\n"),
    ],
)
def test_ps_sorts_and_counts(two: Podrun, words: list[str], printed: str) -> None:
    if words[:1] == ["--sort"]:
        printed = "first\nsecond\n"
    assert two("ps", "-q", *words).stdout == printed


def test_ps_prints_columns_by_name_and_lines_of_fields(two: Podrun) -> None:
    assert two("ps", "--format", "name,state").stdout == "first   up\nsecond  up\n"
    assert two("ps", "--format", '{name}\\t{labels["a.b"]}').stdout == "first\tc\nsecond\t\n"
    assert "STATUS" in two("ps").stdout.splitlines()[0]
    assert "STATUS" not in two("ps", "--noheading").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ps", "--format", "nmae"], "did you mean 'name'"),
        (["ps", "--sort", "nmae"], "did you mean 'name'"),
        (["ps", "--filter", "nmae=x"], "did you mean 'name'"),
        (["ps", "--filter", "name"], "expected KEY=VALUE"),
        (["ps", "--filter", "name=("], "is not a pattern"),
        (["ps", "--format", "{{.Nmaes}}"], "did you mean 'Names'"),
        (["inspect", "-f", "{{.State.Statsu}}", "first"], "did you mean 'Status'"),
        (["inspect", "-f", "{{.Name", "first"], "is not closed"),
        (["inspect", "-f", "{nmae}", "first"], "did you mean 'name'"),
        (["inspect", "-f", "{name[}", "first"], "is not a path"),
        (["logs", "-n", "x", "first"], "a number of lines"),
        (["logs", "--since", "yesteryear", "first"], "is not a time"),
        (["exec", "-dt", "first", "true"], "leave out -d, or -t"),
        (["exec", "--env-file", "/no/such", "first", "true"], "/no/such"),
        (["down"], "name the pods, or use --all"),
        (["kill", "--all", "first"], "name the pods, or use --all"),
    ],
)
def test_what_is_spelled_wrong_is_told(two: Podrun, words: list[str], told: str) -> None:
    done = two(*words)
    assert done.returncode == 78
    assert told in done.stderr


def test_inspect_prints_what_is_at_paths_of_several_pods(two: Podrun) -> None:
    form = "{name} {containers[0].command[0]} {containers[].pid} {containers[7].pid}"
    lines = two("inspect", "-f", form, "first", "second", check=True).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["first", "sh"], ["second", "sh"]]
    assert two("inspect", "-f", "state", "first").stdout == "up\n"


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["ps", "--format", "{{.Names}}: {{.State}} {{.Command | upper}}", "-n", "1"], "second: running SH -C"),
        (["ps", "--format", '{{.ID}} {{.Label "a.b"}} {{.Labels}}', "--filter", "name=first"], "first c a.b=c,d=e"),
        (["ps", "--format", "table {{.Names}}\\t{{.State}}"], "NAMES    STATE\nfirst    running\nsecond   running"),
        (["inspect", "-f", "{{.State.Status}} {{.State.Health}} {{.name}}", "first"], "running <no value> first"),
        (["inspect", "-f", "{{.State.Health.Status}} {{json .Config.Labels}}", "second"], "healthy {}"),
        (["inspect", "-f", '{{index .Config.Labels "a.b"}} {{.HostConfig.PidsLimit}}', "first"], "c 2048"),
        (["inspect", "-f", '{{range .Config.Env}}{{if eq . "PLAIN=shown"}}yes{{end}}{{end}}', "first"], "yes"),
        (["stats", "--no-stream", "--format", "{{.Name}}", "first"], "first"),
    ],
)
def test_docker_s_templates_name_its_fields(two: Podrun, words: list[str], printed: str) -> None:
    assert two(*words, check=True).stdout.startswith(printed)


def test_inspect_tells_of_a_containers_circumstances_and_masks_secrets(two: Podrun) -> None:
    [container] = json.loads(two("inspect", "first").stdout)["containers"]
    assert container["env"]["API_TOKEN"] == "***"
    assert container["env"]["PLAIN"] == "shown"
    assert "hidden" not in two("inspect", "first").stdout
    assert container["labels"] == {"a.b": "c", "d": "e"}
    assert container["limits"]["pids"] == 2048
    assert container["started"] == pytest.approx(float(subprocess.check_output(["date", "+%s"])), abs=60)


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["first"], "line 1\nline 2\nline 3\nend"),
        (["-n", "2", "first"], "line 3\nend"),
        (["--tail", "0", "first"], ""),
        (["--tail", "100", "first"], "line 1\nline 2\nline 3\nend"),
        (["-n", "1", "first", "second"], "first  | end\n"),
    ],
)
def test_logs(two: Podrun, words: list[str], printed: str) -> None:
    assert two("logs", *words, check=True).stdout == printed


def test_logs_of_a_file_have_no_times_and_say_so(two: Podrun) -> None:
    for word in (["-t"], ["--since", "10m"], ["--until", "2026-01-01T00:00:00.123456789Z"]):
        done = two("logs", *word, "first")
        assert (done.returncode, done.stdout) == (69, "")
        assert "has no times" in done.stderr


def test_exec_takes_files_of_variables_and_more_capabilities(two: Podrun) -> None:
    file = two.home / "variables"
    file.write_text("# mine\nA=b c\nPLAIN=file\n")
    shown = two("exec", "--env-file", str(file), "-e", "X=y", "first", "sh", "-c", "echo $A $X $PLAIN", check=True)
    assert shown.stdout == "b c y file\n"
    script = "grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t'"
    plain, privileged = (two("exec", *words, "first", "sh", "-c", script).stdout for words in ([], ["--privileged"]))
    assert ("NoNewPrivs:1" in plain, "NoNewPrivs:0" in privileged) == (True, True)
    assert "Seccomp:2" in privileged
    bits = [int(text.split("CapBnd:")[1].split()[0], 16) for text in (plain, privileged)]
    assert bits[0] & ~bits[1] == 0
    assert bits[1] >> 21 & 1  # SYS_ADMIN


@pytest.mark.parametrize("user", ["0", "33"])
def test_exec_d_leaves_a_command_that_ends_with_the_container(two: Podrun, user: str) -> None:
    before = os.stat("/dev/null")
    two("exec", "-d", "-u", user, "second", "sh", "-c", "echo lost; exec sleep 987", check=True, timeout=5)
    until(lambda: "sleep 987" in two("top", "second").stdout)
    two("exec", "second", "pkill", "-f", "sleep 987")
    assert os.stat("/dev/null").st_uid == before.st_uid
    assert two("exec", "-d", "second", "no-such-command").returncode == 127


@pytest.mark.parametrize(("options", "printed"), [((), "0"), (("-i",), "6"), (("-t",), "")])
def test_exec_reads_podruns_input_with_i_only(two: Podrun, options: tuple[str, ...], printed: str) -> None:
    script = "tty" if "-t" in options else "wc -c"
    argv = two.argv("exec", *options, "second", "sh", "-c", script)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as source:
        assert source.stdin and source.stdout
        source.stdin.write(b"words\n")
        source.stdin.close()
        done = subprocess.run(argv, env=two.environ, stdin=source.stdout, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == printed or printed == ""
        assert source.stdout.read() == (b"" if "-i" in options else b"words\n"), "who comes next in a loop reads it"


def test_wait_returns_in_a_state_that_is_asked_for(two: Podrun) -> None:
    two("wait", "--condition", "running", "first", check=True)
    two("wait", "--condition", "healthy", "second", check=True)
    two("wait", "--condition", "removed", "nosuch", check=True)
    assert two("wait", "--condition", "asleep", "first").returncode == 78


def test_exec_t_needs_no_terminal(two: Podrun) -> None:
    assert two("exec", "-t", "second", "tty").stdout.startswith("/dev/pts/")


def test_health_is_shown_and_asked_for(two: Podrun) -> None:
    until(lambda: names(two, "--filter", "health=healthy") == ["second"])
    assert two("healthcheck", "run", "second").stdout == "healthy\n"
    assert "(healthy)" in two("ps").stdout
    two("exec", "second", "rm", "/tmp/well", check=True)
    done = two("healthcheck", "run", "second")
    assert (done.returncode, done.stdout) == (1, "unhealthy: status 1\n")
    assert two("healthcheck", "run", "first").returncode == 69


def test_down_t_hurries_and_wait_counts_several(two: Podrun) -> None:
    script = "trap : TERM; sleep 300 & while :; do wait; done"
    container = f'{{ hook = "container", stop_timeout = "50s", command = ["sh", "-c", "{script}"] }}'
    two("up", "-d", two.file("slow", f'chain = [{{ hook = "image", ref = "host:" }}, {container}]\n'), check=True)
    waiting = two.start("wait", "slow", "second", stdout=subprocess.PIPE)
    done = two("down", "-t", "0.2", "slow", timeout=10)
    assert done.returncode == 0
    assert "did not end within 0.2 s" in done.stderr
    two("kill", "second", check=True)
    assert waiting.communicate(timeout=10)[0].splitlines()[1].split()[0] == "second"
    assert two("down", "second", "nobody", check=True).returncode == 0
    second(two)
