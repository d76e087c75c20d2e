"""The journal: an append-only record of what has been started and done. Teardown reads it and nothing else.

One file per segment of a pod, JSON Lines. The first line is the header (the pod as it was at ``up``); every later one
says what became of a step::

    {"v":1,"pod":{"name":"web",...},"segment":"pod","order":0,"file":"/etc/podrun/web.toml","boot_id":"...",...}
    {"n":0,"at":"starting","t":81234.56,"step":{"hook":"network","name":"network","options":{...}}}
    {"n":0,"at":"up","facts":{"netns":"/run/netns/podrun-web"},"ms":4.1}
    {"at":"ready"}
    {"at":"moving"}
    {"at":"serving"}
    {"at":"patience","seconds":2.0}
    {"n":0,"at":"stopping"}
    {"n":0,"at":"down"}

"moving" and "serving" are a later generation's (engine/swap.py): ports and names are about to move to it, have moved.

Intent is written before the act and the result after it, each with one write(2) of a whole line to an O_APPEND file: a
kill -9 leaves at most a torn last line, which is ignored when read and cut off before anything is appended. A line that
somebody else has damaged is passed over, so that the rest can be undone, and whoever undoes the pod reports it.
"""

from __future__ import annotations

import errno
import os
import time

from podrun import jsontext
from podrun.errors import CANNOT_CREATE, UNAVAILABLE, Failure
from podrun.hook import Facts, Pod
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

VERSION = 1
#: The segment of what comes before the first resident step. No container may have its name.
POD_SEGMENT = "pod"
#: The socket in the pod's directory through which a runtime hands over a terminal; it goes with the journals.
CONSOLE = "console"


class Entry(NamedTuple):
    """A step as its journal tells it. ``step`` is what was resolved at ``up``: hook, name, options, optional, for..."""

    n: int
    step: Mapping[str, Any]
    #: starting | up | failed (optional, and its up failed) | stopping | down
    at: str = "starting"
    #: As returned by ``up``, {} before that.
    facts: Facts = {}
    milliseconds: float = 0.0
    #: What a resident step announced before its ``up`` was over: {"pid", "start"}.
    process: Mapping[str, int] | None = None
    why: str = ""
    #: When it was begun, in milliseconds on the monotonic clock; 0.0 where that is not known.
    began: float = 0.0


class Header(NamedTuple):
    """Who wrote a journal, and where: the first line."""

    pod: Pod
    segment: str
    order: int
    file: str
    boot_id: str
    #: The launcher: pid and start time (field 22 of proc(5) stat).
    pid: int
    start: int
    version: int = VERSION


class Journal(NamedTuple):
    """The content of one journal file. ``header`` is None when podrun was killed before the first line was whole."""

    path: str
    header: Header | None
    entries: tuple[Entry, ...]
    ready: bool = False
    stopping: bool = False
    #: What only one generation can have is or was about to move to this one; has moved, and not back.
    moving: bool = False
    serving: bool = False
    #: Seconds that whoever asked for the end gives each container, -1.0: what the pod file says counts.
    patience: float = -1.0
    #: The first line that is whole and yet says nothing that podrun writes; 0: there is none.
    damaged: int = 0

    @property
    def segment(self) -> str:
        """The segment's name, which is the file's."""
        return os.path.basename(self.path).removesuffix(".journal")


# --- where journals and locks live ---------------------------------------------------------------------------------


def directory(run: str, pod: str) -> str:
    """The pod's directory below the run directory; that of one generation for its key ("web/+2")."""
    return f"{run}/pods/{pod}"


def generations(run: str, pod: str) -> list[str]:
    """The keys of the pod's generations that have a journal, oldest first: ["web", "web/+2"]."""
    names = _listed(directory(run, pod))
    numbers = sorted(int(name[1:]) for name in names if name[0] == "+" and name[1:].isdecimal())
    keys = [f"{pod}/+{number}" for number in numbers]
    later = [key for key in keys if any(name.endswith(".journal") for name in _listed(directory(run, key)))]
    return [*([pod] if any(name.endswith(".journal") for name in names) else []), *later]


def serving(run: str, pod: str) -> str:
    """The key of the generation that has the pod's ports and names; the pod's name when there is none."""
    keys = generations(run, pod)
    if len(keys) == 1:
        return keys[0]  # whatever its journals say: they need not be read
    moved = (key for key in reversed(keys) if any(journal.serving for journal in of_generation(run, key)))
    return next(moved, keys[0] if keys else pod)


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def everything(run: str, pod: str) -> list[Journal]:
    """The journals of all generations of a pod, oldest first."""
    return [journal for key in generations(run, pod) for journal in of_generation(run, key)]


