"""The arguments of up, down, reload, run, exec and image pull: one table, read here and shown by click in podrun.cli.

Importing click costs 31 ms, as long as a whole start. The plain forms are therefore recognised by :func:`plain`;
whatever it does not understand (help, a misspelled option) goes to click, which says what is wrong with it.
"""

from __future__ import annotations

from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Flag(NamedTuple):
    """An option of the command line. ``value`` names what it takes, "" for a switch."""

    names: tuple[str, ...]
    key: str
    doc: str
    value: str = ""
    #: May be given several times; the values make a list.
    many: bool = False
    default: Any = None


class Command(NamedTuple):
    """A command: its options, and what its words are called ("" for the rest: everything after the first word)."""

    flags: tuple[Flag, ...]
    words: tuple[str, ...]
    #: True when everything behind the last of ``words`` belongs to the payload.
    rest: bool = False
    #: True when there has to be something.
    needs_rest: bool = False


GLOBAL = (
    Flag(("--root",), "root", "Images, volumes and writable layers.", "DIR"),
    Flag(("--run",), "run", "Journals, leases and the file registry.", "DIR"),
    Flag(("--debug",), "debug", "Show tracebacks and every step."),
)

COMMANDS = {
    "up": Command(
        (
            Flag(("-d", "--detach"), "detach", "Return when the pod is ready; nothing of podrun stays."),
            Flag(
                ("--segment",), "segment", "Only one container with the steps after it, or 'pod'.", "NAME", default=""
            ),
            Flag(("--resolved",), "resolved", "The word is a file that 'up -d' has written for its unit."),
        ),
        ("word",),
    ),
    "down": Command(
        (
            Flag(("--force",), "force", "Go on when a step cannot be undone."),
            Flag(("--invocation",), "invocation", "Leave a pod alone that another start made.", "ID", default=""),
            Flag(
                ("--segment",), "segment", "Only one container with the steps after it, or 'pod'.", "NAME", default=""
            ),
        ),
        ("word",),
    ),
    "reload": Command(
        (Flag(("--resolved",), "resolved", "The word is a file that 'up -d' has written for its unit."),),
        ("word",),
    ),
    "run": Command(
        (
            Flag(("--rm",), "rm", "Undo the pod when it ends: the foreground always does."),
            Flag(("-d", "--detach"), "detach", "Return when the pod is ready; nothing of podrun stays."),
            Flag(("-i", "--interactive"), "interactive", "Give the payload podrun's standard input."),
            Flag(("-t", "--tty"), "tty", "Give the payload a terminal."),
            Flag(("--name",), "name", "The pod's name.", "NAME"),
            Flag(
                ("--restart",),
                "restart",
                "With -d: no, on-failure[:N] or always; systemd does it.",
                "POLICY",
                default="",
            ),
            Flag(("-e", "--env"), "env", "An environment variable; KEY alone takes podrun's own.", "KEY=VALUE", True),
            Flag(("-v", "--volume"), "volumes", "A bind mount or a named volume.", "SOURCE:TARGET[:OPTIONS]", True),
            Flag(("-p", "--publish"), "publish", "A port to publish.", "[IP:]PORT:PORT", True),
            Flag(("--network",), "network", "bridge, host, none, ...", "MODE", default="bridge"),
            Flag(("--pull",), "pull", "missing, always, newer or never.", "POLICY"),
            Flag(("--entrypoint",), "entrypoint", "Instead of the image's ENTRYPOINT.", "COMMAND"),
            Flag(("-u", "--user"), "user", "uid[:gid], or names of the image.", "USER"),
            Flag(("-w", "--workdir"), "workdir", "The working directory.", "DIR"),
            Flag(("--hostname",), "hostname", "The host name.", "NAME"),
            Flag(("--read-only",), "read_only", "A read-only root file system."),
            Flag(("--init",), "init", "Run catatonit as process 1."),
            Flag(("-m", "--memory"), "memory", "Memory limit.", "SIZE"),
            Flag(("--cap-add",), "cap_add", "A capability to add.", "CAP", True),
            Flag(("--cap-drop",), "cap_drop", "A capability to drop.", "CAP", True),
            Flag(("--userns",), "userns", "auto: ids of the pod's own; host.", "MODE"),
            Flag(("--save",), "save", "Write the pod file of this command line and stop.", "FILE"),
        ),
        ("ref",),
        rest=True,
    ),
    "exec": Command(
        (
            Flag(("-i", "--interactive"), "interactive", "Give the command podrun's standard input."),
            Flag(("-t", "--tty"), "tty", "Give the command a terminal."),
            Flag(("-d", "--detach"), "detach", "Do not wait for it; its output is dropped."),
            Flag(("--privileged",), "privileged", "With all capabilities; the system call filter stays."),
            Flag(("--env-file",), "env_files", "Variables, KEY=VALUE a line.", "FILE", True),
            Flag(("-e", "--env"), "env", "An environment variable.", "KEY=VALUE", True),
            Flag(("-u", "--user"), "user", "As whom.", "UID[:GID]", default=""),
            Flag(("-w", "--workdir"), "workdir", "The working directory.", "DIR", default=""),
            Flag(("-c", "--container"), "container", "Which container; default: the last.", "NAME", default=""),
        ),
        ("word",),
        rest=True,
        needs_rest=True,
    ),
    "image pull": Command(
        (
            Flag(("--platform",), "platform", "Which one of a multi-platform image.", "OS/ARCH[/VARIANT]", default=""),
            Flag(("--cosign-key",), "cosign_key", "Only when this key has signed it (cosign).", "KEY", default=""),
            Flag(("--policy",), "policy", "Only when this containers-policy.json(5) accepts it.", "FILE", default=""),
            Flag(("-q", "--quiet"), "quiet", "No progress."),
        ),
        ("ref",),
    ),
    "follow": Command((), ()),
}


