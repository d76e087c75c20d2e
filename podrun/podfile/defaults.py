"""What podrun.toml says for all pods: [defaults] has keys of [pod], [defaults.HOOK] options of that hook's steps."""

from __future__ import annotations

from podrun import host_defaults
from podrun.options import Wrong, read, unknown
from podrun.podfile import files
from podrun.podfile.model import Place
from podrun.podfile.tables import COMMON, PodTable
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.podfile.cache import Results
    from podrun.podfile.files import Source
    from podrun.podfile.model import Table

#: The keys of [pod] that may have a default.
_POD_KEYS = ("userns", "stop_timeout")
#: Keys that hooks read themselves, whichever step asks: where services are registered, and by which address.
_READ_ELSEWHERE = ("registry", "advertise")


class Defaults(NamedTuple):
    """What holds where a pod file says nothing."""

    text: Source
    pod: dict[str, Any] = {}
    #: By hook.
    steps: dict[str, dict[str, Any]] = {}

    def complete(self, pod: Table, chain: Sequence[Table]) -> None:
        """Gives the tables of a pod file the values that they do not have."""
        _complete(pod, self.pod, Place(self.text, ("defaults",)))
        for step in chain if self.steps else ():
            hook = step.values["hook"]
            _complete(step, self.steps.get(hook, {}), Place(self.text, ("defaults", hook)))


def _complete(table: Table, values: dict[str, Any], place: Place) -> None:
    for key, value in values.items():
        if key not in table.values:
            table.values[key] = value
            table.later[key] = place


def load(results: Results) -> Defaults:
    """Reads the host's file; Defaults without content where there is none.

    Raises Failure (WRONG_FILE) with file and line.
    """
    path = host_defaults.path()
    text = files.configuration(path)
    if text is None:
        return Defaults(files.Source(path, None))
    tables = results.of(text.text or "", files.tables, text)
    try:
        return _read(text, tables)
    except Wrong as wrong:
        raise text.failure(wrong.what, wrong.where) from None


def _read(text: Source, tables: dict[str, Any]) -> Defaults:
    for key in tables:
        if key != "defaults":
            raise Wrong(unknown(key, ["defaults"], "table"), (key,))
    table = tables.get("defaults", {})
    if type(table) is not dict:
        raise Wrong("expected a table, [defaults]", ("defaults",))
    pod: dict[str, Any] = {}
    steps: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        if key in _READ_ELSEWHERE:
            continue
        if type(value) is dict:
            if misplaced := [word for word in value if word in COMMON]:
                raise Wrong(f"{misplaced[0]} is not an option of a hook", ("defaults", key, misplaced[0]))
            steps[key] = value
        elif key in _POD_KEYS:
            pod[key] = value
        else:
            what = unknown(key, [*_POD_KEYS, *_READ_ELSEWHERE])
            raise Wrong(f"{what}; options of a hook stand in a table, such as [defaults.container]", ("defaults", key))
    try:
        read(PodTable, pod)
    except Wrong as wrong:
        raise Wrong(wrong.what, ("defaults", *wrong.where)) from None
    return Defaults(text, pod, steps)
