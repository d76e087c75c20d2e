"""podrun installed as people install it, in fresh roots of Debian and by Python's installers. Minutes: ./dev prove."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import systemd_host

pytestmark = [pytest.mark.prove, pytest.mark.root]

POD = """
[[chain]]
hook = "image"
ref = "host:"
[[chain]]
hook = "network"
[[chain]]
hook = "container"
command = ["sleep", "infinity"]
volumes = ["data:/data"]
[install]
WantedBy = "multi-user.target"
"""
#: A project of two services, the second of which waits until the first is healthy.
SHOP = """
services:
  db:
    image: "host:"
    command: sh -c "sleep 1; touch /tmp/ready; exec sleep infinity"
    healthcheck: {test: [CMD, test, -e, /tmp/ready], interval: 1s}
  web:
    image: "host:"
    command: sleep infinity
    depends_on: {db: {condition: service_healthy}}
"""
#: What the booted host does, each line of its output a result.
SCRIPT = """#!/bin/sh
exec >/root/report 2>&1
echo active: $(systemctl is-active web)
pid=$(systemctl show -P MainPID web)
echo payload: $(cat /proc/$pid/comm)
podrun convert compose -o /etc/podrun /root/shop >/root/convert.log 2>&1 || cat /root/convert.log
systemctl daemon-reload
systemctl start shop-web
echo shop: $(systemctl is-active shop-db shop-web) $(podrun exec shop-db test -e /tmp/ready && echo ready)
echo kept >/var/lib/podrun/volumes/data/data/file
dpkg -i /root/newer.deb >/root/upgrade.log 2>&1 || tail -3 /root/upgrade.log
echo version: $(dpkg-query -W -f '${Version}' podrun)
echo same: $([ "$(systemctl show -P MainPID web)" = $pid ] && systemctl is-active web)
echo pods: $(podrun ps -q)
dpkg --purge podrun >/root/purge.log 2>&1 || tail -3 /root/purge.log
echo after purge: $(cat /var/lib/podrun/volumes/data/data/file) $([ -d /proc/$pid ] && echo running)
echo left: $(find / -xdev -name '*podrun*' -not -path '/root/*' -not -path '/etc/podrun*' -not -path '/var/lib/podrun*' -not -path '/var/log/*' -not -path '/var/lib/dpkg/info/*' | head -3)
echo end
systemctl poweroff --force --force
"""
UNIT = """[Unit]
After=web.service
[Service]
Type=oneshot
ExecStart=/bin/sh /root/script
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture
def tree(home: Path) -> Iterator[Any]:
    yield home / "tree"
    subprocess.run(["umount", "-R", "-l", home / "tree"], capture_output=True)


