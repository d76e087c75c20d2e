"""The chain: steps start in the pod file's order and stop in reverse, and a failing one undoes those before it.

:func:`up` and :func:`down` are the two loops; everything else here serves them.
"""

from __future__ import annotations

import os
import time

from podrun import journal as journals
from podrun.errors import BUSY, OF_A_STEP, STEP_FAILED, Failure, Interrupted, of_oserror
from podrun.hook import Facts, Pod, Problem, Step, Wrong, merged, read, without_secrets
from podrun.journal import POD_SEGMENT, Entry, Header, Journal, Writer, start_time
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from podrun.background import Background
    from podrun.hook import Hook
    from podrun.podfile import StepText


class World(NamedTuple):
    """What a chain acts in, handed in by whoever runs one."""

    #: The hook that a name in the pod file stands for.
    load: Callable[[str], Hook]
    #: A line for people.
    say: Callable[[str], None]
    #: sd_notify(3) assignments for systemd.
    notify: Callable[[str], None]
    #: Told of every event, right after it is in the journal: ("starting" | "notify" | "up" | ..., the step's label).
    watch: Callable[[str, str], None]
    #: What a forked child of the launcher does first: it lets go of the pod's lock.
    forked: Callable[[], None]


def quiet(*_: str) -> None:
    """Says, notifies and watches nothing."""


# --- the two loops -------------------------------------------------------------------------------------------------


def up(pod: Pod, file: str, steps: Sequence[StepText], world: World, *, only: str = "") -> Facts:
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
            journal.header(Header(pod, segment, order, file, journals.boot_id(), launcher, start_time(launcher)))
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


def down(run: str, name: str, world: World, *, force: bool = False, after: int = -1, only: str = "") -> list[str]:
    """Undoes what the journals of pod ``name`` say was started, in reverse; returns the labels of the undone steps.

    Stops at the first step whose ``down`` fails (Failure), because what comes before it may still be in use; ``force``
    goes on. With ``after``, only the steps behind that number are undone; with ``only``, that segment alone (the pod
    segment with all that stands on it). The caller holds the lock.
    """
    undone: list[str] = []
    for journal in reversed(journals.journals(run, name, only)):
        if journal.header:
            _undo(journal, journal.header, world, undone, force, after)
        if after < 0:
            os.unlink(journal.path)
    if after < 0:
        journals.remove_directory(run, name)
    return undone


def _undo(journal: Journal, header: Header, world: World, undone: list[str], force: bool, after: int) -> None:
    """Undoes one segment."""
    stale = header.boot_id != journals.boot_id()
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
                step = resolve(header.pod, hook, entry.step, _teller(world, label))
                with _limit(step.timeout, label):
                    # Pids, addresses and mounts of an earlier boot mean something else today.
                    hook.down(step, {} if stale else entry.facts)
            except Exception as error:
                failure = failed(label, error)
                if not (force or entry.step.get("optional")):
                    failure.hint = failure.hint or f"'podrun down {header.pod.name}' goes on from here"
                    raise failure from error
                world.say(f"{failure}; going on")
            writer.down(entry.n)
            world.watch("down", label)
            undone.append(label)


# --- one start -----------------------------------------------------------------------------------------------------


class _Run:
    """One walk up the chain: what the steps gave so far, and what is still under way in the background."""

    def __init__(self, pod: Pod, world: World, total: int) -> None:
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
        self.join(getattr(hook, "takes", None))
        self.nobody_has_failed()
        record = text._asdict()
        label = label_of(record)
        journal.starting(n, {**record, "options": without_secrets(hook.Options, record["options"])})
        self.world.notify(f"STATUS={n + 1}/{self.total} {label}")
        self.world.watch("starting", label)
        step = resolve(self.pod, hook, record, self._teller(n, label, journal))
        if text.background:
            from podrun.background import begin

            begin(self.pending, hook, step, self.facts(text.name), n, text, journal, self.world)
            return
        began = time.monotonic()
        try:
            with _limit(step.timeout, label):
                facts = hook.up(step, self.facts(text.name)) or {}
        except Exception as error:
            self._skip_or_raise(n, text, journal, error)
            return
        self._keep(n, text, journal, facts, began)

    def recall(self, segment: str, members: Sequence[StepText]) -> None:
        """Takes the facts of a segment that another podrun has started; an optional one may be missing."""
        found = journals.read(f"{self.pod.directory}/{segment}.journal")
        today = found.header is not None and found.header.boot_id == journals.boot_id()
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
        journal.up(n, facts, (time.monotonic() - began) * 1000)
        self.given[n] = (text.for_, facts)
        if "process" in facts:
            self.residents.append((label, facts["process"]["pid"], facts["process"]["start"]))
        self.world.watch("up", label)

    def _skip_or_raise(self, n: int, text: StepText, journal: Writer, error: Exception) -> None:
        label = label_of(text._asdict())
        failure = failed(label, error)
        if not text.optional:
            raise failure from error
        journal.failed(n, str(failure))
        self.world.say(f"{failure}; the step is optional: going on without it")
        self.world.watch("failed", label)

    def _teller(self, n: int, label: str, journal: Writer) -> Callable[[str], None]:
        """The step's ``notify``: a MAINPID goes into the journal before anybody else hears of it."""

        def tell(assignments: str) -> None:
            for line in assignments.splitlines():
                if line.startswith("MAINPID="):
                    pid = int(line[8:])
                    journal.process(n, pid, start_time(pid))
            self.world.notify(assignments)
            self.world.watch("notify", f"{label}: {assignments}")

        return tell


