"""Commands that a proof interrupts at each of their system calls, and all scenarios by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from support import image_builder as build
from support.hook_scenarios import HOOKS, while_stopping
from support.image_servers import docker_registry
from support.kill_chain import CHAIN
from support.network_case import run
from support.scenario import LOOP, Scenario, chain_of

# --- whole chains --------------------------------------------------------------------------------------------------


class Up(Scenario):
    """A pod with a step of every kind starts."""

    undoes_itself = True

    def prepare(self) -> None:
        hook = self.home / "hook"
        hook.write_text("#!/bin/sh\ncat >/dev/null\n")
        hook.chmod(0o755)
        content = self.home / "content"
        content.mkdir(exist_ok=True)
        (content / "word").write_text("here")
        run("mksquashfs", str(content), str(self.home / "disk.squashfs"), "-quiet", "-no-progress")
        text = CHAIN.format(port=self.port, hook=hook, home=self.home, second=f"pk-{os.urandom(4).hex()}")
        self.path = self.podrun.file("web", text)
        self.words = ("up", "-d", self.path)
        self.done("up", "-d", self.path)
        self.done("down", "web")

    def again(self) -> None:
        ended = self.podrun("up", "-d", self.path)
        # 75: it was killed when all was done.
        assert ended.returncode in (0, 75), ended.stderr
        self.done("exec", "web", "true")


class Down(Up):
    """The same pod stops."""

    undoes_itself = False

    def prepare(self) -> None:
        super().prepare()
        self.words = ("down", "web")

    def begin(self) -> None:
        self.done("up", "-d", self.path)

    def again(self) -> None:
        self.done("down", "web")


class Run(Scenario):
    """A pod without a file, in the foreground."""

    undoes_itself = True

    def prepare(self) -> None:
        self.words = ("run", "--rm", "--name", "web", "host:", "true")
        self.done(*self.words)


class Reload(Scenario):
    """A pod is swapped for its next generation. Whatever fails, one of the two serves, and the next reload cleans up."""

    def prepare(self) -> None:
        publish = f'hook = "network"\npublish = ["127.0.0.1:{self.port}:80"]'
        register = '\n[[chain]]\nhook = "register"\nservice = "web"\nadvertise = "pod"\nport = 80\n'
        text = chain_of(publish, pod='reload = "swap"', container='ready = { exec = ["true"] }\n' + register)
        self.path = self.podrun.file("web", text)
        self.words = ("reload", "web")
        self.begin()
        self.done("reload", "web")
        self.end()

    def begin(self) -> None:
        self.done("up", "-d", self.path)

    def again(self) -> None:
        assert json.loads(self.done("inspect", "web"))["state"] == "up"
        self.done("exec", "web", "true")
        self.done("reload", "web")
        assert len(json.loads(self.done("inspect", "web"))["steps"]) == 4

    def failed(self) -> None:
        self.again()


# --- images --------------------------------------------------------------------------------------------------------


class Pull(Scenario):
    """An image of three layers comes into the store."""

    def prepare(self) -> None:
        self.mark = str(self.podrun.root)
        self.ref = f"oci:{self.layout('layout', b'one')}:v1"
        self.words = ("image", "pull", self.ref)
        self.measure()

    def measure(self) -> None:
        """What the image is made of in the store."""
        self.end()
        before = self.store()
        self.done(*self.words)
        self.whole = self.store() - before
        self.end()

    def layout(self, name: str, word: bytes) -> str:
        layers = (
            build.tar(
                build.directory("usr"), *(build.symlink(each, f"usr/{each}") for each in ("bin", "lib", "lib64"))
            ),
            build.tar(build.directory("etc"), *(build.file(f"etc/{n}", bytes([n]) * 9000) for n in range(20))),
            build.tar(build.file("etc/.wh.3"), build.file("word", word), build.hardlink("same", "word")),
        )
        shutil.rmtree(self.home / name, ignore_errors=True)
        return build.layout(str(self.home / name), {"v1": build.image(*layers, Cmd=["/bin/sh", "-c", LOOP])})

    def store(self) -> set[str]:
        return {str(path.relative_to(self.podrun.root)) for path in (self.podrun.root / "images").rglob("*")}

    def again(self) -> None:
        self.done(*self.words)
        lacking = sorted(self.whole - self.store())
        assert not lacking, f"the image is not whole: {lacking[:5]}"

    def end(self) -> None:
        self.done("image", "prune", "-a", "-f")
        self.done("gc")

    def objects(self) -> set[str]:
        return super().objects() | {f"store {path}" for path in self.store() if "unclaimed" not in path}


class PullFromRegistry(Pull):
    """The same from a registry, over HTTP."""

    def prepare(self) -> None:
        self.mark = str(self.podrun.root)
        place = self.home / "registry"
        place.mkdir()
        self.registry = docker_registry(place)
        server = self.registry.__enter__()
        self.ref = server.push(f"oci:{self.layout('layout', b'one')}:v1", "team/web:1")
        self.words = ("image", "pull", self.ref)
        self.measure()

    def close(self) -> None:
        self.registry.__exit__(None, None, None)


class Remove(Pull):
    """An image is removed."""

    def prepare(self) -> None:
        super().prepare()
        self.words = ("image", "rm", self.ref)

    def begin(self) -> None:
        self.done("image", "pull", self.ref)

    def again(self) -> None:
        self.done("image", "pull", self.ref)
        lacking = sorted(self.whole - self.store())
        assert not lacking, f"the image is not whole: {lacking[:5]}"


class Update(Pull):
    """A pod is brought to the image that its reference names now."""

    def prepare(self) -> None:
        self.layout("layout", b"one")
        rest = 'volumes = ["/usr:/usr:ro"]\nready = { exec = ["true"] }\n'
        text = chain_of(pod='reload = "swap"\n[update]\nwatch = "0s"', container=rest)
        text = text.replace('"host:"', f'"oci:{self.home}/layout:v1"\npull = "always"')
        self.path = self.podrun.file("web", text)
        self.words = ("update", "web")
        self.begin()
        self.done("update", "web")
        self.end()

    def begin(self) -> None:
        self.layout("layout", b"one")
        self.done("up", "-d", self.path)
        self.layout("layout", b"two")

    def again(self) -> None:
        assert json.loads(self.done("inspect", "web"))["state"] == "up"
        assert self.done("exec", "web", "cat", "/word") in ("one", "two")
        self.done("update", "web")
        assert self.done("exec", "web", "cat", "/word") == "two"

    def end(self) -> None:
        self.done("down", "web")
        shutil.rmtree(self.podrun.root / "history", ignore_errors=True)
        super().end()


class Collect(Pull):
    """gc finds a pod whose payload was killed, and layers of a pull that was."""

    def prepare(self) -> None:
        super().prepare()
        text = chain_of(
            f'hook = "network"\npublish = ["127.0.0.1:{self.port}:80"]',
            'hook = "storage"\nsource = "tmpfs:"\ntarget = "/t"',
        )
        self.path = self.podrun.file("web", text)
        self.words = ("gc",)
        self.begin()
        self.end()

    def begin(self) -> None:
        self.done("up", "-d", self.path)
        self.podrun("kill", "-s", "KILL", "web")

    def again(self) -> None:
        self.done("gc")

    def end(self) -> None:
        self.done("gc")


class Install(Scenario):
    """The units of a pod are installed."""

    def prepare(self) -> None:
        self.name = f"proof-{os.urandom(4).hex()}"
        self.path = self.podrun.file(
            self.name, chain_of('hook = "network"') + '[install]\nWantedBy = ["multi-user.target"]\n'
        )
        self.words = ("unit", "--install", self.path)
        self.mark = self.path
        # A unit names the command that starts the pod.
        command = self.home / "podrun"
        command.write_text("#!/bin/sh\n")
        command.chmod(0o755)
        self.podrun.environ["PATH"] = f"{self.home}:{os.environ['PATH']}"
        Path("/etc/systemd/system").mkdir(parents=True, exist_ok=True)

    def again(self) -> None:
        self.done(*self.words)

    def end(self) -> None:
        self.done("unit", "--install", self.path)
        self.done("unit", "--uninstall", self.name)

    def objects(self) -> set[str]:
        found = {str(path) for path in Path("/etc/systemd/system").rglob("*") if self.name in path.name}
        return super().objects() | found

    def close(self) -> None:
        self.podrun("unit", "--uninstall", self.name)


COMMANDS: dict[str, type[Scenario]] = {
    "up": Up, "down": Down, "run --rm": Run, "reload (swap)": Reload, "update": Update, "image pull": Pull,
    "image pull, registry": PullFromRegistry, "image rm": Remove, "gc": Collect, "unit --install": Install,
}  # fmt: skip


def chosen() -> dict[str, type[Scenario]]:
    """All scenarios, or those whose names match PODRUN_PROVE_ONLY, a regular expression."""
    up = {f"{name}, up": kind for name, kind in HOOKS.items()}
    down = {f"{name}, down": while_stopping(kind) for name, kind in HOOKS.items()}
    wanted = re.compile(os.environ.get("PODRUN_PROVE_ONLY", ""))
    return {name: kind for name, kind in {**COMMANDS, **up, **down}.items() if wanted.search(name)}
