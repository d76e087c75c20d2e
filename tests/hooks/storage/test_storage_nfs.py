"""NFS with a real server and the kernel's client, on the host booted by QEMU: this machine's kernel may have neither."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun import ownership
from support.acls import acl
from support.launcher import Podrun
from support.objects import listing, settled

pytestmark = pytest.mark.qemu

# Version 4 alone, which needs no portmapper. v4_end_grace: clients of an earlier server are not waited for (nfsd(7)).
START = """
modprobe nfsd
mkdir -p /srv/shared
echo hello >/srv/shared/greeting
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
exportfs -o rw,no_root_squash,insecure 127.0.0.1:/srv/shared
rpc.mountd -N 3
rpc.nfsd -N 3 1
echo Y >/proc/fs/nfsd/v4_end_grace
"""
STOP = """
rpc.nfsd 0
exportfs -u 127.0.0.1:/srv/shared
kill $(pidof rpc.mountd)
umount /proc/fs/nfsd
rm -r /srv/shared
"""

CHAIN = """
[[chain]]
hook = "image"
ref = "host:"

[[chain]]
hook = "storage"
source = "nfs:127.0.0.1:/srv/shared"
target = "/data"
options = ["vers=4.2", "soft", "timeo=50", "retrans=2"]

[[chain]]
hook = "container"
command = ["sh", "-c", "{command}"]
"""


def sh(script: str) -> None:
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """An export; what the server sees of it."""
    sh(START)
    yield Path("/srv/shared")
    sh(STOP)


def pod(podrun: Podrun, command: str) -> str:
    return podrun.file("web", CHAIN.format(command=command))


def test_a_pod_reads_and_writes_an_nfs_export_and_nothing_stays_mounted(podrun: Podrun, server: Any) -> None:
    before = listing(podrun.run, podrun.root)
    path = pod(podrun, "cat /data/greeting; echo done >/data/answer; stat -f -c %T /data")
    done = podrun("up", path, timeout=120)
    assert (done.stdout, done.returncode) == ("hello\nnfs\n", 0), done.stderr
    assert (server / "answer").read_text() == "done\n"
    assert not settled(podrun.run, podrun.root, before)


def test_an_nfs_mount_that_is_busy_is_named_with_its_holder_and_the_next_down_finishes(
    podrun: Podrun, server: Any
) -> None:
    podrun("up", "-d", pod(podrun, "sleep 600"), timeout=120, check=True)
    mount = podrun.run / "pods" / "web" / "mnt" / "storage"
    assert (mount / "greeting").read_text() == "hello\n"
    with subprocess.Popen(["sleep", "600"], cwd=mount) as holder:
        refused = podrun("down", "web", timeout=120)
        assert (refused.returncode, f"(pid {holder.pid}" in refused.stderr) == (75, True), refused.stderr
        holder.kill()
    podrun("down", "web", timeout=120, check=True)
    assert not mount.exists()
    assert (server / "greeting").exists()


def test_a_list_that_the_mode_does_not_show_keeps_root_from_believing_a_file(server: Path) -> None:
    (server / "roots").write_text("{}")
    (server / "bobs").write_text("{}")
    acl(server / "bobs")
    sh("mkdir -p /mnt/listed; mount -t nfs -o vers=4.2,soft 127.0.0.1:/srv/shared /mnt/listed")
    try:
        assert ownership.read("/mnt/listed/roots") == b"{}"
        with pytest.raises(ownership.Untrusted, match=r"can be changed by 1234.*NFSv4"):
            ownership.read("/mnt/listed/bobs")
    finally:
        sh("umount /mnt/listed; rmdir /mnt/listed; rm /srv/shared/roots /srv/shared/bobs")
