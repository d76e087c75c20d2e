"""From pod files to a cluster that runs them: what is wanted, the same files on every host, one change of the CIB."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from podrun.cluster import configuration, files, hosts, pacemaker, pods
from podrun.errors import BUSY, CANNOT_CREATE, STEP_FAILED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.messages import tell
from podrun.options import Wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from podrun.cluster.pacemaker import State
    from podrun.cluster.pods import Pod
    from podrun.cluster.programs import Done

#: Machines in these states take files and commands; others get them when podrun is asked again.
REACHABLE = ("online", "standby", "maintenance")
_SECONDS = 60.0
#: For so long there may be no coordinator, which knows of the quorum: the hosts elect one when another has gone.
_ELECTION = 5.0


class Wanted(NamedTuple):
    """All pods of the cluster as they are to be, and their files."""

    pods: list[Pod]
    texts: dict[str, dict[str, str]]


def read(words: Sequence[str], before: files.Manifest = files.NOTHING, without: str = "") -> Wanted:
    """The pods of these words, and those that the cluster has already (``before``), but the one ``without``.

    Raises Failure for a wrong pod file, and for a file of the cluster's that was changed here and is not asked for.
    """
    found: dict[str, tuple[Pod, dict[str, str]]] = {}
    for word in words:
        pod = pods.read(word)
        if pod.name in found:
            raise Failure(f"two files are the pod {pod.name}: {found[pod.name][0].file} and {word}", code=WRONG_FILE)
        found[pod.name] = pod, pods.sources(word)
    for name, names in before.pods.items():
        if name in found or name == without:
            continue
        # The file that this host has, whatever the pod calls itself: an instance by its own name.
        file = next((file for file in names if "/" not in file), f"{name}.toml")
        stem, at, instance = file.partition(".toml")[0].partition("@")[0], *name.partition("@")[1:]
        texts = pods.sources(f"{stem}{at}{instance}")
        for path, text in texts.items():
            if before.files.get(path) != files.digest(text):
                hint = f"'podrun cluster apply {name}' brings it to all hosts"
                raise Failure(f"{pods.ETC}/{path} was changed on this host", code=WRONG_FILE, hint=hint)
        found[name] = pods.read(f"{stem}{at}{instance}"), texts
    ordered = sorted(found)
    return Wanted([found[name][0] for name in ordered], {name: found[name][1] for name in ordered})


def statements(
    wanted: Wanted, before: pacemaker.Configuration | None, *, fencing: bool, stopped: bool = False
) -> list[configuration.Statement]:
    """The configuration of the pods. Raises Failure with all that is wrong with them.

    ``stopped``: the pods that the cluster does not have yet are not to be started.
    """
    mistakes = pods.mistakes(wanted.pods)
    for pod in wanted.pods:
        clashes = [other for other in wanted.pods if other.name != pod.name and _share_a_file(pod, other, wanted)]
        mistakes += [f"{pod.file}: its name is that of a file of {other.name}" for other in clashes]
    kept = dict(before.kept) if before else {}
    if stopped:
        new = [pod for pod in wanted.pods if not before or configuration.resource(pod.name) not in before.pods]
        kept |= {configuration.placed(pod): {"target-role": "Stopped"} for pod in new}
    try:
        found = configuration.statements(wanted.pods, kept, fencing=fencing)
    except Wrong as wrong:
        mistakes.append(wrong.what)
        found = []
    if mistakes:
        _refuse(mistakes, WRONG_FILE)
    taken = sorted({statement.id for statement in found} & (before.foreign if before else frozenset()))
    if taken:
        hint = "give the pod another name"
        raise Failure(f"the cluster has a resource {taken[0]} that is not a pod", code=CANNOT_CREATE, hint=hint)
    return found


def _refuse(lines: Sequence[str], code: int, hint: str = "") -> NoReturn:
    """Raises Failure with all mistakes, a line each."""
    for line in lines[:-1]:
        tell(f"podrun: {line}")
    raise Failure(lines[-1], code=code, hint=hint)


def _share_a_file(pod: Pod, other: Pod, wanted: Wanted) -> bool:
    """Two files of one name from different directories."""
    mine, others = wanted.texts[pod.name], wanted.texts[other.name]
    return pod.name < other.name and any(name in others and others[name] != text for name, text in mine.items())


def changeable() -> State:
    """The state of a cluster that may be changed from here. Raises Failure without quorum.

    Pacemaker takes a change on a host that is cut off, shows it, and forgets it when the hosts are together again, or
    has the others forget theirs.
    """
    deadline = time.monotonic() + _ELECTION
    while not (state := pacemaker.state()).quorum and time.monotonic() < deadline:
        time.sleep(0.2)
    if not state.quorum:
        hint = "do it on a host that is with most of the others; see 'podrun cluster machines' there"
        raise Failure("this host has no quorum: the cluster cannot be changed from here", code=UNAVAILABLE, hint=hint)
    return state


def ready(before: files.Manifest, state: State, program: str) -> None:
    """Raises Failure where a machine that can be reached could not take files, or has newer ones than ``before``.

    ``before``: this host's manifest.
    """
    found = standings(state, program, _SECONDS / 2)
    if wrong := [f"{name}: {standing.complaint}" for name, standing in found.items() if standing.complaint]:
        _refuse(wrong, UNAVAILABLE, "nothing was changed; mend this and try again")
    for name, standing in found.items():
        if generation_of(standing.digest) > before.generation:
            hint = f"do it on {name}; that brings this host up to date"
            raise Failure(f"{name} has newer files of the cluster than this host", code=BUSY, hint=hint)


def deliver(
    wanted: Wanted, before: files.Manifest, state: State, program: str, *, so_far: str
) -> dict[str, files.Received]:
    """Sends the files to every machine that can be reached, side by side; what each one did.

    ``before``: this host's manifest, which ``wanted`` was made of. Raises Failure when a machine did not take the
    files; ``so_far`` tells people what is so then.
    """
    names = [machine.name for machine in state.machines if machine.state in REACHABLE]
    text = files.message(wanted.texts, before)
    done = hosts.on_each(names, [program, "cluster", "receive"], _SECONDS, text)
    if wrong := [f"{name}: {_complaint(answer)}" for name, answer in done.items() if answer.code]:
        _refuse(wrong, UNAVAILABLE, so_far)
    return {name: _received(name, answer.out) for name, answer in done.items()}


def _complaint(answer: Done) -> str:
    """Why a machine's podrun did not do what it was asked for."""
    words = answer.last_words
    return f"its podrun is another version ({words.removeprefix('Error: ')})" if "No such command" in words else words


