"""``podrun doctor`` on hosts that lack something: in namespaces that stand for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from podrun.cli import doctor
from podrun.host import Host, tag
from support.launcher import Podrun

pytestmark = pytest.mark.root

CHAIN = """chain = [
    { hook = "image", ref = "host:" },
    { hook = "network", publish = ["PORT:80"] },
    { hook = "container", command = ["sleep", "60"], stop_signal = "KILL" },
]"""


def states(text: str, word: str) -> list[str]:
    """The states of the lines that hold a word."""
    return [line.split()[0] for line in text.splitlines() if word in line]


def in_a_network_of_its_own(podrun: Podrun, script: str) -> subprocess.CompletedProcess[str]:
    """A shell in a network namespace with its own /run/netns; ``podrun`` is podrun."""
    head = f"""set -e
        mount --make-rprivate /; mkdir -p /run/netns {podrun.home}/cgroup
        mount --rbind /sys/fs/cgroup {podrun.home}/cgroup; mount -t sysfs sysfs /sys
        mount --rbind {podrun.home}/cgroup /sys/fs/cgroup; mount -t tmpfs tmpfs /run/netns
        ip link set lo up
        podrun() {{ {sys.executable} -m podrun "$@"; }}
    """
    argv = ["unshare", "-mn", "sh", "-c", head + script]
    return subprocess.run(argv, env=podrun.environ, capture_output=True, text=True, check=False, timeout=60)


def test_a_host_that_has_everything_exits_0(podrun: Podrun) -> None:
    done = in_a_network_of_its_own(podrun, "podrun doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("Linux ", "cgroup", str(podrun.root), str(podrun.run)):
        assert states(done.stdout, word) == ["ok"], done.stdout
    assert states(done.stdout, "no bridge yet; the first pod makes podrun-") == ["ok"]
    assert {"crun", "runc"} & {line.split()[1] for line in done.stdout.splitlines()}


def test_it_prints_json_lines(podrun: Podrun) -> None:
    done = in_a_network_of_its_own(podrun, "podrun doctor --format json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[0] == {"state": "ok", "what": f"Linux {os.uname().release}", "hint": ""}


FLUSHED = """
    podrun up -d {path} 2>/dev/null
    podrun doctor
    nft delete table inet {table}
    echo 0 > /proc/sys/net/ipv4/ip_forward
    podrun doctor || echo "exit $?"
    podrun network reload
    podrun doctor && echo mended
    podrun down web
