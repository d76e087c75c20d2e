"""The names by which programs open their standard output or error a second time, and which files are searched for them.

Such an open(2) of a socket, which the journal's stream is, fails (ENXIO, open(2)); that of a regular file with O_TRUNC,
a shell's ``>``, empties it. Only a pipe can be opened by name without harm.
"""

from __future__ import annotations

_TEXT = (
    *("/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2"),
    *(f"/proc/{who}/fd/{number}" for who in ("self", "1", "thread-self", "$$") for number in (1, 2)),
)
NAMES = frozenset(name.encode() for name in _TEXT)
#: Configurations and scripts are small; what is larger is data or a program.
SMALL = 1 << 16

#: Of these, distributions' own files mention the names everywhere, and nobody configures a service there.
_NOT = (b"usr/local/lib/", b"usr/local/share/", b"usr/local/include/")
_NOT_ROOTS = (b"usr/", b"bin/", b"sbin/", b"lib/", b"lib64/", b"boot/", b"var/lib/", b"var/cache/", b"proc/", b"sys/")
_LIBRARIES = (b"/node_modules/", b"/site-packages/", b"/dist-packages/", b"/vendor/bundle/")


def searched(path: bytes) -> bool:
    """Whether a file of an image may say how its service logs: configurations, scripts, what is built into it.

    ``path``: relative, as in a layer.
    """
    if path.startswith(b"usr/local/"):
        return not path.startswith(_NOT)
    return not path.startswith(_NOT_ROOTS) and not any(word in path for word in _LIBRARIES)


def mentioned(data: bytes) -> bool:
    """Whether a text names the standard output or error as a file; programs do not count."""
    if b"/std" not in data and b"/fd/" not in data:
        return False
    return not data.startswith(b"\x7fELF") and any(name in data for name in NAMES)


def spoken_of(words: list[str]) -> bool:
    """The same of a command line or an environment."""
    return any(name in word for word in words for name in _TEXT)
