"""Docker's spellings of values, as a pod file spells them: sizes, ports, restart policies, words of a command."""

from __future__ import annotations

import shlex
from typing import Any

from .draft import Origin, Pod, is_open


def size(text: Any) -> str:
    """ "64mb" is "64M", "size=1.5GiB" is "size=1.5G": docker counts to the base of 1024, too."""
    word = str(text).strip()
    head, equals, number = word.rpartition("=")
    plain = number.upper().removesuffix("B").removesuffix("I") if number[-1:] in "bB" else number.upper()
    return word if is_open(word) else f"{head}{equals}{plain.replace(' ', '')}"


def publish(text: str, usual: str = "0.0.0.0") -> list[str]:
    """Docker's ports as a network step's ``publish``: docker's are open to all addresses unless one is named."""
    text = str(text).strip()
    rest, slash, protocol = text.partition("/")
    rest, _, inner = rest.rpartition(":")
    if rest.endswith("]") or (rest.count(":") == 0 and rest and not _is_port(rest)):
        address, outer = rest, ""
    else:
        address, _, outer = rest.rpartition(":")
    if address == "localhost":
        address = "127.0.0.1"
    # What the host's port is to be is left to docker when it is not there.
    return [f"{address or usual}:{outer}:{inner}{slash}{protocol.lower()}"]


def _is_port(text: str) -> bool:
    return is_open(text) or all(part.isdecimal() for part in text.split("-"))


def restart(pod: Pod, policy: str, origin: Origin) -> None:
    """The settings for systemd that docker's restart policy means."""
    word, colon, count = policy.partition(":")
    words = {"no": "no", "on-failure": "on-failure", "always": "always", "unless-stopped": "always", "any": "always"}
    words |= {"none": "no"}
    if word not in words or (colon and not count.isdecimal()):
        pod.note(origin, f"{policy!r} is not a restart policy", "set Restart= in [service]")
        return
    pod.setting("service", "Restart", words[word])
    if colon and int(count):
        # systemd counts starts, docker restarts.
        pod.setting("unit", "StartLimitBurst", int(count) + 1)
        pod.setting("unit", "StartLimitIntervalSec", "infinity")
    if words[word] == "always":
        # What docker starts again after a reboot is enabled here.
        pod.setting("install", "WantedBy", "multi-user.target")


def words(value: Any) -> list[str]:
    """A command: a list of words, or one text that is split as a shell splits it, without a shell."""
    if isinstance(value, list):
        return [text(word) for word in value]
    lexer = shlex.shlex(str(value), posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    return list(lexer)


def text(value: Any) -> str:
    """A YAML value as compose makes text of it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def boolean(value: Any) -> bool:
    """A switch: what YAML, docker and systemd call true. Raises ValueError."""
    word = text(value).strip().lower()
    if word in ("1", "true", "yes", "on", "t", "y", "always"):
        return True
    if word in ("0", "false", "no", "off", "f", "n", ""):
        return False
    raise ValueError(f"expected true or false, not {word!r}")


def pair(value: str) -> tuple[str, str]:
    """KEY=VALUE; without "=" the value is ""."""
    key, _, rest = value.partition("=")
    return key, rest


def shell(command: str) -> list[str]:
    """A command line for the container's shell."""
    return ["/bin/sh", "-c", command]


def number(value: str) -> object:
    """A whole number, unless it waits for the start. Raises ValueError."""
    if is_open(value):
        return value
    try:
        return int(value)
    except ValueError:
        raise ValueError("expected a whole number") from None
