"""What confines a container, beside podman's and docker's: the table is printed, and podrun gives no more than they do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.container_case import busybox_root

pytestmark = [pytest.mark.root, pytest.mark.prove]

SCRIPT = (
    "cat /proc/self/status; echo ==; cat /proc/self/uid_map; echo ==; cat /proc/self/mountinfo; echo ==; "
    "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; echo ==; "
    "unshare -U true 2>/dev/null && echo yes || echo no; echo ==; cat /proc/self/cgroup"
)
#: Bits of capabilities(7) that this container's root has of what root has.
SYSTEM = ("/proc", "/sys", "/dev")


def facts(text: str, host: str = "") -> dict[str, str]:
    """What the script's output says, by row of the table."""
    status, ids, mounts, pids, nested, _ = (part.strip() for part in text.split("==\n"))
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    rows = [line.split() for line in mounts.splitlines()]
    targets = {row[4]: row for row in rows}
    masked, read_only = set(), set()
    for target, row in targets.items():
        kind = row[row.index("-") + 1]
        if target.startswith(("/proc/", "/sys/")) and "cgroup" not in target:
            if kind in ("tmpfs", "devtmpfs"):
                masked.add(target)
            elif kind == "proc":
                read_only.add(target)
    flags = {
        target: ",".join(word for word in targets[target][5].split(",") if word != "relatime") for target in SYSTEM
    }
    first = ids.split()
    return {
        "effective": fields["CapEff"],
        "bounding": fields["CapBnd"],
        "seccomp": {"0": "none", "2": "filter"}[fields["Seccomp"]],
        "no_new_privs": fields["NoNewPrivs"],
        "nested userns": nested,
        "user namespace": "own" if first[2] != "4294967295" else "host's",
        "pids": host or (pids.split() or ["max"])[0],
        "masked": " ".join(sorted(masked)),
        "read-only": " ".join(sorted(read_only)),
        **{f"{target} is": words for target, words in flags.items()},
        "/": targets["/"][5],
    }


def of_podrun(podrun: Any, root: Path, user: str, userns: str) -> dict[str, str]:
    steps = (
        f'[pod]\nuserns = "{userns}"\nstop_timeout = "0s"\n[[chain]]\nhook = "image"\nref = "dir:{root}"\n'
        f'[[chain]]\nhook = "network"\nmode = "none"\n[[chain]]\nhook = "container"\nuser = "{user}"\n'
        f"command = {json.dumps(['sh', '-c', SCRIPT + '; sleep 60'])}\n"
    )
    podrun("up", "-d", podrun.file("peer", steps), check=True)
    try:
        for _ in range(100):
            text = podrun("logs", "peer").stdout
            if text.count("==\n") == 5 and "/" in text.rpartition("==\n")[2]:
                break
        pid = json.loads(podrun("inspect", "peer").stdout)["containers"][0]["pid"]
        rows = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        v1 = [path for _, names, path in rows if names == "pids"]
        path = f"pids{v1[0]}" if v1 else next(path for number, _, path in rows if number == "0")
        return facts(text, Path(f"/sys/fs/cgroup/{path.strip('/')}/pids.max").read_text().strip())
    finally:
        podrun("down", "peer", check=True)


def of_podman(root: Path, user: str) -> dict[str, str]:
    # Limits that a sandbox without CAP_SYS_RESOURCE can set, and the runtime that takes hybrid cgroups.
    argv = ["podman", "run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=900:900"]
    argv += ["--runtime", "runc", "--user", user, "--rootfs", str(root), "sh", "-c", SCRIPT]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return facts(done.stdout)


def of_docker(root: Path, user: str) -> dict[str, str]:
    packed = subprocess.run(["tar", "-C", str(root), "-c", "."], capture_output=True, check=True).stdout
    subprocess.run(["docker", "import", "-", "podrun-peer:1"], input=packed, capture_output=True, check=True)
    try:
        argv = ["docker", "run", "--rm", "--network", "none", "--user", user, "podrun-peer:1", "sh", "-c", SCRIPT]
        return facts(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    finally:
        subprocess.run(["docker", "rmi", "podrun-peer:1"], capture_output=True, check=False)


@pytest.mark.parametrize("user", ["0", "1000"])
def test_podrun_gives_a_container_no_more_than_podman_and_docker_do(podrun: Any, tmp_path: Path, user: str) -> None:
    assert shutil.which("podman"), "apt install podman runc"
    root = busybox_root(tmp_path / "rootfs")
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir(exist_ok=True)
    os.chmod(tmp_path, 0o755)
    columns = {"podrun": of_podrun(podrun, root, user, "host"), "podman": of_podman(root, user)}
    if Path("/etc/subuid").exists() and re.search("^(podrun|containers):", Path("/etc/subuid").read_text(), re.M):
        columns["podrun userns"] = of_podrun(podrun, root, user, "auto")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        columns["docker"] = of_docker(root, user)
    print(f"\nuser {user}", file=sys.stderr)
    for row in columns["podrun"]:
        for name, column in columns.items():
            print(f"  {row:<15} {name:<14} {column[row]}", file=sys.stderr)
    ours = columns["podrun"]
    assert ours["seccomp"] == "filter" and ours["no_new_privs"] == "1" and ours["nested userns"] == "no"
    assert ours["pids"] == "2048"
    for name in {*columns} - {"podrun", "podrun userns"}:
        theirs = columns[name]
        assert not int(ours["effective"], 16) & ~int(theirs["effective"], 16) & ~(1 << 27 | 1 << 29), name
        assert {*theirs["masked"].split()} - {*ours["masked"].split()} <= {"/proc/scsi"}, name
        assert {*theirs["read-only"].split()} <= {*ours["read-only"].split()}, name
