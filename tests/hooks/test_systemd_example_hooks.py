"""The example hooks that need modules of the kernel, with a kernel that has them: a WireGuard link, an NFS export."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hook_kit import Server, passes
from support.launcher import HERE, Podrun
from support.objects import listing, settled

pytestmark = pytest.mark.qemu

EXAMPLES = HERE.parent / "examples" / "hooks"


def sh(script: str, **given: str) -> str:
    done = subprocess.run(
        ["sh", "-euc", script], capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin", **given}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def hooks(home: Path, podrun: Podrun) -> None:
    (home / "hooks").mkdir()
    for name in ("nfs", "wireguard"):
        shutil.copy(EXAMPLES / name, home / "hooks" / name)
    podrun.environ["PODRUN_HOOKS"] = str(home / "hooks")


@pytest.fixture
def nothing_left(podrun: Podrun, hooks: Any) -> Iterator[None]:
    podrun("run", "--rm", "--name", "warm", "host:", "true", check=True)
    before = listing(podrun.run, podrun.root)
    yield
    assert not settled(podrun.run, podrun.root, before)


# --- wireguard --------------------------------------------------------------------------------------------------------

PEER = """
modprobe wireguard
cd "$HOME"
umask 077
for who in pod peer; do wg genkey >$who.key; wg pubkey <$who.key >$who.pub; done
ip link add podrun-peer type wireguard
wg set podrun-peer listen-port 51820 private-key peer.key peer "$(cat pod.pub)" allowed-ips 10.7.0.2/32
ip address add 10.7.0.1/24 dev podrun-peer
ip link set podrun-peer up
cat >pod.conf <<END
[Interface]
PrivateKey = $(cat pod.key)
[Peer]
PublicKey = $(cat peer.pub)
Endpoint = 127.0.0.1:51820
AllowedIPs = 10.7.0.1/32
END
"""


@pytest.fixture
def peer(home: Path) -> Iterator[Path]:
    """The other end: a link of the host. Gives the configuration for the pod's."""
    sh(PEER, HOME=str(home))
    yield home / "pod.conf"
    sh("ip link del podrun-peer")


def test_a_pod_without_any_other_network_reaches_its_peer_through_wireguard(
    podrun: Podrun, peer: Any, nothing_left: None
) -> None:
    with Server(lambda _: (200, b"through the tunnel"), "10.7.0.1") as server:
        path = podrun.file(
            "web",
            'chain = [ { hook = "image", ref = "host:" }, { hook = "network", mode = "none" },'
            f' {{ hook = "wireguard", config = "{peer}", addresses = ["10.7.0.2/24"] }},'
            f' {{ hook = "container", command = ["curl", "-sS", "--max-time", "20", "{server.url}"] }} ]',
        )
        done = podrun("up", path, timeout=120)
    assert (done.stdout, done.returncode) == ("through the tunnel", 0), done.stderr
    assert int(sh("wg show podrun-peer latest-handshakes").split()[1]) > 0


def test_wireguard_keeps_the_contract(podrun: Podrun, peer: Any, hooks: Any) -> None:
    passes(podrun, "wireguard", "-o", f"config={peer}", "-o", 'addresses=["10.7.0.2/24"]', "--rounds", "1")


# --- nfs --------------------------------------------------------------------------------------------------------------

# Version 4 alone: it needs no portmapper. A server that has just started lets nobody open files until those of an
# earlier one have had their time: v4_end_grace (nfsd(7)).
EXPORT = """
modprobe nfsd
mkdir -p /srv/export
echo hello >/srv/export/greeting
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
exportfs -o rw,no_root_squash,insecure,fsid=0 127.0.0.1:/srv/export
rpc.mountd -N 3
rpc.nfsd -N 3 1
echo Y >/proc/fs/nfsd/v4_end_grace
"""


@pytest.fixture
def export() -> Iterator[str]:
    """An exported directory of this host."""
    sh(EXPORT)
    yield "127.0.0.1:/"
    sh(
        "rpc.nfsd 0; exportfs -u 127.0.0.1:/srv/export; kill $(pidof rpc.mountd); umount /proc/fs/nfsd; rm -r /srv/export"
    )


def test_containers_share_an_nfs_export_and_nothing_stays_mounted(
    podrun: Podrun, export: Any, nothing_left: None
) -> None:
    path = podrun.file(
        "web",
        'chain = [ { hook = "image", ref = "host:" },'
        f' {{ hook = "nfs", type = "nfs4", source = "{export}", target = "/data", options = "soft,timeo=50,retrans=2" }},'
        ' { hook = "container", command = ["sh", "-c", "cat /data/greeting; echo done >/data/answer; stat -f -c %T /data"] } ]',
    )
    done = podrun("up", path, timeout=120)
    assert (done.stdout, done.returncode) == ("hello\nnfs\n", 0), done.stderr
    assert Path("/srv/export/answer").read_text() == "done\n"
