"""The draft that a conversion fills: pods, networks, and notes about what needs a hand."""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple

from podrun.errors import WRONG_FILE, Failure

#: Stand for what podrun substitutes at start, until toml.py writes them: ${NAME} and %i. No file that is read may hold
#: these characters (U+FDD0 to U+FDEF are noncharacters: Unicode keeps them free for such use).
OPEN, CLOSE, INSTANCE = "\ufdd0", "\ufdd1", "\ufdd2"


class Origin(NamedTuple):
    """A place in the foreign file: "compose.yaml:12", and what stands there: "services.web.ports"."""

    where: str
    key: str

    def below(self, key: str | int) -> Origin:
        """The place of a part of it."""
        return self._replace(key=f"{self.key}[{key}]" if isinstance(key, int) else f"{self.key}.{key}".lstrip("."))


class Note(NamedTuple):
    """Something that people have to know of a conversion."""

    origin: Origin
    what: str
    #: What to do about it; "" when there is nothing to do.
    hint: str = ""
    #: False: the pod does the same as before, only otherwise. True: something is missing until it is done by hand.
    by_hand: bool = True
    #: "left out: memory" where this podrun takes the value in no key; ``what`` is why.
    left_out: str = ""

    def __str__(self) -> str:
        place = ": ".join(part for part in (*self.origin, self.left_out) if part)
        kind = "by hand" if self.by_hand else "note"
        return f"{kind}: {place}: {self.what}" + (f"; {self.hint}" if self.hint else "")


class Step:
    """A [[chain]] table in the making, and where each of its values comes from."""

    def __init__(self, hook: str, **values: Any) -> None:
        self.hook = hook
        self.values: dict[str, Any] = dict(values)
        self.origins: dict[str, Origin] = {}
        #: Of the items of lists, by key and item.
        self.items: dict[tuple[str, str], Origin] = {}

    def set(self, key: str, value: Any, origin: Origin) -> None:
        """Gives the key a value."""
        self.values[key] = value
        self.origins[key] = origin

    def append(self, key: str, value: Any, origin: Origin) -> None:
        """Adds a value to a list."""
        self.values.setdefault(key, []).append(value)
        self.origins.setdefault(key, origin)
        self.items.setdefault((key, str(value)), origin)

    def put(self, key: str, inner: str, value: Any, origin: Origin) -> None:
        """Adds a key to a table."""
        self.values.setdefault(key, {})[inner] = value
        self.origins.setdefault(key, origin)
        self.items.setdefault((key, inner), origin)

    def origin(self, key: str, item: object, otherwise: Origin) -> Origin:
        """Where a value comes from, or an item of it."""
        return self.items.get((key, str(item))) or self.origins.get(key) or otherwise


class Pod:
    """A pod file in the making."""

    def __init__(self, name: str, origin: Origin) -> None:
        #: The file's name without .toml: the pod's name, in a template with "@" and perhaps an instance behind.
        self.name = name
        self.origin = origin
        self.table: dict[str, Any] = {}
        self.steps: list[Step] = []
        self.sections: dict[str, dict[str, Any]] = {}
        self.notes: list[Note] = []

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.toml"

    def note(self, origin: Origin, what: str, hint: str = "", *, by_hand: bool = True, left_out: str = "") -> None:
        """Adds a note, once."""
        note = Note(origin, what, hint, by_hand, left_out)
        if note not in self.notes:
            self.notes.append(note)

    def setting(self, section: str, key: str, value: Any) -> None:
        """Sets a setting for systemd."""
        self.sections.setdefault(section, {})[key] = value

    def settings(self, section: str, key: str, values: list[str]) -> None:
        """Adds values to a setting for systemd that may be given several times."""
        have = self.sections.setdefault(section, {}).setdefault(key, [])
        have.extend(value for value in values if value not in have)


class Draft:
    """Everything that one conversion makes."""

    def __init__(self) -> None:
        self.pods: list[Pod] = []
        #: The [networks.NAME] tables of networks.toml, as steps so that their values know where they come from.
        self.networks: dict[str, Step] = {}
        #: Notes about no pod in particular.
        self.notes: list[Note] = []

    def note(self, origin: Origin, what: str, hint: str = "", *, by_hand: bool = True) -> None:
        """Adds a note about no pod in particular, once."""
        note = Note(origin, what, hint, by_hand)
        if note not in self.notes:
            self.notes.append(note)

    def add(self, pod: Pod) -> None:
        """Adds a pod. Raises Failure (WRONG_FILE) when an earlier one has its name."""
        earlier = next((other for other in self.pods if other.name == pod.name), None)
        if earlier is not None:
            places = f"{_place(earlier.origin)} and {_place(pod.origin)}"
            raise Failure(f"{places} both become {pod.file}", code=WRONG_FILE, hint="rename one of them")
        self.pods.append(pod)

    def all_notes(self) -> list[Note]:
        """All notes, those of the pods in the order of the pods."""
        return [*self.notes, *(note for pod in self.pods for note in pod.notes)]


def _place(origin: Origin) -> str:
    return " ".join(part for part in origin if part)


def identity(text: str) -> str:
    """The nearest name that a pod can have: "My_App.1" is "my-app-1". Raises Failure when nothing is left of it."""
    lower = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
    if not lower:
        raise Failure(f"{text!r} holds nothing that a pod's name can hold (a-z, 0-9, '-')", code=WRONG_FILE)
    return lower if len(lower) <= 63 else shortened(lower, 63)


def unit_name(text: str) -> str:
    """The nearest name that a pod's file can have: of a template with "@", of its instance with that behind.

    Raises Failure (WRONG_FILE) for an instance that is none: it is not podrun's to rename.
    """
    prefix, at, instance = text.partition("@")
    if instance and (step_name(instance) != instance or len(instance) > 63):
        raise Failure(
            f"{text!r}: podrun knows no instance {instance!r}", code=WRONG_FILE, hint="a-z, 0-9, '_', '.' and '-'"
        )
    return f"{identity(prefix)}{at}{instance}"


def unspecified(path: str) -> str:
    """A path for a setting of systemd's, which reads specifiers in it."""
    return path.replace("%", "%%")


def step_name(text: str) -> str:
    """The nearest name that a step can have."""
    lower = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in text.lower()).lstrip("_.-")
    return (lower or "step")[:63]


def link_name(text: str) -> str:
    """The nearest name that a bridge can have: the kernel allows 15 characters (dev_valid_name())."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in text).strip("-.") or "net"
    return plain if len(plain) <= 15 else shortened(plain, 15)


def shortened(text: str, length: int) -> str:
    """The text cut to a length; what is cut off is told apart by five digits of its hash."""
    return f"{text[: length - 6].rstrip('-._')}-{hashlib.sha256(text.encode()).hexdigest()[:5]}"


def variable(name: str) -> str:
    """A variable that podrun itself substitutes at start."""
    return f"{OPEN}{name}{CLOSE}"


def is_open(value: Any) -> bool:
    """Whether a value waits for something that only the start knows."""
    if isinstance(value, str):
        return OPEN in value or INSTANCE in value
    if isinstance(value, dict):
        return any(map(is_open, value.values()))
    return isinstance(value, list) and any(map(is_open, value))


def absolute(path: str, directory: str, home: str = "") -> str:
    """A path as docker and compose read it: "~" is the home directory, anything relative is below ``directory``."""
    if path == "~" or path.startswith("~/"):
        path = f"{home or os.path.expanduser('~')}{path[1:]}"
    if path.startswith(OPEN):
        return path
    return os.path.normpath(os.path.join(directory, path))
