"""A ``docker run`` or ``podman run`` command line as a pod."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from podrun.errors import WRONG_FILE, Failure

from .container import Container
from .draft import Draft, Origin, Pod, identity
from .options import OPTIONS, Meaning, apply

#: docker's short options, as podman has them.
_SHORT = {
    "a": "attach", "c": "cpu-shares", "d": "detach", "e": "env", "h": "hostname", "i": "interactive", "l": "label",
    "m": "memory", "p": "publish", "P": "publish-all", "q": "quiet", "t": "tty", "u": "user", "v": "volume",
    "w": "workdir",
}  # fmt: skip
#: Other names of the same.
_SAME = {
    "net": "network", "volume-from": "volumes-from", "dns-opt": "dns-option", "net-alias": "network-alias",
    "cpuset": "cpuset-cpus", "env-from": "env-file",
}  # fmt: skip
#: What stands before the options.
_PROGRAMS = ("docker", "podman", "nerdctl", "podrun")
_VERBS = ("run", "create")


def convert(arguments: Sequence[str], environ: Mapping[str, str], *, name: str = "") -> Draft:
    """The pod of a command line: its words, or the whole as one text as it stands in a shell script.

    Raises Failure (WRONG_FILE) for what is no ``docker run``.
    """
    line = _split(arguments[0]) if len(arguments) == 1 and " " in arguments[0].strip() else list(arguments)
    at = 0
    while at < len(line) and (line[at] == "sudo" or _is_assignment(line[at])):
        at += 1
    program = os.path.basename(line[at] if at < len(line) else "")
    if program in _PROGRAMS:
        at += 1
        if line[at : at + 1] == ["container"]:
            at += 1
        if line[at : at + 1] and line[at] not in _VERBS:
            raise Failure(f"{line[at]!r}: only `run` and `create` make a container", code=WRONG_FILE)
        at += 1
    origin = Origin("", "command line")
    pod = Pod(identity(name) if name else "", origin)
    container = Container(pod, directory=os.getcwd(), home=environ.get("HOME", ""))
    # podrun's own ports are for this host alone unless they say otherwise.
    container.everywhere = program != "podrun"
    container.read_only_tmpfs = program == "podman"
    called, at = _options(container, line, at, origin, strict=True)
    if at >= len(line):
        raise Failure("the command line names no image", code=WRONG_FILE)
    ref = line[at]
    container.image.set("ref", ref, origin)
    if line[at + 1 :]:
        container.step.set("command", line[at + 1 :], origin)
    word = ref.partition("@")[0].rstrip("/").rpartition("/")[2].partition(":")[0]
    pod.name = identity(name or called or word)
    if called and not name and called != pod.name:
        pod.note(origin, f"a pod cannot be called {called}: it is {pod.name}", by_hand=False)
    steps = container.finish()
    pod.steps = [steps[0], *container.network_steps(), *steps[1:]]
    draft = Draft()
    draft.add(pod)
    return draft


def options(container: Container, line: Sequence[str], origin: Origin) -> None:
    """Options alone, such as those of PodmanArgs=: what is none of them is noted."""
    at = 0
    while at < len(line):
        _, at = _options(container, line, at, origin, strict=False)
        if at < len(line):
            container.note(origin, f"{line[at]!r} is not an option")
            at += 1


def _is_assignment(word: str) -> bool:
    """What a shell puts into the command's environment."""
    return not word.startswith("-") and "=" in word.partition("/")[0]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text.replace("\\\n", " ").replace("\\\r\n", " "), comments=True)
    except ValueError as error:
        raise Failure(f"the command line cannot be split into words: {error}", code=WRONG_FILE) from None


def _options(container: Container, line: Sequence[str], at: int, origin: Origin, *, strict: bool) -> tuple[str, int]:
    """Applies the options from ``at`` on; the value of --name, and where the first word is that is none."""
    found, at = tokens(line, at, OPTIONS, strict=strict)
    called = ""
    for token in found:
        if token.name == "name":
            called = token.value
        meaning = OPTIONS.get(token.name)
        is_off = meaning is not None and meaning.switch and token.value.lower() in ("false", "0", "no")
        # What is on by default has to hear that it is off.
        if not is_off or token.name == "read-only-tmpfs":
            apply(container, token.name, token.value, Origin(origin.where, token.spelled))
    return called, at


class Token(NamedTuple):
    """One option of a command line."""

    #: docker's long name, without dashes.
    name: str
    #: "true" for a switch that stands alone.
    value: str
    #: As it was written: "-p".
    spelled: str


def tokens(
    line: Sequence[str], at: int, known: Mapping[str, Meaning], *, strict: bool = True
) -> tuple[list[Token], int]:
    """The options from ``at`` on, and where the first word is that is none: -dit, -p80:80, -p 80:80, --a=b, --a b.

    Raises Failure (WRONG_FILE) for what is no option of ``known``, and for a value that is missing.
    """
    found: list[Token] = []

    def value_at(spelled: str) -> str:
        if at >= len(line):
            raise Failure(f"{spelled} takes a value", code=WRONG_FILE)
        return line[at]

    while at < len(line) and line[at].startswith("-") and line[at] != "-":
        word = line[at]
        at += 1
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = _SAME.get(name, name)
            meaning = known.get(name)
            if meaning is None and strict and not equals:
                raise Failure(
                    f"--{name} is not an option of docker run or podman run",
                    code=WRONG_FILE,
                    hint="write it as --OPTION=VALUE to go on without it",
                )
            if not equals and meaning is not None and not meaning.switch:
                value = value_at(f"--{name}")
                at += 1
            elif not equals:
                value = "true"
            found.append(Token(name, value, f"--{name}"))
            continue
        letters = word[1:]
        while letters:
            name = _SHORT.get(letters[0], "")
            if not name:
                raise Failure(f"-{letters[0]} in {word!r} is not an option of docker run", code=WRONG_FILE)
            spelled, letters = f"-{letters[0]}", letters[1:]
            if known[name].switch:
                found.append(Token(name, "true", spelled))
                continue
            value = letters.removeprefix("=")
            if not value:
                value = value_at(spelled)
                at += 1
            found.append(Token(name, value, spelled))
            break
    return found, at
