"""The chain: steps start in the pod file's order and stop in reverse, and a failing one undoes those before it.

:func:`up` and :func:`down` are the two loops; everything else here serves them.
"""

from __future__ import annotations

import os
import time

from podrun.engine import journal as journals
from podrun.engine.journal import Entry, Header, Journal, Writer
from podrun.engine.processes import alive, boot_id, exit_status, start_time
from podrun.engine.segments import label_of, resolve, segments
from podrun.engine.verbs import failed, verb
from podrun.engine.world import Callbacks
from podrun.errors import BUSY, STEP_FAILED, Failure, Interrupted, of_oserror
from podrun.facts import accepted, merged, unknown_facts
from podrun.hook import Facts, Pod, Step
from podrun.messages import quiet
from podrun.options import without_secrets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from podrun.engine.background import Background
    from podrun.podfile.loader import StepText


# --- the two loops -------------------------------------------------------------------------------------------------


def up(pod: Pod, file: str, steps: Sequence[StepText], world: Callbacks, *, only: str = "") -> Facts:
    """Starts ``steps`` in order and returns their merged facts. The caller holds the pod's lock.

    With ``only``, that segment alone: the facts of those before it come from their journals.

    Raises Failure, naming the step and what was undone, when a step that is not optional fails.
    """
    os.makedirs(pod.directory, mode=0o700, exist_ok=True)
    run = _Run(pod, world, len(steps))
    written: list[Writer] = []
    n = 0
    try:
        for order, (segment, members) in enumerate(segments(steps, world.load)):
            if only and segment != only:
                if not written:
                    run.recall(segment, members)
                n += len(members)
                continue
            journal = Writer(f"{pod.directory}/{segment}.journal")
            written.append(journal)
            launcher = os.getpid()
            journal.header(Header(pod, segment, order, file, boot_id(), launcher, start_time(launcher)))
            for text in members:
                run.start(n, text, journal)
                n += 1
        run.join()
        for journal in written:
            journal.ready()
    except BaseException as error:
        run.abandon()
        raise given_up(error, pod, world, only) from error
    finally:
        for journal in written:
            journal.close()
    return run.facts()


def down(run: str, key: str, world: Callbacks, *, force: bool = False, after: int = -1, only: str = "") -> list[str]:
    """Undoes what the journals of a generation, by its key, say was started, in reverse; returns the undone labels.

    Stops at the first step whose ``down`` fails (Failure), because what comes before it may still be in use; ``force``
    goes on. With ``after``, only the steps behind that number are undone; with ``only``, that segment alone (the pod
    segment with all that stands on it). The caller holds the lock.
    """
    undone: list[str] = []
    found = journals.of_generation(run, key, only)
    journals.refuse_newer(found)
    for journal in reversed(found):
        if journal.damaged:
            what = f"{journal.path}: line {journal.damaged} is damaged"
            world.report(f"{what}: what it said is not undone, 'podrun gc' removes what belongs to no pod")
        if journal.header:
            _undo(journal, journal.header, world, undone, force, after)
        if after < 0:
            os.unlink(journal.path)
    if after < 0:
        journals.remove_directory(run, key)
    return undone


def undo(run: str, name: str, world: Callbacks, *, force: bool = False, only: str = "") -> list[str]:
    """Undoes a pod with all its generations, the latest first; otherwise as :func:`down`."""
    keys = journals.generations(run, name) or [name]
    return [label for key in reversed(keys) for label in down(run, key, world, force=force, only=only)]


def _undo(journal: Journal, header: Header, world: Callbacks, undone: list[str], force: bool, after: int) -> None:
    """Undoes one segment."""
    stale = header.boot_id != boot_id()
    pod = header.pod if journal.patience < 0 else header.pod._replace(patience=journal.patience)
    with Writer(journal.path) as writer:
        writer.stopping()
        for entry in reversed(journal.entries):
            if entry.at == "down" or entry.n <= after:
                continue
            label = label_of(entry.step)
            writer.stopping(entry.n)
            world.watch("stopping", label)
            try:
                hook = world.load(entry.step["hook"])
                step = resolve(pod, hook, entry.step, _notifier(world, label, quiet), report=world.report)
                with verb(step):
                    # Pids, addresses and mounts of an earlier boot mean something else today.
                    hook.down(step, {} if stale else entry.facts)
            except Exception as error:
                failure = failed(label, error)
                if not (force or entry.step.get("optional")):
                    failure.hint = failure.hint or f"'podrun down {header.pod.name}' goes on from here"
                    raise failure from error
                world.report(f"{failure}; going on")
            writer.down(entry.n)
            world.watch("down", label)
            undone.append(label)


# --- one start -----------------------------------------------------------------------------------------------------