def inside(tree: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in the root, in a mount namespace of its own with /proc, /dev and an empty /run."""
    mounts = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs tmpfs "$0/run" && exec chroot "$0" "$@"'
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    environ |= {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", mounts, tree, *argv], env=environ, capture_output=True, text=True, timeout=600
    )


def newer(package: Path, place: Path) -> Path:
    """The same package with a later version."""
    subprocess.run(["dpkg-deb", "-R", package, place / "newer"], check=True)
    control = place / "newer/DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 9."))
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", place / "newer", place / "newer.deb"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return place / "newer.deb"


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_apt_installs_the_package_in_a_fresh_root_and_pods_outlive_upgrade_and_purge(
    suite: str, package: Any, tree: Any, tmp_path: Path
) -> None:
    uri = next(line.split()[1] for line in systemd_host.sources() if line.endswith(" main"))
    argv = [
        "mmdebstrap",
        "--variant=apt",
        "--include=systemd,systemd-sysv,dbus",
        suite,
        str(tree),
        f"deb {uri} {suite} main",
    ]
    made = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[-2000:]
    for path in Path("/etc/apt/apt.conf.d").glob("*"):
        if "Proxy" in path.read_text() or "Verify" in path.read_text():
            shutil.copy(path, tree / "etc/apt/apt.conf.d")
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    shutil.copy(package, tree / "root")
    assert inside(tree, "apt-get", "-q", "update").returncode == 0
    (tree / "root/compose.yaml").write_text("services: {web: {image: a}}")
    began = time.monotonic()
    done = inside(tree, "apt", "install", "-y", "--no-install-recommends", f"/root/{package.name}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    print(f"{suite}: apt install ./{package.name}: {time.monotonic() - began:.1f} s")
    told = inside(tree, "sh", "-c", "podrun --version && podrun stats && podrun convert compose /root/compose.yaml")
    assert told.returncode == 0, told.stderr

    (tree / "etc/podrun/web.toml").write_text(POD)
    (tree / "root/shop").mkdir()
    (tree / "root/shop/compose.yaml").write_text(SHOP)
    (tree / "etc/systemd/system/check.service").write_text(UNIT)
    (tree / "root/script").write_text(SCRIPT)
    shutil.copy(newer(package, tmp_path), tree / "root")
    inside(tree, "systemctl", "enable", "check.service", "--quiet")
    began = time.monotonic()
    argv = [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        f"--directory={tree}",
        "--register=no",
        "--keep-unit",
        "--private-network",
    ]
    argv += ["--capability=all", "--link-journal=no", f"--machine=podrun-deb-{os.getpid()}", "--console=pipe"]
    argv += ["--system-call-filter=@keyring bpf"]
    cgroup = systemd_host.own_cgroup(tree.parent.name)
    if cgroup:
        argv = ["sh", "-c", 'echo 0 >"$0"/cgroup.procs && exec "$@"', str(cgroup), *argv]
    try:
        subprocess.run(argv, env={**os.environ, **systemd_host.NSPAWN}, capture_output=True, timeout=180)
    finally:
        systemd_host.remove_cgroup(cgroup)
    print(f"{suite}: booted, upgraded, purged: {time.monotonic() - began:.1f} s")
    report = (tree / "root/report").read_text().splitlines()
    assert report[:2] == ["active: active", "payload: sleep"], report
    assert report[2] == "shop: active active ready", report
    assert report[3].startswith("version: 9."), report
    assert report[4:] == ["same: active", "pods: shop-db shop-web web", "after purge: kept running", "left:", "end"], (
        report
    )


def test_lintian_finds_nothing(package: Any) -> None:
    if not shutil.which("lintian"):
        subprocess.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", "lintian"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    done = subprocess.run(["lintian", "-I", "--fail-on", "error,warning,info", package], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("wheel")
    checkout = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, checkout], check=True, timeout=300
    )
    (found,) = place.glob("podrun-*.whl")
    return found


@pytest.mark.parametrize("installer", ["pipx", "uv"])
def test_python_s_installers_install_the_wheel_as_a_command(installer: str, wheel: Any, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "-q", installer], check=True, timeout=300)
    words = {
        "pipx": ["install", "--python", "/usr/bin/python3"],
        "uv": ["tool", "install", "--python", "/usr/bin/python3"],
    }
    environ = {**os.environ, "PIPX_HOME": f"{tmp_path}/home", "PIPX_BIN_DIR": f"{tmp_path}/bin"}
    environ |= {
        "UV_TOOL_DIR": f"{tmp_path}/tools",
        "UV_TOOL_BIN_DIR": f"{tmp_path}/bin",
        "UV_CACHE_DIR": f"{tmp_path}/cache",
    }
    done = subprocess.run(
        [tmp_path / "venv/bin" / installer, *words[installer], wheel],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = subprocess.run([tmp_path / "bin/podrun", "--version"], capture_output=True, text=True, timeout=30)
    assert told.stdout.startswith("podrun, version")
    argv = [tmp_path / "bin/podrun", "--root", tmp_path / "r", "--run", tmp_path / "run"]
    done = subprocess.run(
        [*argv, "run", "--network", "none", "host:", "echo", "hello"],  # type: ignore[list-item]
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "hello\n", done.stderr