def pods(run: str) -> list[str]:
    """The names of the pods that have a directory, sorted."""
    try:
        return sorted(name for name in os.listdir(f"{run}/pods") if not name.startswith("."))
    except FileNotFoundError:
        return []


def journals(run: str, pod: str, segment: str = "") -> list[Journal]:
    """The journals of the pod's generation that serves, in the order in which its segments start.

    With ``segment``, those that go down with it: its own, and for the pod segment all, because they stand on it.
    """
    return of_generation(run, serving(run, pod), segment)


def of_generation(run: str, key: str, segment: str = "") -> list[Journal]:
    """The same of one generation."""
    names = _listed(directory(run, key))
    found = [read(f"{directory(run, key)}/{name}") for name in names if name.endswith(".journal")]
    if segment not in ("", POD_SEGMENT):
        found = [journal for journal in found if journal.segment == segment]
    return sorted(found, key=lambda journal: journal.header.order if journal.header else -1)


def remove_directory(run: str, pod: str) -> None:
    """Removes the directory of a generation once its journals are gone; what somebody else has put there stays."""
    name = pod.partition("/")[0]
    try:
        os.unlink(f"{directory(run, pod)}/{CONSOLE}")
    except OSError:
        pass
    for path in (directory(run, pod), *(_of_other_versions(directory(run, name))), directory(run, name)):
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                os.rmdir(path)
            else:
                os.unlink(path)
        except OSError:
            continue


def _of_other_versions(where: str) -> list[str]:
    """What is left of generations without a journal: the version that has undone them did not know these files."""
    found = []
    for name in _listed(where):
        number, dot, _ = name.partition(".")
        inside = _listed(f"{where}/{number}")
        if name[0] == "+" and not any(file.endswith(".journal") for file in inside):
            found += [] if dot else [f"{where}/{name}/{file}" for file in inside]
            found.append(f"{where}/{name}")
    return found


# --- reading -------------------------------------------------------------------------------------------------------


def read(path: str) -> Journal:
    """The journal at ``path``; an absent or torn one reads as far as it is whole, a damaged line is passed over."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        text = ""
    header: Header | None = None
    entries: dict[int, Entry] = {}
    said: set[str] = set()
    place, patience, damaged = "", -1.0, 0
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            told = jsontext.loads(line)
            _typed(told, _KINDS)
            at = told.get("at", "")
            if number == 1:
                if told["v"] > VERSION:
                    return Journal(path, _header_of_another_version(path, told["v"]), ())
                header = _header(told)
            elif "n" not in told:
                said.add(at)
                place = at if at in ("moving", "serving") else place
                patience = float(told["seconds"]) if at == "patience" else patience
            elif at == "starting":
                _typed({**_NO_STEP, **told["step"]}, _STEP)
                entries[told["n"]] = Entry(told["n"], told["step"], began=told.get("t", 0.0))
            else:
                changes: dict[str, Any] = {key: told[key] for key in ("at", "facts", "process", "why") if key in told}
                for process in (told.get("process"), told.get("facts", {}).get("process")):
                    if process is not None:
                        _typed({**_NO_PROCESS, **process}, _PROCESS)
                if "ms" in told:
                    changes["milliseconds"] = told["ms"]
                entries[told["n"]] = entries[told["n"]]._replace(**changes)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged = damaged or number
    return Journal(
        path,
        header,
        tuple(entries[n] for n in sorted(entries)),
        "ready" in said,
        "stopping" in said,
        bool(place),
        place == "serving",
        patience,
        damaged,
    )


#: Of what type each value of a line is; the same of a pod's and a step's.
_KINDS: dict[str, tuple[type, ...]] = {
    "v": (int,), "n": (int,), "at": (str,), "t": (int, float), "ms": (int, float), "step": (dict,), "facts": (dict,),
    "process": (dict,), "why": (str,), "pod": (dict,), "segment": (str,), "order": (int,), "file": (str,),
    "boot_id": (str,), "pid": (int,), "start": (int,),
}  # fmt: skip
_TEXTS = (key for key, value in Pod._field_defaults.items() if value == "")
_POD: dict[str, tuple[type, ...]] = dict.fromkeys(("name", "root", "run", *_TEXTS), (str,))
_STEP: dict[str, tuple[type, ...]] = {"hook": (str,), "name": (str,), "options": (dict,)}
_PROCESS: dict[str, tuple[type, ...]] = {"pid": (int,), "start": (int,)}
_NO_STEP, _NO_PROCESS = dict.fromkeys(_STEP), dict.fromkeys(_PROCESS)


def _typed(table: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raises TypeError for a value of another type than podrun writes."""
    for key, value in table.items():
        if key in kinds and type(value) not in kinds[key]:
            raise TypeError(key)


