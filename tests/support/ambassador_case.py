"""Pods with a network and an ambassador, and the file registry beside them: what tests of ambassadors start from."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from podrun.hook import Step, read
from podrun_hooks import ambassador, register
from support.network_case import Place, inside

#: Connects, tells what it was told, and how long that took: HOST PORT SECONDS.
CALL = """
import socket, sys, time
began = time.monotonic()
try:
    client = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]))
    said = client.recv(100).decode().partition(" ")[0]
except OSError as error:
    said = type(error).__name__
print(said, f"{time.monotonic() - began:.3f}")
"""


class Services(Place):
    """Backends and clients in pods of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, dict[str, Any]] = {}
        self.steps: list[tuple[Any, Step, dict[str, Any]]] = []

    def pod(self, name: str, **table: Any) -> dict[str, Any]:
        """A pod with a network."""
        self.facts[name] = self.up(name, **table)
        return self.facts[name]

    def do(self, hook: Any, pod: str, step: str, more: dict[str, Any] | None = None, **table: Any) -> dict[str, Any]:
        """One step of a pod's chain; returns its facts."""
        kind = hook.__name__.rpartition(".")[2].replace("_", "-")
        found = Step(self.started[pod].pod, kind, step, read(hook.Options, table))
        given: dict[str, Any] = hook.up(found, {**self.facts[pod], **(more or {})})
        self.steps.append((hook, found, given))
        return given

    def undo(self, pod: str, step: str) -> None:
        """Takes one back."""
        entry = next(one for one in self.steps if (one[1].pod.name, one[1].name) == (pod, step))
        self.steps.remove(entry)
        entry[0].down(entry[1], entry[2])

    def backend(self, name: str, port: int = 5432, *, service: str = "db", **table: Any) -> str:
        """A pod that serves its own name and is registered; returns its address."""
        facts = self.pod(name)
        self.serve(facts["netns"], port, name, proto=table.get("proto", "tcp"))
        self.do(register, name, "register", {"ready": True}, service=service, port=port, **table)
        return str(facts["addresses"][0].partition("/")[0])

    def client(
        self, name: str, *, service: str = "db", port: int = 5432, step: str = "ambassador", **table: Any
    ) -> str:
        """A pod with an ambassador; returns the address that it calls."""
        if name not in self.facts:
            self.pod(name)
        facts = self.do(ambassador, name, step, service=service, port=port, **table)
        return facts["env"][0].partition("=")[2]

    def call(self, pod: str, host: str, port: int = 5432, seconds: float = 3.0) -> tuple[str, float]:
        """Who answers a pod's call, and after how many seconds."""
        return self.answer(self.calling(pod, host, port, seconds))

    def calling(self, pod: str, host: str, port: int = 5432, seconds: float = 10.0) -> subprocess.Popen[str]:
        """The same, to be waited for later."""
        argv = [*inside(self.facts[pod]["netns"]), sys.executable, "-c", CALL, host, str(port), str(seconds)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def answer(self, calling: subprocess.Popen[str]) -> tuple[str, float]:
        """What became of a call."""
        output, _ = calling.communicate(timeout=60)
        said, seconds = output.split()
        return said, float(seconds)

    def nft(self, pod: str, *words: str) -> str:
        """What nft says in a pod."""
        argv = [*inside(self.facts[pod]["netns"]), "nft", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def conntrack(self, pod: str) -> list[str]:
        """The pod's tracked connections."""
        argv = [*inside(self.facts[pod]["netns"]), "conntrack", "-L"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()

    def waiting(self, condition: Any, seconds: float = 5.0) -> Any:
        """Waits until it is true."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "it has not come about"
            time.sleep(0.02)
        return found

    def close(self) -> None:
        for hook, step, facts in reversed(self.steps):
            hook.down(step, facts)
        super().close()
