"""How long a pull takes: podrun beside skopeo+umoci, podman and docker, interleaved, from a registry on loopback.

Every round pulls an image that nobody has seen: its layers are those of the round before with another last file.
Wall time is that of the whole command, from fork to exit; processor seconds are those of the command and its children,
for docker of dockerd and containerd too. Peak memory is that of the largest process, for podrun the sum over all its
processes (proportional set size, sampled every few milliseconds of a pull of its own that is not timed). Peers that are
not installed or do not run are left out, and it says so (umoci knows no zstd). Nothing is removed meanwhile: ext4 looks
for a while at every inode that was freed. Trust the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
LAYERS = 5
MEDIA = "application/vnd.oci.image.layer.v1.tar"


class Figure(NamedTuple):
    """What one pull took: seconds, processor seconds, peak resident MiB."""

    wall: float
    cpu: float
    peak: float


#: Pulls an image.
Puller = Callable[[str], Figure]


# --- images


class Base(NamedTuple):
    """A layer without its end: the compressed file, the hash of its plain bytes so far, and how it is compressed."""

    path: Path
    plain: Any
    compression: str

    def variant(self, mark: str, blobs: Path) -> tuple[dict[str, Any], str]:
        """Adds a file of its own and the archive's end; returns descriptor and diffID.

        Members of gzip and frames of zstd follow one another: nothing is compressed again.
        """
        end = _tar([(f"mark-{mark}", mark.encode())]) + bytes(1024)
        plain = self.plain.copy()
        plain.update(end)
        tail = gzip.compress(end, mtime=0) if self.compression == "gzip" else _zstd(end)
        digest = hashlib.sha256()
        part = blobs / "part"
        with part.open("wb") as out, self.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                out.write(chunk)
                digest.update(chunk)
            out.write(tail)
            digest.update(tail)
        size = part.stat().st_size
        part.rename(blobs / digest.hexdigest())
        described = {"mediaType": f"{MEDIA}+{self.compression}", "digest": f"sha256:{digest.hexdigest()}", "size": size}
        return described, f"sha256:{plain.hexdigest()}"


def _zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-3", "-c"], input=content, capture_output=True, check=True).stdout


def _tar(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()[: archive.offset]


def base(place: Path, name: str, plain: Path, compression: str) -> Base:
    digest = hashlib.sha256()
    with plain.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    packed = place / f"{name}.{compression}"
    argv = ["gzip", "-6", "-c", str(plain)] if compression == "gzip" else ["zstd", "-q", "-3", "-c", str(plain)]
    with packed.open("wb") as out:
        subprocess.run(argv, stdout=out, check=True)
    return Base(packed, digest, compression)


def programs(place: Path, size: int, compression: str) -> list[Base]:
    """Layers of this machine's own programs and libraries, ``size`` plain bytes in all."""
    paths = (
        Path(top, name) for where in ("/usr/lib", "/usr/bin") for top, _, names in os.walk(where) for name in names
    )
    made = []
    for number in range(LAYERS):
        plain = place / f"plain-{number}"
        rest = size // LAYERS
        with plain.open("wb") as out:
            for path in paths:
                if path.is_symlink() or not path.is_file() or path.stat().st_size > 20 << 20:
                    continue
                content = path.read_bytes()
                if not content:
                    continue
                rest -= out.write(_tar([(f"layer{number}{path}", content)]))
                if rest <= 0:
                    break
        made.append(base(place, f"layer-{number}", plain, compression))
        plain.unlink()
    return made


def small_files(place: Path, count: int) -> list[Base]:
    """Many small files, and a layer that hides a sixth of them."""
    plain = place / "plain"
    words = json.dumps({"some": "words of a source file", "and": list(range(100))}).encode()
    plain.write_bytes(_tar([(f"d{n % 100}/e{n % 7}/f{n}", words * (1 + n % 6)) for n in range(count)]))
    first = base(place, "files", plain, "gzip")
    hidden = [(f"d{n % 100}/e{n % 7}/.wh.f{n}", b"") for n in range(0, count, 6)]
    plain.write_bytes(_tar([*hidden, ("d1/e1/.wh..wh..opq", b""), *[(f"new/f{n}", words) for n in range(500)]]))
    return [first, base(place, "whiteouts", plain, "gzip")]


