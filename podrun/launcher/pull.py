"""``podrun image pull``: without click, because a pull that finds nothing to do is one request and one answer."""

from __future__ import annotations

import os
import sys
import time

from podrun import jsontext
from podrun.engine import hook_loader
from podrun.hook import PROGRESS
from podrun.launcher import foreground
from podrun.messages import tell
from podrun.systemd import events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.host import Host
    from podrun.podfile.loader import PodText


def store(part: str = "commands") -> Any:
    """The store's functions; the image hook brings them."""
    return hook_loader.part("image", part)


def pull(given: dict[str, Any], host: Host) -> int:
    """Brings an image of any kind into the store; prints the digest of its manifest."""
    verify = None
    if given["cosign_key"] or given["policy"]:
        policy = os.path.abspath(given["policy"]) if given["policy"] else ""
        verify = store("trust.requirements").Verify(cosign_key=given["cosign_key"], policy=policy)
    # A pull that is asked to end ends its workers, and leaves nothing unfinished.
    foreground.interruptible()
    ref, platform, here = given["ref"], given["platform"], os.getcwd()
    with teller(given["quiet"]) as telling:
        answer = store("freshness").ask(host.root, ref, platform, telling.notify, here, verify)
        found = answer.image or store().pull(
            host.root,
            ref,
            platform=platform,
            notify=telling.notify,
            cwd=here,
            verify=verify,
            progress=telling.progress,
            changed=answer.changed,
        )
    events.note(host.run, "image", "pull", ref, id=found.digest)
    print(found.digest)
    return 0


# --- progress


class _Lines:
    """The progress of a pull as lines: one a second at most."""

    def __init__(self) -> None:
        self.last = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    progress = None

    def notify(self, assignments: str) -> None:
        status = next((line[7:] for line in assignments.splitlines() if line.startswith("STATUS=")), "")
        if status and time.monotonic() - self.last >= 1.0:
            self.last = time.monotonic()
            tell(status)


class _Silence(_Lines):
    def notify(self, assignments: str) -> None:
        pass


class _Bars:
    """The progress of a pull as a bar for each layer on a terminal; lines where rich is not installed."""

    def __init__(self, lines: _Lines) -> None:
        self.lines = lines
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def notify(self, assignments: str) -> None:
        if assignments.startswith(PROGRESS):
            self.draw(jsontext.loads(assignments.removeprefix(PROGRESS)))
        elif self.bars is False:
            self.lines.notify(assignments)

    def progress(self, layers: Sequence[Any]) -> None:
        self.draw([(one.digest[7:19], one.size if one.stored else one.done, one.size) for one in layers])

    def draw(self, parts: Sequence[tuple[str, int, int]]) -> None:
        if not parts:
            self.end()
            return
        # Not before there are layers: importing rich takes time, and the thread that draws would be one when the
        # pull's workers are forked.
        if self.bars is None:
            self.bars = _drawn()
        if not self.bars:
            return
        for name, done, size in parts:
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task(name, total=size)
            self.bars.update(self.tasks[name], completed=done)

    def end(self) -> None:
        """Takes the bars away; another image may have some of its own."""
        if self.bars:
            self.bars.stop()
            self.bars, self.tasks = None, {}


def _drawn() -> Any:
    """Bars on standard error that are being drawn; False without rich."""
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return False
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(None),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
    )
    bars = progress.Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
    bars.start()
    return bars


def of_start(*, bars: bool) -> Any:
    """A function that shows what a start's pulls tell (sd_notify(3) assignments), as ``image pull`` does.

    Without ``bars``, as lines, on a terminal too.
    """
    return (_Bars(_PullLines()) if bars and _on_terminal() else _PullLines()).notify


def ahead(text: PodText, host: Host) -> None:
    """Brings what a start would have to fetch, here where somebody sees how far it is. Raises Failure."""
    from podrun.engine.segments import label_of, resolve
    from podrun.errors import Failure
    from podrun.hook import Pod
    from podrun.hook_extras import BringsAhead, offers

    tell_of = of_start(bars=True)
    for step in text.steps:
        hook = hook_loader.load(step.hook)
        if bringing := offers(hook, BringsAhead):
            record = step._asdict()
            try:
                options = resolve(Pod(text.name, host.root, host.run), hook, record).options
                bringing.bring(host.root, options, tell_of)
            except Failure as failure:
                if step.optional:
                    continue  # its unit reports it, and goes on
                failure.what = f"{label_of(record)}: {failure.what}"
                failure.hint = f"{failure.hint}; nothing was started" if failure.hint else "nothing was started"
                raise


class _PullLines(_Lines):
    """The lines of a pull, and nothing of what comes after it."""

    def notify(self, assignments: str) -> None:
        if assignments.startswith(("STATUS=Pulling ", "STATUS=Storing ")) or " of " in assignments:
            super().notify(assignments)


def teller(quiet: bool) -> Any:
    """What shows a pull's progress: ``notify`` and ``progress`` within a ``with``."""
    if quiet:
        return _Silence()
    return _Bars(_Lines()) if _on_terminal() else _Lines()


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
