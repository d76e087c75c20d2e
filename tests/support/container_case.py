"""A pod with one container for tests: a busybox root, facts written by hand, and a count of what is left behind."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from podrun.hook import Pod, Step
from podrun.host import tag
from podrun.options import read
from podrun_hooks import container
from podrun_hooks.container import cgroups, processes, streams
from podrun_hooks.container import paths as places

BUSYBOX = "/bin/busybox"
APPLETS = [
    "sh", "true", "false", "sleep", "cat", "echo", "env", "id", "ls", "mount", "umount", "mkdir", "mknod", "dd",
    "httpd", "nc", "kill", "head", "hostname", "pwd", "stat", "test", "touch", "ps", "wget", "chroot", "unshare",
    "setarch", "ln", "rm", "grep", "sync", "readlink", "ip", "date", "tee", "tr", "seq",
]  # fmt: skip


def busybox_root(directory: Path, passwd: str = "") -> Path:
    """A root file system in which busybox is every program."""
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "root"):
        (directory / name).mkdir(parents=True)
    os.link(_shared_busybox(directory.parent), directory / "bin/busybox")
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "tmp").chmod(0o1777)
    (directory / "etc/passwd").write_text(
        passwd or "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/srv/web:/bin/sh\nalone:x:1001:1001::/:/bin/sh\n"
    )
    (directory / "etc/group").write_text("root:x:0:\nweb:x:1000:\nlog:x:50:web,other\nwww:x:33:web\n")
    return directory


def _shared_busybox(directory: Path) -> Path:
    copy = directory / ".busybox"
    if not copy.exists():
        copy.write_bytes(Path(BUSYBOX).read_bytes())
        copy.chmod(0o755)
    return copy


class Case:
    """One container step in directories of its own."""

    def __init__(self, tmp_path: Path, name: str = "main", pod: str = "t-cont", **pod_fields: Any) -> None:
        self.tmp = tmp_path
        self.layer = tmp_path / "layer"
        if not self.layer.exists():
            busybox_root(self.layer)
        fields = {"stop_timeout": 5.0, "attached": False, **pod_fields}
        self.pod = Pod(pod, str(tmp_path / "root"), str(tmp_path / "run"), tag(pod, str(tmp_path / "run")), **fields)
        self.name = name
        self.said: list[str] = []
        self.before = set(os.listdir("/tmp"))
        os.makedirs(self.pod.directory, mode=0o700, exist_ok=True)
        self.config: dict[str, Any] = {}
        self.layers = [str(self.layer)]
        self.image_mounts: list[dict[str, Any]] = []
        self.own: dict[str, Any] = {}
        self.options: dict[str, Any] = {}

    def step(self, **options: Any) -> Step:
        self.options = options or self.options
        return Step(
            self.pod,
            "container",
            self.name,
            read(container.Options, self.options),
            self.said.append,
            report=self.said.append,
        )

    def facts(self, **more: Any) -> dict[str, Any]:
        image = {"ref": "dir:", "digest": "", "layers": self.layers, "config": self.config, "mounts": self.image_mounts}
        return {"image": "image", "images": {"image": image}, **more}

    def up(self, *command: str, facts: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        if command:
            options["command"] = list(command)
        step = self.step(**options)
        assert container.check(step) == []
        self.own = container.up(step, self.facts(**(facts or {})))
        return self.own

    def down(self, own: dict[str, Any] | None = None) -> None:
        container.down(self.step(), self.own if own is None else own)

    def run(self, *command: str, facts: dict[str, Any] | None = None, seconds: float = 10, **options: Any) -> str:
        """The output of a container that runs to its end; it is removed again."""
        try:
            self.up(*command, facts=facts, **options)
            process = processes.Process(**self.own["process"])
            pidfd = processes.opened(process)
            if pidfd is not None:
                assert processes.ended(pidfd, seconds), f"{command} has not ended"
                os.close(pidfd)
            streams.finish(self.own)
            return self.log()
        finally:
            self.down()

    def log(self) -> str:
        return Path(self.own["log"]["file"]).read_text(errors="replace")

    def exec(self, *argv: str, **wanted: Any) -> str:
        ended = container.exec_and_wait(self.step(), self.own, argv, **wanted)
        assert ended.status == 0, ended
        return ended.output

    def left(self) -> list[str]:
        """What a container left behind: processes, mounts, cgroups, files."""
        place = places.of(self.step())
        found = [f"process {process.pid}" for process in processes.with_mount(place.mark)]
        found += [
            f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.tmp) in line
        ]
        found += [path for path in cgroups.of(place) if os.path.exists(path)]
        for top in (place.runtime, place.bundle, self.pod.storage):
            for directory, _, files in os.walk(top):
                found += [f"{directory}/{file}" for file in files]
                found += [directory] if directory not in (self.pod.storage, place.runtime) else []
        found += [f"/tmp/{name}" for name in os.listdir("/tmp") if name.startswith("crun.") and name not in self.before]
        return found + self._processes()

    def _processes(self) -> list[str]:
        """Processes with the test's directory in their command line or environment. A killed child takes a moment."""
        deadline = time.monotonic() + 0.5
        while True:
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    words = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.tmp).encode() in words and int(pid) != os.getpid():
                    found.append(f"process {pid}: {words[-200:]!r}")
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.005)


def netns(name: str) -> str:
    """The path of a network namespace that ``ip netns add`` made, with lo up."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    return f"/run/netns/{name}"
