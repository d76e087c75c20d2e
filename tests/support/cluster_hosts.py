"""Three Debian hosts on a bridge of their own, booted by systemd-nspawn: corosync, Pacemaker, etcd, ssh, podrun.

The hosts share one tree, made of packages once and cached; what a host changes is in an overlay that outlives its
reboots. The bridge and a registry are in a network namespace, so that nothing of it can be seen from this machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from support import image_builder, systemd_host
from support.systemd_host import CHECKOUT, NSPAWN, Broken

PACKAGES = """systemd systemd-sysv dbus udev kmod procps iproute2 nftables conntrack curl busybox-static crun catatonit
    python3 python3-click python3-pyroute2 python3-zstandard python3-docker python3-psutil
    pacemaker pacemaker-cli-utils corosync crmsh resource-agents etcd-server etcd-client openssh-server openssh-client
    netcat-openbsd iputils-ping libxml2-utils""".split()

NAMES = ("n1", "n2", "n3")
OUTSIDE = "10.77.0.254"
REGISTRY = f"{OUTSIDE}:5000"
#: Milliseconds of silence after which corosync takes a host for dead.
TOKEN = 1000

#: Only what a host has to do: the rest of the boot costs seconds on two cores.
MASKED = """podrun-tests.service console-getty.service getty@tty1.service systemd-networkd.service
    systemd-resolved.service haproxy.service systemd-logind.service apt-daily.timer e2scrub_all.timer
    systemd-udev-trigger.service systemd-udevd.service""".split()

SETUP = """[Unit]
Description=The address of this host
DefaultDependencies=no
Before=network.target network-online.target corosync.service etcd.service
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip link set lo up; ip address add {address}/24 dev {device}; ip link set {device} up; ip route add default via {outside}'

[Install]
WantedBy=multi-user.target
"""

COROSYNC = """totem {{
    version: 2
    cluster_name: podrun
    token: {token}
    transport: knet
    crypto_cipher: {cipher}
    crypto_hash: {hash}
}}
nodelist {{
{nodes}
}}
quorum {{
    provider: corosync_votequorum
}}
logging {{
    to_syslog: yes
}}
system {{
    sched_rr: no
}}
"""

ETCD = """ETCD_NAME={name}
ETCD_DATA_DIR=/var/lib/etcd/data
ETCD_LISTEN_CLIENT_URLS=http://127.0.0.1:2379,http://{address}:2379
ETCD_ADVERTISE_CLIENT_URLS=http://{address}:2379
ETCD_LISTEN_PEER_URLS=http://{address}:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://{address}:2380
ETCD_INITIAL_CLUSTER={peers}
ETCD_INITIAL_CLUSTER_STATE=new
"""

DEFAULTS = """[defaults]
registry = "etcd://127.0.0.1:2379,{others}"
advertise = "{address}"
"""

#: What the image of the examples has in /bin, all of it busybox.
APPLETS = "sh httpd wget sed sleep mkdir cat echo date nc seq true".split()


class Machine:
    """One host. ``run`` is what a shell on it would do."""

    #: Its end of the cable to the bridge, and what it does not start.
    device = "host0"
    masked: Sequence[str] = MASKED

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.name = NAMES[number]
        self.address = f"10.77.0.{number + 1}"
        self.home = cluster.home / self.name
        self.process: subprocess.Popen[bytes] | None = None
        self.leader = 0

    @property
    def port(self) -> str:
        """The host's end at the bridge, as systemd-nspawn names it."""
        return f"vb-{self.name}"

    def boot(self) -> None:
        """Returns when systemd answers; what it starts is still on its way."""
        root = self.home / "root"
        argv = ["systemd-nspawn", "--quiet", "--boot", f"--directory={root}", f"--machine={self.name}"]
        argv += ["--register=no", "--keep-unit", "--capability=all", "--link-journal=no", "--console=pipe"]
        argv += ["--system-call-filter=@keyring bpf", "--network-bridge=br0", "--resolv-conf=off", "--timezone=off"]
        argv += [f"--bind={self.home}/podrun:/var/lib/podrun", "systemd.show_status=0"]
        argv = ["nsenter", f"--net=/run/netns/{self.cluster.namespace}", *argv]
        cgroup = self.cluster.cgroup(self.name)
        if cgroup:
            argv = ["sh", "-c", 'echo 0 >"$0"/cgroup.procs && exec "$@"', str(cgroup), *argv]
        with open(self.home / "console", "ab") as console:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, **NSPAWN, "TMPDIR": str(self.home)},
                start_new_session=True,
            )
        until(self._answers, 30, lambda: f"{self.name} does not boot:\n{self.words()}")

    def _answers(self) -> bool:
        assert self.process
        if self.process.poll() is not None:
            raise Broken(f"{self.name} ended ({self.process.returncode}):\n{self.words()}")
        with contextlib.suppress(OSError, ValueError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            self.leader = int(children[0]) if children else 0
        return bool(self.leader) and self.run("systemctl", "list-units", "--no-pager").returncode == 0

    def words(self) -> str:
        """The end of what the console has shown."""
        path = self.home / "console"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def inside(self, *argv: str) -> list[str]:
        """The command line that does this on the host."""
        return ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "--", *argv]

    def run(self, *argv: str, timeout: float = 60, text: str | None = None) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C"}
        stdin: dict[str, object] = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            self.inside(*argv),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environ,
            **stdin,  # type: ignore[call-overload]
        )

    def do(self, *argv: str, timeout: float = 60) -> str:
        """The output of a command that has to succeed."""
        done = self.run(*argv, timeout=timeout)
        assert done.returncode == 0, f"{self.name}: {' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def sh(self, script: str, timeout: float = 60) -> str:
        return self.do("sh", "-c", script, timeout=timeout)

    def power_off(self) -> None:
        """Pulls the plug."""
        if self.leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)
        self._gone()

    def shut_down(self, timeout: float = 90) -> None:
        """As systemctl poweroff does."""
        self.run("systemctl", "poweroff")
        assert self.process
        self.process.wait(timeout)
        self._gone()

    def _gone(self) -> None:
        if self.process:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process, self.leader = None, 0
        self.cluster.remove_cgroup(self.name)

    def isolate(self, yes: bool = True) -> None:
        """Pulls the network cable, or plugs it in again."""
        self.cluster.ip("link", "set", self.port, "down" if yes else "up")