def plain(arguments: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """(command, its parameters) of a plain form of a command in the table; None for anything else."""
    given: dict[str, Any] = {}
    at = _flags(arguments, 0, GLOBAL, given)
    if at is None:
        return None
    name = " ".join(arguments[at : at + (2 if arguments[at : at + 1] == ["image"] else 1)])
    if name not in COMMANDS:
        return None
    at += name.count(" ")
    command = COMMANDS[name]
    words: list[str] = []
    at += 1
    while at < len(arguments):
        following = _flags(arguments, at, command.flags, given)
        if following is None:
            return None
        at = following
        if at < len(arguments):
            words.append(arguments[at])
            at += 1
            if command.rest and len(words) == len(command.words):
                break
    if len(words) != len(command.words) or (at < len(arguments) and not command.rest):
        return None
    given.update(zip(command.words, words, strict=True))
    if command.rest:
        given["command"] = list(arguments[at:])
        if command.needs_rest and not given["command"]:
            return None
    for flag in (*GLOBAL, *command.flags):
        given.setdefault(flag.key, [] if flag.many else flag.default if flag.value else False)
    return name, given


#: Options whose values nobody but the start itself reads.
_ANY_SPELLING = ("-e", "--env", "--name", "--root", "--run")


def _is_plain(key: str, value: str, given: dict[str, Any]) -> bool:
    """Whether a value of ``run`` is spelled as a pod file spells it; docker's other spellings are podrun.cli.run's."""
    if key == "publish":
        return ":" in value and "::" not in value and value[0].isdigit() and value == value.lower()
    if key == "volumes":
        source, _, rest = value.partition(":")
        return rest[:1] == "/" and source[:1] not in (".", "~")
    if key == "network":
        return key not in given and (value in ("bridge", "host", "none") or value[:6] in ("netns:", "macvla"))
    if key == "entrypoint":
        return value[:1] != "["  # docker takes a list, too
    if key == "userns":
        return value in ("auto", "host")
    if key == "memory":
        return value[-1:].isdigit() or value[-1:] in "KMGT"
    return not (key in ("cap_add", "cap_drop") and "," in value)


def _flags(arguments: Sequence[str], at: int, flags: Sequence[Flag], given: dict[str, Any]) -> int | None:
    """Reads options from ``at`` on; returns where the first word is, None for an option that is not plain."""
    while at < len(arguments) and arguments[at].startswith("-"):
        # What fingers type; click takes any switches together.
        if arguments[at] == "-it" and any(flag.key == "tty" for flag in flags):
            given.update(interactive=True, tty=True)
            at += 1
            continue
        name, equals, value = arguments[at].partition("=")
        flag = next((flag for flag in flags if name in flag.names), None)
        if flag is None or (equals and (not flag.value or not name.startswith("--"))):
            return None
        if flag.value and not equals:
            at += 1
            if at >= len(arguments):
                return None
            value = arguments[at]
        if name not in _ANY_SPELLING and not _is_plain(flag.key, value, given):
            return None
        if flag.many:
            given.setdefault(flag.key, []).append(value)
        else:
            given[flag.key] = value if flag.value else True
        at += 1
    return at
