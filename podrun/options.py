"""How a hook declares its options: one record of option() fields is validation, JSON Schema and documentation."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Generic, TypeAlias, TypeVar

    T = TypeVar("T")
    U = TypeVar("U")
    #: Keys and indexes from a value down to the part of it that is wrong: ("publish", 1).
    Where: TypeAlias = tuple[str | int, ...]
else:
    Where = tuple

    class Generic:  # noqa: D101
        def __class_getitem__(cls, item):
            return cls

    T = U = None


class Wrong(ValueError):
    """A value that a declaration refuses. ``where`` leads from the value to the part that is wrong.

    ``others``: what else is wrong with it.
    """

    def __init__(self, what: str, where: Where = (), others: Sequence[Wrong] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.others = others


class Kind(Generic[T]):
    """A type of option: how its TOML value is read (``parse`` raises Wrong) and its JSON Schema."""

    __slots__ = ("parse", "refers_to", "schema", "secret")

    def __init__(
        self, parse: Callable[[Any], T], schema: Mapping[str, Any], refers_to: str = "", *, secret: bool = False
    ) -> None:
        self.parse = parse
        self.schema = schema
        #: See secret().
        self.secret = secret
        #: The fact whose giver the value names; see step_giving().
        self.refers_to = refers_to


class Option:
    """A field of an Options record: its kind, one sentence for people, and its default (REQUIRED: it has none)."""

    __slots__ = ("default", "doc", "kind")

    def __init__(self, kind: Kind[Any], doc: str, default: Any) -> None:
        self.kind = kind
        self.doc = doc
        self.default = default


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()


def option(kind: Kind[T], doc: str, default: Any = REQUIRED) -> T:
    """Declares a field: ``port: int = option(PORT, "the port to listen on")``. ``default`` is in parsed form."""
    return Option(kind, doc, default)  # type: ignore[return-value]


def read(options: type[Any], table: Any) -> Any:
    """The Options record of a TOML table: an instance of ``options``, defaults filled in.

    Raises Wrong for what is not a table, an unknown key (with the nearest known one), a missing key, a wrong value.
    """
    if not isinstance(table, dict):
        raise Wrong(f"expected a table, not {_say(table)}")
    declared: dict[str, Option] = options._field_defaults
    values = {}
    mistakes: list[Wrong] = []
    for key, value in table.items():
        if key not in declared:
            mistakes.append(Wrong(unknown(key, list(declared)), (key,)))
            continue
        try:
            values[key] = declared[key].kind.parse(value)
        except Wrong as wrong:
            mistakes += [_below(key, one) for one in (wrong, *wrong.others)]
    for key, field in declared.items():
        if key not in values and key not in table:
            if field.default is REQUIRED and not any(
                wrong.where[0] not in declared for wrong in mistakes if wrong.where
            ):
                # Beside a key that is spelled wrong it may not be missing at all.
                mistakes.append(Wrong(f"{key} is missing", ()))
            values[key] = field.default
    if mistakes:
        raise together(mistakes)
    return options(**values)


def together(mistakes: Sequence[Wrong]) -> Wrong:
    """Several mistakes as one exception: the first, with the others."""
    first, *others = mistakes
    return Wrong(first.what, first.where, others)


def _below(key: str, wrong: Wrong) -> Wrong:
    """The same one level up. Its message names the innermost key that is wrong."""
    named = any(type(part) is str for part in wrong.where)
    return Wrong(wrong.what if named else f"{key}: {wrong.what}", (key, *wrong.where))


def unknown(word: str, known: Sequence[str], what: str = "key") -> str:
    """The message for a word that is not among the known ones, with the nearest of them."""
    from difflib import get_close_matches

    from podrun.foreign_words import hint

    if what == "key" and word not in known and (better := hint(word)):
        return f"unknown key {word!r}; {better}"
    near = get_close_matches(word, known, 1, 0.6)
    return f"unknown {what} {word!r}" + (f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})")


def _say(value: Any) -> str:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a float", list: "an array", dict: "a table"}
    return names.get(type(value), type(value).__name__)


def _of(kind: type, what: str) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if type(value) is not kind:
            raise Wrong(f"expected {what}, not {_say(value)}")
        if kind is str and "\0" in str(value):
            raise Wrong("a NUL character cannot be part of a string here")
        return value

    return parse


def _port(value: Any) -> int:
    if type(value) is not int or not 0 < value < 65536:
        raise Wrong(f"expected a port from 1 to 65535, not {value!r}")
    return value


_SECONDS = {
    "us": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3, "": 1.0, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hr": 3600.0, "hour": 3600.0,
    "hours": 3600.0, "d": 86400.0, "day": 86400.0, "days": 86400.0, "w": 604800.0, "week": 604800.0,
    "weeks": 604800.0,
}  # fmt: skip


def _words(text: str) -> list[tuple[str, str]]:
    """Splits "2min 200ms" into [("2", "min"), ("200", "ms")]; a word that is no number with a unit has ("", it)."""
    words: list[tuple[str, str]] = []
    rest = text.strip()
    while rest:
        unit = rest.lstrip("0123456789.")
        number = rest[: len(rest) - len(unit)]
        unit = unit.lstrip()
        after = unit.lstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ%")
        words.append((number, unit[: len(unit) - len(after)]))
        if not number or after == rest:
            return [("", text)]
        rest = after.lstrip()
    return words


def whole(text: str, most: int = (1 << 63) - 1) -> int | None:
    """The number that decimal digits make; None for any other text, and for more than ``most``.

    int() takes signs, spaces and digits of any script as well, and raises ValueError for more than 4,300 of them.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        return None
    number = int(text)
    return number if number <= most else None


