"""The conformance kit: first-party hooks pass it, and each thing that a hook can do wrong is found by the row for it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from support.hook_kit import rows
from support.launcher import Podrun

pytestmark = pytest.mark.root

POD = """
chain = [
  { hook = "image", ref = "host:" },
  { hook = "network" },
  { hook = "container", command = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.02; done"] },
]
"""


@pytest.mark.parametrize(
    "words",
    [
        ["image", "-o", "ref=host:"],
        ["storage", "-o", "source=volume:data", "-o", "target=/data"],
        ["storage", "-o", "source=tmpfs:", "-o", "target=/scratch"],
        ["network", "-o", 'publish=["127.0.0.1:8080:80"]'],
        ["network", "-o", "mode=none"],
        ["container", "--in", "POD"],
        ["register", "-o", "service=web", "-o", "port=80"],
        ["oci-hooks", "-o", 'hooks=[{ path = "/bin/true", stages = ["prestart"] }]'],
    ],
    ids=" ".join,
)
def test_a_first_party_hook_passes(podrun: Podrun, words: Any) -> None:
    path = podrun.file("kit", POD)
    done = podrun("hook", "test", "--format", "json", *(path if word == "POD" else word for word in words))
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(done)["kill -9 in up"][0] == "ok"
    assert len(rows(done)) == 13


def script(home: Path, text: Any) -> Any:
    path = home / "faulty"
    path.write_text(
        "#!/bin/sh\n[ $PODRUN_HOOK_VERSION = 1 ] || exit 78\nfile=$PODRUN_DIRECTORY/faulty\n"
        f"case $PODRUN_VERB in\n{textwrap.dedent(text)}\nesac\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("fault", "check", "note"),
    [
        ("up) echo hello;;", "up, down", "not one JSON object"),
        ("""up) echo '{"env": {"A": "1"}}';;""", "up, down", "fact env is an object, not an array"),
        ("""up) echo '{"mounts": [{"hostPath": "/x"}]}';;""", "up, down", "lacks containerPath"),
        ("up) touch $file;;", "up, down", "down left file"),
        ("up) touch $file;;\ndown) rm $file;;", "down again", "ended with 1"),
        (
            "up) touch $file; echo '{\"made\": true}';;\ndown) grep -q made && rm -f $file; :;;",
            "down without facts",
            "left: file",
        ),
        (
            "up) mkdir $file; sleep 0.05; touch $file/x;;\ndown) [ ! -e $file ] || { rm $file/x && rmdir $file; };;",
            "kill -9 in up",
            "down after up was killed",
        ),
        (
            "up) mkdir $file;;\ndown) [ -e $file ] || exit 0; [ ! -e $file/x ] || exit 1; touch $file/x; sleep 0.05; rm -r $file;;",
            "kill -9 in down",
            "down after down was killed",
        ),
        ("up) sleep 300 & ;;", "up, down", "down left process"),
        ("check) touch $file;;", "check changes nothing", "it made file"),
        ("check) echo '{\"problems\": [{\"what\": \"no wg\", \"fatal\": true}]}';;", "check changes nothing", "no wg"),
        ("up) ip netns exec ${PODRUN_NETNS##*/} true || exit 3;;", "", ""),
    ],
)  # fmt: skip
def test_what_a_hook_does_wrong_is_found_by_the_row_for_it(
    podrun: Podrun, home: Path, fault: str, check: str, note: str
) -> None:
    done = podrun("hook", "test", "--format", "json", script(home, fault))
    failed = {name: note for name, (result, note) in rows(done).items() if result == "FAILED"}
    assert list(failed)[:1] == ([check] if check else [])
    assert note in failed.get(check, "")
    assert done.returncode == (76 if check else 0)


def test_a_hook_that_takes_any_version_is_told(podrun: Podrun, home: Path) -> None:
    path = home / "any"
    path.write_text("#!/bin/sh\n:\n")
    path.chmod(0o755)
    result, note = rows(podrun("hook", "test", "--format", "json", str(path)))["wrong version"]
    assert (result, "PODRUN_HOOK_VERSION" in note) == ("FAILED", True)


def test_the_kit_leaves_nothing_and_does_not_touch_the_hosts_network(podrun: Podrun, home: Path) -> None:
    path = script(home, "up) ip link add t-kit0 type bridge;;\ndown) ip link del t-kit0 2>/dev/null; :;;")
    done = podrun("hook", "test", path)
    assert done.returncode == 0, done.stdout


def test_a_hook_that_is_not_there_is_told_in_one_line(podrun: Podrun) -> None:
    done = podrun("hook", "test", "imgae")
    assert done.returncode == 78
    assert done.stderr.startswith("podrun: imgae: ")
    assert "did you mean 'image'" in done.stderr


CHANGES = """
nft add table ip t
nft add chain ip t c
nft add rule ip t c counter drop
nft add set ip t s '{ type inet_service; }'
nft add element ip t s '{ 77 }'
nft add map ip t m '{ type inet_service : inet_service; }'
nft add element ip t m '{ 78 : 79 }'
ip link add t-kit1 type bridge
ip address add 10.99.0.1/32 dev lo
ip route add 10.98.0.0/24 dev lo
ip rule add priority 77 from 10.97.0.1 lookup main
"""
LOOK = """
import subprocess, sys
from podrun.conformance import snapshot_network as witness_network
before = witness_network.listing()
subprocess.run(["sh", "-euc", sys.argv[1]], check=True)
print(*sorted(witness_network.listing() - before), sep="\\n")
"""


def test_every_object_of_a_network_is_seen(podrun: Podrun) -> None:
    argv = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable, "-c", LOOK, CHANGES]
    done = subprocess.run(argv, env=podrun.environ, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "address 10.99.0.1/32 of lo", "link t-kit1", "nft chain ip t c", "nft element ip t m [78, 79]",
        "nft element ip t s 77", "nft map ip t m", 'nft rule ip t c [{"drop": null}]', "nft set ip t s", "nft table ip t",
        "route 10.98.0.0/24 dev lo scope link", "rule 77: from 10.97.0.1 lookup main",
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize(
    ("up", "left"),
    [
        ("ip -n ${PODRUN_NETNS##*/} link add t-kit2 type bridge", "in podrun-kit: link t-kit2"),
        ("ip netns add t-kit3", "mount /run/netns/t-kit3 (nsfs)"),
        ("truncate -s 1M $PODRUN_DIRECTORY/l; losetup -f $PODRUN_DIRECTORY/l", "device loop"),
        ("touch /tmp/t-kit", "temporary/0/t-kit"),
        ("cd $(dirname $(find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs | head -n 1)); mkdir -p $PODRUN_TAG-left", "cgroup "),
    ],
)  # fmt: skip
def test_what_stays_behind_is_seen_whatever_it_is(podrun: Podrun, home: Path, up: str, left: str) -> None:
    # The network of the kit is its own, and so are its temporary files; cgroups and loop devices are the machine's.
    try:
        done = podrun("hook", "test", "--format", "json", "--rounds", "1", script(home, f"up) {{ {up}; }} >&2;;"))
        assert left in rows(done)["up, down"][1]
    finally:
        for top in ("", "*/"):
            for path in Path("/sys/fs/cgroup").glob(f"{top}podrun-conformance-left"):
                path.rmdir()
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            if "/podrun-kit-" in path.read_text():
                subprocess.run(["losetup", "-d", f"/dev/{path.parts[3]}"], check=True)
    assert not Path("/tmp/t-kit").exists()


@pytest.mark.parametrize("where", [[], ["--here"]])
def test_nothing_is_deleted_through_a_mount_that_a_hook_leaves(podrun: Podrun, home: Path, where: Any) -> None:
    (home / "precious").mkdir()
    (home / "precious/file").write_text("")
    left = f"up) mkdir -p $PODRUN_DIRECTORY/m; mount --bind {home}/precious $PODRUN_DIRECTORY/m;;"
    done = podrun("hook", "test", *where, script(home, left))
    directory = re.search(r"mount (/run/podrun-kit-\w+)", done.stdout)
    assert directory, done.stdout
    assert (home / "precious/file").exists()
    assert not Path(directory[1]).exists()
