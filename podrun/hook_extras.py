"""What a hook may offer beyond the verbs of the contract: small protocols, each of one thing that others ask hooks.

Whoever asks names the protocol and no hook::

    if explaining := offers(hook, Explains):
        lines = explaining.explain(step)
"""

from __future__ import annotations

from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence, Set
    from typing import IO, Any, NoReturn, Protocol, TypeVar

    from podrun.hook import Facts, Problem, Step
    from podrun.unit_needs import UnitNeeds

    P = TypeVar("P")
else:

    class Protocol:  # noqa: D101
        pass


def offers(hook: object, protocol: type[P]) -> P | None:
    """The hook as ``protocol`` where it has all names of that protocol, else None."""
    names = (*vars(protocol), *vars(protocol).get("__annotations__", ()))
    return hook if all(hasattr(hook, name) for name in names if name[0] != "_") else None  # type: ignore[return-value]


class Finding(NamedTuple):
    """One line of ``podrun doctor``."""

    #: "ok", "warn" or "fail".
    state: str
    what: str
    hint: str = ""
    #: The exit code of a "fail".
    code: int = 0


class Exposure(NamedTuple):
    """One thing that a step gives away, for ``podrun check --security``."""

    what: str
    #: From 0.1, hardly anything, to 10.0, the whole host; those of a pod add up, to 10 at most.
    weight: float
    #: What to do about it.
    hint: str = ""


class Exposes(Protocol):
    """``podrun check --security``."""

    def exposes(self, step: Step) -> Iterable[Exposure]:
        """What the step gives to the pod of the host, or of other pods. Changes nothing."""


class Explains(Protocol):
    """``podrun plan --explain``."""

    def explain(self, step: Step) -> Sequence[str]:
        """The commands that do by hand what ``up`` would do, one a line."""


class Collects(Protocol):
    """``podrun gc`` and ``podrun doctor``."""

    def collect(self, root: str, run: str, pods: Set[str], only_look: bool) -> Sequence[str]:
        """Removes what dead pods left behind, a line for each; with ``only_look`` only names it.

        ``pods`` are the names of the pods that there are.
        """


class Diagnoses(Protocol):
    """``podrun doctor``."""

    def diagnose(self, root: str, run: str) -> Iterable[Finding]:
        """What this host has and lacks for the hook's steps. Changes nothing."""


class RunsCommands(Protocol):
    """``podrun exec``."""

    def exec_into(self, step: Step, own: Facts, argv: Sequence[str], **wanted: Any) -> NoReturn:
        """Becomes a command inside the step's process; ``wanted``: any of interactive, tty, env, env_files,
        user, workdir, privileged, detach. Raises Failure.
        """


class HasTerminal(Protocol):
    """``podrun attach``."""

    def terminal_of(self, step: Step) -> Any:
        """A connected socket (SOCK_SEQPACKET), None without a terminal. It gives the output as it comes; it takes
        packets that begin with b"i", input, or b"s", a size (struct winsize).
        """


class ChecksHealth(Protocol):
    """``podrun healthcheck run``."""

    def unhealthy(self, step: Step, own: Facts, facts: Facts) -> str | None:
        """What is wrong with the step's process now, "" for nothing; None: nothing says what it has to answer to.

        ``facts`` are the pod's. Raises Failure when it does not run.
        """


class Controls(Protocol):
    """``podrun pause``, ``set`` and ``diff``: what can be done to a step's process while it runs."""

    def freeze(self, step: Step, on: bool) -> None:
        """Stops all its processes, or lets them run again. Raises Failure."""

    def limit(self, step: Step, wanted: Mapping[str, float]) -> None:
        """Changes limits: any of memory (bytes), cpus and pids. Raises Failure."""

    def changes(self, step: Step, facts: Facts) -> Iterable[tuple[str, str]]:
        """What it has written over its image: ("A" | "C" | "D", path); ``facts`` are the pod's."""


class CopiesFiles(Protocol):
    """``podrun cp``: files in and out of a step's process, as tar streams."""

    def pack(self, step: Step, own: Facts, path: str, out: IO[bytes]) -> None:
        """Writes what is at ``path`` inside as a tar stream. Raises Failure."""

    def unpack(self, step: Step, own: Facts, path: str, stream: IO[bytes], rename: str) -> None:
        """Makes the entries of a tar stream below the directory ``path`` inside, the top one called ``rename``."""