def _duration(value: Any) -> float:
    if type(value) in (int, float) and 0 <= value < 1 << 63:
        return float(value)
    if type(value) is str:
        if value.strip() == "infinity":
            return float("inf")
        words = _words(value)
        try:
            if words:
                return sum(float(number) * _SECONDS[unit] for number, unit in words)
        except (KeyError, ValueError):
            pass
    raise Wrong(f"expected a time span such as '20s' or '1min 30s' (systemd.time(7)), not {value!r}")


def _size(value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    if type(value) is str:
        number, unit = value[:-1], value[-1:].upper()
        if unit.isdigit():
            number, unit = value, "B"
        if unit in "BKMGTPE" and number.isascii() and number.replace(".", "", 1).isdigit() and len(number) < 20:
            scale = 1024 ** "BKMGTPE".index(unit)
            return int(number) * scale if number.isdigit() else int(float(number) * scale)
    raise Wrong(f"expected a size such as '256M' (systemd.resource-control(5)), not {value!r}")


def _absolute(value: Any) -> str:
    text: str = TEXT.parse(value)
    if not text.startswith("/"):
        raise Wrong(f"expected an absolute path, not {text!r}")
    if ".." in text.split("/"):
        raise Wrong(f"'..' is not allowed in {text!r}")
    return text


TEXT: Kind[str] = Kind(_of(str, "a string"), {"type": "string"})


INTEGER: Kind[int] = Kind(_of(int, "an integer"), {"type": "integer"})


BOOLEAN: Kind[bool] = Kind(_of(bool, "true or false"), {"type": "boolean"})


PORT: Kind[int] = Kind(_port, {"type": "integer", "minimum": 1, "maximum": 65535})


#: Seconds, spelled as systemd.time(7) does.
DURATION: Kind[float] = Kind(_duration, {"type": ["string", "number"], "examples": ["20s", "1min 30s"]})


#: Bytes, spelled as systemd.resource-control(5) does: K, M, G, T to the base 1024.
SIZE: Kind[int] = Kind(_size, {"type": ["string", "integer"], "examples": ["256M"]})


#: An absolute path without "..".
ABSOLUTE: Kind[str] = Kind(_absolute, {"type": "string", "pattern": "^/"})


ANYTHING: Kind[Any] = Kind(lambda value: value, {})


def choice(*words: str) -> Kind[str]:
    """One of the given words."""

    def parse(value: Any) -> str:
        if value not in words:
            raise Wrong(f"expected one of {', '.join(words)}, not {value!r}")
        return str(value)

    return Kind(parse, {"enum": list(words)})


def list_of(kind: Kind[T]) -> Kind[list[T]]:
    """An array of values of one kind."""

    def parse(value: Any) -> list[T]:
        if type(value) is not list:
            raise Wrong(f"expected an array, not {_say(value)}")
        values = []
        for index, item in enumerate(value):
            try:
                values.append(kind.parse(item))
            except Wrong as wrong:
                raise Wrong(wrong.what, (index, *wrong.where)) from None
        return values

    return Kind(parse, {"type": "array", "items": kind.schema})


def table_of(kind: Kind[T]) -> Kind[dict[str, T]]:
    """A table from any keys to values of one kind."""

    def parse(value: Any) -> dict[str, T]:
        if type(value) is not dict:
            raise Wrong(f"expected a table, not {_say(value)}")
        values = {}
        for key, item in value.items():
            try:
                values[key] = kind.parse(item)
            except Wrong as wrong:
                raise _below(key, wrong) from None
        return values

    return Kind(parse, {"type": "object", "additionalProperties": kind.schema})


def record(options: type[T]) -> Kind[T]:
    """A table declared by an Options record of its own."""
    return Kind(lambda value: read(options, value), schema_of(options))


def secret(kind: Kind[T]) -> Kind[T]:
    """The same for a value that no journal and no message may hold: ``down`` gets the option's default instead."""
    return Kind(kind.parse, kind.schema, secret=True)


def without_secrets(options: type[Any] | None, table: Mapping[str, Any]) -> dict[str, Any]:
    """A step's table as it may be written down. ``options``: the hook's declaration."""
    declared: dict[str, Option] = options._field_defaults if options is not None else {}
    return {key: value for key, value in table.items() if key not in declared or not declared[key].kind.secret}


def step_giving(fact: str) -> Kind[str]:
    """The name of an earlier step whose hook gives ``fact``; "" means the nearest one, and there has to be one."""
    return Kind(TEXT.parse, TEXT.schema, fact)


def checked(kind: Kind[U], parse: Callable[[U], T], schema: Mapping[str, Any] | None = None) -> Kind[T]:
    """A kind whose value is read further by ``parse``, which raises Wrong."""
    return Kind(lambda value: parse(kind.parse(value)), {**kind.schema, **(schema or {})})


def schema_of(options: type[Any]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of an Options record."""
    declared: dict[str, Option] = options._field_defaults
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: {**field.kind.schema, "description": field.doc} for key, field in declared.items()},
        "required": [key for key, field in declared.items() if field.default is REQUIRED],
    }
