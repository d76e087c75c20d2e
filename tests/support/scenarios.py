"""Commands that a proof interrupts at each of their system calls: the state each starts from, and what to do afterwards.

A scenario ``begin``s, its command is run and interrupted, and ``end`` is what a person does next; then the same objects
are there as at the start.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import image_builder as build
from support.image_servers import docker_registry
from support.kill_chain import CHAIN
from support.launcher import Podrun
from support.network_case import run
from support.objects import listing

_LOOP = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
_HEAD = '[pod]\nstop_timeout = "2s"\n{pod}\n[[chain]]\nhook = "image"\nref = "host:"\n'
_CONTAINER = '\n[[chain]]\nhook = "container"\ncommand = ["sh", "-c", "{loop}"]\n'


class Scenario:
    """What all have: a pod file, and commands that have to work. ``words``: the command that is interrupted."""

    #: What is in the trace of the first call that counts, and of the first one that no longer does ("": none).
    mark = until = ""
    #: When it fails, what it began is undone at once, without ``end``.
    undoes_itself = False

    def __init__(self, podrun: Podrun, home: Path) -> None:
        self.podrun, self.home = podrun, home
        self.port = random.randint(20000, 30000)
        self.words: tuple[str, ...] = ()
        self.prepare()
        # What has a pod writes its journal once it has the lock.
        self.mark = self.mark or f"{podrun.run}/locks/"

    def prepare(self) -> None:
        """Once: what all runs share."""

    def begin(self) -> None:
        """Makes the state to start from."""

    def failed(self) -> None:
        """What must work after the command failed, besides ``end``."""

    def again(self) -> None:
        """What must work after the command was killed, besides ``end``."""

    def end(self) -> None:
        """Undoes all, the way a person would."""
        self.done("down", "web")

    def objects(self) -> set[str]:
        """All that could be left."""
        return listing(self.podrun.run, self.podrun.root)

    def close(self) -> None:
        """Takes away what ``prepare`` has made outside of the podrun's directories."""

    def done(self, *words: str, **environ: str) -> str:
        """Runs a command that has to work; returns what it printed."""
        ended = self.podrun(*words, **environ)
        assert ended.returncode == 0, f"podrun {' '.join(words)}: {ended.returncode}: {ended.stderr}"
        return ended.stdout


def chain_of(*tables: str, pod: str = "", container: str = "") -> str:
    """A pod file with these steps between the image and a container that waits."""
    steps = "".join(f"\n[[chain]]\n{table}\n" for table in tables)
    return _HEAD.format(pod=pod) + steps + _CONTAINER.format(loop=_LOOP) + container


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
        return build.layout(str(self.home / name), {"v1": build.image(*layers, Cmd=["/bin/sh", "-c", _LOOP])})

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


# --- one hook ------------------------------------------------------------------------------------------------------


class OneHook(Scenario):
    """A pod with one step of a kind: only that step is interrupted. ``stopping``: while it is undone."""

    steps: tuple[str, ...] = ()
    pod = ""
    container = ""
    #: The step's place in the chain.
    n = 1
    stopping = False
    undoes_itself = True

    def prepare(self) -> None:
        self.path = self.podrun.file("web", chain_of(*self.tables(), pod=self.pod, container=self.container))
        self.words = ("down", "web") if self.stopping else ("up", "-d", self.path)
        # As strace shows what is written to the journal.
        self.mark = f'"{{\\"n\\":{self.n},\\"at\\":\\"{"stopping" if self.stopping else "starting"}\\"'
        self.until = f'"{{\\"n\\":{self.n},\\"at\\":\\"{"down" if self.stopping else "up"}\\"'
        self.done("up", "-d", self.path)
        self.done("down", "web")

    def begin(self) -> None:
        if self.stopping:
            self.done("up", "-d", self.path)

    def tables(self) -> tuple[str, ...]:
        return self.steps

    def again(self) -> None:
        if self.stopping:
            return
        ended = self.podrun(*self.words)
        assert ended.returncode in (0, 75), ended.stderr


_BRIDGE = 'hook = "network"'
_IDS = "podrun:1073741824:16777216\n"


def _sets_ids_aside(path: Path) -> bool:
    return path.exists() and any(line.startswith(("podrun:", "containers:")) for line in path.read_text().splitlines())


class Bridge(OneHook):
    def tables(self) -> tuple[str, ...]:
        return (f'{_BRIDGE}\npublish = ["127.0.0.1:{self.port}:80"]',)


class Volume(OneHook):
    steps = ('hook = "storage"\nsource = "volume:data"\ntarget = "/data"',)


class ImageVolume(OneHook):
    def tables(self) -> tuple[str, ...]:
        content = self.home / "content"
        content.mkdir(exist_ok=True)
        return (f'hook = "storage"\nsource = "image:dir:{content}"\ntarget = "/opt/files"',)


