"""The conformance kit: runs one hook through failure scenarios and reports violations of the contract.

Every verb runs in a child of its own, so that it can be killed at any moment. The kit is the subreaper of these
children: whatever a hook leaves running becomes a child of the kit, and is seen.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from podrun.conformance import snapshot
from podrun.engine import hook_loader
from podrun.errors import OF_A_STEP, Failure, of_oserror
from podrun.facts import wrong_facts
from podrun.hook import Facts, Hook, Step
from podrun.hook_extras import RunsExecutables, offers
from podrun.options import Option

OK, FAILED, NOT_APPLICABLE = "ok", "FAILED", "-"
#: A version of the contract that nobody has written yet.
FUTURE = 999
#: Seconds that a verb may take in the kit, and that a hanging one is given.
PATIENCE, HANGING = 60.0, 0.5


class Row(NamedTuple):
    """One line of the table."""

    check: str
    result: str
    note: str = ""


class Ended(NamedTuple):
    """How a verb ended: ``kind`` is facts, failure, bug or killed; ``told`` counts its messages of progress."""

    kind: str
    facts: Facts
    what: str
    code: int
    seconds: float
    told: int
    #: The facts of others that it looked at.
    read: Sequence[str] = ()


class _Broken(Exception):
    """What a check found."""


class Kit:
    """A hook under test: its step, the facts it is given, and the directories in which it may leave something."""

    def __init__(
        self,
        hook: Hook,
        step: Step,
        facts: Facts,
        watched: list[str],
        rounds: int = 6,
        *,
        alone: bool = True,
        netns: str = "",
    ) -> None:
        self.hook = hook
        self.step = step
        #: The step with the callbacks of the child that is at work.
        self.current = step
        self.facts = facts
        self.given = _Noting(facts)
        self.watched = [step.pod.run, step.pod.root, *watched]
        self.rounds = rounds
        #: Nobody else changes what the kit sees.
        self.alone = alone
        #: The name of the network namespace that was made for it, or "".
        self.inside = netns
        self.path = hook_loader.executable(step.hook)
        self.log = tempfile.TemporaryFile("a+", encoding="utf-8", errors="replace")
        self.before: set[str] = set()
        self.took = {"up": 0.0, "down": 0.0}
        self.told = {"up": 0, "down": 0}
        #: The facts that ``up`` looked at.
        self.read: set[str] = set()

    def rows(self) -> Iterator[Row]:
        """Runs the checks in order. When the plain start and stop fail already, the others are not tried."""
        snapshot.adopt_orphans()
        os.makedirs(self.step.pod.directory, mode=0o700, exist_ok=True)
        checks = [
            ("declaration", self.declaration),
            ("check changes nothing", self.checks),
            ("up, down", self.plain),
            ("down again", self.twice),
            ("down without up", self.without_up),
            ("down without facts", self.without_facts),
            ("up, down, up, down", self.again),
            ("kill -9 in up", lambda: self.killed("up")),
            ("kill -9 in down", lambda: self.killed("down")),
            ("hang in up", self.hang),
            ("wrong version", self.version),
            ("missing netns", self.netns),
            ("read-only disk", self.read_only),
        ]
        for number, (name, check) in enumerate(checks):
            try:
                note = check()
            except _Broken as broken:
                self.log.seek(0)
                last = self.log.read().strip().rpartition("\n")[2]
                yield Row(name, FAILED, f"{broken} (log: {last})" if last else str(broken))
                if number < 3:
                    for later, _ in checks[number + 1 :]:
                        yield Row(later, NOT_APPLICABLE, "not tried")
                    return
                self.mend()
            else:
                yield Row(name, NOT_APPLICABLE if note.startswith("-") else OK, note.removeprefix("- "))

    # --- the checks, in the order of the table ---

    def declaration(self) -> str:
        if self.path:
            odd = self.undescribed()
            if odd:
                raise _Broken(f"what it answers to describe has no good {', '.join(odd)}")
            return self.path
        options = self.hook.Options._field_defaults if self.hook.Options is not None else {}
        if odd := list(hook_loader.odd(self.hook)):
            raise _Broken(f"it {odd[0]}")
        silent = [key for key, field in options.items() if not field.doc]
        if silent:
            raise _Broken(f"options without a sentence for people: {', '.join(silent)}")
        if wrong := [f"{key}: {what}" for key, field in options.items() if (what := _wrong_default(field))]:
            raise _Broken(f"defaults that no pod file could say: {'; '.join(wrong)}")
        takes = "anything" if self.hook.takes is None else ", ".join(self.hook.takes) or "nothing"
        return f"{len(options)} options; takes {takes}, gives {', '.join(self.hook.gives) or 'nothing'}"

    def undescribed(self) -> list[str]:
        """The parts of an executable's description that nobody can use."""
        plain = hook_loader.described(self.step.hook)
        ended = self.run(lambda: self.executable().ask(self.step, "describe", {}, {}))
        return [key for key in ("doc", "takes", "gives", "options") if key in ended.facts and key not in plain]

    def executable(self) -> RunsExecutables:
        running = offers(self.hook, RunsExecutables)
        assert running is not None
        return running

    def checks(self) -> str:
        if self.hook.check is hook_loader.finds_nothing:
            return "- it has none"
        before = self.seen()
        thorough = self.step._replace(pod=self.step.pod._replace(thorough=True))
        ended = self.run(lambda: {"problems": [list(problem) for problem in self.hook.check(thorough)]})
        self.must_be("facts", ended, "check")
        left = self.seen() - before
        if left:
            raise _Broken(f"it made {_few(left)}")
        problems = ended.facts["problems"]
        fatal = [problem for problem in problems if problem[3]]
        if fatal:
            raise _Broken(f"impossible here: {fatal[0][0]}; {fatal[0][2]}".rstrip("; "))
        return "; ".join(problem[0] for problem in problems)

    def plain(self) -> str:
        at_first = self.seen()
        own = self.up_and_down()
        leaks = self.settled(
            lambda: {item for item in self.seen() - at_first if snapshot.is_a_pods(item, self.step.pod)}
        )
        if leaks:
            raise _Broken(f"down left {_few(leaks)}")
        self.before = self.seen()
        stays = self.before - at_first
        wrong = list(wrong_facts(own, None if self.path else self.hook.gives))
        if self.hook.takes is not None:
            wrong += [
                f"it reads fact {key}, which is not among its 'takes'" for key in self.read - set(self.hook.takes)
            ]
        if wrong:
            raise _Broken("; ".join(wrong))
        given = f"facts: {', '.join(own) or 'none'}"
        return f"{given}; stays for other pods: {_few(stays)}" if stays else given

    def twice(self) -> str:
        own = self.up()
        self.down(own)
        self.down(own, "the second down")
        return self.nothing_left()

    def without_up(self) -> str:
        self.down({})
        return self.nothing_left()

    def without_facts(self) -> str:
        self.up()
        self.down({}, "down with {}")
        return self.nothing_left()

    def again(self) -> str:
        for _ in range(2):
            self.up_and_down()
        return self.nothing_left()

    def killed(self, verb: str) -> str:
        moments: list[tuple[str, float, int]] = [
            (f"after {seconds * 1000:.1f} ms", seconds, 0)
            for seconds in (self.took[verb] * (n + 0.5) / self.rounds for n in range(self.rounds))
        ]
        moments += [(f"at its message {n}", PATIENCE, n) for n in range(1, self.told[verb] + 1)]
        hit = 0
        for moment, seconds, message in moments:
            own = self.up() if verb == "down" else {}
            act = self.upping() if verb == "up" else self.downing(own)
            hit += self.run(act, kill_after=seconds, kill_at=message).kind == "killed"
            self.down(own, f"down after {verb} was killed {moment}")
            self.nothing_left(f"{verb} killed {moment}: ")
        return f"{hit} of {len(moments)} times it was still at work"

    def hang(self) -> str:
        if self.path:
            slow = self.step._replace(timeout=HANGING)
            ended = self.run(lambda: self.hook.up(slow, self.facts), stop=True)
        elif self.told["up"]:
            ended = self.run(self.upping(), hang=True)
        else:
            return "- it tells of no progress to hang at"
        if ended.kind == "facts":
            self.down(ended.facts)
            if self.path:
                return "- it was over before it could be stopped"
            raise _Broken("it went on when its time was over: does it swallow Failure?")
        self.must_be("failure", ended, "up")
        self.down({}, "down after a time-out")
        return self.nothing_left() or ended.what

    def version(self) -> str:
        if not self.path:
            return "- a Python hook is bound to podrun by its package"
        ended = self.run(lambda: self.executable().ask(self.step, "up", self.facts, {}, FUTURE))
        if ended.kind == "facts":
            self.down(ended.facts)
            raise _Broken(f"it accepted version {FUTURE} of the contract: look at PODRUN_HOOK_VERSION")
        self.must_be("failure", ended, "up")
        self.down({})
        return self.nothing_left() or ended.what

    def netns(self) -> str:
        if "netns" not in self.facts:
            return "- it takes no netns"
        facts = {**self.facts, "netns": f"{self.facts['netns']}-absent"}
        return self.refuses(lambda: self.hook.up(self.step, facts), "does without")

    def read_only(self) -> str:
        if os.geteuid():
            return "- needs root"

        def act() -> Facts:
            snapshot.make_everything_read_only()
            return self.hook.up(self.step, self.facts)

        return self.refuses(act, "writes nothing")

    # --- what the checks are made of ---

    def refuses(self, act: Callable[[], Facts], otherwise: str) -> str:
        """Up in bad circumstances: it fails in a way that people can read, or needs nothing of what is missing."""
        ended = self.run(act)
        if ended.kind != "facts":
            self.must_be("failure", ended, "up")
        self.down(ended.facts)
        return self.nothing_left() or (otherwise if ended.kind == "facts" else f"{ended.code}: {ended.what}")

    def up_and_down(self) -> Facts:
        own = self.up()
        self.down(own)
        return own

    def up(self) -> Facts:
        ended = self.run(self.upping())
        self.must_be("facts", ended, "up")
        self.took["up"], self.told["up"] = ended.seconds, ended.told
        self.read |= set(ended.read)
        return ended.facts

    def down(self, own: Facts, what: str = "down") -> None:
        ended = self.run(self.downing(own))
        self.must_be("facts", ended, what)
        if own or not self.took["down"]:
            self.took["down"], self.told["down"] = ended.seconds, ended.told

    def upping(self) -> Callable[[], Facts]:
        def act() -> Facts:
            self.given = _Noting(self.facts)
            return self.hook.up(self.current, self.given)

        return act

    def downing(self, own: Facts) -> Callable[[], Facts]:
        def act() -> Facts:
            self.hook.down(self.current, own)
            return {}

        return act

    def must_be(self, kind: str, ended: Ended, what: str) -> None:
        if ended.kind != kind:
            raise _Broken(f"{what}: {ended.what or ended.kind}")
        if kind == "failure" and ended.code not in OF_A_STEP and ended.code != 76:
            raise _Broken(f"{what}: it failed with {ended.code}, which is not a code of a step")

    def nothing_left(self, when: str = "") -> str:
        left = self.settled(lambda: self.seen() - self.before)
        if left:
            raise _Broken(f"{when}left: {_few(left)}")
        return ""

    def settled(self, left: Callable[[], set[str]]) -> set[str]:
        """What is left after a moment: the kernel takes its time to drop the links of a network namespace."""
        deadline = time.monotonic() + 2
        while (found := left()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def mend(self) -> None:
        """After a failed check: another down, and what is there then is taken as given."""
        self.run(self.downing({}))
        snapshot.end_orphans()
        self.before = self.seen()

    def seen(self) -> set[str]:
        seen = snapshot.listing(self.watched, self.step.pod.tag, self.inside)
        return seen if self.alone else snapshot.recognisable(seen, self.watched, self.step.pod.tag)

    def run(
        self,
        act: Callable[[], Facts],
        *,
        kill_after: float = PATIENCE,
        kill_at: int = 0,
        stop: bool = False,
        hang: bool = False,
    ) -> Ended:
        """Does ``act`` in a child, which is killed after some seconds or at a message; ``stop`` stops its own child."""
        answers = os.memfd_create("podrun")
        # The child writes where the file's position is, which both share.
        self.log.seek(0)
        self.log.truncate()
        began = time.monotonic()
        child = os.fork()
        if not child:
            self._child(act, answers, kill_at, hang)
        pidfd = os.pidfd_open(child)
        try:
            if stop:
                snapshot.stop_the_child_of(child, pidfd)
            killed = not snapshot.ends(pidfd, kill_after)
            if killed:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
        seconds = time.monotonic() - began
        os.waitpid(child, 0)
        with open(answers, "rb") as file:
            file.seek(0)
            answer = file.read()
        told: dict[str, Any] = (
            json.loads(answer) if answer else {"kind": "killed", "what": f"timed out after {PATIENCE:g} s"}
        )
        return Ended(
            told["kind"], told.get("facts") or {}, told.get("what", ""), told.get("code", 0), seconds,
            told.get("told", 0), told.get("read", ()),
        )  # fmt: skip

    def _child(self, act: Callable[[], Facts], answers: int, kill_at: int, hang: bool) -> None:
        count = 0

        def listen(_: object) -> None:
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if hang and count == 1:
                time.sleep(2 * PATIENCE)

        def late(*_: object) -> None:
            raise Failure(f"timed out after {HANGING:g} s")

        try:
            os.dup2(self.log.fileno(), 2)
            sys.stdout = sys.stderr
            self.current = self.step._replace(notify=listen, announce=listen)
            if hang:
                signal.signal(signal.SIGALRM, late)
                signal.setitimer(signal.ITIMER_REAL, HANGING)
            facts: Any = act()
            answer: dict[str, Any] = {"kind": "facts", "facts": {} if facts is None else facts}
            signal.setitimer(signal.ITIMER_REAL, 0)
            json.dumps(answer)
        except (Failure, OSError) as error:
            failure = error if isinstance(error, Failure) else of_oserror(error)
            answer = {"kind": "failure", "what": str(failure), "code": failure.code}
        except BaseException as error:
            answer = {"kind": "bug", "what": f"{type(error).__name__}: {error}"}
        try:
            with open(answers, "w", encoding="utf-8") as file:
                json.dump({**answer, "told": count, "read": sorted(self.given.read)}, file)
        finally:
            os._exit(0)


class _Noting(dict[str, Any]):
    """Facts that note which of them are looked at."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


#: What Python makes of the types of a JSON Schema.
_TYPES = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def _wrong_default(field: Option) -> str:
    """What is wrong with an option's default, which is in parsed form; "" if nothing is.

    An empty value may stand for "not said", though no pod file could say it.
    """
    default: object = field.default
    plain = {kind for kinds in _TYPES.values() for kind in kinds}
    if type(default) not in plain:  # none at all, or a form of the kind's own
        return ""
    types = field.kind.schema.get("type", list(_TYPES))
    wanted = {kind for name in ([types] if isinstance(types, str) else types) for kind in _TYPES.get(name, ())}
    try:
        parsed = field.kind.parse(default)
    except Exception as error:
        return "" if not default and type(default) in wanted else str(error)
    return "" if type(parsed) is type(default) else f"{default!r} is read as {parsed!r}"


def _few(items: set[str]) -> str:
    # A directory stands for what is in it.
    directories = tuple(f"{item.partition(' ')[2]}/" for item in items if item.startswith("directory "))
    shown = sorted(item for item in items if not item.partition(" ")[2].startswith(directories))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