class UsesImages(Protocol):
    """``podrun image rm`` and ``prune``: what a pod uses stays."""

    def images_of(self, options: Mapping[str, Any]) -> Sequence[str]:
        """The references of the images that a step with this table (as written) uses."""


class UsesVolumes(Protocol):
    """``podrun volume``: what a pod uses stays."""

    def volumes_of(self, options: Mapping[str, Any]) -> Sequence[str]:
        """The names of the volumes that a step with this table (as written) uses."""


class KeepsLocalData(Protocol):
    """``podrun cluster export``: what does not follow the pod to another machine."""

    def local_data(self, options: Mapping[str, Any]) -> Sequence[str]:
        """What a step with this table (as written) keeps on this machine only, in words for people."""


class Registers(Protocol):
    """``podrun up``: a wait for one of these services would wait for the pod."""

    def services_of(self, options: Mapping[str, Any]) -> Sequence[str]:
        """The services that a step with this table (as written) registers."""


class ChecksChain(Protocol):
    """What a step cannot say of itself alone, at ``check`` and before ``up``."""

    def check_in_chain(self, step: Step, before: Sequence[Step]) -> Sequence[Problem]:
        """The problems of a step after those ``before`` it. Changes nothing."""


class RunsBeside(Protocol):
    """``podrun reload`` with ``[pod] reload = "swap"``: a pod with a step of another hook is stopped and started."""

    def exclusive(self, step: Step) -> str:
        """Why two generations of a pod cannot have the step at once; "" when they can. Changes nothing."""


class KeepsVersions(Protocol):
    """``podrun update`` and ``rollback``: what a name stands for changes. ``options``: a step's, read."""

    def version(self, root: str, options: Any) -> dict[str, Any]:
        """What the name stands for here, "digest" among it: enough to bring it back; {} when it has no versions."""

    def available(self, root: str, options: Any) -> str:
        """The digest that the name's source has for it now; "" when that is not known without fetching it."""

    def refresh(self, root: str, options: Any, notify: Callable[[str], None]) -> None:
        """Fetches what the name stands for now. Raises Failure: the name stands for what it did then."""

    def as_it_is(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A step's table, as written, with which it takes what the name stands for here and asks nobody."""

    def bring_back(self, root: str, version: dict[str, Any]) -> None:
        """Has the name stand for an earlier version again. Raises Failure when that is not here any more."""


class BringsAhead(Protocol):
    """``podrun up -d`` where systemd runs: what would take long in the unit, where nobody sees how far it is."""

    def bring(self, root: str, options: Any, notify: Callable[[str], None]) -> None:
        """Fetches what a start with these options, read, would have to fetch. Raises Failure."""


class TakesOver(Protocol):
    """For steps that own something that only one generation can have: published ports, a record in a registry.

    ``up`` of a step with ``step.pod.beside`` does not take it; ``down`` does not touch it once it has moved.
    """

    def take_over(self, step: Step, own: Facts, before: Step, before_own: Facts) -> None:
        """Moves it here from another generation's step; its users see one change.

        May be called again, also in the other direction, after a swap was killed anywhere in it.
        """

    def settle(self, step: Step, own: Facts, seconds: float) -> None:
        """Waits, before a replaced generation is undone, until connections on their way to it have arrived.

        ``seconds``: how long it may keep its clients ([pod] drain).
        """


class HasUnitNeeds(Protocol):
    """``podrun unit``; the generator has a copy (podrun.podfile.known_hooks)."""

    unit_needs: UnitNeeds


class RunsExecutables(Protocol):
    """The one hook that stands for all executables."""

    def ask(self, step: Step, verb: str, facts: Facts, own: Facts, version: int = ...) -> Facts:
        """Runs one verb of the executable; returns the object that it printed. Raises Failure."""

    def describe(self, step: Step) -> Facts:
        """What the executable says of itself: any of "doc", "takes", "gives" and "options" (a JSON Schema)."""

    def placed(self, name: str) -> str:
        """The path that a hook's name stands for; "" when it is no executable's."""

    def directories(self) -> Sequence[str]:
        """Where executables are found by their names, the first directory winning."""