class UserNamespace(OneHook):
    n = 4
    steps = (_BRIDGE, 'hook = "storage"\nsource = "volume:data"\ntarget = "/data"')
    pod = 'userns = "auto"'

    def prepare(self) -> None:
        self.added = [path for path in map(Path, ("/etc/subuid", "/etc/subgid")) if not _sets_ids_aside(path)]
        for path in self.added:
            with path.open("a") as file:
                file.write(_IDS)
        super().prepare()

    def close(self) -> None:
        for path in self.added:
            path.write_text(path.read_text().replace(_IDS, ""))


class Macvlan(OneHook):
    def tables(self) -> tuple[str, ...]:
        self.link = f"pm{os.urandom(3).hex()}"
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", f"{self.link}p")
        run("ip", "link", "set", self.link, "up")
        return (f'hook = "network"\nmode = "macvlan:{self.link}"\naddress = "198.51.100.7/24"',)

    def close(self) -> None:
        run("ip", "link", "delete", self.link)


class NoNetwork(OneHook):
    steps = ('hook = "network"\nmode = "none"',)


class Register(OneHook):
    steps = (_BRIDGE,)
    n = 3
    container = '[[chain]]\nhook = "register"\nservice = "web"\nport = 80\n'


class Ambassador(OneHook):
    n = 2
    steps = (_BRIDGE, 'hook = "ambassador"\nservice = "db"\nport = 5432')


class HaproxyAmbassador(OneHook):
    n = 2
    steps = (_BRIDGE, 'hook = "ambassador"\nservice = "db"\nport = 5432\nvia = "haproxy"')


class WaitFor(OneHook):
    n = 2
    steps = (_BRIDGE, 'hook = "wait-for"\nservice = "db"')

    def prepare(self) -> None:
        db = chain_of(_BRIDGE, container='[[chain]]\nhook = "register"\nservice = "db"\nport = 5432\n')
        self.done("up", "-d", self.podrun.file("db", db.replace(_LOOP, "exec sleep 1000000")))
        super().prepare()

    def close(self) -> None:
        self.done("down", "db")


class OtherPodsNetwork(OneHook):
    steps = ('hook = "network"\nmode = "pod:db"',)

    def prepare(self) -> None:
        self.done("up", "-d", self.podrun.file("db", chain_of(_BRIDGE).replace(_LOOP, "exec sleep 1000000")))
        super().prepare()

    def close(self) -> None:
        self.done("down", "db")


class ExecHook(OneHook):
    def tables(self) -> tuple[str, ...]:
        hook = self.home / "hook"
        hook.write_text('#!/bin/sh\ncat >/dev/null\necho \'{"env": ["A=1"]}\'\n')
        hook.chmod(0o755)
        return (f'hook = "exec:{hook}"',)


class LogAndLimits(OneHook):
    n = 1
    container = 'log = "file:{home}/log"\nlog_size = "64K"\nmemory = "64M"\npids = 100\nlive = {{ exec = ["true"] }}\n'

    def prepare(self) -> None:
        self.container = self.container.format(home=self.home)
        super().prepare()


COMMANDS: dict[str, type[Scenario]] = {
    "up": Up, "down": Down, "run --rm": Run, "reload (swap)": Reload, "update": Update, "image pull": Pull,
    "image pull, registry": PullFromRegistry, "image rm": Remove, "gc": Collect, "unit --install": Install,
}  # fmt: skip
HOOKS: dict[str, type[OneHook]] = {
    "storage volume:": Volume, "storage image:": ImageVolume, "userns auto": UserNamespace, "network bridge": Bridge,
    "network macvlan": Macvlan, "network none": NoNetwork, "network pod:": OtherPodsNetwork, "register": Register,
    "ambassador nft": Ambassador, "ambassador haproxy": HaproxyAmbassador, "wait-for": WaitFor, "exec hook": ExecHook,
    "log, limits, live": LogAndLimits,
}  # fmt: skip


@contextmanager
def scenario(kind: type[Scenario], podrun: Podrun, home: Path) -> Iterator[Any]:
    """A scenario, ready."""
    podrun("run", "--rm", "--name", "warm", "host:", "true", check=True)
    found = kind(podrun, home)
    try:
        yield found
    finally:
        found.close()


def while_stopping(kind: type[OneHook]) -> type[OneHook]:
    """The scenario in which the step is interrupted while it is undone."""
    return type(kind.__name__, (kind,), {"stopping": True, "undoes_itself": False})


def chosen() -> dict[str, type[Scenario]]:
    """All scenarios, or those whose names match PODRUN_PROVE_ONLY, a regular expression."""
    up = {f"{name}, up": kind for name, kind in HOOKS.items()}
    down = {f"{name}, down": while_stopping(kind) for name, kind in HOOKS.items()}
    wanted = re.compile(os.environ.get("PODRUN_PROVE_ONLY", ""))
    return {name: kind for name, kind in {**COMMANDS, **up, **down}.items() if wanted.search(name)}