def push(place: Path, bases: list[Base], marks: list[str], ref: str) -> None:
    """Puts an image of these layers, each with its mark, into the registry."""
    layout = place / "layout"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    layers = [one.variant(mark, blobs) for one, mark in zip(bases, marks, strict=True)]

    def put(value: dict[str, Any], kind: str) -> dict[str, Any]:
        text = json.dumps(value).encode()
        digest = hashlib.sha256(text).hexdigest()
        (blobs / digest).write_bytes(text)
        return {
            "mediaType": f"application/vnd.oci.image.{kind}.v1+json",
            "digest": f"sha256:{digest}",
            "size": len(text),
        }

    rootfs = {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = put({"architecture": machine, "os": "linux", "config": {"Cmd": ["/x"]}, "rootfs": rootfs}, "config")
    described = [descriptor for descriptor, _ in layers]
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = put({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": described}, "manifest")
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    argv = [
        "skopeo",
        "copy",
        "--quiet",
        "--preserve-digests",
        "--dest-tls-verify=false",
        f"oci:{layout}",
        f"docker://{ref}",
    ]
    subprocess.run(argv, check=True)
    shutil.rmtree(layout)


# --- counterparts


#: Runs the commands: a process of its own, forked while it was small. A child's peak memory counts its parent's.
_runner: Any = None


def begin() -> None:
    """Forks the process that runs the commands."""
    global _runner
    _runner = multiprocessing.get_context("fork").Pool(1)


def timed(*commands: list[str], environ: dict[str, str] | None = None) -> Figure:
    """Runs commands one after another."""
    return Figure(*_runner.apply(_timed, (commands, environ)))


def _timed(commands: list[list[str]], environ: dict[str, str] | None) -> Figure:
    began = time.perf_counter()
    cpu = peak = 0.0
    for argv in commands:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if status:
                errors.seek(0)
                raise RuntimeError(f"{' '.join(argv)}: {errors.read().decode()[-300:]}")
        cpu += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss / 1024)
    return Figure(time.perf_counter() - began, cpu, peak)


PODRUN = [sys.executable, str(HERE.parent / "bin/podrun"), "image", "pull", "-q"]


def _environ(place: Path, root: str) -> dict[str, str]:
    paths = f"{HERE.parent}:{HERE.parent / 'hooks'}"
    return {**os.environ, "PODRUN_ROOT": str(place / root), "PODRUN_RUN": str(place / "run"), "PYTHONPATH": paths}


def podrun(place: Path) -> Callable[[str], Figure]:
    environ = _environ(place, "podrun")
    return lambda ref: timed([*PODRUN, ref], environ=environ)


def peak(place: Path, ref: str) -> float:
    """MiB that a pull into an empty store takes at most, all its processes together."""
    root = f"memory-{time.monotonic_ns()}"
    process = subprocess.Popen([*PODRUN, ref], env=_environ(place, root), stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(_proportional, family(process.pid))))
        time.sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"podrun image pull {ref} ended with {process.returncode}")
    return most / 1024


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    pids = [pid]
    for pid in pids:
        with contextlib.suppress(OSError):
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return pids


