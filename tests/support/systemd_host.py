"""A Debian host that the tests boot: its image, made of packages once and cached, and one boot of it.

Two ways to boot the same tree. systemd-nspawn takes a second or two and shares this machine's kernel and cgroup set-up;
QEMU without KVM takes twenty and has a kernel of its own with cgroup v2 and all its controllers, or as "hybrid" with
cgroup v1 as systemd mounts it beside v2.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from fcntl import LOCK_EX, flock
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "podrun-tests"

PACKAGES = """systemd systemd-sysv dbus udev kmod procps iproute2 nftables curl busybox-static crun runc catatonit
    python3 python3-click python3-pyroute2 python3-zstandard python3-docker python3-psutil
    apparmor tzdata wireguard-tools nfs-common nfs-kernel-server haproxy etcd-server
    linux-image-cloud-amd64""".split()
#: What a host does that has nobody to serve.
MASKED = """serial-getty@ttyS0 getty@tty1 console-getty systemd-networkd-wait-online systemd-timesyncd
    haproxy etcd e2scrub_reap systemd-pstore apparmor rpcbind nfs-server nfs-mountd nfs-idmapd nfs-blkmap rpc-statd nfsdcld
    fsidd run-rpc_pipefs.mount""".split()
TIMERS = "apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim systemd-tmpfiles-clean".split()

#: Where the root of an image with all the servers is on a host that is booted for them.
SERVERS_AT = "/servers"
#: Modules of this Python that Debian has not, or not as new: pytest and its parts, cgroupspy. Pure Python, they run on
#: the host's as well.
MODULES = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "cgroupspy")

# In the guest: where the checkout, pytest and what nspawn shares with us are.
INSIDE, SITE, SHARED = "/opt/podrun", "/opt/pytest", "/opt/shared"

#: Settings of systemd-nspawn that have no option: cgroup v2, and a /proc/sys/net that the guest can write to.
NSPAWN = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}

UNIT = f"""[Unit]
Description=The tests of podrun
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'exec tar -xf $(ls /dev/vdb {SHARED}/carry.tar 2>/dev/null) -C /'
ExecStart=/bin/sh {INSIDE}/run
TasksMax=infinity
OOMPolicy=continue

[Install]
WantedBy=multi-user.target
"""

RUN = f"""
if [ -e /dev/vdb ]; then
    exec >/dev/ttyS0 2>&1
    stty -F /dev/ttyS1 raw -echo
    export PODRUN_TEST_REPORTS=/dev/ttyS1 PODRUN_TEST_HOST=qemu
else
    exec >{SHARED}/output 2>&1
    export PODRUN_TEST_REPORTS={SHARED}/reports PODRUN_TEST_HOST=nspawn
fi
cp -r {INSIDE}/podrun {INSIDE}/hooks/podrun_hooks {SITE}/cgroupspy /usr/local/lib/python3*/dist-packages/
sed '1s:.*:#!/usr/bin/python3 -I:' {INSIDE}/bin/podrun >/usr/local/bin/podrun
chmod 755 /usr/local/bin/podrun
cd {INSIDE}
export PYTHONPATH={SITE} HOME=/root PYTHONDONTWRITEBYTECODE=
/usr/bin/python3 {INSIDE}/$(cat {INSIDE}/program)
sync
if [ -e /dev/vdb ]; then exec systemctl poweroff --force --force; fi
exec systemctl exit --force --force 0
"""


class Broken(Exception):
    """The host could not be made, or went away."""


def missing(kind: str) -> list[str]:
    """What this machine lacks to boot a host of ``kind`` ("nspawn" | "qemu" | "hybrid"): the names of programs."""
    programs = ["systemd-nspawn"] if kind == "nspawn" else ["qemu-system-x86_64", "mkfs.ext4"]
    return [program for program in ("mmdebstrap", "apt-get", *programs) if not shutil.which(program)]


# --- the image ------------------------------------------------------------------------------------------------------


def sources() -> list[str]:
    """The lines of a sources.list for Debian as this machine's own apt is configured. Raises Broken."""
    pattern = "$(ORIGIN) $(REPO_URI) $(CODENAME) $(COMPONENT)"
    for again in (False, True):
        if again:
            subprocess.run(["apt-get", "update", "-q"], capture_output=True, timeout=300)
        told = subprocess.run(
            ["apt-get", "indextargets", "--format", pattern, "Created-By: Packages"], capture_output=True, text=True
        ).stdout
        found = [words for line in told.splitlines() if len(words := line.split()) == 4 and words[0] == "Debian"]
        if found:
            return [f"deb {uri} {codename} {component}" for _, uri, codename, component in found]
    raise Broken("apt on this machine knows no Debian repository")