class Cluster:
    """The hosts, their bridge and a registry. Use as a context manager."""

    packages: Sequence[str] = PACKAGES
    token = TOKEN
    #: How corosync encrypts and signs.
    crypto = ("aes256", "sha256")

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="podrun-cluster-"))
        self.namespace = self.home.name
        self.machines: list[Machine] = []
        self.registry: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Cluster:
        try:
            self._network()
            self._keys()
            tree = systemd_host.build(self.packages) / "tree"
            self.machines = [self.machine(number) for number in range(len(NAMES))]
            for machine in self.machines:
                self._furnish(machine, tree)
        except BaseException:
            self.__exit__()
            raise
        return self

    def machine(self, number: int) -> Machine:
        """The host of a number, not booted yet."""
        return Machine(self, number)

    def boot(self) -> None:
        """Boots all hosts; returns when all are online in one partition with quorum and etcd answers."""
        for machine in self.machines:
            machine.boot()
            machine.do("podrun", "cluster", "install-agent")
        self.settled()

    def settled(self, timeout: float = 90) -> None:
        """Waits until the hosts that run are online for one another, and etcd, where it runs, has a leader."""
        alive = [machine for machine in self.machines if machine.leader]
        until(lambda: all(online(machine) == len(alive) for machine in alive), timeout, lambda: self.why(alive))
        if "etcd.service" in alive[0].masked:
            return
        health = "curl -sf --max-time 2 http://127.0.0.1:2379/health | grep -q true"
        until(lambda: all(m.run("sh", "-c", health).returncode == 0 for m in alive), timeout, lambda: self.why(alive))

    def why(self, machines: Sequence[Machine]) -> str:
        """What a person would look at."""
        parts = []
        for machine in machines:
            for argv in (["crm_mon", "-1"], ["systemctl", "--failed", "--no-pager"], ["corosync-quorumtool"]):
                done = machine.run(*argv)
                parts.append(f"{machine.name}: {' '.join(argv)}\n{done.stdout}{done.stderr}")
        return "\n".join(parts)[-6000:]

    def __getitem__(self, name: str) -> Machine:
        return next(machine for machine in self.machines if machine.name == name)

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", "-n", self.namespace, *words], check=True, capture_output=True)

    def outside(self, *argv: str) -> list[str]:
        """A command in the network that the bridge is in."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *argv]

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            with contextlib.suppress(Exception):
                machine.power_off()
            subprocess.run(["umount", "-q", "-l", machine.home / "root"], capture_output=True)
        if self.registry:
            self.registry.terminate()
            self.registry.wait()
        subprocess.run(["ip", "netns", "delete", self.namespace], capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)

    # --- what they are made of ----------------------------------------------------------------------------------------

    def _network(self) -> None:
        subprocess.run(["ip", "netns", "add", self.namespace], check=True, capture_output=True)
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "br0", "type", "bridge", "forward_delay", "0")
        self.ip("address", "add", f"{OUTSIDE}/24", "dev", "br0")
        self.ip("link", "set", "br0", "up")

    def serve_images(self) -> str:
        """Starts a registry at REGISTRY, in the bridge's namespace; returns its address."""
        place = self.home / "registry"
        place.mkdir()
        config = place / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {place}/data}}}}\n"
            f"http: {{addr: '{REGISTRY}'}}\n"
        )
        with open(place / "log", "wb") as log:
            self.registry = subprocess.Popen(
                self.outside("docker-registry", "serve", str(config)), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        probe = self.outside("curl", "-sf", f"http://{REGISTRY}/v2/")
        until(lambda: subprocess.run(probe, capture_output=True).returncode == 0, 20, lambda: "the registry is silent")
        busybox = image_builder.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
        links = [image_builder.symlink(f"bin/{name}", "busybox") for name in APPLETS]
        directories = [image_builder.directory(name) for name in ("bin", "etc", "tmp")]
        built = image_builder.image(image_builder.tar(*directories, busybox, *links))
        layout = image_builder.layout(str(place / "layout"), {"1": built})
        argv = ["skopeo", "copy", "--preserve-digests", "--dest-tls-verify=false", f"oci:{layout}:1"]
        argv = self.outside(*argv, f"docker://{REGISTRY}/busybox:1")
        subprocess.run(argv, check=True, capture_output=True)
        return REGISTRY

    def _keys(self) -> None:
        keys = self.home / "keys"
        keys.mkdir(mode=0o700)
        subprocess.run(["corosync-keygen", "-l", "-k", keys / "authkey"], check=True, capture_output=True)
        for name in ("id", "host"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "podrun", "-f", keys / name]
            subprocess.run(argv, check=True, capture_output=True)

    def _furnish(self, machine: Machine, tree: Path) -> None:
        """The host's own files, put on top of the common tree."""
        home = machine.home
        for part in ("upper", "work", "root", "podrun"):
            (home / part).mkdir(parents=True)
        options = f"lowerdir={tree},upperdir={home}/upper,workdir={home}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, home / "root"], check=True)
        root = home / "root"

        def put(path: str, content: str | bytes, mode: int = 0o644) -> None:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
            file.chmod(mode)

        addresses = {name: f"10.77.0.{number + 1}" for number, name in enumerate(NAMES)}
        keys = self.home / "keys"
        host_key = (keys / "host.pub").read_text()
        put("etc/hostname", f"{machine.name}\n")
        put("etc/machine-id", f"{os.urandom(16).hex()}\n")
        put("etc/hosts", "127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in addresses.items()))
        put(
            "etc/systemd/system/host-address.service",
            SETUP.format(address=machine.address, outside=OUTSIDE, device=machine.device),
        )
        nodes = "\n".join(
            f"    node {{\n        name: {name}\n        nodeid: {number + 1}\n        ring0_addr: {addresses[name]}\n    }}"
            for number, name in enumerate(NAMES)
        )
        put(
            "etc/corosync/corosync.conf",
            COROSYNC.format(token=self.token, nodes=nodes, cipher=self.crypto[0], hash=self.crypto[1]),
        )
        put("etc/corosync/authkey", (keys / "authkey").read_bytes(), 0o400)
        peers = ",".join(f"{name}=http://{address}:2380" for name, address in addresses.items())
        put("etc/default/etcd", ETCD.format(name=machine.name, address=machine.address, peers=peers))
        put("root/.ssh/id_ed25519", (keys / "id").read_text(), 0o600)
        put("root/.ssh/authorized_keys", (keys / "id.pub").read_text(), 0o600)
        put("root/.ssh/known_hosts", "".join(f"{name},{address} {host_key}" for name, address in addresses.items()))
        put("etc/ssh/ssh_host_ed25519_key", (keys / "host").read_text(), 0o600)
        put("etc/ssh/ssh_host_ed25519_key.pub", host_key)
        others = ",".join(f"{address}:2379" for name, address in addresses.items() if name != machine.name)
        put("etc/podrun/podrun.toml", DEFAULTS.format(others=others, address=machine.address))
        put("etc/podrun/registries.toml", f'[registry."{REGISTRY}"]\ninsecure = true\n')
        put("etc/podrun/host.env", f"HOST_NAME={machine.name}\nHOST_IP={machine.address}\n", 0o600)
        wants = root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        for unit, target in {
            "host-address.service": "/etc/systemd/system/host-address.service",
            "corosync.service": "/lib/systemd/system/corosync.service",
            "pacemaker.service": "/lib/systemd/system/pacemaker.service",
            "etcd.service": "/lib/systemd/system/etcd.service",
            "ssh.service": "/lib/systemd/system/ssh.service",
        }.items():
            if target.startswith("/lib/"):
                (root / "etc/systemd/system" / unit).unlink(missing_ok=True)  # masked in the image
            (wants / unit).unlink(missing_ok=True)
            os.symlink(target, wants / unit)
        for unit in machine.masked:
            (root / "etc/systemd/system" / unit).unlink(missing_ok=True)
            os.symlink("/dev/null", root / "etc/systemd/system" / unit)
        self._install(root)

    def _install(self, root: Path) -> None:
        """podrun of this checkout, where Debian's python finds it."""
        packages = next((root / "usr/local/lib").glob("python3*")) / "dist-packages"
        for part in ("podrun", "hooks/podrun_hooks"):
            source = CHECKOUT / part
            shutil.copytree(source, packages / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        command = root / "usr/local/bin/podrun"
        lines = (CHECKOUT / "bin/podrun").read_text().splitlines(keepends=True)
        command.write_text("".join(["#!/usr/bin/python3 -I\n", *lines[1:]]))
        command.chmod(0o755)

    def cgroup(self, name: str) -> Path | None:
        """systemd-nspawn makes its caller's cgroup the host's root: each host gets one of its own."""
        for top in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
            if (top / "cgroup.procs").exists() and (top / "cgroup.controllers").exists():
                place = top / f"{self.namespace}-{name}"
                with contextlib.suppress(OSError):
                    place.mkdir(exist_ok=True)
                    return place
        return None

    def remove_cgroup(self, name: str) -> None:
        deadline = time.monotonic() + 5
        for place in [
            *Path("/sys/fs/cgroup").glob(f"{self.namespace}-{name}"),
            *Path("/sys/fs/cgroup").glob(f"*/{self.namespace}-{name}"),
        ]:
            while place.exists() and time.monotonic() < deadline:
                for directory, _, _ in os.walk(place, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)
                time.sleep(0.02)


def online(machine: Machine) -> int:
    """How many hosts this one's cluster has online; 0 without quorum."""
    done = machine.run("crm_mon", "-1", "--output-as=xml")
    if 'with_quorum="true"' not in done.stdout:
        return 0
    return sum(
        'online="true"' in line and "<node " in line and 'pending="false"' in line for line in done.stdout.splitlines()
    )


def until(true: Callable[[], object], seconds: float, why: Callable[[], str] = lambda: "it did not come") -> float:
    """Waits for a condition; returns how long it took. Raises Broken with ``why`` when it does not come."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            raise Broken(why())
        time.sleep(0.05)
    return time.monotonic() - began
