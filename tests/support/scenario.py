"""A scenario: the state that a command starts from, the command that a proof interrupts, and what to do afterwards.

It ``begin``s, its command is run and interrupted, and ``end`` is what a person does next; then the same objects are
there as at the start.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.launcher import Podrun
from support.objects import listing

LOOP = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
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
    return _HEAD.format(pod=pod) + steps + _CONTAINER.format(loop=LOOP) + container


@contextmanager
def scenario(kind: type[Scenario], podrun: Podrun, home: Path) -> Iterator[Any]:
    """A scenario, ready."""
    podrun("run", "--rm", "--name", "warm", "host:", "true", check=True)
    found = kind(podrun, home)
    try:
        yield found
    finally:
        found.close()