def _proportional(pid: int) -> int:
    """KiB of a process, what it shares divided among those who share it; 0 when it has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def skopeo_umoci(place: Path) -> Callable[[str], Figure]:
    """What these two do between them: copy into a layout that keeps its blobs, and unpack."""
    layout = f"{place}/skopeo"

    def pull(ref: str) -> Figure:
        tag = ref.rpartition("/")[2].replace(":", "-")
        copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{ref}", f"oci:{layout}:{tag}"]
        bundle = f"{place}/bundle-{time.monotonic_ns()}"
        return timed(copy, ["umoci", "raw", "unpack", "--image", f"{layout}:{tag}", bundle])

    return pull


def podman(place: Path) -> Callable[[str], Figure]:
    argv = [
        "podman",
        "--root",
        str(place / "podman"),
        "--runroot",
        str(place / "podman-run"),
        "--storage-driver=overlay",
    ]
    return lambda ref: timed([*argv, "pull", "--quiet", "--tls-verify=false", ref])


@contextlib.contextmanager
def docker(place: Path) -> Iterator[Callable[[str], Figure]]:
    """A dockerd of its own."""
    address = f"unix://{place}/docker.sock"
    # Without a bridge it would remove docker0, which may be somebody's.
    bridge = f"pb-{os.getpid()}"
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", "198.18.77.1/24", "dev", bridge], check=True)
    argv = ["dockerd", "--data-root", str(place / "docker"), "--exec-root", str(place / "docker-run")]
    argv += [f"--bridge={bridge}", "--ip-forward=false", "--ip-masq=false"]
    argv += ["--iptables=false", "--ip6tables=false", "--pidfile", str(place / "docker.pid"), "-H", address]
    with (place / "docker.log").open("wb") as log:
        daemon = subprocess.Popen(argv, stdout=log, stderr=log)

    def spent() -> float:
        ticks = 0
        for pid in family(daemon.pid):
            with contextlib.suppress(OSError):
                # utime, stime and those of the children that have ended.
                ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def largest() -> float:
        lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    def pull(ref: str) -> Figure:
        before = spent()
        figure = timed(["docker", "-H", address, "pull", "--quiet", ref])
        return Figure(figure.wall, figure.cpu + spent() - before, largest())

    try:
        for _ in range(200):
            ready = subprocess.run(["docker", "-H", address, "info"], capture_output=True, check=False).returncode == 0
            if ready or daemon.poll() is not None:
                break
            time.sleep(0.1)
        yield pull
    finally:
        daemon.terminate()
        daemon.wait()
        subprocess.run(["ip", "link", "delete", bridge], check=False)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if str(place) in line:
                subprocess.run(["umount", "-l", line.split()[1]], check=False)


@contextlib.contextmanager
def registry(place: Path) -> Iterator[str]:
    """A registry of its own; yields its host:port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {"version": 0.1, "log": {"level": "error"}, "http": {"addr": host}}
    config["storage"] = {"filesystem": {"rootdirectory": str(place / "registry")}}
    (place / "registry.yml").write_text(json.dumps(config))
    environ = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    argv = ["docker-registry", "serve", str(place / "registry.yml")]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(host.rpartition(":")[2]))) == 0:
                    break
            time.sleep(0.05)
        yield host
    finally:
        server.terminate()
        server.wait()


# --- the rounds

#: The cases, and how much of the fastest peer's wall time podrun may take. For nothing to do, of podman's.
CASES = {"gzip": 0.75, "zstd": 0.5, "small": 0.6, "changed": 0.75, "noop": 1.0}
#: MiB that podrun may take.
MEMORY = 128


