"""Who takes part in ``bench/everything.py``: the command lines of each engine for the same work, and a dockerd.

All of them have the same root file system, of busybox; podrun, podman and docker a bridge, the bare runtimes the
bundle that podrun made and no network, systemd-nspawn a network namespace with nothing in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from start import PEERS, bundle, imported, rootfs, run

PROGRAM = str(Path(sys.executable).parent / "podrun")


class Engine(NamedTuple):
    """The command lines of an engine; a bare runtime has ``once`` alone."""

    name: str
    #: Starts `true` in a container and removes it.
    once: list[str]
    #: (name, port to publish or 0, command) -> argv; returns when the payload runs.
    start: Callable[[str, int, Sequence[str]], list[str]] | None = None
    remove: Callable[[str], list[str]] | None = None
    execute: Callable[[str], list[str]] | None = None
    ps: list[str] | None = None
    #: Commands by which its own processes are known, beside a payload.
    beside: tuple[str, ...] = ()


def _podrun(root: Path) -> list[Engine]:
    ref = f"dir:{root}"

    def start(name: str, port: int, command: Sequence[str]) -> list[str]:
        publish = ["-p", f"127.0.0.1:{port}:80"] if port else []
        return [PROGRAM, "run", "-d", "--name", name, *publish, ref, *command]

    once = [PROGRAM, "run", "--rm", "--name", "once"]
    return [
        Engine(
            "podrun", [*once, ref, "true"], start, lambda name: [PROGRAM, "down", name],
            lambda name: [PROGRAM, "exec", name, "true"], [PROGRAM, "ps"], ("podrun",),
        ),
        Engine("podrun userns=auto", [*once, "--userns", "auto", ref, "true"]),
    ]  # fmt: skip


def _peer(name: str, extra: Sequence[str], beside: tuple[str, ...]) -> Engine:
    def start(pod: str, port: int, command: Sequence[str]) -> list[str]:
        publish = ["-p", f"127.0.0.1:{port}:80"] if port else []
        return [name, "run", "-d", "--name", pod, *extra, *publish, "podrun-bench:1", *command]

    return Engine(
        name, [name, "run", "--rm", *extra, "podrun-bench:1", "true"], start, lambda pod: [name, "rm", "-f", pod],
        lambda pod: [name, "exec", pod, "true"], [name, "ps"], beside,
    )  # fmt: skip


def _bare(directory: Path, root: Path, environ: dict[str, str]) -> Iterator[Engine]:
    for runtime in ("crun", "runc"):
        if shutil.which(runtime):
            place = bundle([PROGRAM], environ, root, directory, runtime)
            manager = ["--cgroup-manager=disabled"] if runtime == "crun" else []
            state = ["--root", str(directory / f"state-{runtime}")]
            yield Engine(f"bare {runtime}", [runtime, *manager, *state, "run", "-b", str(place), f"b-{runtime}"])
    if shutil.which("systemd-nspawn"):
        words = ["--quiet", "--register=no", "--keep-unit", "--private-network", "--as-pid2", "-D", str(root)]
        yield Engine("systemd-nspawn", ["systemd-nspawn", *words, "/bin/true"])


@contextlib.contextmanager
def dockerd(directory: Path) -> Iterator[None]:
    """A dockerd of the bench's own, on a bridge of its own."""
    if not shutil.which("dockerd"):
        yield
        return
    run("ip", "link", "add", "bench-docker0", "type", "bridge")
    run("ip", "address", "add", "172.29.99.1/24", "dev", "bench-docker0")
    run("ip", "link", "set", "bench-docker0", "up")
    os.environ["DOCKER_HOST"] = f"unix://{directory}/docker.sock"
    argv = ["dockerd", "--bridge", "bench-docker0", "--pidfile", str(directory / "docker.pid")]
    argv += ["--data-root", str(directory / "docker"), "--exec-root", str(directory / "docker-run")]
    with (directory / "docker.log").open("wb") as log:
        daemon = subprocess.Popen([*argv, "-H", os.environ["DOCKER_HOST"]], stdout=log, stderr=log)
        try:
            for _ in range(300):
                if daemon.poll() is not None or run("docker", "info", check=False).returncode == 0:
                    break
                time.sleep(0.1)
            yield
        finally:
            daemon.terminate()
            daemon.wait()


@contextlib.contextmanager
def engines(directory: Path, environ: dict[str, str]) -> Iterator[tuple[dict[str, Engine], list[str]]]:
    """The engines by name, and for each that is left out a line that says so."""
    root = rootfs(directory)
    (root / "www").mkdir()
    (root / "www/index.html").write_text("hello\n")
    with contextlib.ExitStack() as undo:
        undo.enter_context(dockerd(directory))
        found = [*_podrun(root), *_bare(directory, root, environ)]
        for name, beside in {"podman": ("conmon",), "docker": ("dockerd", "containerd")}.items():
            if imported(name, root, directory):
                undo.callback(run, name, "rmi", "-f", "podrun-bench:1", check=False)
                found.append(_peer(name, PEERS[name], beside))
        left_out = []
        for engine in list(found):
            done = run(*engine.once, check=False)
            if done.returncode:
                found.remove(engine)
                left_out.append(f"{engine.name}: {' '.join((done.stderr or done.stdout).split())[:200]}")
        known = {engine.name for engine in found} | {line.partition(":")[0] for line in left_out}
        left_out += [f"{name}: not here, or it does not answer" for name in ("podman", "docker") if name not in known]
        yield {engine.name: engine for engine in found}, left_out
