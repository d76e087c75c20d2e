"""Where something is mounted, as a process sees it."""

from __future__ import annotations

#: What the kernel writes in octal (proc(5)); the backslash last, since it begins the others.
_ESCAPED = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


def points(process: int | str = "self") -> list[str]:
    """The mount points in a process' namespace, by its root. Raises OSError."""
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        found = [line.split(" ")[4] for line in file]
    for code, letter in _ESCAPED:
        found = [point.replace(code, letter) for point in found]
    return found
