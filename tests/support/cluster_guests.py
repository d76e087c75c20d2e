"""A cluster of two hosts with kernels of their own, booted by QEMU, for NFS, iSCSI and a watchdog, and one without.

They are what cluster_hosts makes of systemd-nspawn's, at the same bridge, the two each on a disk of its own that outlives
its reboots. Commands reach them by ssh. n3 gives quorum and serves disks; it is as quick as this machine is, while the
two are emulated.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path

from support import cluster_hosts
from support.cluster_hosts import NAMES, Cluster, Machine, until
from support.systemd_host import Broken

PACKAGES = [
    *cluster_hosts.PACKAGES,
    *"linux-image-cloud-amd64 e2fsprogs nfs-common nfs-kernel-server tgt open-iscsi sbd drbd-utils".split(),
]
#: What they need not do, or only when the trial asks for it. Without the trigger udev looks at what comes later.
_MASKED = [
    "etcd.service",
    "nfs-client.target",
    "apparmor.service",
    "systemd-update-utmp.service",
    "e2scrub_reap.service",
]
MASKED = [*(unit for unit in cluster_hosts.MASKED if unit != "systemd-udevd.service"), *_MASKED, "tgt.service"]
_OPTIONS = [
    *("-T", "-q", "-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null"),
    *("-oConnectTimeout=5", "-oServerAliveInterval=5", "-oControlMaster=auto", "-oControlPersist=300"),
]


class Guest(Machine):
    """One of them. Its QEMU ends when the host resets itself; ``boot`` then boots it again from its disk."""

    device = "eth0"
    masked = MASKED

    @property
    def port(self) -> str:
        """The host's end at the bridge: a tap."""
        return f"tap-{self.name}"

    @property
    def disk(self) -> Path:
        """Its root file system."""
        return self.home / "disk"

    def make_disk(self) -> None:
        """Puts the furnished tree on a disk; what is changed in the tree after this is not there."""
        # An emulated processor takes half a minute to compile podrun at its first start.
        compiling = [
            "chroot",
            self.home / "root",
            "python3",
            "-m",
            "compileall",
            "-q",
            "/usr/local/lib",
            "/usr/lib/python3",
        ]
        subprocess.run(compiling, check=False, capture_output=True)
        self.disk.write_bytes(b"")
        os.truncate(self.disk, 4 << 30)
        options = ["-q", "-F", "-O", "^has_journal", "-m", "0", "-E", "lazy_itable_init=1"]
        subprocess.run(["mkfs.ext4", *options, "-d", self.home / "root", self.disk], check=True, capture_output=True)

    def start(self) -> None:
        """Switches it on."""
        kernel, initrd = (next((self.home / "root/boot").glob(pattern)) for pattern in ("vmlinuz-*", "initrd.img-*"))
        line = "console=ttyS0 root=/dev/vda rw quiet panic=-1 net.ifnames=0 mitigations=off systemd.show_status=1"
        argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "768", "-smp", "1"]
        argv += ["-display", "none", "-monitor", "none", "-no-reboot", "-serial", "stdio"]
        argv += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", line]
        argv += ["-drive", f"file={self.disk},format=raw,if=virtio,cache=unsafe"]
        argv += ["-netdev", f"tap,id=net0,ifname={self.port},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=net0,mac=52:54:00:77:00:0{NAMES.index(self.name) + 1}"]
        with open(self.home / "console", "ab") as console:
            self.process = subprocess.Popen(
                self.cluster.outside(*argv),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "TMPDIR": str(self.home)},
                start_new_session=True,
            )
        self.leader = self.process.pid

    def boot(self) -> None:
        self.start()
        self.answers()

    def answers(self, seconds: float = 600) -> None:
        """Waits until ssh and systemd answer."""
        until(self._answers, seconds, lambda: f"{self.name} does not boot:\n{self.words()}")

    def _answers(self) -> bool:
        if self.ended():
            raise Broken(f"{self.name} ended:\n{self.words()}")
        try:
            return self.run("systemctl", "list-units", "--no-pager", timeout=30).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def ended(self) -> bool:
        """Whether it has reset itself, or was switched off."""
        return self.process is None or self.process.poll() is not None

    def inside(self, *argv: str) -> list[str]:
        own = ["-i", f"{self.cluster.home}/keys/id", f"-oControlPath={self.cluster.home}/ssh-{self.name}"]
        words = ["ssh", *_OPTIONS, *own, f"root@{self.address}", "--", shlex.join(argv)]
        return self.cluster.outside(*words)

    def power_off(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self._gone()

    def _gone(self) -> None:
        super()._gone()
        # A connection that outlives its host would have the next command wait for it.
        control = self.cluster.home / f"ssh-{self.name}"
        if control.exists():
            argv = ["ssh", f"-oControlPath={control}", "-O", "exit", self.name]
            subprocess.run(argv, capture_output=True, timeout=10)


class Server(Machine):
    """n3."""

    masked = [*cluster_hosts.MASKED, *_MASKED]


class Guests(Cluster):
    """The three of them. Use as a context manager."""

    packages = PACKAGES
    #: Emulated processors share this machine's with all else: seconds of silence say nothing, and to encrypt takes long.
    token = 10000
    crypto = ("none", "none")

    def machine(self, number: int) -> Machine:
        return Server(self, number) if number == 2 else Guest(self, number)

    def boot(self) -> None:
        """Puts the hosts on their disks and boots all at once."""
        for guest in self.guests:
            guest.make_disk()
            self.ip("tuntap", "add", guest.port, "mode", "tap")
            self.ip("link", "set", guest.port, "master", "br0", "up")
            guest.start()
        self["n3"].boot()
        for guest in self.guests:
            guest.answers()
        for machine in self.machines:
            machine.do("podrun", "cluster", "install-agent", timeout=300)
            machine.do("podrun", "run", "--rm", "host:", "true", timeout=300)
        self.settled(600)

    def _furnish(self, machine: Machine, tree: Path) -> None:
        super()._furnish(machine, tree)
        etc = machine.home / "root/etc"
        # Debian's sbd has corosync require it at once, and there is no watchdog yet.
        for unit in etc.glob("systemd/system/*.requires/sbd*.service"):
            unit.unlink()
        (etc / "systemd/system.conf.d/slow.conf").write_text("[Manager]\nDefaultTimeoutStartSec=600s\n")
        (etc / "iscsi/initiatorname.iscsi").write_text(f"InitiatorName=iqn.2026-11.example:{machine.name}\n")

    @property
    def guests(self) -> list[Guest]:
        return [machine for machine in self.machines if isinstance(machine, Guest)]
