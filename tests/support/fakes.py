"""Hooks made of functions, and a world that remembers: what the core's tests run chains with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from podrun.engine import chain
from podrun.engine.world import Callbacks
from podrun.errors import Failure
from podrun.hook import Pod
from podrun.podfile.loader import StepText


class Hooks:
    """A table of hooks that write down what is asked of them: ("up", "name"), ("down", "name", own)."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.table: dict[str, Any] = {}
        self.events: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.notified: list[str] = []

    def add(self, name: str, gives: dict[str, Any] | None = None, **more: Any) -> None:
        def up(step: Any, facts: Any) -> Any:
            self.calls.append(("up", step.name))
            if "fails" in more:
                raise more["fails"]
            if "during" in more:
                more["during"](step, facts)
            return gives or {}

        def down(step: Any, own: Any) -> None:
            self.calls.append(("down", step.name, own))
            if more.get("stuck"):
                raise Failure(more["stuck"][0])

        self.table[name] = SimpleNamespace(
            Options=None,
            up=up,
            down=down,
            takes=more.get("takes", ()),
            gives=tuple(gives or ()),
            resident=more.get("resident", False),
            default_name="",
            check=lambda step: (),
        )

    def world(self) -> Callbacks:
        return Callbacks(
            load=self.table.__getitem__,
            report=self.said.append,
            notify=self.notified.append,
            main_process=lambda pid: self.notified.append(f"main process {pid}"),
            watch=lambda event, label: self.events.append((event, label)),
            forked=lambda: None,
        )


def step(hook: str, name: str = "", **more: Any) -> StepText:
    return StepText(
        hook=hook,
        name=name or hook,
        optional=more.get("optional", False),
        background=more.get("background", False),
        for_=more.get("for_", ()),
        timeout=more.get("timeout"),
        options=more.get("options", {}),
    )


def pod_in(directory: Any, name: str = "web") -> Pod:
    return Pod(name, f"{directory}/root", f"{directory}/run", tag=f"podrun-{name}", invocation="1")


def chain_up(hooks: Hooks, directory: Any, *steps: StepText) -> Any:
    return chain.up(pod_in(directory), "/etc/web.toml", steps, hooks.world())