def _received(name: str, out: str) -> files.Received:
    try:
        told = json.loads(out)
        return files.Received([str(word) for word in told["written"]], [str(word) for word in told["removed"]])
    except (ValueError, KeyError, TypeError):
        raise Failure(
            f"{name}: its answer is broken", code=UNAVAILABLE, hint="is podrun the same everywhere?"
        ) from None


def generation_of(fingerprint: str) -> int:
    """The generation in a digest of a :class:`Standing`; 0 where there is none."""
    word = fingerprint.partition(" ")[0]
    return int(word) if word.isascii() and word.isdigit() and len(word) < 19 else 0


class Standing(NamedTuple):
    """What a machine has of the cluster's files (files.fingerprint), or why it does not say so."""

    digest: str
    complaint: str = ""


def standings(state: State, program: str, seconds: float = 5.0) -> dict[str, Standing]:
    """The standing of every machine that can be reached."""
    names = [machine.name for machine in state.machines if machine.state in REACHABLE]
    done = hosts.on_each(names, [program, "cluster", "manifest"], seconds)
    return {
        name: Standing("", _complaint(answer)) if answer.code else Standing(answer.out.strip()[:64])
        for name, answer in done.items()
    }


def waited(true: Callable[[State], bool], seconds: float, what: str) -> State:
    """Polls the cluster until a condition holds. Raises Failure when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        state = pacemaker.state()
        if true(state):
            return state
        if time.monotonic() > deadline:
            hint = "the cluster goes on with it; see 'podrun cluster units' and 'crm_mon -1'"
            raise Failure(f"{what}: not within {seconds:g} s", code=STEP_FAILED, hint=hint)
        time.sleep(0.2)
