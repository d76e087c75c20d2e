"""A cache of parsed TOML: running tomllib costs 12 ms of a start, reading its result back next to nothing.

Results are in the run directory under the hash of the text that they were parsed from, so none is ever out of date;
``gc`` removes them all. A directory that somebody else could write to is not used.
"""

from __future__ import annotations

import os
import stat

from podrun import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


#: A text that may hold secrets is parsed each time: nothing of it outlives the start.
_SECRET = ("content", "SetCredential")


def directory(run: str) -> str:
    """Where the results lie."""
    return f"{run}/parsed"


class Results:
    """The results in a directory; "" has none. New ones are kept when what is made of them is done without an error."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.new: list[tuple[str, str]] = []

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.new:
            self._keep()

    def of(self, text: str, parse: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """The tables of a text: known ones, else those that ``parse`` returns for ``arguments``."""
        known = self._recall(text)
        if known is None:
            known = parse(*arguments)
            if self.place and not any(word in text for word in _SECRET):
                try:
                    self.new.append((self._path(text), jsontext.dumps(known)))
                except (TypeError, RecursionError):
                    pass  # dates are not JSON
        return known

    def _recall(self, text: str) -> dict[str, Any] | None:
        if not self.place or not _is_ours(self.place):
            return None
        try:
            with open(self._path(text), encoding="utf-8") as file:
                tables = jsontext.loads(file.read())
        except (OSError, ValueError):
            return None
        return tables if isinstance(tables, dict) else None

    def _keep(self) -> None:
        from podrun import atomic

        try:
            os.makedirs(self.place, mode=0o700, exist_ok=True)
            for path, content in self.new if _is_ours(self.place) else ():
                atomic.replace(path, content)
        except OSError:
            pass  # a full or read-only disk is reported where it matters

    def _path(self, text: str) -> str:
        from _blake2 import blake2b

        return f"{self.place}/{blake2b(text.encode(), digest_size=20).hexdigest()}"


def forget(place: str) -> None:
    """Removes all results; a start may write others meanwhile."""
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        return
    for name in names:
        try:
            os.unlink(f"{place}/{name}")
        except FileNotFoundError:
            continue
    try:
        os.rmdir(place)
    except OSError:
        pass


def _is_ours(place: str) -> bool:
    try:
        found = os.stat(place, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
