"""podrun network create, rm, connect and disconnect, and names that a pod has beside its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from podrun_hooks.network import declaring
from support.launcher import Podrun
from support.pods import until

pytestmark = pytest.mark.root

NAME = f"tn{os.getpid()}"
FILE = Path("/etc/podrun/networks.toml")


@pytest.fixture(scope="module")
def net() -> Iterator[Podrun]:
    """A podrun with a network of its own, declared in networks.toml."""
    home = Path("/var/lib") / f"podrun-test-networks-{os.getpid()}"
    home.mkdir(mode=0o755)
    podrun = Podrun(home)
    before = FILE.read_text() if FILE.exists() else None
    podrun("network", "create", NAME, "--subnet", "198.51.100.0/24", "--mtu", "1400", check=True)
    yield podrun
    podrun("down", "-t", "0", "--all", check=True)
    assert podrun("network", "rm", NAME).returncode in (0, 69)
    podrun("gc", check=True)
    assert not Path(f"/sys/class/net/{NAME}").exists()
    assert (FILE.read_text() if FILE.exists() else None) == (before or "")
    if before is None:
        FILE.unlink()
    subprocess.run(["rm", "-rf", str(home)], check=True)


def test_a_running_pod_joins_a_network_and_leaves_it(net: Podrun) -> None:
    rows = [json.loads(line) for line in net("network", "ls", "--format", "json").stdout.splitlines()]
    assert [row["subnet"] for row in rows if row["name"] == NAME] == ["198.51.100.0/24"]
    assert net("network", "create", NAME).returncode == 73
    net("run", "-d", "--name", "one", "--network-alias", "first", "host:", "sleep", "1000", check=True)
    options = ["--network", NAME, "--network-alias", "other"]
    net("run", "-d", "--name", "two", *options, "host:", "sleep", "1000", check=True)

    assert net("network", "connect", "--ip", "198.51.100.9", "--alias", "aka", NAME, "one").stdout.startswith("198.51.")
    assert net("network", "connect", NAME, "one").returncode == 75
    assert "198.51.100.9" in net("exec", "two", "getent", "ahostsv4", "aka").stdout
    assert net("exec", "one", "cat", "/sys/class/net/eth1/mtu").stdout == "1400\n"
    [_, joined] = json.loads(net("inspect", "one").stdout)["networks"]
    assert (joined["name"], joined["addresses"][0]) == (NAME, "198.51.100.9/24")
    assert net("ps", "-q", "--filter", f"network={NAME}").stdout.split() == ["one", "two"]
    assert "in use by one, two" in net("network", "rm", NAME).stderr

    net("network", "disconnect", NAME, "one", check=True)
    assert net("exec", "one", "test", "-e", "/sys/class/net/eth1").returncode == 1
    assert net("exec", "two", "getent", "hosts", "aka").returncode == 2
    assert net("network", "disconnect", NAME, "one").returncode == 69
    # Undone with the pod when nobody disconnects it; nothing_left is the fixture's business.
    net("network", "connect", NAME, "one", check=True)
    until(lambda: net("down", "-t", "0", "one").returncode == 0)
    done = net("run", "-d", "--name", "three", *options, "host:", "sleep", "1")
    assert (done.returncode, "the host name other is pod two's" in done.stderr) == (78, True)
    net("down", "-t", "0", "two", check=True)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["create", "x" * 16], 78, "at most 15"),
        (["create", "lo"], 73, "which is not podrun's"),
        (["create", "t-none", "--subnet", "10.1.2.3/16"], 78, "bits set behind its prefix"),
        (["create", "t-none", "--subnet", "10.1.0.0/16", "--subnet", "10.2.0.0/16"], 78, "one of its family already"),
        (["rm", "t-none"], 69, "there is no network"),
        (["connect", "t-none", "one"], 78, "unknown network"),
        (["connect", NAME, "nobody"], 69, "is not up"),
    ],
)
def test_what_is_wrong_is_refused(net: Podrun, words: list[str], code: int, told: str) -> None:
    done = net("network", *words)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("# mine\n[networks.a]\nmtu = 1400\n\n[networks.b] # two\nmtu = 1300\n", "# mine\n[networks.a]\nmtu = 1400\n"),
        ('[networks."b"]\nmtu = 1300\n[networks.a]\nmtu = 1400\n', "[networks.a]\nmtu = 1400\n"),
        ("[networks]\nb = { mtu = 1300 }\n", None),
    ],
)
def test_a_table_is_taken_out_of_what_people_have_written(text: str, left: str | None) -> None:
    if left is None:
        with pytest.raises(Exception, match="with an editor"):
            declaring._without(text, "b")
    else:
        assert declaring._without(text, "b") == left