def _header(line: Mapping[str, Any]) -> Header:
    told = line["pod"]
    _typed(told, _POD)
    values = {key: told[key] for key in Pod._fields if key in told}
    pod = Pod(**{**values, "services": tuple(values.get("services", ()))})
    return Header(
        pod, line["segment"], line["order"], line["file"], line["boot_id"], line["pid"], line["start"], line["v"]
    )


def _header_of_another_version(path: str, version: int) -> Header:
    """What is known of a journal that a newer podrun has written: whose it is."""
    *_, before, last, file = path.split("/")
    pod = Pod(before, "", "", generation=int(last[1:])) if last.startswith("+") else Pod(last, "", "")
    return Header(pod, file.removesuffix(".journal"), 0, "", "", 0, 0, version)


def refuse_newer(found: Sequence[Journal]) -> None:
    """Raises Failure for journals of a newer podrun: what they mean is for that one to say."""
    for journal in found:
        if journal.header and journal.header.version > VERSION:
            what = f"a newer podrun has started it (journal version {journal.header.version}, known is {VERSION})"
            raise Failure(what, code=UNAVAILABLE, hint="let that podrun undo it")


# --- writing -------------------------------------------------------------------------------------------------------


class Writer:
    """Appends to one journal. Close it, or use it as a context manager; closing releases nothing but the descriptor."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        size = os.fstat(self.fd).st_size
        end = size
        while end and os.pread(self.fd, 1, end - 1) != b"\n":
            # A torn line is short work only because lines are: read back in blocks.
            block = os.pread(self.fd, min(end, 4096), max(0, end - 4096))
            found = block.rfind(b"\n")
            end = max(0, end - 4096) + (found + 1 if found >= 0 else 0)
        if end != size:
            os.ftruncate(self.fd, end)

    def _append(self, line: Mapping[str, Any]) -> None:
        data = (jsontext.dumps(line) + "\n").encode()
        try:
            written = os.write(self.fd, data)
        except OSError as error:
            raise Failure(f"{self.path}: {error.strerror}", code=CANNOT_CREATE) from error
        if written != len(data):
            # What is appended next has to be a line of its own.
            os.ftruncate(self.fd, os.fstat(self.fd).st_size - written)
            raise Failure(f"{self.path}: {os.strerror(errno.ENOSPC)}", code=CANNOT_CREATE)

    def _append_if_possible(self, line: Mapping[str, Any]) -> None:
        """Appends as far as possible during an undo: a full disk must not keep a pod from being removed."""
        try:
            self._append(line)
        except Failure:
            pass

    def header(self, header: Header) -> None:
        """The first line."""
        line = {**header._asdict(), "pod": header.pod._asdict()}
        line["v"] = line.pop("version")
        self._append(line)

    def starting(self, n: int, step: Mapping[str, Any]) -> None:
        """The intent of a step, before its ``up``."""
        self._append({"n": n, "at": "starting", "t": round(time.monotonic() * 1000, 2), "step": step})

    def process(self, n: int, pid: int, start: int) -> None:
        """A resident step's process, as soon as it exists."""
        self._append({"n": n, "process": {"pid": pid, "start": start}})

    def up(self, n: int, facts: Facts, milliseconds: float) -> None:
        """The facts of a step whose ``up`` is done."""
        self._append({"n": n, "at": "up", "facts": facts, "ms": round(milliseconds, 2)})

    def failed(self, n: int, why: str) -> None:
        """An optional step that failed and was skipped; its ``down`` still runs."""
        self._append({"n": n, "at": "failed", "why": why})

    def ready(self) -> None:
        """Every step of the segment is up."""
        self._append({"at": "ready"})

    def moving(self) -> None:
        """What only one generation can have is about to move to this one."""
        self._append({"at": "moving"})

    def moving_back(self) -> None:
        """The same as far as possible: a full disk must not keep a pod from going back."""
        self._append_if_possible({"at": "moving"})

    def serving(self) -> None:
        """It has moved."""
        self._append({"at": "serving"})

    def patience(self, seconds: float) -> None:
        """How long each container may take to end, whatever the pod file says."""
        self._append({"at": "patience", "seconds": seconds})

    def stopping(self, n: int | None = None) -> None:
        """Before a step's ``down``; without ``n``: the whole segment is being undone."""
        self._append_if_possible({"at": "stopping"} if n is None else {"n": n, "at": "stopping"})

    def down(self, n: int) -> None:
        """A step is undone."""
        self._append_if_possible({"n": n, "at": "down"})

    def close(self) -> None:
        """Closes the file."""
        os.close(self.fd)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
