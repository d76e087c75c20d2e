"""Scenarios of one hook each: a pod with one step of a kind, and only that step is interrupted."""

from __future__ import annotations

import os
from pathlib import Path

from support.network_case import run
from support.scenario import LOOP, Scenario, chain_of


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
        self.done("up", "-d", self.podrun.file("db", db.replace(LOOP, "exec sleep 1000000")))
        super().prepare()

    def close(self) -> None:
        self.done("down", "db")


class OtherPodsNetwork(OneHook):
    steps = ('hook = "network"\nmode = "pod:db"',)

    def prepare(self) -> None:
        self.done("up", "-d", self.podrun.file("db", chain_of(_BRIDGE).replace(LOOP, "exec sleep 1000000")))
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


HOOKS: dict[str, type[OneHook]] = {
    "storage volume:": Volume, "storage image:": ImageVolume, "userns auto": UserNamespace, "network bridge": Bridge,
    "network macvlan": Macvlan, "network none": NoNetwork, "network pod:": OtherPodsNetwork, "register": Register,
    "ambassador nft": Ambassador, "ambassador haproxy": HaproxyAmbassador, "wait-for": WaitFor, "exec hook": ExecHook,
    "log, limits, live": LogAndLimits,
}  # fmt: skip


def while_stopping(kind: type[OneHook]) -> type[OneHook]:
    """The scenario in which the step is interrupted while it is undone."""
    return type(kind.__name__, (kind,), {"stopping": True, "undoes_itself": False})
