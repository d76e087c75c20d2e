"""Storage that follows a pod from host to host, where kernels of their own can do it: NFS, iSCSI, a watchdog.

Run by ``./dev prove storage``, on a machine that does nothing else: emulated hosts miss the cluster's time-outs beside
others, and podrun's own for an answer by ssh. The pods of the examples move between n1 and n2; n3 serves the disk, n2 the files.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent), str(HERE.parent.parent / "hooks")]

from support.cluster_guests import Guest, Guests  # noqa: E402
from support.cluster_hosts import OUTSIDE, Machine, until  # noqa: E402
from support.cluster_trial import PODS, Trial, furnish  # noqa: E402
from support.power_switch import PowerSwitch  # noqa: E402

# Version 4 alone, which needs no portmapper. v4_end_grace: clients of an earlier server are not waited for (nfsd(7)).
FILES = """
modprobe nfsd
mkdir -p /srv/files
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
exportfs -o rw,no_root_squash,insecure,no_subtree_check 10.77.0.0/24:/srv/files
rpc.mountd -N 3
rpc.nfsd -N 3 2
echo Y >/proc/fs/nfsd/v4_end_grace
"""
DISK = """
truncate -s 64M /srv/database
mkfs.ext4 -q /srv/database
systemctl start tgt
tgtadm --lld iscsi --op new --mode target --tid 1 -T iqn.2026-11.example:database
tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b /srv/database
tgtadm --lld iscsi --op bind --mode target --tid 1 -I ALL
crm node standby n3
"""
# How many hosts have the disk at most, as the one place that knows it, the target, sees it.
SESSIONS = "tgtadm --lld iscsi --op show --mode target | grep -c 'I_T nexus:'"
WATCH = (
    f"most=0; while :; do now=$({SESSIONS}); [ $now -le $most ] || most=$now; echo $most >/run/most; sleep 0.2; done"
)


class Moves(Trial):
    """A trial that has n3 do what can be done from any host: an emulated one takes seconds for each start of podrun."""

    def any(self) -> Machine:
        return self.cluster["n3"]

    def where(self, pod: str) -> list[str]:
        return [machine.name for machine in self.cluster.machines if machine.leader and self.is_active(pod, machine)]


def served(trial: Trial) -> None:
    """-: files and a disk are served, and the hosts can be fenced."""
    server = trial.cluster["n3"]
    server.sh(DISK, timeout=180)
    trial.cluster["n2"].sh(FILES, timeout=180)
    server.sh(f"sed -i 's/10.77.0.3:/10.77.0.2:/' {PODS}/files.toml")
    # An emulated host, beside others, needs minutes for what takes another one less than a second.
    server.sh(f"sed -i '/^Restart/a TimeoutStartSec = \"300s\"' {PODS}/files.toml {PODS}/database.toml")
    names = ",".join(machine.name for machine in trial.cluster.machines)
    device = f"primitive switch stonith:fence_switch params ip={OUTSIDE} pcmk_host_list={names} op monitor interval=60s"
    server.sh(f"crm -F configure {device}", timeout=180)
    server.sh("crm -F configure property stonith-enabled=true stonith-action=off", timeout=180)


def hosts_of(trial: Trial, pod: str) -> list[str]:
    """What the pod has written to its storage: a line for each start."""
    return trial.machine_of(pod).do("podrun", "exec", pod, "cat", "/data/hosts", timeout=180).split()


def holds(trial: Trial, host: str, what: str) -> bool:
    """Whether a host has mounted something from a source with this in its name."""
    return what in trial.cluster[host].sh("cat /proc/mounts")


def there_and_back(trial: Trial, pod: str) -> float:
    """Moves a pod from n1 to n2 and back; the seconds that the slower move took."""
    seconds = 0.0
    for host in ("n2", "n1"):
        began = time.monotonic()
        trial.podrun("move", pod, host, "--timeout", "280", timeout=300)
        trial.up(pod, seconds=180)
        seconds = max(seconds, time.monotonic() - began)
    return seconds


def network_file_system(trial: Trial) -> None:
    """nfs: a pod moves, and finds what it has written."""
    trial.podrun("apply", f"{PODS}/files.toml", machine=trial.cluster["n3"], timeout=300)
    trial.up("files", seconds=180)
    seconds = there_and_back(trial, "files")
    found = hosts_of(trial, "files")
    right = found == ["n1", "n2", "n1"] and holds(trial, "n1", "/srv/files") and not holds(trial, "n2", "/srv/files")
    trial.found("nfs", "a pod moves there and back and finds its data", seconds, right=right, note=" ".join(found))
    trial.podrun("rm", "files", timeout=300)


def disk_of_the_cluster(trial: Trial) -> None:
    """iscsi: the cluster hands a disk to the storage step, on one host at a time."""
    server = trial.cluster["n3"]
    server.do("systemd-run", "--quiet", "--unit=watch", "sh", "-c", WATCH)
    trial.podrun("apply", "--stopped", f"{PODS}/database.toml", timeout=300)
    trial.any().sh(f"crm -F configure load update {PODS}/database.crm", timeout=180)
    trial.podrun("start", "database", "--timeout", "280", timeout=300)
    trial.up("database", seconds=180)
    seconds = there_and_back(trial, "database")
    found = hosts_of(trial, "database")
    most = server.sh("cat /run/most").strip()
    gone = trial.cluster["n2"].sh("ls /dev/disk/by-path | grep -c iscsi || true")
    right = found == ["n1", "n2", "n1"] and most == "1" and gone.strip() == "0"
    note = f"{' '.join(found)}; hosts that had the disk at once: {most}"
    trial.found("iscsi", "a disk goes with its pod there and back", seconds, right=right, note=note)


def mount_that_is_busy(trial: Trial, switch: PowerSwitch) -> None:
    """iscsi: a stop that fails keeps the disk from the next host until the first one has no power."""
    here = trial.machine_of("database")
    other = next(name for name in ("n1", "n2") if name != here.name)
    before = hosts_of(trial, "database")
    place = here.sh("awk '/^.dev.sd/ && $3 == \"ext4\" { print $2; exit }' /proc/mounts").strip()
    here.do("systemd-run", "--quiet", "--unit=busy", f"--working-directory={place}", "sleep", "infinity")
    began = time.monotonic()
    trial.any().do("systemd-run", "--quiet", "/usr/local/bin/podrun", "cluster", "move", "database", other)
    until(lambda: switch.cut, 300, lambda: trial.cluster.why(trial.cluster.machines))
    cut = switch.cut[-1][1] - began
    trial.up("database", seconds=180)
    seconds = time.monotonic() - began
    found = hosts_of(trial, "database")
    right = found == [*before, other] and [name for name, _ in switch.cut] == [here.name] and cut < seconds
    note = f"power cut after {cut:.1f} s; {' '.join(found)}"
    trial.found(
        "iscsi", "a mount that is busy: its host is fenced, then the pod starts", seconds, right=right, note=note
    )


def watchdog(trial: Trial, timeout: int = 10) -> None:
    """sbd: a host that is cut off resets itself; n1 is off, so nobody else could end it."""
    here = trial.cluster["n2"]
    assert isinstance(here, Guest)
    here.sh(
        f"""
        modprobe softdog
        printf 'SBD_WATCHDOG_DEV=/dev/watchdog\\nSBD_WATCHDOG_TIMEOUT={timeout}\\n' >/etc/default/sbd
        systemctl enable sbd
        systemctl restart corosync pacemaker""",
        timeout=300,
    )
    time.sleep(5)
    trial.cluster.settled(300)
    trial.up("database", seconds=240)
    here.isolate()
    seconds = until(here.ended, 180, here.words)
    here.power_off()  # what is left of it
    note = f"corosync's token {Guests.token / 1000:g} s, the watchdog's timeout {timeout} s"
    trial.found("sbd", "a host that is cut off resets itself", seconds, 90, note=note)


def main() -> int:
    """Boots, tries, prints the table; 1 when one of the points is not met."""
    if os.geteuid() != 0:
        print("booting hosts needs root", file=sys.stderr)
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Guests() as cluster:
        trial = Moves(cluster)
        furnish(cluster)
        cluster.serve_images()
        cluster.boot()
        trial.found("-", "three hosts booted, one partition with quorum", time.monotonic() - trial.began)
        switch = PowerSwitch({machine.name: machine for machine in cluster.machines}, cluster.namespace, OUTSIDE)
        switch.start()
        assert switch.ready.wait(10)
        trial.attempt("-", served)
        trial.attempt("nfs", network_file_system)
        trial.attempt("iscsi", disk_of_the_cluster)
        trial.attempt("iscsi", lambda trial: mount_that_is_busy(trial, switch))
        trial.attempt("sbd", watchdog)
    return trial.over()


if __name__ == "__main__":
    sys.exit(main())
