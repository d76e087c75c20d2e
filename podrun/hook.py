"""The hook contract, version 1: what chain and hooks exchange, and every name that a hook author imports.

A hook is a module (or any object) with ``Options``, ``up``, ``down`` and ``check``; see :class:`Hook`. The declaration
of options is in podrun.options, what facts mean in podrun.facts; both can be had from here.
"""

from __future__ import annotations

from podrun.facts import Facts, merged
from podrun.identity import Identity
from podrun.messages import printable
from podrun.options import (
    ABSOLUTE,
    ANYTHING,
    BOOLEAN,
    DURATION,
    INTEGER,
    PORT,
    REQUIRED,
    SIZE,
    TEXT,
    Kind,
    Option,
    Where,
    Wrong,
    checked,
    choice,
    list_of,
    option,
    read,
    record,
    schema_of,
    secret,
    step_giving,
    table_of,
    unknown,
    without_secrets,
)
from podrun.record import NamedTuple
from podrun.unit_needs import is_resident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Protocol
else:

    class Protocol:
        pass


__all__ = [
    "ABSOLUTE",
    "ANYTHING",
    "BOOLEAN",
    "DURATION",
    "INTEGER",
    "PORT",
    "PROGRESS",
    "REQUIRED",
    "SIZE",
    "TEXT",
    "VERSION",
    "Facts",
    "Hook",
    "Kind",
    "Option",
    "Pod",
    "Problem",
    "Step",
    "Where",
    "Wrong",
    "checked",
    "choice",
    "is_resident",
    "list_of",
    "merged",
    "option",
    "progress_of",
    "read",
    "record",
    "schema_of",
    "secret",
    "step_giving",
    "table_of",
    "unknown",
    "without_secrets",
]

#: Version of the contract: the ``version`` member of what an executable hook reads.
VERSION = 1
#: How an assignment begins that tells of progress: JSON follows, [[name, bytes done, bytes in all], ...].
PROGRESS = "X_PODRUN_PROGRESS="


class Pod(NamedTuple):
    """What every step may know of its pod. Paths are absolute; times are seconds."""

    name: str
    #: $PODRUN_ROOT: images, volumes and writable layers; survives a reboot.
    root: str
    #: $PODRUN_RUN: journals, leases, the file registry; gone after a reboot.
    run: str
    #: Names the pod's objects in the kernel and in the runtime: "podrun-web", with a hash of ``run`` where that is not
    #: the default directory ("podrun-3fa2-web"). Everything a hook makes outside ``directory`` carries it.
    tag: str = ""
    stop_timeout: float = 20.0
    #: systemd's INVOCATION_ID, or a random one where podrun does not run in a unit.
    invocation: str = ""
    #: False after ``-d``: nobody reads the payload's standard output, so it goes to a file.
    attached: bool = True
    #: True for ``run -i``: the last container reads podrun's standard input.
    interactive: bool = False
    #: For ``run -t``: the socket to which the runtime sends the container's terminal (OCI runtimes' --console-socket).
    console: str = ""
    #: The cgroup (below /sys/fs/cgroup) that systemd delegated to podrun, or "": stay in the caller's.
    cgroup: str = ""
    #: The systemd unit that podrun was started by, or "".
    unit: str = ""
    #: "auto": the pod has a user namespace of its own, with a range of ids of its own; "host": it has the host's.
    userns: str = "host"
    #: True for ``podrun check`` and ``plan``: a check may take its time and use the network.
    thorough: bool = False
    #: The services that steps of the chain register: whom a wait for one of them would wait for.
    services: Sequence[str] = ()
    #: 1 as it was started; a hot swap starts the next one beside it, in directories and under a tag of its own.
    generation: int = 1
    #: The generation that serves while this one starts; 0: none, this one serves from its start.
    beside: int = 0
    #: Seconds that ``down -t`` gives each payload to end, before any other setting; -1.0: nobody has said.
    patience: float = -1.0

    @property
    def key(self) -> str:
        """The generation's directory below those of all pods: "web", "web/+2"."""
        return self.name if self.generation == 1 else f"{self.name}/+{self.generation}"

    @property
    def suffix(self) -> str:
        """What the tag has behind the pod's name: "" for the first generation."""
        return Identity(self.name).generation(self.generation)

    @property
    def incarnation(self) -> str:
        """Tells this generation from every other one of any start: the invocation with the suffix."""
        return self.invocation + self.suffix

    @property
    def directory(self) -> str:
        """The generation's own directory, 0700: journals, generated files, mounts."""
        return f"{self.run}/pods/{self.key}"

    @property
    def storage(self) -> str:
        """Where it keeps what is too big for ``run``: writable layers, log files."""
        return f"{self.root}/pods/{self.key}"