def main() -> None:
    """Measures, and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100, metavar="MB", help="plain bytes in five layers (default 100)")
    parser.add_argument("--files", type=int, default=12_000, help="small files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(CASES), action="append", help="only this case (may be repeated)")
    parser.add_argument("--without", action="append", default=[], metavar="PEER", help="leave a peer out")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    begin()
    place = Path(tempfile.mkdtemp(prefix="podrun-bench-", dir="/var/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: subprocess.run(["rm", "-rf", str(place)], check=True))
        peers = peers_of(place, given.without, stack)
        figures = measured(place, stack.enter_context(registry(place)), peers, given)
        # podman's overlay storage mounts itself.
        stack.callback(lambda: subprocess.run(["umount", "-q", f"{place}/podman/overlay"], check=False))
    if given.json:
        print(json.dumps(figures))
    else:
        _table(figures, given)


def peers_of(place: Path, without: list[str], stack: contextlib.ExitStack) -> dict[str, Callable[[str], Figure]]:
    peers: dict[str, Callable[[str], Figure]] = {"podrun": podrun(place)}
    for name, programs, make in (
        ("skopeo+umoci", ("skopeo", "umoci"), skopeo_umoci),
        ("podman", ("podman",), podman),
        ("docker", ("dockerd", "docker"), None),
    ):
        missing = [program for program in programs if not shutil.which(program)]
        if missing or name in without:
            print(f"without {name}{': not installed' if missing else ''}", file=sys.stderr)
        elif make:
            peers[name] = make(place)
        else:
            peers[name] = stack.enter_context(docker(place))
    return peers


def measured(
    place: Path, host: str, peers: dict[str, Callable[[str], Figure]], given: argparse.Namespace
) -> dict[str, dict[str, list[Figure]]]:
    cases = [case for case in CASES if not given.only or case in given.only]
    figures: dict[str, dict[str, list[Figure]]] = {case: {name: [] for name in peers} for case in cases}
    bases: dict[str, list[Base]] = {}
    for kind in ("gzip", "zstd", "small"):
        (place / kind).mkdir()
        if kind == "small":
            bases[kind] = small_files(place / kind, given.files)
        else:
            bases[kind] = programs(place / kind, given.size << 20, kind)
    order = list(peers)
    for number in range(given.rounds):
        order = order[1:] + order[:1]
        for case in cases:
            layers = bases[case if case in bases else "gzip"]
            marks = [f"{case}-{number}-{index}" for index in range(len(layers))]
            ref = f"{host}/bench/{case}:{number}"
            if case != "noop" or "gzip" not in cases:
                push(place, layers, marks, ref)
            if case == "noop" and "gzip" in cases:
                ref = f"{host}/bench/gzip:{number}"
            elif case == "changed":
                for name in order:
                    peers[name](ref)
                ref = f"{host}/bench/{case}:{number}-new"
                push(place, layers, [*marks[:2], f"{marks[2]}-new", *marks[3:]], ref)
            elif case == "noop":
                for name in order:
                    peers[name](ref)
            for name in order:
                if case in ("noop", "zstd") and name == "skopeo+umoci":
                    continue
                os.sync()
                try:
                    figures[case][name].append(peers[name](ref))
                except RuntimeError as error:
                    # docker before 23, for one, takes zstd for a broken tar.
                    if name == "podrun":
                        raise
                    print(f"{case}: without {name}: {' '.join(str(error).split())}", file=sys.stderr)
            if number == given.rounds - 1:
                most = peak(place, ref)
                figures[case]["podrun"] = [figure._replace(peak=most) for figure in figures[case]["podrun"]]
    return figures


def _table(figures: dict[str, dict[str, list[Figure]]], given: argparse.Namespace) -> None:
    from importlib.util import find_spec

    isal = "with" if find_spec("isal") else "without"
    print(f"{given.size} MB in {LAYERS} layers, {given.files} small files, {given.rounds} rounds, medians; {isal} isal")
    print(f"{'':9} {'':13} {'wall s':>8} {'cpu s':>7} {'peak MiB':>9} {'podrun / it':>12}")
    for case, found in figures.items():
        medians = {
            name: Figure(*(statistics.median(column) for column in zip(*rows, strict=True)))
            for name, rows in found.items()
            if rows
        }
        ours = medians.pop("podrun")
        print(f"{case:9} {'podrun':13} {ours.wall:8.3f} {ours.cpu:7.2f} {ours.peak:9.0f}")
        for name, figure in medians.items():
            ratio = ours.wall / figure.wall
            print(f"{case:9} {name:13} {figure.wall:8.3f} {figure.cpu:7.2f} {figure.peak:9.0f} {ratio:12.2f}")
        _verdict(case, ours, medians)


def _verdict(case: str, ours: Figure, peers: dict[str, Figure]) -> None:
    measure = {name: figure for name, figure in peers.items() if case != "noop" or name == "podman"}
    if measure:
        fastest = min(measure, key=lambda name: measure[name].wall)
        ratio = ours.wall / measure[fastest].wall
        reached = "reached" if ratio <= CASES[case] else "NOT REACHED"
        print(f"{case:9} {ratio:.2f} of {fastest}, wanted: {CASES[case]:.2f} at most: {reached}")
    if ours.peak > MEMORY:
        print(f"{case:9} {ours.peak:.0f} MiB, wanted: {MEMORY} at most: NOT REACHED")


if __name__ == "__main__":
    main()
