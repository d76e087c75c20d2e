"""Services that move under load: real pods, a client that counts what fails, and its SYN timer."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from podrun_hooks import register
from podrun_hooks.ambassador import syn_timer
from podrun_hooks.follow import begin
from podrun_hooks.registry import wishes
from support.ambassador_case import Services
from support.launcher import HERE
from support.network_case import inside
from support.waiting import until

_V2 = "/sys/fs/cgroup" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "/sys/fs/cgroup/unified"


class Moving(Services):
    """Backends that come and go, each with a server of its own, and one client."""

    def __init__(self, **table: Any) -> None:
        super().__init__()
        self.table = table  # type: ignore[assignment]
        self.program = str(self.home / "ambassador")
        source = str(HERE.parent / "bench/ambassador.c")
        subprocess.run(["gcc", "-O2", "-pthread", "-o", self.program, source], check=True)
        self.serving: dict[str, subprocess.Popen[str]] = {}
        self.callers: list[subprocess.Popen[str]] = []
        self.cgroup = ""

    def start(self, name: str) -> None:
        """A backend, registered when it listens."""
        if name not in self.facts:
            self.pod(name)
        argv = [*inside(self.facts[name]["netns"]), self.program, "serve", "5432", name]
        self.serving[name] = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        stdout = self.serving[name].stdout
        assert stdout
        assert stdout.readline() == "listening\n"
        self.do(register, name, "register", {"ready": True}, service="db", port=5432, **self.table)

    def stop(self, name: str) -> None:
        """In good order: deregister and drain, and only then end."""
        self.undo(name, "register")
        self.kill(name)

    def kill(self, name: str) -> None:
        """With its record left behind."""
        server = self.serving.pop(name)
        server.kill()
        server.wait()
        assert server.stdout
        server.stdout.close()

    def timer(self, address: str) -> None:
        """Gives what the client starts from now on the timer that podrun gives containers."""
        self.cgroup = f"{_V2}/{self.home.name}"
        os.makedirs(self.cgroup, exist_ok=True)
        assert syn_timer.attach(self.cgroup, {address: [50, 60]}) == ""

    def calling_with(self, *words: str, pod: str = "app") -> subprocess.Popen[str]:
        """The client's program in a pod."""
        join = 'test -z "$0" || echo $$ >"$0/cgroup.procs"; exec "$@"'
        argv = ["sh", "-c", join, self.cgroup, *inside(self.facts[pod]["netns"]), self.program, *words]
        calling = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self.callers.append(calling)
        return calling

    def load(self, address: str, seconds: float, *, threads: int = 4, pause: float = 0.002) -> subprocess.Popen[str]:
        """Short requests for so long; see counted()."""
        return self.calling_with("load", address, "5432", str(threads), str(seconds), str(pause))

    def counted(self, calling: subprocess.Popen[str], seconds: float = 120) -> dict[str, Any]:
        """What became of the requests."""
        output, _ = calling.communicate(timeout=seconds)
        found: dict[str, Any] = json.loads(output)
        return found

    def close(self) -> None:
        for calling in self.callers:
            calling.kill()
            calling.communicate()
        for name in list(self.serving):
            self.kill(name)
        super().close()
        deadline = time.monotonic() + 5
        while self.cgroup and Path(self.cgroup).exists():
            try:
                os.rmdir(self.cgroup)
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


class Following(Moving):
    """The same with a follower, where the registry has a server. ``more``: options of the backends' register steps."""

    def __init__(self, url: str, **more: Any) -> None:
        super().__init__(**{"registry": url, "advertise": "pod", "drain": "250ms", **more})
        self.url = url
        self.follower: subprocess.Popen[bytes] | None = None
        if url != "file:":
            os.makedirs(wishes.directory(self.run), mode=0o700)
            self.follower = subprocess.Popen(begin.command(self.run, "unit"))
            until(lambda: begin.running(self.run) == "unit")

    def close(self) -> None:
        super().close()
        if self.follower:
            self.follower.kill()
            self.follower.wait()
