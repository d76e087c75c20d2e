"""Units of a booted host: starting and stopping a container by podrun, podman and docker, and what stays resident.

Boots the host of tests/support/systemd_host.py with podman and docker added to its packages, `nspawn` (near the speed
of this machine) or `qemu` (slow, a kernel of its own): `python3 bench/units.py nspawn`. All have the same image, a
bridge, no limits, and crun (docker: runc); where crun cannot load its device rules, for want of CAP_SYS_RESOURCE, all
have runc.
podman's unit is what `podman generate systemd --new` writes; docker has none of its own, so it gets one that does
`docker run -d`, which returns when the payload runs. Trust the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
PAYLOAD = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"]
IMAGE = "localhost/bench:1"
UNITS = Path("/etc/systemd/system")

DOCKER = f"""[Unit]
After=docker.service
Requires=docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/docker run -d --rm --name bench-docker {IMAGE}
ExecStop=/usr/bin/docker stop bench-docker
"""


def sh(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.returncode}: {(done.stderr or done.stdout)[-800:]}")
    return done.stdout


# --- in the guest ---------------------------------------------------------------------------------------------------


def image() -> None:
    """One image of busybox for all three."""
    work = Path("/srv/bench")
    (work / "bin").mkdir(parents=True)
    (work / "Containerfile").write_text(f"FROM scratch\nCOPY bin /bin\nCMD {json.dumps(PAYLOAD)}\nSTOPSIGNAL SIGTERM\n")
    (work / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (work / "bin/busybox").chmod(0o755)
    for name in ("sh", "sleep"):
        (work / "bin" / name).symlink_to("busybox")
    sh("podman", "build", "-q", "-t", IMAGE, str(work))
    sh("podman", "save", "-q", "-o", "/srv/bench.tar", IMAGE)
    sh("docker", "load", "-i", "/srv/bench.tar")


def runtime() -> str:
    """The runtime for podrun and podman."""
    capabilities = int(re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.M)[1], 16)  # type: ignore[index]
    return "crun" if capabilities >> 24 & 1 else "runc"


def podrun() -> str:
    """A pod with the image and a bridge."""
    Path("/etc/podrun").mkdir(exist_ok=True)
    Path("/etc/podrun/bench-podrun.toml").write_text(
        'chain = [ { hook = "image", ref = "docker-archive:/srv/bench.tar" }, { hook = "network" },'
        f' {{ hook = "container", runtime = "{runtime()}" }} ]\n'
    )
    sh("podrun", "unit", "--install", "bench-podrun")
    return "bench-podrun.service"


def podman() -> str:
    """The unit that podman itself writes."""
    sh("podman", "--runtime", runtime(), "create", "--pids-limit", "-1", "--name", "bench-podman", IMAGE)
    text = sh("podman", "generate", "systemd", "--new", "--name", "bench-podman")
    sh("podman", "rm", "bench-podman")
    (UNITS / "bench-podman.service").write_text(text)
    return "bench-podman.service"


def docker() -> str:
    """A unit around docker run -d."""
    (UNITS / "bench-docker.service").write_text(DOCKER)
    return "bench-docker.service"


def took(verb: str, unit: str) -> float:
    """Milliseconds of systemctl start or stop."""
    sh("systemctl", "reset-failed", unit, check=False)  # StartLimitBurst= is not meant for us
    began = time.perf_counter()
    sh("systemctl", verb, unit)
    return (time.perf_counter() - began) * 1000


def resident() -> list[tuple[str, int, str]]:
    """Every process that there is: its name, its PSS in kB, its cgroup."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            pss = int(re.search(r"^Pss: +(\d+)", (directory / "smaps_rollup").read_text(), re.M)[1])  # type: ignore[index]
            words = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode().split()
            name = words[0].rpartition("/")[2]
            found.append((name, pss, (directory / "cgroup").read_text().strip().rpartition("::")[2]))
        except (OSError, TypeError, IndexError):
            continue
    return found


#: What belongs to whom; the daemons are there whether a container runs or not.
OF = {
    "podrun": r"podrun",
    "podman": r"conmon|podman|netavark|aardvark-dns",
    "docker": r"dockerd|containerd|containerd-shim.*|docker-proxy",
}


def measure(rounds: int) -> dict[str, object]:
    """Interleaved starts and stops; then what is resident while each is up."""
    told: dict[str, object] = {}
    sh("systemctl", "start", "docker")
    image()
    units = {}
    for make in (podrun, podman, docker):
        try:
            units[make.__name__] = make()
            sh("systemctl", "daemon-reload")
            took("start", units[make.__name__])
            took("stop", units[make.__name__])
        except RuntimeError as error:
            units.pop(make.__name__, None)
            words = sh("journalctl", "--no-pager", "-o", "cat", "-n", "12", "-u", f"bench-{make.__name__}", check=False)
            told[f"{make.__name__} left out"] = f"{error}\n{words}"
    times: dict[str, list[float]] = {f"{name} {verb}": [] for name in units for verb in ("start", "stop")}
    for _ in range(rounds):
        for name, unit in units.items():
            for verb in ("start", "stop"):
                times[f"{name} {verb}"].append(took(verb, unit))
    told["medians"] = {key: round(statistics.median(values), 1) for key, values in times.items()}
    for name, unit in units.items():
        took("start", unit)
        time.sleep(1)
        everything = resident()
        own = [(who, pss) for who, pss, cgroup in everything if f"/{unit}" in cgroup]
        beyond = [(who, pss) for who, pss, _ in everything if re.fullmatch(OF[name], who)]
        told[f"{name} unit's cgroup, PSS in kB"] = own
        told[f"{name} beyond the payload, PSS in kB"] = beyond
        took("stop", unit)
    return told


def inside() -> None:
    with open(HERE.parent / "wanted.json") as file:
        [rounds] = json.load(file)
    try:
        told = measure(int(rounds))
    except Exception as error:
        told = {"error": f"{error}\n{sh('journalctl', '-n', '30', '--no-pager', check=False)}"}
    with open(os.environ["PODRUN_TEST_REPORTS"], "a") as file:
        file.write(json.dumps(told) + "\n")


# --- outside --------------------------------------------------------------------------------------------------------


def main(words: Sequence[str]) -> None:
    sys.path.insert(0, str(HERE.parent / "tests"))
    from support.systemd_host import PACKAGES, Boot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["nspawn", "qemu"])
    parser.add_argument("rounds", nargs="?", type=int, default=15)
    given = parser.parse_args(words)
    packages = [
        *PACKAGES,
        "podman",
        "docker.io",
        "conmon",
        "containernetworking-plugins",
        "iptables",
        "apparmor",
        "ca-certificates",
    ]
    with Boot(given.kind, [str(given.rounds)], "bench/units.py", packages) as boot:
        told = json.loads(next(boot.lines(1800)))
    medians = told.pop("medians", {})
    for verb in ("start", "stop"):
        own = medians.get(f"podrun {verb}")
        for key in [key for key in medians if key.endswith(verb)]:
            print(f"{key:16} {medians[key]:8.1f} ms" + (f"  podrun/this {own / medians[key]:.2f}" if own else ""))
    for key, value in told.items():
        print(
            f"{key}:", value if isinstance(value, str) else ", ".join(f"{name} {pss}" for name, pss in value) or "none"
        )


if __name__ == "__main__":
    if os.environ.get("PODRUN_TEST_REPORTS"):
        inside()
    else:
        main(sys.argv[1:])
