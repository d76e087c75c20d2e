"""``podrun run`` in docker's spelling: every option, with what the payload sees of it or what is said instead."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from podrun.cli import run
from podrun.launcher.arguments import plain
from support.launcher import Podrun

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("options", "script", "printed"),
    [
        ("--ulimit nofile=100:200", "ulimit -n", "100"),
        ("-h myhost", "hostname", "myhost"),
        ("--tmpfs /x:size=1m", "stat -f -c %b /x", "256"),
        ("--mount type=tmpfs,dst=/x,tmpfs-size=1m", "stat -f -c %b /x", "256"),
        ("--shm-size 2m", "stat -f -c %b /dev/shm", "512"),
        ("-m 64mb", "echo fine", "fine"),
        ("--memory 64M --memory-swap -1", "echo fine", "fine"),
        ("--cap-add SYS_TIME,NET_ADMIN", "echo $((0x$(grep CapBnd /proc/self/status | cut -f 2) >> 25 & 1))", "1"),
        ("--add-host foo:1.2.3.4", "grep foo /etc/hosts | cut -f 1", "1.2.3.4"),
        ("--dns 192.0.2.9 --dns-search a.example", "grep -c -e 192.0.2.9 -e a.example /etc/resolv.conf", "2"),
        ("--tz Asia/Tokyo", "date +%Z", "JST"),
        ("--umask 0077", "umask", "0077"),
        ("--group-add 4711", "id -G | grep -ow 4711", "4711"),
        ("--sysctl net.core.somaxconn=77", "cat /proc/sys/net/core/somaxconn", "77"),
        ("--sysctl kernel.msgmax=7777", "cat /proc/sys/kernel/msgmax", "7777"),
        ("--oom-score-adj 77", "cat /proc/self/oom_score_adj", "77"),
        ("--pid host", "test $$ != 1 && echo others", "others"),
        (
            "--security-opt no-new-privileges=false",
            "grep -o NoNewPrivs.*0 /proc/self/status | tr -d '\\t'",
            "NoNewPrivs:0",
        ),
        ("--security-opt seccomp=unconfined", "grep -c 'Seccomp:.0' /proc/self/status", "1"),
        ("--privileged", "test -w /proc/sys/kernel/hostname && echo open", "open"),
        ("--device /dev/null:/dev/mine", "test -c /dev/mine && echo there", "there"),
        ("--mac-address 02:00:00:00:00:77", "cat /sys/class/net/eth0/address", "02:00:00:00:00:77"),
        ("--rm=true --init", "cat /proc/1/comm", "init"),
        ("--network none", "ls /sys/class/net", "lo"),
        ("--dns-opt ndots:3 --dns-option use-vc", "tail -n 1 /etc/resolv.conf", "options ndots:3 use-vc"),
        ("--network host --dns-opt ndots:3", "tail -n 1 /etc/resolv.conf", "options ndots:3"),
        ("--add-host h:host-gateway", "ip route | grep -c \"via $(getent hosts h | cut -d ' ' -f 1) \"", "1"),
        ("--network host --add-host h:host-gateway", "tail -n 1 /etc/hosts", "127.0.0.1\th"),
        ("--log-driver none --kernel-memory 3 --timeout 60", "echo shown", "shown"),
        ("--network host -p 8080:80", "echo fine", "fine"),
        ("--network host -p 8080", "echo fine", "fine"),
        ("--network=none --hostname=x", "hostname", "x"),
        ("-e A=b -e PODRUN_TEST_UNSET", "echo $A${PODRUN_TEST_UNSET-unset}", "bunset"),
        ("-eA=b", "echo $A", "b"),
        ("--label a=b --annotation c=d --stop-signal INT --stop-timeout 3 --log-driver journald", "echo fine", "fine"),
    ],
)
def test_the_payload_sees_what_docker_would_show_it(podrun: Podrun, options: str, script: str, printed: str) -> None:
    done = podrun("run", *options.split(), "host:", "sh", "-c", script)
    assert (done.stdout.strip(), done.returncode) == (printed, 0), done.stderr


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("--name Web", "expected a pod's name"),
        ("--name Web --shm-size 1m", "is not among a-z, 0-9 and -"),
        ("--blkio-weight 5", "set IOWeight= in [service]"),
        ("--volumes-from x", "--volumes-from x: there is no such pod"),
        ("--memory-swappiness 3", "cgroup v2 has no such setting"),
        ("--nosuch", "is not an option of docker run"),
        ("--ulimit nofile", "expected a limit"),
        ("--timeout 5 -d", "needs a host that systemd runs"),
        ("--timeout x", "expected seconds"),
        ("--network none --add-host h:host-gateway", "host-gateway is not for mode none"),
        ("--rmi -d", "nobody waits for a detached pod"),
        ("--device-cgroup-rule c", "expected a device rule such as"),
        ("--device-cgroup-rule=x:1:*:r", "expected a device rule such as"),
        ("--dns-opt ä", "expected an option of resolv.conf(5)"),
        ("--uts host --isolation x", "--isolation: it is about Windows"),
        ("--restart sometimes", "expected no, on-failure, always, unless-stopped or on-failure:N"),
        ("--cidfile /", "already exists"),
    ],
)
def test_what_podrun_does_not_have_says_what_to_do_instead(podrun: Podrun, options: str, what: str) -> None:
    done = podrun("run", *options.split(), "host:", "true")
    assert done.returncode in (69, 73, 78)
    assert what in done.stderr
    assert podrun("ps", "-q").stdout == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("-m ²m --tz UTC", "--memory: expected a size such as '256M' (systemd.resource-control(5)), not '²M'"),
        ("--cpus two", "--cpus: 'two': expected a number such as 1.5"),
        ("--pids-limit ²", "--pids-limit: '²': expected a whole number"),
        ("--dns nowhere", "--dns: 'nowhere': 'nowhere' is not an IP address"),
        ("--tmpfs /x:sise=5", "'sise=5' in '/x:sise=5' is not an option of tmpfs(5)"),
        ("--tmpfs /x:size=²", "'size=²' in '/x:size=²' is not an option of tmpfs(5)"),
        ("--user ¹²", "expected a user such as 'www-data', '1000' or '1000:1000', not '¹²'"),
    ],
)
def test_a_value_that_is_none_is_refused_by_the_option_that_has_it(podrun: Podrun, options: str, said: str) -> None:
    done = podrun("run", *options.split(), "host:", "true")
    assert done.returncode == 78
    assert said in done.stderr


def test_open_ports_are_chosen_and_files_tell_name_and_pid(podrun: Podrun, home: Path) -> None:
    words = ["-p", "80", "-p", "127.0.0.1::81", "-p", "localhost:0:82"][:4]
    files = ["--cidfile", str(home / "cid"), "--pidfile", str(home / "pid")]
    podrun("run", "-d", "--name", "web", "--init", *words, *files, "host:", "sleep", "60", check=True)
    whole = json.loads(podrun("inspect", "web").stdout)
    assert (home / "cid").read_text() == "web\n"
    assert (home / "pid").read_text() == f"{whole['containers'][0]['pid']}\n"
    published = next(step["facts"]["published"] for step in whole["steps"] if step["hook"] == "network")
    assert [(port["ip"], port["port"]) for port in published] == [("127.0.0.1", 80), ("127.0.0.1", 81)]
    assert all(port["host"] > 1023 for port in published)
    done = podrun("run", "-d", "--replace", "--name", "web", "--init", "host:", "sleep", "61")
    assert done.returncode == 0, done.stderr
    podrun("down", "web", check=True)


def test_save_writes_all_of_it_and_what_it_writes_is_a_pod_file(podrun: Podrun, home: Path) -> None:
    path = home / "x.toml"
    options = "-it --ulimit core=0 --device /dev/null --shm-size 1g --health-cmd true -v data:/data --tz UTC".split()
    options += ["--requires", "db", "--label", "a.b=${c}", "--userns", "auto"]
    podrun("run", "--save", str(path), "--name", "x", *options, "--restart", "always", "host:", "sh", check=True)
    assert path.stat().st_mode & 0o777 == 0o600  # -e may hold secrets
    saved = tomllib.loads(path.read_text())
    container = saved["chain"][-1]
    assert saved["pod"] == {"name": "x", "requires": ["db"], "userns": "auto"}
    assert container["labels"] == {"a.b": "$${c}"}
    assert container["interactive"] is True
    assert container["live"]["exec"] == ["/bin/sh", "-c", "true"]
    assert {"ulimits", "devices", "shm_size", "volumes", "tz"} <= set(container)
    done = podrun("check", str(path))
    lacking = "no ids are set aside"  # this host may have none
    assert done.returncode == 0 or lacking in done.stdout, done.stdout + done.stderr


def test_a_user_namespace_that_podrun_has_not_is_refused(podrun: Podrun) -> None:
    done = podrun("run", "--userns", "keep-id", "host:", "true")
    assert done.returncode == 78
    assert "--userns: keep-id: podrun has auto (a range of ids of the pod's own) and host" in done.stderr


@pytest.mark.parametrize(
    ("words", "fast"),
    [
        ("-p 8080:80", True),
        ("-p 80", False),
        ("-p localhost:80:80", False),
        ("-v /a:/b:ro", True),
        ("-v ./a:/b", False),
        ("-v /b", False),
        ("-m 64M", True),
        ("-m 64mb", False),
        ("--network host --network none", False),
        ("--cap-add A,B", False),
        ("-d --rm -it --init", True),
        ("--ulimit nofile=1", False),
    ],
)
def test_only_what_the_pod_file_spells_the_same_takes_the_fast_path(words: str, fast: bool) -> None:
    assert (plain(["run", *words.split(), "host:", "true"]) is not None) is fast


def test_every_option_of_the_table_is_known_to_both_readers() -> None:
    from podrun.launcher.arguments import COMMANDS

    names = {name.removeprefix("--") for flag in COMMANDS["run"].flags for name in flag.names if name[:2] == "--"}
    assert names <= set(run.KNOWN)


def test_network_ls_lists_what_run_accepts(podrun: Podrun) -> None:
    names = podrun("network", "ls", "-q").stdout.split()
    assert len(names) == 1
    assert "unused" in podrun("network", "ls").stdout
    assert json.loads(podrun("network", "inspect", names[0]).stdout)["made"] is False
    for name in names:
        done = podrun("run", "--network", name, "--tz", "UTC", "host:", "true")
        assert done.returncode == 0, done.stderr
    assert " up" in podrun("network", "ls").stdout
    refused = podrun("run", "--network", f"{names[0]}x", "--tz", "UTC", "host:", "true")
    assert refused.returncode == 78
    assert f"did you mean '{names[0]}'?" in refused.stderr


def test_a_volume_without_a_name_goes_with_its_container(podrun: Podrun, nothing_left: None) -> None:
    script = "test ! -e /data/kept && echo first >/data/kept && stat -f -c %T /data"
    for detached in ([], ["-d"]):
        done = podrun(
            "run", *detached, "--name", "one", "--network", "none", "-v", "/data", "host:", "sh", "-c", script
        )
        assert done.returncode == 0, done.stderr
        assert "overlay" not in done.stdout
        podrun("down", "one", check=True)
    assert podrun("volume", "ls", "-q").stdout == ""
    assert podrun("run", "-v", "/a/../b", "host:", "true").returncode == 78


def test_a_pod_in_the_foreground_is_ended_when_its_time_is_up(podrun: Podrun) -> None:
    done = podrun("run", "--timeout", "1", "host:", "sh", "-c", "trap 'echo asked; exit 3' TERM; sleep 60 & wait")
    assert (done.stdout, done.returncode) == ("asked\n", 255), done.stderr
    assert podrun("ps", "-q").stdout == ""


def test_what_the_hosts_network_makes_needless_is_told(podrun: Podrun) -> None:
    for port in ("8080:80", "8080"):
        assert "discarded: in the host's network" in podrun("run", "--network=host", "-p", port, "host:", "true").stderr
    assert "ignored: Linux has no such limit" in podrun("run", "--kernel-memory", "3", "host:", "true").stderr
    assert "is not a TTY" in podrun("run", "-it", "host:", "true").stderr


def test_run_d_prints_the_name_by_which_the_pod_can_be_found(podrun: Podrun) -> None:
    name = podrun("run", "-d", "host:", "sleep", "60", check=True).stdout.strip()
    assert podrun("ps", "-q").stdout.strip() == name
    podrun("rm", "-f", "-t", "0", name, check=True)


def test_output_that_is_not_kept_cannot_be_read(podrun: Podrun) -> None:
    podrun(
        "run", "-d", "--name", "web", "--log-driver", "none", "host:", "sh", "-c", "echo words; sleep 60", check=True
    )
    done = podrun("logs", "web")
    assert (done.returncode, done.stdout) == (69, "")
    assert "its output is not kept: log is 'none'" in done.stderr
    podrun("rm", "-f", "-t", "0", "web", check=True)


def test_volumes_from_another_pod_are_mounted_where_it_has_them(podrun: Podrun, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("theirs")
    mounts = ["-v", f"{tmp_path}:/opt/dir", "-v", "data:/opt/data", "-v", "/opt/own"]
    podrun("create", "--name", "db", *mounts, "host:", "true", check=True)
    script = "cat /opt/dir/word; touch /opt/data/x && echo ' written'; test -e /opt/own || echo own"
    done = podrun("run", "--rm", "--volumes-from", "db", "host:", "sh", "-c", script)
    assert (done.stdout, done.returncode) == ("theirs written\nown\n", 0), done.stderr
    done = podrun("run", "--rm", "--volumes-from", "db:ro", "host:", "sh", "-c", "ls /opt/data; touch /opt/data/y")
    assert (done.stdout, done.returncode) == ("x\n", 1)
    podrun("rm", "db", check=True)
    podrun("volume", "rm", "data", check=True)


@pytest.mark.parametrize("options", [[], ["--label", "a=b"]], ids=["plain", "converted"])
def test_messages_of_a_start_and_of_a_stop_begin_with_the_pods_name(podrun: Podrun, options: list[str]) -> None:
    words = [*options, "--network", "none", "--name", "web", "host:"]
    assert podrun("run", *words, "nosuch").stderr.startswith("podrun: web: container main: 'nosuch' is not")
    podrun("run", "-d", *words, "sleep", "100", check=True)
    assert podrun("stop", "-t", "0.1", "web").stderr.startswith("podrun: web: container main: it did not end")
