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


#: Ends when it is told to, so that no engine waits for its time-out.
IDLE = ["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]
SERVER = ["sh", "-c", "trap 'exit 0' TERM; busybox httpd -p 80 -h /www; sleep 1000 & wait"]


class Engine(NamedTuple):
    """The command lines of an engine."""

    #: Starts `true` in a container and removes it.
    once: list[str]
    #: (name, port to publish or 0, command, at which address) -> argv; returns when the payload runs.
    start: Callable[..., list[str]]
    remove: Callable[[str], list[str]]
    execute: Callable[[str], list[str]]
    #: Prints the payload's pid.
    pid: Callable[[str], list[str]]
    ps: list[str]
    #: Commands by which its own processes are known, beside a payload.
    beside: tuple[str, ...]


def podrun(root: Path, program: str = PROGRAM) -> Engine:
    return _engine(program, ["--name", "once"], f"dir:{root}", ["down"], ("podrun",), "containers[0].pid")


def as_packaged(directory: Path) -> str:
    """The command as the Debian package has it, which begins the interpreter without site (release/deb.py)."""
    text = (Path(__file__).parents[1] / "bin/podrun").read_text()
    checkout = Path(__file__).parents[1]
    paths = f"import sys\nsys.path += [{str(checkout)!r}, {str(checkout / 'hooks')!r}]\nimport podrun\n"
    text = text.replace("#!python\n", f"#!{sys.executable} -IS\n", 1)
    line = "from podrun.__main__ import main\n"
    program = directory / "podrun"
    program.write_text(text.replace(line, f"{paths}{line}podrun.SITE_LEFT_OUT = True\n", 1))
    program.chmod(0o755)
    return str(program)


def peer(name: str) -> Engine:
    """Podman or docker, with the image that start.imported() has brought."""
    beside = {"podman": ("conmon",), "docker": ("dockerd", "containerd")}[name]
    return _engine(name, [], "podrun-bench:1", ["rm", "-f"], beside, "{{.State.Pid}}", PEERS[name])


def _engine(
    program: str,
    name: list[str],
    image: str,
    remove: list[str],
    beside: tuple[str, ...],
    pid: str,
    extra: Sequence[str] = (),
) -> Engine:
    def start(pod: str, port: int, command: Sequence[str], ip: str = "127.0.0.1") -> list[str]:
        publish = ["-p", f"{ip}:{port}:80"] if port else []
        return [program, "run", "-d", "--name", pod, *extra, *publish, image, *command]

    return Engine(
        [program, "run", "--rm", *name, *extra, image, "true"],
        start,
        lambda pod: [program, *remove, pod],
        lambda pod: [program, "exec", pod, "true"],
        lambda pod: [program, "inspect", "-f", pid, pod],
        [program, "ps"],
        beside,
    )


def with_page(directory: Path) -> Path:
    """A root file system with what SERVER serves."""
    root = rootfs(directory)
    (root / "www").mkdir()
    (root / "www/index.html").write_text("hello\n")
    return root


def _with_userns(argv: list[str]) -> list[str]:
    return [*argv[:-2], "--userns=auto", *argv[-2:]]


def _bare(directory: Path, root: Path, environ: dict[str, str], program: str) -> Iterator[tuple[str, list[str]]]:
    for runtime in ("crun", "runc"):
        if shutil.which(runtime):
            place = bundle([program], environ, root, directory, runtime)
            manager = ["--cgroup-manager=disabled"] if runtime == "crun" else []
            state = ["--root", str(directory / f"run/{runtime}")]
            yield f"bare {runtime}", [runtime, *manager, *state, "run", "-b", str(place), f"b-{runtime}"]
    if shutil.which("systemd-nspawn"):
        words = ["--quiet", "--register=no", "--keep-unit", "--private-network", "--as-pid2", "-D", str(root)]
        yield "systemd-nspawn", ["systemd-nspawn", *words, "/bin/true"]


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
    argv += ["--data-root", str(directory / "docker"), "--exec-root", str(directory / "run/docker")]
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


def _emptied(engine: str) -> None:
    """Removes what a part that failed has left."""
    if left := run(engine, "ps", "-aq", check=False).stdout.split():
        run(engine, "rm", "-f", *left, check=False)


class Contenders(NamedTuple):
    """Who takes part, by name; ``once``: the bare runtimes, too. ``left_out``: a line for each who does not."""

    once: dict[str, list[str]]
    engines: dict[str, Engine]
    left_out: list[str]


@contextlib.contextmanager
def contenders(directory: Path, environ: dict[str, str]) -> Iterator[Contenders]:
    root = with_page(directory)
    program = as_packaged(directory)
    found = Contenders({}, {"podrun": podrun(root, program)}, [])
    with contextlib.ExitStack() as undo:
        undo.enter_context(dockerd(directory))
        for name in PEERS:
            if imported(name, root, directory):
                undo.callback(run, name, "rmi", "-f", "podrun-bench:1", check=False)
                undo.callback(_emptied, name)
                found.engines[name] = peer(name)
            else:
                found.left_out.append(f"{name}: not here, or it does not answer")
        own = found.engines["podrun"].once
        everybody = {name: engine.once for name, engine in found.engines.items()}
        everybody |= {"podrun userns=auto": _with_userns(own)}
        if "podman" in found.engines:
            everybody |= {"podman userns=auto": _with_userns(found.engines["podman"].once)}
        for name, argv in {**everybody, **dict(_bare(directory, root, environ, program))}.items():
            done = run(*argv, check=False)
            if done.returncode:
                found.engines.pop(name, None)
                found.left_out.append(f"{name}: {' '.join((done.stderr or done.stdout).split())[:200]}")
            else:
                found.once[name] = argv
        yield found
