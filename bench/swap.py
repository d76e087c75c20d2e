"""A new version under load, on a booted host: podrun update beside podman auto-update, docker-compose and a restart.

`python3 bench/swap.py [SWAPS [OTHERS [WORD..]]]` boots the host of tests/support/systemd_host.py with podman, docker
and a registry, and gives each tool the same work: a server whose image's tag stands for another version each time,
while 32 connections are kept busy from the host and from another one, once with connections that are kept and once with
one request for each. podrun is called, too, from another pod by the host's address, and by IPv6. Then podrun gets
versions that do not work. Failed requests are the application's: it answers what it has accepted, and then closes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support.busy import SERVER, Busy, Count  # noqa: E402

PORT = 7480
#: What the image says of itself: its version, the port it listens on, and after how many seconds it ends.
PROGRAM = (
    'import os, threading; os.environ["VERSION"] = open("/version").read().strip()\n'
    'os.environ["PORT"] = open("/port").read().strip()\n'
    'timer = threading.Timer(float(open("/ends").read()), lambda: os._exit(9)); timer.daemon = True; timer.start()\n'
) + SERVER


#: Ten restarts in ten seconds are too many for systemd otherwise.
_OFTEN = "StartLimitIntervalSec = 0"


def sh(*argv: str, check: bool = True, timeout: float = 300) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.returncode}: {(done.stderr or done.stdout)[-1500:]}")
    return done.stdout


# --- in the guest: the work -----------------------------------------------------------------------------------------


def pusher(registry: Any) -> Callable[..., None]:
    """Makes the tag of the registry's image stand for a version."""
    from support.image_builder import directory, file, image, layout, symlink, tar

    made: dict[str, str] = {}

    def push(version: str, *, ends: float = 1e6, port: int = 80, links: bool = True) -> None:
        if version not in made:
            names = ("bin", "lib", "lib64", "sbin") if links else ()
            texts = {"version": version, "ends": str(ends), "port": str(port)}
            parts = [*(directory(name) for name in ("usr", "etc")), *(symlink(name, f"usr/{name}") for name in names)]
            parts += [file(name, text.encode()) for name, text in texts.items()]
            made[version] = layout(f"/srv/{version}", {"web": image(tar(*parts))})
        registry.push(f"oci:{made[version]}:web", "team/web:1")

    return push


@contextmanager
def another_host() -> Iterator[str]:
    """With IPv6 beside the IPv4 of support.network_case; the name of its namespace."""
    from support.network_case import inside, outside_host, run

    with outside_host() as (other, _, _):
        run("ip", "address", "add", "fd51::1/64", "dev", "t-net-wire", "nodad")
        run(*inside(other), "ip", "address", "add", "fd51::2/64", "dev", "wire", "nodad")
        yield other