def _nobody_listens(_: Any) -> None:
    pass


class Step(NamedTuple):
    """One ``[[chain]]`` table as it was resolved at ``up``."""

    pod: Pod
    #: As the pod file spells it: "network", "exec:/path", "plugin-name".
    hook: str
    #: Unique among the pod's steps of the same hook.
    name: str
    #: An instance of the hook's Options.
    options: Any
    #: Takes progress as sd_notify(3) assignments, newline-separated: what :meth:`status` and :meth:`extend` send. A
    #: MAINPID= counts as :attr:`announce`, because that is how hooks announced a process before there was such a call.
    notify: Callable[[str], None] = _nobody_listens
    #: Seconds that each verb may take; the chain interrupts a Python hook, an executable's process group is killed.
    timeout: float = float("inf")
    #: Takes the pid of the process that a resident step has created but not started yet. The journal has it before
    #: the call returns, and systemd where podrun hands the process over.
    announce: Callable[[int], None] = _nobody_listens
    #: A line for people, with the pod and the step in front: on standard error, in a unit in its journal.
    report: Callable[[str], None] = _nobody_listens

    @property
    def label(self) -> str:
        """How messages name the step: "network", or "container app" where the name says more than the hook."""
        return self.hook if self.name == self.hook else f"{self.hook} {self.name}"

    def status(self, text: str) -> None:
        """Reports in one line what the step is doing: systemd's STATUS=, a line of ``--debug``."""
        self.notify(f"STATUS={printable(text)}")

    def extend(self, seconds: float) -> None:
        """Asks systemd for so many more seconds, counted from now; for work that shows progress (sd_notify(3))."""
        self.notify(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def progress(self, parts: Sequence[tuple[str, int, int]]) -> None:
        """Reports how far each part is: name, bytes done, bytes in all. A terminal shows bars; () takes them away."""
        self.notify(progress_of(parts))


def progress_of(parts: Sequence[tuple[str, int, int]]) -> str:
    """The assignment that :meth:`Step.progress` sends; systemd never sees it."""
    from podrun import jsontext

    return f"{PROGRESS}{jsontext.dumps([[*part] for part in parts])}"


class Problem(NamedTuple):
    """What ``check`` found. ``up`` refuses a chain with a fatal problem before anything is created."""

    what: str
    code: int = 76
    hint: str = ""
    fatal: bool = True
    #: The option that it is about: people are told the line of the pod file where it stands.
    key: str = ""


class Hook(Protocol):
    """What the chain asks of a hook. A module with these names is a hook.

    ``up`` does the step and returns its facts (JSON). ``down`` undoes it, given the facts that ``up`` returned, or {}
    when ``up`` was killed in the middle: it succeeds when there is nothing left to undo, may be repeated, and raises
    Failure naming the holder when something is still busy. ``check`` has no side effects.
    """

    #: A record of option() fields; None: any keys.
    Options: type[Any] | None
    #: Facts this hook reads; None: it may read any.
    takes: Sequence[str] | None
    #: Facts this hook may return.
    gives: Sequence[str]
    #: True when a step of it leaves a process running; its facts then hold "process": {"pid", "start"}. A table of
    #: options: when a step says just that, {"via": "haproxy"}.
    resident: bool | Mapping[str, Any]
    #: The name of a step that has none in the pod file; "" means the hook's own name.
    default_name: str

    def up(self, step: Step, facts: Facts) -> Facts: ...

    def down(self, step: Step, own: Facts) -> None: ...

    def check(self, step: Step) -> Sequence[Problem]: ...