"""


def test_a_flushed_table_and_a_host_that_does_not_forward_fail_until_they_are_mended(podrun: Podrun) -> None:
    path = podrun.file("web", CHAIN.replace("PORT", "8080"))
    table = tag("web", str(podrun.run)).removesuffix("-web")
    done = in_a_network_of_its_own(podrun, FLUSHED.format(path=path, table=table))
    assert done.returncode == 0, done.stderr
    assert states(done.stdout, "bridges, rules and published ports are whole") == ["ok", "ok"]
    assert states(done.stdout, "was flushed") == ["fail"]
    assert states(done.stdout, "does not forward IPv4") == ["fail"]
    assert "podrun network reload" in done.stdout
    assert done.stdout.splitlines()[-1] == "mended"
    assert "exit 76" in done.stdout


def test_dockers_forward_policy_is_a_warning_before_the_first_pod(podrun: Podrun) -> None:
    done = in_a_network_of_its_own(podrun, "iptables -P FORWARD DROP\npodrun doctor")
    assert done.returncode == 0, done.stderr
    assert states(done.stdout, "chain ip filter FORWARD drops what is forwarded") == ["warn"]
    assert "iptables -I FORWARD -i podrun-" in done.stdout


def test_a_pod_that_cannot_be_undone_keeps_gc_from_nothing_else(podrun: Podrun, home: Path) -> None:
    hook, stuck = home / "hook", home / "stuck"
    hook.write_text(f"#!/bin/sh\ncat >/dev/null\n[ $PODRUN_VERB != down ] || [ ! -e {stuck} ] || exit 73\n")
    hook.chmod(0o755)
    for name, step in (("a", f'hook = "exec:{hook}"'), ("b", 'hook = "network"\nmode = "none"')):
        chain = '[[chain]]\nhook = "image"\nref = "host:"\n[[chain]]\n{}\n[[chain]]\nhook = "container"\ncommand = ["true"]\n'
        podrun("up", "-d", podrun.file(name, chain.format(step)), check=True)
    stuck.touch()
    done = podrun("gc")
    assert done.returncode == 73, done.stderr
    assert "podrun: a: exec:" in done.stderr
    assert "b: dead" in done.stdout
    assert [line.split()[0] for line in podrun("ps").stdout.splitlines()[1:]] == ["a"]
    stuck.unlink()
    assert "a: failed" in podrun("gc", check=True).stdout


def test_what_nobody_needs_is_named_with_gc(podrun: Podrun) -> None:
    path = podrun.file("web", CHAIN.replace('publish = ["PORT:80"]', 'mode = "none"').replace("60", "0.1"))
    podrun("up", "-d", path, check=True)
    podrun("wait", "web")
    assert states(podrun("doctor").stdout, "unused: web: dead") == ["warn"]
    assert podrun("gc", "--check").returncode == 1
    podrun("gc", check=True)
    assert states(podrun("doctor").stdout, "unused: web") == []
    assert podrun("gc", "--check").returncode == 0


@pytest.mark.parametrize(("size", "state"), [("2g", "ok"), ("512m", "warn"), ("16m", "fail"), ("16m,ro", "fail")])
def test_a_store_without_room_is_told(podrun: Podrun, size: str, state: str) -> None:
    podrun.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "podrun-test", podrun.root], check=True)
    try:
        found = list(doctor._room(Host(str(podrun.root), str(podrun.run), {}, print)))
    finally:
        subprocess.run(["umount", podrun.root], check=True)
    assert (found[0].state, found[0].code) == (state, 73 if state == "fail" else 0)


@pytest.mark.parametrize(("lacking", "words"), [("nft", "nft is not installed"), ("crun runc", "no OCI runtime")])
def test_a_program_that_is_missing_is_told_with_its_package(podrun: Podrun, lacking: str, words: str) -> None:
    hide = "\n".join(
        f"mount --bind /dev/null {path}"
        for name in lacking.split()
        for place in ("/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin")
        if os.path.exists(path := f"{place}/{name}")
    )
    done = in_a_network_of_its_own(podrun, f"{hide}\npodrun doctor")
    assert done.returncode == 69, done.stdout
    assert states(done.stdout, words) == ["fail"]
    assert "apt install" in done.stdout


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    found = list(doctor.findings(Host("/nowhere", "/nowhere", {}, print)))
    assert (found[-1].state, found[-1].code) == ("fail", 77)


def test_a_host_without_nft_is_told_before_anything_is_made(podrun: Podrun) -> None:
    def without(*words: str) -> subprocess.CompletedProcess[str]:
        hidden = 'for place in /usr/sbin/nft /sbin/nft; do mount --bind /dev/null $place; done; exec "$@"'
        argv = ["unshare", "-m", "sh", "-c", hidden, "sh", *podrun.argv(*words)]
        return subprocess.run(argv, env=podrun.environ, capture_output=True, text=True, timeout=60)

    file = podrun.file(
        "web",
        'chain = [ { hook = "image", ref = "host:" }, { hook = "network" }, { hook = "container", command = ["true"] } ]',
    )
    for words in (["up", file], ["check", file]):
        done = without(*words)
        assert done.returncode == 69, done.stdout + done.stderr
        assert "nft is not installed; apt install nftables" in done.stdout + done.stderr
    assert "fail  nft is not installed; apt install nftables" in without("doctor").stdout
    assert podrun.journals() == []
    assert not any(path.is_dir() for path in (podrun.run / "network").glob("*"))


def test_gc_removes_the_directory_of_a_pod_of_which_another_version_has_left_files(podrun: Podrun) -> None:
    left = podrun.run / "pods/web/+2"
    left.mkdir(parents=True)
    (left / "network.of-host").write_text("{}")
    assert podrun("gc", check=True).stdout == "web: absent\n"
    assert not left.parent.exists()