class Tool(ABC):
    """How somebody starts the server of an image, brings it up to date, and ends it."""

    name = ""
    #: Reached from another pod and by IPv6, too.
    everywhere = False

    def __init__(self, ref: str) -> None:
        self.ref = ref

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def update(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...


class Podrun(Tool):
    name, everywhere = "podrun update", True

    def write(self, *, ref: str = "", watch: str = "0s", soak: str = "0s", env: str = "") -> None:
        Path("/etc/podrun").mkdir(exist_ok=True)
        Path("/etc/podrun/web.toml").write_text(f"""
[pod]
reload = "swap"
stop_timeout = "10s"
[update]
watch = "{watch}"
soak = "{soak}"
[[chain]]
hook = "image"
ref = "{ref or self.ref}"
[[chain]]
hook = "network"
publish = ["127.0.0.1:{PORT}:80", "198.51.100.1:{PORT}:80", "[fd51::1]:{PORT}:80"]
[[chain]]
hook = "container"
command = ["/usr/bin/python3", "-c", '''{PROGRAM.replace("${", "$${")}''']
volumes = ["/usr:/usr:ro"]
env = {{ {env} }}
ready = {{ http = ":80/", timeout = "3s" }}
[unit]
{_OFTEN}
""")

    def start(self, **more: str) -> None:
        self.write(**more)
        sh("podrun", "unit", "--install", "web")
        sh("systemctl", "start", "web")

    def update(self) -> None:
        sh("podrun", "update", "web")

    def stop(self) -> None:
        sh("systemctl", "stop", "web")


class Restarted(Podrun):
    name, everywhere = "systemctl restart (podrun's unit)", False

    def update(self) -> None:
        sh("podrun", "image", "pull", "-q", self.ref)
        sh("systemctl", "restart", "web")


class Podman(Tool):
    name = "podman auto-update"

    def start(self) -> None:
        host = self.ref.partition("/")[0]
        conf = Path("/etc/containers/registries.conf.d/bench.conf")
        conf.write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
        Path("/etc/containers/containers.conf").write_text(f'[engine]\nruntime = "{_runtime()}"\n')
        argv = ["podman", "create", "--name", "pod-web", "--label", "io.containers.autoupdate=registry"]
        argv += [
            "--pids-limit",
            "-1",
            "-p",
            f"{PORT}:80",
            "-v",
            "/usr:/usr:ro",
            self.ref,
            "/usr/bin/python3",
            "-c",
            PROGRAM,
        ]
        sh(*argv)
        text = sh("podman", "generate", "systemd", "--new", "--name", "pod-web")
        sh("podman", "rm", "pod-web")
        Path("/etc/systemd/system/pod-web.service").write_text(text.replace("[Unit]", f"[Unit]\n{_OFTEN}"))
        sh("systemctl", "daemon-reload")
        sh("systemctl", "start", "pod-web")

    def update(self) -> None:
        said = sh("podman", "auto-update")
        if "true" not in said:
            raise RuntimeError(f"podman auto-update: {said}")

    def stop(self) -> None:
        sh("systemctl", "stop", "pod-web")


class Compose(Tool):
    name = "docker-compose pull, up -d"

    def start(self) -> None:
        service = {"image": self.ref, "ports": [f"{PORT}:80"], "volumes": ["/usr:/usr:ro"]}
        command = ["/usr/bin/python3", "-c", PROGRAM.replace("$", "$$")]
        Path("/srv/compose.json").write_text(
            json.dumps({"version": "3", "services": {"web": {**service, "command": command}}})
        )
        sh("systemctl", "start", "docker")
        self.update()

    def update(self) -> None:
        sh("docker-compose", "-f", "/srv/compose.json", "pull", "-q")
        sh("docker-compose", "-f", "/srv/compose.json", "up", "-d")

    def stop(self) -> None:
        sh("docker-compose", "-f", "/srv/compose.json", "down")


def _runtime() -> str:
    from units import runtime

    return runtime()


def clients(tool: Tool, keep: bool, other: str) -> dict[str, Busy]:
    from support.network_case import inside

    here = "198.51.100.1"
    number = 8 if tool.everywhere else 16
    found = {
        "127.0.0.1": Busy("127.0.0.1", PORT, number, keep=keep),
        "another host": Busy(here, PORT, number, keep=keep, netns=inside(other)),
    }
    if tool.everywhere:
        pod = next(one for one in Path("/run/netns").iterdir() if one.name.endswith("-caller"))
        found["another pod"] = Busy(here, PORT, number, keep=keep, netns=inside(str(pod)))
        found["IPv6"] = Busy("fd51::1", PORT, number, keep=keep, netns=inside(other))
    return found


def await_answer() -> None:
    deadline = time.monotonic() + 30
    while not sh("curl", "-s", "-m", "2", f"http://127.0.0.1:{PORT}/", check=False):
        if time.monotonic() > deadline:
            raise RuntimeError("no answer")
        time.sleep(0.05)


def row(what: str, counts: dict[str, Count], took: Sequence[float], code: object = "") -> dict[str, Any]:
    return {
        "what": what,
        "times": len(took),
        "seconds": round(sorted(took)[len(took) // 2], 2) if took else 0,
        "code": code,
        "counts": {name: count._asdict() for name, count in counts.items()},
    }


# --- in the guest: measuring ----------------------------------------------------------------------------------------


def updates(tool: Tool, times: int, push: Callable[..., None], other: str) -> Iterator[dict[str, Any]]:
    """The same tool with kept connections, and with one request a connection."""
    for keep in (True, False):
        push("one")
        tool.start()
        await_answer()
        busy = clients(tool, keep, other)
        time.sleep(1)
        took = []
        for number in range(times):
            push("two" if number % 2 == 0 else "one")
            began = time.monotonic()
            tool.update()
            took.append(time.monotonic() - began)
        await_answer()
        counts = {name: client.stop() for name, client in busy.items()}
        tool.stop()
        yield row(f"{tool.name}, {'kept' if keep else 'one a connection'}", counts, took)


def abrupt(tool: Podrun, push: Callable[..., None]) -> dict[str, Any]:
    """An application that closes idle connections at SIGTERM."""
    push("one")
    tool.start(env='ABRUPT = "1"')
    await_answer()
    client, took = Busy("127.0.0.1", PORT, 32, keep=True), []
    for number in range(20):
        push("two" if number % 2 == 0 else "one")
        began = time.monotonic()
        tool.update()
        took.append(time.monotonic() - began)
    counts = {"127.0.0.1": client.stop()}
    tool.stop()
    return row("podrun update of a server that closes idle connections at SIGTERM", counts, took)


def broken(tool: Podrun, push: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """Versions that do not work, each under load of both kinds of connections."""
    cases: list[tuple[str, dict[str, Any], dict[str, str]]] = [
        ("does not get ready (ready.timeout 3 s)", {"port": 81}, {}),
        ("ends 5 s after its start, watched", {"ends": 5.0}, {"watch": "20s"}),
        ("ends 5 s after its start, soak = 8s", {"ends": 5.0}, {"soak": "8s"}),
        ("wrong image: its program cannot run", {"links": False}, {}),
        ("missing image", {}, {"ref": tool.ref.replace("/web:", "/none:")}),
    ]
    for number, (what, image, table) in enumerate(cases):
        push("one")
        tool.start()
        await_answer()
        busy = {"kept": Busy("127.0.0.1", PORT, 16, keep=True), "one": Busy("127.0.0.1", PORT, 16, keep=False)}
        time.sleep(0.5)
        pid = sh("systemctl", "show", "--value", "-p", "MainPID", "web")
        tool.write(**table)
        verb = "reload" if "ref" in table else "update"
        if not table.get("ref"):
            push(f"bad{number}", **image)
        began = time.monotonic()
        done = subprocess.run(["podrun", verb, "web"], capture_output=True, text=True, check=False)
        took = time.monotonic() - began
        time.sleep(0.5)
        counts = {name: client.stop() for name, client in busy.items()}
        same = pid == sh("systemctl", "show", "--value", "-p", "MainPID", "web")
        state = sh("systemctl", "show", "--value", "-p", "ActiveState,NRestarts", "web").split()
        said = done.stderr.strip().splitlines()
        yield {
            **row(f"{what}: podrun {verb}", counts, [took], done.returncode),
            "said": said[-1] if said else "",
            "state": f"{' '.join(state)}, {'the same' if same else 'ANOTHER'} main process",
        }
        tool.stop()


def status(tool: Podrun, push: Callable[..., None]) -> dict[str, str]:
    """What systemctl status says before, during and after, and what is there beside the payload."""
    push("one")
    tool.start(soak="2s")
    await_answer()
    push("two")

    def now() -> str:
        lines = sh("systemctl", "status", "--no-pager", "--lines=0", "web", check=False).splitlines()
        return "\n".join(line[:80] for line in lines)

    told = {"before": now()}
    updating = subprocess.Popen(["podrun", "update", "web"])
    time.sleep(2)
    told["during"] = now()
    updating.wait()
    told["after"] = now()
    cgroup = Path("/sys/fs/cgroup/system.slice/web.service")
    pids = [int(pid) for path in cgroup.rglob("cgroup.procs") for pid in path.read_text().split()]
    main = int(sh("systemctl", "show", "--value", "-p", "MainPID", "web"))
    beside = [pid for pid in pids if pid != main]
    others = sh("pgrep", "-f", "/usr/local/bin/podrun|podrun_hooks", check=False).split()
    told["beside the payload"] = f"{len(beside)} processes in the unit's cgroup, {len(others)} of podrun elsewhere"
    tool.stop()
    return told


def inside() -> None:
    with open(HERE.parent / "wanted.json") as file:
        swaps, others, *only = json.load(file)
    with open(os.environ["PODRUN_TEST_REPORTS"], "a", buffering=1) as reports:

        def tell(told: dict[str, Any]) -> None:
            reports.write(json.dumps(told) + "\n")

        try:
            measure(int(swaps), int(others), only, tell)
        except Exception as error:
            tell({"error": f"{error!r}\n{sh('journalctl', '-n', '40', '--no-pager', check=False)}"})
        tell({"over": True})


def measure(swaps: int, others: int, only: Sequence[str], tell: Callable[[dict[str, Any]], None]) -> None:
    from support.image_servers import docker_registry

    place = Path("/srv/registry")
    place.mkdir()
    with docker_registry(place) as registry, another_host() as other:
        push, ref = pusher(registry), f"{registry.host}/team/web:1"
        sh("podrun", "run", "-d", "--name", "caller", "host:", "sleep", "100000")
        own = Podrun(ref)
        for tool, times in ((own, swaps), (Restarted(ref), others), (Podman(ref), others), (Compose(ref), others)):
            if only and not any(word in tool.name for word in only):
                continue
            try:
                for told in updates(tool, times, push, other):
                    tell(told)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                tell({"error": f"{tool.name}: {error}"})
        if only:
            return
        tell(abrupt(own, push))
        for told in broken(own, push):
            tell(told)
        tell({"status": status(own, push)})


# --- outside --------------------------------------------------------------------------------------------------------


def show(told: dict[str, Any]) -> None:
    if "error" in told:
        print(told["error"])
    elif "status" in told:
        for when, text in told["status"].items():
            print(f"\nsystemctl status, {when}:\n{text}" if "\n" in text else f"\n{when}: {text}")
    else:
        more = "".join(f"; {told[key]}" for key in ("state", "said") if told.get(key))
        code = f", exit {told['code']}" if told["code"] != "" else ""
        print(f"\n{told['what']}: {told['times']} times, {told['seconds']} s each{code}{more}")
        for name, count in told["counts"].items():
            why = max(count["why"].items(), key=lambda item: item[1], default=("", 0))[0]
            print(
                f"  {name:13} {count['requests']:7} requests {count['failed']:6} failed  p99 {count['p99']:7.1f} ms"
                f"  longest gap {count['gap']:7.1f} ms  {why}"
            )


def main(words: Sequence[str]) -> None:
    from support.systemd_host import PACKAGES, Boot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("swaps", nargs="?", type=int, default=50)
    parser.add_argument("others", nargs="?", type=int, default=10)
    parser.add_argument("only", nargs="*", help="rows of the table with one of these words")
    given = parser.parse_args(words)
    packages = [*PACKAGES, "podman", "docker.io", "conmon", "containernetworking-plugins", "iptables", "apparmor"]
    packages += ["ca-certificates", "docker-compose", "docker-registry", "skopeo"]
    with Boot("nspawn", [str(given.swaps), str(given.others), *given.only], "bench/swap.py", packages) as boot:
        for line in boot.lines(600):
            told = json.loads(line)
            if told.get("over"):
                break
            show(told)
            sys.stdout.flush()


if __name__ == "__main__":
    if os.environ.get("PODRUN_TEST_REPORTS"):
        inside()
    else:
        main(sys.argv[1:])