class _Run:
    """One walk up the chain: what the steps gave so far, and what is still under way in the background."""

    def __init__(self, pod: Pod, world: Callbacks, total: int) -> None:
        self.pod = pod
        self.world = world
        self.total = total
        #: Facts by step, with the containers they are for; () means all.
        self.given: dict[int, tuple[Sequence[str], Facts]] = {}
        self.pending: list[Background] = []
        self.residents: list[tuple[str, int, int]] = []

    def facts(self, name: str | None = None) -> Facts:
        """What the steps so far gave to a step called ``name``."""
        parts = [self.given[n] for n in sorted(self.given)]
        return merged([facts for scope, facts in parts if not scope or name is None or name in scope])

    def start(self, n: int, text: StepText, journal: Writer) -> None:
        """Starts one step: joins what it needs, writes the intent, acts, writes the facts."""
        hook = self.world.load(text.hook)
        self.join(hook.takes)
        self.nobody_has_failed()
        record = text._asdict()
        label = label_of(record)
        journal.starting(n, {**record, "options": without_secrets(hook.Options, record["options"])})
        self.world.notify(f"STATUS={n + 1}/{self.total} {label}")
        self.world.watch("starting", label)
        announce = self._announcer(n, label, journal)
        step = resolve(self.pod, hook, record, _notifier(self.world, label, announce), announce, self.world.report)
        if text.background:
            from podrun.engine.background import begin

            begin(self.pending, hook, step, self.facts(text.name), n, text, journal, self.world.forked)
            return
        began = time.monotonic()
        try:
            with verb(step):
                facts = accepted(hook.up(step, self.facts(text.name)))
        except Exception as error:
            self._skip_or_raise(n, text, journal, error)
            return
        self._keep(n, text, journal, facts, began)

    def recall(self, segment: str, members: Sequence[StepText]) -> None:
        """Takes the facts of a segment that another podrun has started; an optional one may be missing."""
        found = journals.read(f"{self.pod.directory}/{segment}.journal")
        today = found.header is not None and found.header.boot_id == boot_id()
        if not (today and found.ready and not found.stopping):
            if members[0].optional:
                return
            raise Failure(f"{segment} is not up", code=BUSY, hint="its unit has to be started first")
        self.given.update({entry.n: (entry.step["for_"], entry.facts) for entry in found.entries if entry.at == "up"})

    def join(self, takes: Sequence[str] | None = None) -> None:
        """Waits for the background steps that give one of ``takes``; None: for all of them."""
        for child in list(self.pending):
            if takes is not None and not set(takes) & set(child.gives):
                continue
            try:
                facts = child.join()
            except Exception as error:
                self.pending.remove(child)
                self._skip_or_raise(child.n, child.text, child.journal, error)
            else:
                self.pending.remove(child)
                self._keep(child.n, child.text, child.journal, facts, child.began)

    def abandon(self) -> None:
        """Ends what is still under way in the background."""
        while self.pending:
            self.pending.pop().kill()

    def nobody_has_failed(self) -> None:
        """Raises Failure when a container has ended while the chain is still starting, unless it ended well.

        The failure's code is the container's own status where podrun is its parent, as in the foreground.
        """
        for label, pid, start in list(self.residents):
            if alive(pid, start):
                continue
            status = exit_status(pid)
            if status == 0:
                self.residents.remove((label, pid, start))
                continue
            how = "ended" if status is None else f"ended with {status}"
            code = STEP_FAILED if status is None else status
            raise Failure(f"{label}: it {how} before the pod was up", code=code, hint="its output says why")

    def _keep(self, n: int, text: StepText, journal: Writer, facts: Facts, began: float) -> None:
        label = label_of(text._asdict())
        for key, meant in unknown_facts(facts):
            self.world.report(f"{label}: warning: fact {key!r} means nothing to podrun; did you mean {meant!r}?")
        journal.up(n, facts, (time.monotonic() - began) * 1000)
        self.given[n] = (text.for_, facts)
        if "process" in facts:
            self.residents.append((label, facts["process"]["pid"], facts["process"]["start"]))
        self.world.watch("up", label)

    def _skip_or_raise(self, n: int, text: StepText, journal: Writer, error: Exception) -> None:
        label = label_of(text._asdict())
        failure = failed(label, error)
        failure.step = (text.hook, text.name)
        if not text.optional:
            raise failure from error
        journal.failed(n, str(failure))
        self.world.report(f"{failure}; the step is optional: going on without it")
        self.world.watch("failed", label)

    def _announcer(self, n: int, label: str, journal: Writer) -> Callable[[int], None]:
        """The step's ``announce``: the process is in the journal before anybody else hears of it."""

        def announce(pid: int) -> None:
            journal.process(n, pid, start_time(pid))
            self.world.main_process(pid)
            self.world.watch("process", f"{label}: {pid}")

        return announce


def given_up(error: BaseException, pod: Pod, world: Callbacks, only: str) -> BaseException:
    """Undoes a failed start; returns the error to raise, which tells what became of it."""
    # Were a container still a unit's main process, its end would have systemd kill podrun, before it has undone the
    # rest and said why. systemd takes what it is told before it hears of a process' end (manager.c, event priorities).
    world.main_process(os.getpid())
    try:
        labels = down(pod.run, pod.key, world, only=only)
    except (Failure, OSError) as second:
        told = f"undoing it stopped: {of_oserror(second) if isinstance(second, OSError) else second}"
    else:
        told = f"undone: {', '.join(labels)}" if labels else "nothing was left to undo"
    if isinstance(error, OSError):
        error = of_oserror(error)
    if isinstance(error, (Failure, Interrupted)):
        error.hint = f"{error.hint}; {told}" if error.hint else told
    return error


# --- steps and segments --------------------------------------------------------------------------------------------


def step_of(header: Header, entry: Entry, world: Callbacks) -> Step:
    """The step of a journal's entry, for calls beyond ``up`` and ``down``."""
    hook = world.load(entry.step["hook"])
    return resolve(header.pod, hook, entry.step, _notifier(world, label_of(entry.step), quiet))


def _notifier(world: Callbacks, label: str, announce: Callable[[int], None]) -> Callable[[str], None]:
    """The step's ``notify``. Hooks written before there was ``announce`` name their process in it: MAINPID=."""

    def notify(assignments: str) -> None:
        if "MAINPID=" in assignments:
            lines = assignments.splitlines()
            for line in lines:
                if line.startswith("MAINPID="):
                    announce(int(line[8:]))
            assignments = "\n".join(line for line in lines if not line.startswith("MAINPID="))
        if assignments:
            world.notify(assignments)
            world.watch("notify", f"{label}: {assignments}")

    return notify