def build(packages: Sequence[str] = PACKAGES) -> Path:
    """The directory with ``tree`` and ``disk``, made on the first call; raises Broken."""
    lines = sources()
    recipe = "\n".join([*lines, *packages, *MASKED, *TIMERS, UNIT, "2"])
    made = CACHE / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        flock(lock, LOCK_EX)
        if not made.exists():
            half = CACHE / "half"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            _debian(half / "tree", lines, packages, half / "log")
            _configure(half / "tree")
            half.rename(made)
    return made


def disk(made: Path) -> Path:
    """The tree as an ext4 file system."""
    image = made / "disk"
    with open(CACHE / "lock", "w") as lock:
        flock(lock, LOCK_EX)
        if not image.exists():
            half = made / "disk.half"
            half.write_bytes(b"")
            os.truncate(half, 4 << 30)
            options = ["-q", "-F", "-O", "^has_journal", "-m", "0", "-E", "lazy_itable_init=1"]
            subprocess.run(["mkfs.ext4", *options, "-d", made / "tree", half], check=True, capture_output=True)
            half.rename(image)
    return image


def _debian(tree: Path, lines: Sequence[str], packages: Sequence[str], log: Path) -> None:
    without = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale", "info")]
    proxies = subprocess.run(["apt-config", "dump", "Acquire::http", "Acquire::https"], capture_output=True, text=True)
    carried = [f"--aptopt={line.rstrip(';')}" for line in proxies.stdout.splitlines() if "Proxy" in line]
    suite = lines[0].split()[2]
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(packages)}", *without, *carried]
    argv += ['--aptopt=Apt::Install-Recommends "false"', suite, str(tree), *lines]
    with open(log, "w") as file:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=600)
    if done.returncode:
        raise Broken(f"mmdebstrap failed:\n{log.read_text()[-3000:]}")


def _configure(tree: Path) -> None:
    def put(path: str, text: str) -> None:
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            file.unlink()
        file.write_text(text)

    def link(path: str, target: str) -> None:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).unlink(missing_ok=True)
        os.symlink(target, tree / path)

    put("etc/hostname", "host\n")
    put("etc/hosts", "127.0.0.1 localhost host\n")
    put("etc/fstab", "")
    put("etc/machine-id", f"{hashlib.md5(b'podrun tests').hexdigest()}\n")
    put("etc/systemd/journald.conf.d/tests.conf", "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n")
    put("etc/systemd/system.conf.d/tests.conf", "[Manager]\nDefaultTimeoutStopSec=20s\n")
    put("etc/systemd/system/podrun-tests.service", UNIT)
    link("etc/systemd/system/multi-user.target.wants/podrun-tests.service", "../podrun-tests.service")
    link("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target")
    services = [name if "." in name else f"{name}.service" for name in MASKED]
    for unit in services + [f"{name}.timer" for name in TIMERS]:
        link(f"etc/systemd/system/{unit}", "/dev/null")


# --- one boot -------------------------------------------------------------------------------------------------------


