"""A command on another host of the cluster, by ssh: its name checked, its words quoted, its host key known."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING

from podrun.cluster.programs import Done, run_all
from podrun.errors import WRONG_FILE, Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NAME = re.compile("[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
#: A host whose key is not known, or that wants a password, is an error and not a question.
_OPTIONS = [
    *("-T", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=10"),
    *("-oServerAliveInterval=3", "-oServerAliveCountMax=3", "-oClearAllForwardings=yes"),
]
#: The exit status of ssh where it reaches nobody: ssh(1).
UNREACHABLE = 255


def checked(name: str) -> str:
    """The name of a host. Raises Failure for anything else, such as an option of ssh."""
    if not _NAME.fullmatch(name):
        raise Failure(f"{name!r} is not the name of a host", code=WRONG_FILE)
    return name


def command(host: str, words: Sequence[str]) -> list[str]:
    """The command line that does ``words`` on a host, this one included."""
    if checked(host) == os.uname().nodename:
        return list(words)
    return ["ssh", *_OPTIONS, "--", host, " ".join(map(shlex.quote, words))]


def on_each(hosts: Iterable[str], words: Sequence[str], seconds: float, text: str = "") -> dict[str, Done]:
    """Does the same on several hosts side by side; how each ended, by its name."""
    return run_all({host: command(host, words) for host in hosts}, seconds, text)
