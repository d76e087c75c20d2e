"""How long a start takes: podrun beside podman, docker and the bare runtimes with the same bundle, interleaved.

Every figure is a whole process, from fork to exit: start `true` in a container with a bridge and remove it. The bare
runtimes get the bundle that podrun made (same root, same capabilities, same seccomp profile) and no bridge. Trust the
ratios, not the milliseconds. Peers that are not installed or do not run are left out, and it says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
HYBRID = "/sys/fs/cgroup/unified"
#: What else podman and docker are told: podman takes the host's limits over, which needs CAP_SYS_RESOURCE.
PEERS = {"podman": ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"], "docker": []}


def run(*argv: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, check=check, capture_output=True, text=True, **options)  # type: ignore[call-overload]


def timed(argv: list[str], environ: dict[str, str]) -> float:
    """Milliseconds from fork to exit."""
    began = time.perf_counter()
    done = subprocess.run(argv, check=False, env=environ, stdin=subprocess.DEVNULL, capture_output=True)
    took = (time.perf_counter() - began) * 1000
    if done.returncode:
        sys.exit(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    return took


def rootfs(directory: Path) -> Path:
    """A root file system made of busybox."""
    root = directory / "rootfs"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "true", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    for name in ("dev", "proc", "sys", "etc", "tmp", "usr"):
        (root / name).mkdir()
    return root


def bundle(podrun: list[str], environ: dict[str, str], root: Path, directory: Path, runtime: str) -> Path:
    """The bundle that podrun makes of ``root`` for a runtime, with the root itself in the place of the overlay."""
    pod = directory / f"{runtime}.toml"
    pod.write_text(
        f'chain = [{{ hook = "image", ref = "dir:{root}" }}, {{ hook = "network" }},'
        f' {{ hook = "container", command = ["sleep", "60"], stop_signal = "KILL", runtime = "{runtime}" }}]'
    )
    subprocess.run([*podrun, "up", "-d", str(pod)], env=environ, check=True)
    config = json.loads((Path(environ["PODRUN_RUN"]) / f"pods/{runtime}/main/config.json").read_text())
    subprocess.run([*podrun, "down", runtime], env=environ, check=True)
    config["process"]["args"] = ["true"]
    config["root"] = {"path": str(root)}
    config["mounts"] = [mount for mount in config["mounts"] if not mount["destination"].startswith("/etc/")]
    config["linux"].pop("cgroupsPath", None)
    for namespace in config["linux"]["namespaces"]:
        if namespace["type"] == "network":
            namespace.pop("path", None)
    place = directory / f"bundle-{runtime}"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    return place


def imported(engine: str, root: Path, directory: Path) -> bool:
    """Whether an engine is here and has the image podrun-bench:1 now."""
    if not shutil.which(engine) or run(engine, "info", check=False).returncode:
        print(f"{engine} is not here or does not answer: left out", file=sys.stderr)
        return False
    tar = directory / "image.tar"
    if not tar.exists():
        run("tar", "-C", str(root), "-cf", str(tar), ".")
    run(engine, "import", str(tar), "podrun-bench:1")
    return True


def reach_v1() -> None:
    """Takes a hybrid host's cgroup v2 mount away, for every contender alike: crun refuses such a host."""
    if os.path.ismount(HYBRID) and "PODRUN_BENCH" not in os.environ:
        command = f'umount -l {HYBRID}; exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", command, "sh", sys.executable, *sys.argv]
        os.execvpe("unshare", argv, {**os.environ, "PODRUN_BENCH": "1"})


@contextlib.contextmanager
def contenders(directory: Path, environ: dict[str, str]) -> Iterator[dict[str, list[str]]]:
    """The command lines to compare, by name."""
    root = rootfs(directory)
    podrun = [str(Path(sys.executable).parent / "podrun")]
    commands = {"podrun": [*podrun, "run", "--rm", "--name", "bench", f"dir:{root}", "true"]}
    for runtime in ("crun", "runc"):
        if shutil.which(runtime):
            place = bundle(podrun, environ, root, directory, runtime)
            manager = ["--cgroup-manager=disabled"] if runtime == "crun" else []
            state = ["--root", str(directory / f"state-{runtime}")]
            commands[f"bare {runtime}"] = [runtime, *manager, *state, "run", "-b", str(place), f"b-{runtime}"]
    for engine, extra in PEERS.items():
        if imported(engine, root, directory):
            commands[engine] = [engine, "run", "--rm", *extra, "podrun-bench:1", "true"]
    try:
        yield commands
    finally:
        for engine in PEERS:
            if engine in commands:
                run(engine, "rmi", "-f", "podrun-bench:1", check=False)


def pieces(directory: Path, environ: dict[str, str], rounds: int) -> list[tuple[str, float]]:
    """Where the time of podrun goes: (piece, median milliseconds), in order."""
    seen: dict[str, list[float]] = {}
    argv = [
        sys.executable,
        str(HERE / "pieces.py"),
        "run",
        "--rm",
        "--name",
        "bench",
        f"dir:{directory}/rootfs",
        "true",
    ]
    for _ in range(rounds):
        # CLOCK_MONOTONIC is the same for both processes: the first piece is the interpreter.
        told = run(*argv, env={**environ, "BEGAN": repr(time.monotonic())}).stdout.splitlines()[-1]
        for name, took in json.loads(told):
            seen.setdefault(name, []).append(took)
    return [(name, statistics.median(times)) for name, times in seen.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed programs have their bytecode
    reach_v1()
    directory = Path(tempfile.mkdtemp(prefix="podrun-bench-", dir="/var/tmp"))
    environ = {**os.environ, "PODRUN_ROOT": str(directory / "root"), "PODRUN_RUN": str(directory / "run")}
    try:
        with contenders(directory, environ) as commands:
            figures: dict[str, list[float]] = {name: [] for name in commands}
            for argv in commands.values():
                timed(argv, environ)
            for _ in range(given.rounds):
                for name, argv in commands.items():
                    figures[name].append(timed(argv, environ))
            parts = pieces(directory, environ, given.rounds)
        medians = {name: statistics.median(times) for name, times in figures.items()}
        if given.json:
            print(json.dumps({"medians": medians, "figures": figures, "pieces": parts}))
            return
        print(f"{'':12} {'median ms':>10} {'min':>8} {'max':>8} {'podrun / it':>12}   ({given.rounds} rounds)")
        for name, times in figures.items():
            ratio = medians["podrun"] / medians[name]
            print(f"{name:12} {medians[name]:10.1f} {min(times):8.1f} {max(times):8.1f} {ratio:12.2f}")
        print("\nwhere podrun's time goes (medians)")
        for name, took in parts:
            print(f"{took:8.2f} ms  {name}")
    finally:
        run(str(Path(sys.executable).parent / "podrun"), "gc", check=False, env=environ)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