class Boot:
    """A booted host that runs tests and tells what became of them. Use as a context manager.

    ``program``, of the checkout, is what it runs with ``wanted.json`` beside, and ``packages`` what it is made of.
    """

    def __init__(
        self,
        kind: str,
        tests: Sequence[str],
        program: str = "tests/support/systemd_host.py",
        packages: Sequence[str] = PACKAGES,
    ) -> None:
        self.kind = kind
        self.tests = tests
        self.program = program
        self.packages = packages
        self.home = Path(tempfile.mkdtemp(prefix="podrun-host-"))
        self.shared = self.home / "shared"
        self.reports = self.shared / "reports"
        self.console = self.home / "console"
        self.cgroup: Path | None = None

    def __enter__(self) -> Boot:
        try:
            made = build(self.packages)
            self.shared.mkdir()
            self.reports.touch()
            self._carry(self.shared / "carry.tar")
            argv = self._nspawn(made) if self.kind == "nspawn" else self._qemu(made, disk(made))
            self.cgroup = own_cgroup(self.home.name) if self.kind == "nspawn" else None
            if self.cgroup:
                argv = ["sh", "-c", 'echo 0 >"$0"/cgroup.procs && exec "$@"', str(self.cgroup), *argv]
            environ = {**os.environ, **NSPAWN, "TMPDIR": str(self.home)}
            with open(self.console, "wb") as console:
                self.process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environ
                )
        except BaseException:
            shutil.rmtree(self.home, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # systemd-nspawn takes the second SIGTERM as "at once".
        for word in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(word)
                try:
                    self.process.wait(3)
                except subprocess.TimeoutExpired:
                    continue
        remove_cgroup(self.cgroup)
        shutil.rmtree(self.home, ignore_errors=True)

    def lines(self, patience: float) -> Iterator[str]:
        """What the tests report, line by line. Raises Broken when nothing comes for ``patience`` seconds."""
        pending = ""
        last = time.monotonic()
        with open(self.reports, encoding="utf-8", errors="replace") as file:
            while True:
                over = self.process.poll() is not None
                more = file.read()
                if more:
                    last = time.monotonic()
                    *whole, pending = (pending + more).split("\n")
                    yield from (line.rstrip("\r") for line in whole)
                elif over:
                    raise Broken(f"the host ended ({self.process.returncode}):\n{self._last_words()}")
                elif time.monotonic() - last > patience:
                    raise Broken(f"nothing was heard of the host for {patience:g} s:\n{self._last_words()}")
                else:
                    time.sleep(0.05)

    def _last_words(self) -> str:
        told = [path.read_text(errors="replace") for path in (self.console, self.shared / "output") if path.exists()]
        return "\n".join(told)[-4000:]

    def _carry(self, path: Path) -> None:
        import importlib.util

        def plain(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            return None if info.name.endswith("__pycache__") else info

        with tarfile.open(path, "w") as tar:
            for part in ("podrun", "hooks", "bin", "tests", "bench", "docs", "examples", "pyproject.toml"):
                tar.add(CHECKOUT / part, f"{INSIDE}/{part}", filter=plain)
            for name in MODULES:
                spec = importlib.util.find_spec(name)
                if spec and spec.origin:
                    origin = Path(spec.origin)
                    package = origin.stem == "__init__"
                    tar.add(
                        origin.parent if package else origin, f"{SITE}/{name if package else origin.name}", filter=plain
                    )
            texts = {"run": RUN, "wanted.json": json.dumps(list(self.tests)), "program": self.program}
            for name, text in texts.items():
                info = tarfile.TarInfo(f"{INSIDE}/{name}")
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))

    def _nspawn(self, made: Path) -> list[str]:
        argv = ["systemd-nspawn", "--quiet", "--boot", f"--directory={made}/tree", "--volatile=overlay"]
        argv += ["--register=no", "--keep-unit", "--private-network", "--capability=all", "--link-journal=no"]
        argv += [f"--machine=podrun-tests-{os.getpid()}", "--console=pipe", "--system-call-filter=@keyring bpf"]
        # The tree is an overlay already, and overlayfs takes no overlay for its writable layer.
        argv += [f"--bind={self.shared}:{SHARED}", "--tmpfs=/var/lib/podrun", "--tmpfs=/var/tmp", "--tmpfs=/srv"]
        argv += ["--tmpfs=/var/lib/containers", "--tmpfs=/var/lib/docker"]
        if any("test_systemd_servers" in test for test in self.tests):
            from support import servers

            argv.append(f"--bind-ro={build(('libc6', *servers.PACKAGES))}/tree:{SERVERS_AT}")
        return [*argv, "systemd.show_status=0"]

    def _qemu(self, made: Path, image: Path) -> list[str]:
        kernel, initrd = (next((made / "tree/boot").glob(pattern)) for pattern in ("vmlinuz-*", "initrd.img-*"))
        line = "console=ttyS0 root=/dev/vda rw quiet panic=-1 net.ifnames=0 mitigations=off systemd.show_status=0"
        if self.kind == "hybrid":
            line += " systemd.unified_cgroup_hierarchy=0"
        argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1536", "-smp", "2"]
        argv += ["-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none"]
        argv += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", line]
        argv += ["-serial", "stdio", "-serial", f"file:{self.reports}"]
        argv += ["-drive", f"file={image},format=raw,if=virtio,cache=unsafe,snapshot=on"]
        return [*argv, "-drive", f"file={self.shared}/carry.tar,format=raw,if=virtio,readonly=on"]


def own_cgroup(name: str) -> Path | None:
    """nspawn makes its caller's cgroup the guest's root: the guest gets one of its own, where we may make one."""
    for top in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (top / "cgroup.procs").exists() and (top / "cgroup.controllers").exists():
            try:
                (top / name).mkdir()
            except OSError:
                continue
            return top / name
    return None


def remove_cgroup(cgroup: Path | None) -> None:
    """nspawn makes the same cgroup in systemd's own v1 hierarchy, where there is one."""
    for place in [cgroup, *Path("/sys/fs/cgroup").glob(f"*/{cgroup.name}")] if cgroup else []:
        deadline = time.monotonic() + 5
        while place and place.exists() and time.monotonic() < deadline:
            for directory, _, _ in os.walk(place, topdown=False):
                try:
                    os.rmdir(directory)
                except OSError:
                    time.sleep(0.02)


def _inside() -> None:
    """Runs the wanted tests; the plugin in conftest.py sends their reports out."""
    import pytest

    with open(f"{INSIDE}/wanted.json") as file:
        wanted = json.load(file)
    # -P's opposite: the checkout's podrun is imported by the tests, the installed one runs in the units.
    code = pytest.main(["-p", "no:cacheprovider", "-q", "--rootdir", INSIDE, *wanted])
    with open(os.environ["PODRUN_TEST_REPORTS"], "a") as file:
        file.write(json.dumps({"over": int(code)}) + "\n")


if __name__ == "__main__":
    sys.exit(_inside())
