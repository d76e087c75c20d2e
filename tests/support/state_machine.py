"""Several pods, whatever is done to them in whatever order, beside a small model of what there has to be then."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support import image_builder as build
from support.launcher import HERE, Podrun
from support.objects import listing, settled

NAMES = ["one", "two", "three"]
_POD = """
[pod]
name = "{name}"
reload = "swap"
[[chain]]
hook = "image"
ref = "{ref}"
[[chain]]
hook = "storage"
source = "volume:{name}"
target = "/data"
[[chain]]
hook = "network"
publish = ["127.0.0.1:{port}:80"]
[[chain]]
hook = "container"
command = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"]
volumes = ["/usr:/usr:ro"]
[[chain]]
hook = "register"
service = "{name}"
advertise = "pod"
port = 80
"""


class Pods(RuleBasedStateMachine):
    """The model: what state each pod may be in, and which of them has written to its volume.

    Rules are commands of podrun; each checks its exit code against the model, and :meth:`listed` the whole after each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="podrun-test-", dir="/var/lib"))
        self.home.chmod(0o755)
        self.podrun = Podrun(self.home)
        self.boot = self.home / "boot_id"
        self.podrun.environ["PODRUN_TEST_BOOT_ID"] = str(self.boot)
        self.podrun.environ["PODRUN_TEST_CLOCK"] = "0"
        self.port = random.SystemRandom().randint(20000, 30000)
        #: What inspect may say of each pod.
        self.may_be: dict[str, set[str]] = {name: {"absent"} for name in NAMES}
        self.written: set[str] = set()
        self.said: list[str] = []

    @initialize()
    def begins(self) -> None:
        self.new_boot()
        layers = (
            build.tar(*(build.directory(name) for name in ("usr", "etc"))),
            build.tar(
                *(build.symlink(name, f"usr/{name}") for name in ("bin", "lib", "lib64")), build.file("word", b"well")
            ),
        )
        self.ref = f"oci:{build.layout(str(self.home / 'layout'), {'v1': build.image(*layers, Cmd=['/bin/sh'])})}:v1"
        for number, name in enumerate(NAMES):
            self.podrun.file(name, _POD.format(name=name, ref=self.ref, port=self.port + number))
        self.do("run", "--rm", "--name", "warm", "host:", "true")
        self.before = listing(self.podrun.run, self.podrun.root)

    def new_boot(self) -> None:
        self.boot.write_text(f"{uuid.uuid4()}\n")

    def do(self, *words: str, point: int = 0, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """One command; its exit code has to be one of ``codes``. With ``point`` it is killed at this event, if it has it."""
        argv = [sys.executable, str(HERE / "support" / "killed.py"), str(point), *words]
        done = subprocess.run(
            argv, env=self.podrun.environ, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
        )  # fmt: skip
        self.said.append(
            f"{' '.join(words)}{f' killed at {point}' * bool(point)}: {done.returncode} {done.stderr[-300:]}"
        )
        codes = (*codes, -signal.SIGKILL) if point else codes
        assert done.returncode in codes, "\n".join(self.said)
        for word in ("Traceback", "internal error", "the hook failed"):
            assert word not in done.stderr, "\n".join(self.said)
        return done

    def is_surely(self, name: str, state: str) -> bool:
        return self.may_be[name] == {state}

    def file(self, name: str) -> str:
        return str(self.home / f"{name}.toml")

    # --- what is done ----------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def up(self, name: str) -> None:
        codes = (75,) if self.is_surely(name, "up") else (0, 75) if "up" in self.may_be[name] else (0,)
        self.do("up", "-d", self.file(name), codes=codes)
        self.may_be[name] = {"up"}
        self.do("exec", name, "sh", "-c", f"echo {name} > /data/mark")
        self.written.add(name)

    @rule(name=st.sampled_from(NAMES))
    def down(self, name: str) -> None:
        self.do("down", name)
        self.may_be[name] = {"absent"}

    @rule(name=st.sampled_from(NAMES), point=st.integers(1, 16))
    def killed_up(self, name: str, point: int) -> None:
        if self.is_surely(name, "up"):
            return
        self.do("up", "-d", self.file(name), point=point, codes=(0, 75))
        self.may_be[name] = {"absent", "failed", "dead", "up"}

    @precondition(lambda self: any(self.is_surely(name, "up") for name in NAMES))
    @rule(data=st.data(), point=st.integers(1, 14))
    def killed_down(self, data: Any, point: int) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if self.is_surely(name, "up")]))
        self.do("down", name, point=point)
        self.may_be[name] = {"absent", "failed", "dead", "up"}

    @precondition(lambda self: any(self.is_surely(name, "up") for name in NAMES))
    @rule(data=st.data(), point=st.sampled_from([0, 0, *range(1, 24)]))
    def reload(self, data: Any, point: int) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if self.is_surely(name, "up")]))
        self.do("reload", name, point=point)
        if point:
            # What a killed reload has left is undone by the next one, and the pod goes on all the time.
            self.do("reload", name)
        self.do("exec", name, "cat", "/word")

    @precondition(lambda self: any(self.is_surely(name, "up") for name in NAMES))
    @rule(data=st.data())
    def payload_is_killed(self, data: Any) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if self.is_surely(name, "up")]))
        self.do("kill", name)
        deadline = time.monotonic() + 5
        while self.state(name) != "dead" and time.monotonic() < deadline:
            time.sleep(0.02)
        self.may_be[name] = {"dead"}

    @rule(what=st.sampled_from(["gc", "image rm", "volume prune", "clock", "reboot", "reboot, run directory kept"]))
    def seldom(self, what: str) -> None:
        """One of those that would else be most of a story: rules are drawn evenly."""
        match what:
            case "gc":
                self.gc()
            case "image rm":
                self.image_rm()
            case "volume prune":
                self.volume_prune()
            case "clock":
                self.clock()
            case _:
                self.reboot(kept="kept" in what)

    def gc(self) -> None:
        self.do("gc")
        for name in NAMES:
            # Only what was up stays.
            self.may_be[name] = (
                {"up"} if self.is_surely(name, "up") else {"absent", "up"} & self.may_be[name] or {"absent"}
            )

    @rule(name=st.sampled_from(NAMES))
    def exec(self, name: str) -> None:
        codes = (0,) if self.is_surely(name, "up") else (0, 69, 75, 76) if "up" in self.may_be[name] else (69, 75, 76)
        done = self.do("exec", name, "cat", "/word", codes=codes)
        assert done.returncode or done.stdout == "well", done

    def image_rm(self) -> None:
        absent = all(self.is_surely(name, "absent") for name in NAMES)
        codes = (0, 69) if absent else (75,) if any(self.is_surely(name, "up") for name in NAMES) else (0, 69, 75)
        self.do("image", "rm", self.ref, codes=codes)

    def volume_prune(self) -> None:
        self.do("volume", "prune", "-a", "-f")
        for name in list(self.written):
            if self.is_surely(name, "absent"):
                self.written.discard(name)
            elif not self.is_surely(name, "up"):
                self.written.discard(name)  # it may have been taken

    def clock(self) -> None:
        """By a year, back and forth."""
        ahead = int(self.podrun.environ["PODRUN_TEST_CLOCK"])
        self.podrun.environ["PODRUN_TEST_CLOCK"] = str(-ahead if ahead else 86400 * 400)

    def reboot(self, kept: bool) -> None:
        """Everything of the kernel's is gone; ``kept``: the run directory is on a disk, against all advice."""
        self.undo_all_by_hand()
        if not kept:
            shutil.rmtree(self.podrun.run, ignore_errors=True)
        self.new_boot()
        self.said.append(f"reboot, run directory {'kept' if kept else 'gone'}")
        for name in NAMES:
            stale = {"absent": {"absent"}, "up": {"dead"}, "dead": {"dead"}, "failed": {"failed"}}
            self.may_be[name] = set().union(*(stale[state] for state in self.may_be[name])) if kept else {"absent"}

    def undo_all_by_hand(self) -> None:
        """What a power cut does: no podrun has a part in it."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = listing(self.podrun.run, self.podrun.root)
            for one in found:
                if one.startswith("process "):
                    try:
                        os.kill(int(one.split()[1].rstrip(":")), signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            for one in sorted(found, reverse=True):
                kind, _, rest = one.partition(" ")
                if kind == "mount":
                    subprocess.run(["umount", "-l", rest.split()[0]], check=False, capture_output=True)
                elif kind == "netns":
                    subprocess.run(["ip", "netns", "delete", rest], check=False, capture_output=True)
                elif kind == "link":
                    subprocess.run(["ip", "link", "delete", rest.split()[0]], check=False, capture_output=True)
                elif kind == "cgroup":
                    subprocess.run(["rmdir", rest], check=False, capture_output=True)
            if not any(one.startswith(("process", "mount", "netns", "link", "cgroup")) for one in found):
                break
            time.sleep(0.02)
        from podrun.host import tag

        table = tag("", str(self.podrun.run)).rstrip("-")
        for line in subprocess.run(
            ["nft", "list", "tables"], capture_output=True, text=True, check=True
        ).stdout.splitlines():
            if line.endswith(table):
                subprocess.run(["nft", "delete", "table", *line.split()[1:]], check=True)
        for link in json.loads(
            subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout
        ):
            if link.get("ifalias", "").endswith(str(self.podrun.run)):
                subprocess.run(["ip", "link", "delete", link["ifname"]], check=False)

    # --- what has to be --------------------------------------------------------------------------------------------

    def state(self, name: str) -> str:
        done = self.podrun("inspect", name)
        return str(json.loads(done.stdout)["state"]) if done.returncode == 0 else "absent"

    @invariant()
    def listed(self) -> None:
        if not self.said:
            return
        done = self.do("ps", "--format", "json")
        found = {row["name"]: row["state"] for row in map(json.loads, done.stdout.splitlines())}
        for name in NAMES:
            assert found.get(name, "absent") in self.may_be[name], "\n".join(self.said)
            self.may_be[name] = {found.get(name, "absent")}
        for name in self.written:
            marks = [path.read_text() for path in (self.podrun.root / "volumes" / name).rglob("mark")]
            assert marks == [f"{name}\n"], "\n".join([*self.said, f"the volume of {name} has {marks}"])

    def teardown(self) -> None:
        try:
            if self.said:
                for name in NAMES:
                    self.do("down", name)
                self.do("gc")
                self.do("volume", "prune", "-a", "-f")
                self.do("image", "prune", "-a", "-f")
                left = settled(self.podrun.run, self.podrun.root, self.before)
                assert not left, "\n".join([*self.said, *left])
        finally:
            self.undo_all_by_hand()
            shutil.rmtree(self.home)