def given_up(error: BaseException, pod: Pod, world: World, only: str) -> BaseException:
    """Undoes a failed start; returns the error to raise, which tells what became of it."""
    # Were a container still a unit's main process, its end would have systemd kill podrun, before it has undone the
    # rest and said why. systemd takes what it is told before it hears of a process' end (manager.c, event priorities).
    world.notify(f"MAINPID={os.getpid()}")
    try:
        labels = down(pod.run, pod.name, world, only=only)
    except Failure as second:
        told = f"undoing it stopped: {second}"
    else:
        told = f"undone: {', '.join(labels)}" if labels else "nothing was left to undo"
    if isinstance(error, OSError):
        error = of_oserror(error)
    if isinstance(error, (Failure, Interrupted)):
        error.hint = f"{error.hint}; {told}" if error.hint else told
    return error


# --- steps and segments --------------------------------------------------------------------------------------------


def segments(steps: Sequence[StepText], load: Callable[[str], Hook]) -> Iterator[tuple[str, list[StepText]]]:
    """Cuts a chain at its resident steps: the pod segment, then one for each with the steps after it."""
    name = POD_SEGMENT
    members: list[StepText] = []
    for step in steps:
        if getattr(load(step.hook), "resident", False):
            if members:
                yield name, members
            name, members = step.name, []
        members.append(step)
    if members:
        yield name, members


def resolve(pod: Pod, hook: Hook, record: Any, notify: Callable[[str], None] = quiet) -> Step:
    """The Step of a journal's record of it (or of a pod file's). Raises Failure for options that are not the hook's."""
    declared = hook.Options
    try:
        options = record["options"] if declared is None else read(declared, record["options"])
    except Wrong as wrong:
        raise Failure(wrong.what, hint="was it started by another version of the hook?") from None
    timeout = record.get("timeout")
    return Step(pod, record["hook"], record["name"], options, notify, float("inf") if timeout is None else timeout)


def problems(pod: Pod, steps: Sequence[StepText], world: World) -> list[tuple[str, Problem]]:
    """What the hooks' checks found, with the label of the step; nothing is changed by asking."""
    found = []
    for text in steps:
        hook = world.load(text.hook)
        check = getattr(hook, "check", None)
        if check:
            label = label_of(text._asdict())
            found += [(label, problem) for problem in check(resolve(pod, hook, text._asdict()))]
    return found


def label_of(record: Any) -> str:
    """How messages name the step of a journal's record."""
    return str(record["hook"] if record["name"] == record["hook"] else f"{record['hook']} {record['name']}")


def failed(label: str, error: BaseException) -> Failure:
    """The Failure of a step: its label in front, and an exit code that a step may have."""
    if isinstance(error, Failure):
        code = error.code if error.code in OF_A_STEP else STEP_FAILED
        return Failure(f"{label}: {error.what}", code=code, hint=error.hint)
    if isinstance(error, OSError):
        failure = of_oserror(error)
        return Failure(f"{label}: {failure.what}", code=failure.code)
    return Failure(f"{label}: the hook failed: {type(error).__name__}: {error}", hint="--debug shows where")


def alive(pid: int, start: int) -> bool:
    """True while the process that had this pid and start time runs; a zombie has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return int(fields[19]) == start and fields[0] not in (b"Z", b"X")


def exit_status(pid: int) -> int | None:
    """How a child of podrun ended, 128+n by signal n; None while it runs or when it is no child. Reaps nothing."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def state(run: str, name: str) -> str:
    """absent, starting, up, dead, stopping or failed; see section "States" of docs/command-line.md."""
    found = journals.journals(run, name)
    if not found:
        return "absent"
    if journals.is_locked(run, name):
        return "stopping" if any(journal.stopping for journal in found) else "starting"
    return standing(found)


def standing(found: Sequence[Journal]) -> str:
    """up, dead or failed: how a pod stands that no podrun is at work on. For whoever holds the lock."""
    if any(journal.stopping for journal in found) or not all(journal.ready for journal in found):
        return "failed"
    if any(journal.header and journal.header.boot_id != journals.boot_id() for journal in found):
        return "dead"
    processes = [entry.facts["process"] for entry in entries(found) if "process" in entry.facts]
    if processes and not any(alive(process["pid"], process["start"]) for process in processes):
        return "dead"
    return "up"


def entries(found: Sequence[Journal]) -> list[Entry]:
    """The steps of all the pod's segments, in start order."""
    return [entry for journal in found for entry in journal.entries]


def _teller(world: World, label: str) -> Callable[[str], None]:
    def tell(assignments: str) -> None:
        world.notify(assignments)
        world.watch("notify", f"{label}: {assignments}")

    return tell


class _limit:  # noqa: N801  # reads as a word: with _limit(5.0, label)
    """Interrupts what runs inside it with a Failure after ``seconds``."""

    def __init__(self, seconds: float, label: str) -> None:
        self.seconds = seconds
        self.label = label

    def __enter__(self) -> None:
        if self.seconds != float("inf"):
            import signal

            def late(*_: object) -> None:
                raise Failure(
                    f"no end after {self.seconds:g} s", hint="'timeout' of the step says how long it may take"
                )

            self.before = signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        if self.seconds != float("inf"):
            import signal

            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self.before)
